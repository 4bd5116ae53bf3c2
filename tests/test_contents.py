"""What tells a stored array from what it was, what of it was never written, and its source."""

import json
import os
import pickle
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import dask
import dask.array as da
import fsspec
import h5py
import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file

from kldiv_dask.storage import Contents, change, hdf5, open_array, open_pair, source_of
from kldiv_dask.storage import zarr as zarr_format
from kldiv_dask.storage.contents import in_utc, sample, seen_object
from tests.helpers import llama_base
from tests.helpers.stores import VALUES, served, write

# Dask's array expressions have names of their own.
EXPRESSIONS = dask.config.get("array.query-planning", False)

BLOCKS = {
    "zarr2": {"zarr_format": 2},
    "nested zarr2": {
        "zarr_format": 2,
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "zarr3": {},
    "flat zarr3": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "v2 names in zarr3": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "sharded": {"shards": (4, 6)},
    "index first": {"shards": (4, 6), "index": "start"},
}


def make(path, kind="zarr3", shape=(10, 6), chunks=(4, 3), key=None, fill_value=0, **more):
    """Make an array of chunks that are not written yet."""
    options = BLOCKS[kind] | more
    if options.pop("index", None):
        inner = zarr.codecs.BytesCodec(), zarr.codecs.ZstdCodec()
        codec = zarr.codecs.ShardingCodec(chunk_shape=(2, 3), codecs=inner, index_location="start")
        options |= {"serializer": codec, "compressors": None}
        chunks = options.pop("shards")
    elif "shards" in options:
        chunks = (2, 3)
    return zarr.create_array(
        path,
        name=key,
        shape=shape,
        chunks=chunks,
        dtype="f4",
        fill_value=fill_value,
        config={"write_empty_chunks": True},
        **options,
    )


def look(path, key=None):
    found = source_of(open_array(path, key=key)).contents()
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert Contents(**found.to_dict()) == found._replace(missing=(), fill=None)
    return found


def size_below(path):
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


# How many files, and which of their chunks are missing


@pytest.mark.parametrize("key", [None, "deep/scores"])
@pytest.mark.parametrize(
    "kind", ["zarr2", "nested zarr2", "zarr3", "flat zarr3", "v2 names in zarr3"]
)
def test_chunks_of_zarr(tmp_path, kind, key):
    path = tmp_path / "x.zarr"
    array = make(path, kind, key=key, fill_value=-7)
    documents = 2 if "zarr2" in kind else 1  # the attributes are in one of their own
    empty = look(path, key)
    every = [((i, min(i + 4, 10)), (j, j + 3)) for i in (0, 4, 8) for j in (0, 3)]
    assert (empty.files, empty.checked, empty.fill) == (documents, documents, -7)
    assert list(empty.missing) == every
    array[:4] = 1
    array[8:, 3:] = 1
    found = look(path, key)
    assert (found.files, found.checked) == (documents + 3, documents + 3)
    assert list(found.missing) == every[2:5]
    folder = path / key if key else path
    assert found.nbytes == size_below(folder)
    array[:] = 1
    full = look(path, key)
    assert (full.files, full.missing) == (documents + 6, ())
    assert (full.path, full.key, full.shape, full.dtype) == (str(path), key, [10, 6], "float32")
    assert len({empty.digest, found.digest, full.digest}) == 3
    assert look(path, key) == look(f"file://{path}", key) == full
    assert change(full.to_dict(), look(path, key).to_dict()) == ""


@pytest.mark.parametrize("kind", ["sharded", "index first"])
def test_chunks_of_shards(tmp_path, kind):
    path = tmp_path / "x.zarr"
    array = make(path, kind)
    assert look(path).missing == (((0, 4), (0, 6)), ((4, 8), (0, 6)), ((8, 10), (0, 6)))
    array[0:2, 3:6] = 1
    array[8:10] = 1  # what the last shard has beyond the shape is not missing
    found = look(path)
    assert found.files == 3
    assert found.missing == (
        ((0, 2), (0, 3)),
        ((2, 4), (0, 3)),
        ((2, 4), (3, 6)),
        ((4, 8), (0, 6)),
    )
    array[:] = 1
    assert look(path).missing == ()


def test_shards_with_an_encoded_index_count_as_written(tmp_path):
    path = tmp_path / "x.zarr"
    index = zarr.codecs.BytesCodec(endian="big"), zarr.codecs.Crc32cCodec()
    codec = zarr.codecs.ShardingCodec(chunk_shape=(2, 3), index_codecs=index)
    array = zarr.create_array(
        path, shape=(8, 6), chunks=(4, 6), dtype="f4", serializer=codec, compressors=None
    )
    array[0:2] = 1
    assert look(path).missing == (((4, 8), (0, 6)),)
    assert open_array(path).sum().compute() == 12


@pytest.mark.parametrize("size", [0, 10])
def test_shards_without_room_for_an_index_are_for_the_read_to_find(tmp_path, size):
    make(tmp_path / "x.zarr", "sharded")[:] = 1
    os.truncate(tmp_path / "x.zarr" / "c" / "0" / "0", size)
    assert look(tmp_path / "x.zarr").missing == ()


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,)])
@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_scalar_and_empty_arrays(tmp_path, kind, shape):
    path, _ = write(tmp_path, kind, np.full(shape, 7.0), chunks=tuple(max(n, 1) for n in shape))
    found = look(path)
    documents = 2 if kind == "zarr2" else 1
    assert (found.files, found.missing) == (documents + (0 not in shape), ())
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = np.full(shape, 7.0)
    assert look(tmp_path / "x.h5").missing == ()


@pytest.mark.parametrize(
    ("fill_value", "fill"), [(-7, -7.0), (np.nan, np.nan), (-np.inf, -np.inf), (None, 0.0)]
)
def test_what_missing_chunks_read_as(tmp_path, fill_value, fill):
    kind = "zarr2" if fill_value is None else "zarr3"
    make(tmp_path / "x.zarr", kind, fill_value=fill_value)
    found = look(tmp_path / "x.zarr").fill
    assert np.array_equal(found, fill, equal_nan=True)
    read = open_array(tmp_path / "x.zarr").compute()
    assert np.array_equal(read, np.full((10, 6), found), equal_nan=True)


def test_missing_chunks_of_what_stands_for_none_are_nan(tmp_path):
    make(tmp_path / "x.zarr", fill_value=-7).attrs["_FillValue"] = -7
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (8,), "f4", chunks=(4,), fillvalue=-7).attrs["_FillValue"] = -7
    for name in "x.zarr", "x.h5":
        assert np.isnan(look(tmp_path / name).fill)
        assert np.isnan(open_array(tmp_path / name).compute()).all()


@pytest.mark.parametrize("iterates", [True, False])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_chunks_of_hdf5(tmp_path, version, iterates):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=version) as file:
        file.create_dataset("x", (10, 6), "f4", chunks=(4, 3), fillvalue=-7)
        file["y"] = VALUES
    assert len(look(path, "x").missing) == 6
    with h5py.File(path, "a", libver=version) as file:
        file["x"][:4] = 1
        file["x"][8:, 3:] = 1
        chunks = hdf5._starts(file["x"].id if iterates else _WithoutIteration(file["x"].id))
        assert sorted(chunks) == [(0, 0), (0, 3), (8, 3)]
    found = look(path, "x")
    assert (found.files, found.checked, found.nbytes) == (1, 1, path.stat().st_size)
    assert found.missing == (((4, 8), (0, 3)), ((4, 8), (3, 6)), ((8, 10), (0, 3)))
    assert (found.newest, found.fill, found.dtype) == ("x.h5", -7, "float32")
    assert look(path, "y").missing == ()


class _WithoutIteration:
    """A dataset as libraries before HDF5 1.12.3 have it."""

    def __init__(self, dataset):
        self.get_num_chunks, self.get_chunk_info = dataset.get_num_chunks, dataset.get_chunk_info


def test_contiguous_hdf5(tmp_path):
    path = tmp_path / "x.h5"
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (10, 6), "f4")
        space = h5py.h5s.create_simple((3,))
        h5py.h5d.create(file.id, b"compact", h5py.h5t.NATIVE_FLOAT, space, compact)
    assert look(path, "x").missing == (((0, 10), (0, 6)),)
    assert look(path, "compact").missing == ()
    with h5py.File(path, "a") as file:
        file["x"][0, 0] = 1
    assert look(path, "x").missing == ()


def test_files_that_are_mapped(tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    save_file({"x": VALUES}, tmp_path / "x.safetensors")
    rng = np.random.default_rng(0)
    llama_base.write(tmp_path / "base", rng.normal(size=(2, 4, 6)), np.zeros((2, 9), int))
    for path in (tmp_path / name for name in ("x.npy", "x.safetensors", "base")):
        os.utime(path, ns=(0, 1_764_151_201_000_000_500))
        found = look(path)
        assert (found.files, found.checked, found.missing) == (1, 1, ())
        assert (found.fill, found.nbytes) == (None, os.path.getsize(path))
        assert found.newest == os.path.basename(path)
        assert found.written == "2025-11-26T10:00:01.0000005Z"


def test_newest(tmp_path):
    make(tmp_path / "x.zarr")[:] = 1
    os.utime(tmp_path / "x.zarr" / "c" / "1" / "0", (4e9, 4e9))
    found = look(tmp_path / "x.zarr")
    assert (found.newest, found.written) == ("c/1/0", "2096-10-02T07:06:40Z")


# How many are looked at


@pytest.mark.parametrize("most", [1, 2, 3, 6, 7, 100])
@pytest.mark.parametrize("kind", ["zarr3", "sharded"])
def test_no_more_are_looked_at_than_configured(tmp_path, kind, most):
    array = make(tmp_path / "x.zarr", kind, shape=(24, 6), chunks=(4, 6))
    array[:] = 1
    for file in tmp_path.rglob("c/*/0"):
        os.utime(file, (4e9, 4e9 + int(file.parent.name)))
    with dask.config.set({"kldiv.files-checked": most}):
        found = look(tmp_path / "x.zarr")
        assert found == look(tmp_path / "x.zarr")
    assert (found.files, found.checked) == (7, min(most, 7))
    newest = {1: "zarr.json", 2: "c/0/0", 3: "c/3/0", 6: "c/4/0"}
    assert found.newest == newest.get(most, "c/5/0")


def test_missing_are_cut_off(tmp_path):
    make(tmp_path / "x.zarr", shape=(100, 6))
    array = make(tmp_path / "y.zarr", "sharded", shape=(100, 6))
    array[::4] = 1
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (100, 6), "f4", chunks=(4, 3))
    with dask.config.set({"kldiv.files-checked": 7}):
        assert len(look(tmp_path / "x.zarr").missing) == 6
        assert len(look(tmp_path / "y.zarr").missing) == 7
        assert len(look(tmp_path / "x.h5").missing) == 7


def test_sample():
    for most in range(30):
        chosen = list(sample((4, 5), most))
        assert chosen == sorted(set(chosen))
        assert len(chosen) == min(most, 20)
    assert list(sample((4, 5), 5)) == [(0, 0), (0, 4), (1, 3), (2, 2), (3, 1)]
    assert list(sample((10**9, 10**9), 2)) == [(0, 0), (5 * 10**8, 0)]
    assert list(sample((), 1)) == [()]
    assert list(sample((0, 3), 9)) == []


# What is refused


def dangling(file):
    target = file.rename(file.with_name("moved"))
    file.symlink_to(target)
    target.unlink()


def dangling_folder(file):
    target = file.parent.rename(file.parent.with_name("moved"))
    file.parent.symlink_to(target)
    shutil.rmtree(target)


def directory(file):
    file.unlink()
    file.mkdir()


def file_for_folder(file):
    shutil.rmtree(file.parent)
    file.parent.touch()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (dangling, "c/1/1 must be a file, got a link to nothing: .*c/1/1"),
        (dangling_folder, "c/1/[01] must be a file, got a link to nothing: .*c/1$"),
        (directory, "c/1/1 must be a file, got a directory or a device"),
        (file_for_folder, "c/1/[01] must be a file, got a file in place of its folder"),
    ],
)
def test_chunks_that_are_no_files(tmp_path, damage, message):
    path = tmp_path / "x.zarr"
    make(path)[:] = 1
    damage(path / "c" / "1" / "1")
    with pytest.raises(ValueError, match=message):
        source_of(open_array(path)).contents()


@pytest.mark.parametrize("linked", ["c/1/1", "c/1", "c"])
def test_links_to_chunks(tmp_path, linked):
    """As of those who spread an array over disks."""
    make(tmp_path / "x.zarr")[:] = 1
    before = look(tmp_path / "x.zarr")
    (tmp_path / "x.zarr" / linked).rename(tmp_path / "moved")
    (tmp_path / "x.zarr" / linked).symlink_to(tmp_path / "moved")
    assert look(tmp_path / "x.zarr") == before
    assert open_array(tmp_path / "x.zarr").sum().compute() == 60


def test_what_has_gone(tmp_path):
    make(tmp_path / "x.zarr")[:] = 1
    np.save(tmp_path / "x.npy", VALUES)
    sources = [source_of(open_array(tmp_path / name)) for name in ("x.zarr", "x.npy")]
    shutil.rmtree(tmp_path / "x.zarr")
    (tmp_path / "x.npy").unlink()
    for source in sources:
        with pytest.raises(FileNotFoundError, match=re.escape(source.path)):
            source.contents()


def test_a_dataset_that_has_gone(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = VALUES
    source = source_of(open_array(tmp_path / "x.h5"))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["y"] = VALUES
    with pytest.raises(ValueError, match=r"x\.h5 is damaged or no HDF5 file.*doesn't exist"):
        source.contents()


# Stores behind URLs


@pytest.mark.parametrize("key", [None, "deep/scores"])
@pytest.mark.parametrize("kind", ["zarr2", "nested zarr2", "zarr3", "sharded"])
def test_memory(tmp_path, kind, key):
    path = f"memory:/{tmp_path}/x.zarr"
    array = make(path, kind, key=key)
    documents = 2 if "zarr2" in kind else 1
    chunks = 3 if kind == "sharded" else 6
    empty = look(path, key)
    assert (empty.files, empty.checked, len(empty.missing)) == (documents, documents, chunks)
    array[:4] = 1
    half = look(path, key)
    assert half.missing == empty.missing[chunks // 3 :]
    array[:] = 1
    full = look(path, key)
    assert (full.files, full.checked) == (documents + chunks, documents + chunks)
    assert full.missing == ()
    assert full.newest.startswith(key or "")
    assert full.written
    assert look(f"{path}/", key)._replace(path=path) == full
    array[9, 5] = 2
    assert "has changed: its newest file" in change(full.to_dict(), look(path, key).to_dict())
    with dask.config.set({"kldiv.files-checked": 3}):
        few = look(path, key)
    assert (few.files, few.checked, few.missing) == (documents + chunks, documents, ())


@pytest.mark.parametrize("key", [None, "deep/scores"])
@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "sharded"])
def test_http(tmp_path, kind, lists, key):
    pytest.importorskip("aiohttp")
    array = make(tmp_path / "x.zarr", kind, key=key)
    array[:4] = 1
    documents = 2 if kind == "zarr2" else 1
    written, chunks = (1, 3) if kind == "sharded" else (2, 6)
    with served(tmp_path, lists=lists) as url:
        found = look(f"{url}/x.zarr", key)
        assert (found.checked, found.fill) == (documents, 0)  # there are no times in a listing
        assert found.newest.endswith((".json", ".zarray", ".zattrs"))
        assert found.written
        if lists:
            assert found.files == documents + written
            assert len(found.missing) == chunks - written
        else:
            assert (found.files, found.missing) == (documents + chunks, ())
        assert look(f"{url}/x.zarr", key) == found
        array[4:8] = 1
        after = look(f"{url}/x.zarr", key)
        assert (after.digest != found.digest) == lists


def test_errors_of_a_server_are_not_taken_for_an_answer(tmp_path):
    pytest.importorskip("aiohttp")
    make(tmp_path / "x.zarr")[:] = 1
    with served(tmp_path) as url:
        source = source_of(open_array(f"{url}/x.zarr"))
    for most in 1, 100:
        with (
            dask.config.set({"kldiv.files-checked": most}),
            pytest.raises(OSError, match=re.escape(url.removeprefix("http://"))),
        ):
            source.contents()


def test_a_store_behind_a_url_that_has_gone(tmp_path):
    path = f"memory:/{tmp_path}/x.zarr"
    make(path)[:] = 1
    source = source_of(open_array(path))
    assert source.contents().files == 7
    fsspec.filesystem("memory").rm(f"{tmp_path}/x.zarr", recursive=True)
    with pytest.raises(FileNotFoundError, match=f"{path} is not there"):
        source.contents()


@pytest.mark.parametrize(
    ("info", "time", "tag"),
    [
        ({"size": 3, "ETag": '"ab"', "LastModified": datetime(2026, 1, 2, tzinfo=UTC)}, 0, '"ab"'),
        ({"size": 3, "etag": "x", "updated": "2026-01-02T00:00:00.000Z"}, 0, "x"),
        ({"size": 3, "last_modified": datetime(2026, 1, 2)}, 0, ""),
        ({"size": 3, "Last-Modified": "Fri, 02 Jan 2026 00:00:00 GMT"}, 0, ""),
        ({"size": 3, "mtime": 1767312000.5}, 500_000_000, ""),
        ({"size": 3, "created": 1767312000}, 0, ""),
        ({"size": 3, "mtime": "soon", "CRC": 77}, None, "77"),
        ({"size": 3, "modified": None}, None, ""),
    ],
)
def test_what_file_systems_tell(info, time, tag):
    """By what s3fs, gcsfs, adlfs, HTTP, local files, memory and archives call it."""
    found = seen_object("x", info)
    moment = int(datetime(2026, 1, 2, tzinfo=UTC).timestamp()) * 10**9
    assert found == ("x", 3, None if time is None else moment + time, tag)


def test_nothing_told():
    assert seen_object("x", {"name": "x", "size": None, "type": "file"}) is None


# What changed


def told(path, prepare, key=None):
    was = json.loads(json.dumps(look(path, key).to_dict()))
    prepare()
    return change(was, look(path, key).to_dict())


def dated(path, seconds):
    os.utime(path, (seconds, seconds))


def test_change_of_a_store(tmp_path):
    path = tmp_path / "x.zarr"
    array = make(path)
    array[:4] = 1
    for number, file in enumerate(sorted(path.rglob("*"))):
        dated(file, 1_764_151_200 + number)
    assert told(path, lambda: None) == ""
    assert told(path, lambda: dated(path / "c" / "0" / "0", 1_764_237_601)) == (
        f"{path} has changed: its newest file is now c/0/0, of 2025-11-27T10:00:01Z;"
        " before it was zarr.json, of 2025-11-26T10:00:04Z"
    )
    assert told(path, lambda: dated(path / "c" / "0" / "0", 1_764_237_601.25)) == (
        f"{path} has changed: its newest file, c/0/0, was written 2025-11-27T10:00:01.25Z,"
        " before that it was 2025-11-27T10:00:01Z"
    )
    assert told(path, lambda: dated(path / "c" / "0" / "1", 1_764_151_200)) == (
        f"{path} has changed: names, sizes or times of its files are others"
    )
    assert told(path, lambda: array.__setitem__(9, 1)) == (
        f"{path} has changed: it has 5 files, it had 3"
    )


def test_change_of_a_file(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, VALUES)
    dated(path, 1_764_151_200)
    assert told(path, lambda: dated(path, 1_764_151_201)) == (
        f"{path} has changed: it was written 2025-11-26T10:00:01Z, before it was"
        " 2025-11-26T10:00:00Z"
    )

    def append():
        with open(path, "ab") as file:
            file.write(bytes(8))
        dated(path, 1_764_151_202)

    assert told(path, append) == (
        f"{path} has changed: it has 616 bytes and was written 2025-11-26T10:00:02Z, before it had"
        " 608 and was written 2025-11-26T10:00:01Z"
    )
    assert told(path, lambda: np.save(path, VALUES[1:])) == (
        f"{path} has changed: its shape is [9, 6], it was [10, 6]"
    )
    assert told(path, lambda: np.save(path, VALUES[1:].astype("f4"))) == (
        f"{path} has changed: its dtype is float32, it was float64"
    )


def test_change_of_place(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = file["y"] = VALUES
    np.save(tmp_path / "x.npy", VALUES)
    x, y, other = (
        look(tmp_path / "x.h5", "x"),
        look(tmp_path / "x.h5", "y"),
        look(tmp_path / "x.npy"),
    )
    path = tmp_path / "x"
    assert change(x.to_dict(), y.to_dict()) == f"it is {path}.h5:y, it was {path}.h5:x"
    assert change(x.to_dict(), other.to_dict()) == f"it is {path}.npy, it was {path}.h5:x"


def test_change_of_what_was_looked_at(tmp_path):
    path = tmp_path / "x.zarr"
    make(path)[:] = 1
    with dask.config.set({"kldiv.files-checked": 3}):
        was = look(path).to_dict()
        assert told(path, lambda: None) == ""
    assert change(was, look(path).to_dict()) == (
        f"{path} can't be held against what it was: 7 of its 7 files were looked at, before it was"
        " 3; set kldiv.files-checked to what it was then"
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_attributes_are_contents(tmp_path, zarr_format):
    path = tmp_path / "x.zarr"
    array = zarr.create_array(path, data=VALUES, zarr_format=zarr_format)
    assert "has changed" in told(path, lambda: array.attrs.update(_FillValue=1))


def test_in_utc():
    assert in_utc(0) == "1970-01-01T00:00:00Z"
    assert in_utc(1_764_151_201_000_000_001) == "2025-11-26T10:00:01.000000001Z"
    assert in_utc(-1) == "1969-12-31T23:59:59.999999999Z"


# Which source an array has


def test_source_of(tmp_path):
    path, _ = write(tmp_path, "zarr3", VALUES, chunks=(4, 3))
    x = open_array(path, chunks=3)
    assert source_of(x) == zarr_format.open_source(path, None)
    for derived in (x + 0, x[1:], x.rechunk(5), x.T, x.astype("f4"), x.persist(scheduler="sync")):
        assert source_of(derived) is None
    for other in da.zeros(3), da.from_array(VALUES):
        assert source_of(other) is None
    if not EXPRESSIONS:
        assert source_of(x.rechunk(3)) == source_of(x)


def test_source_of_pairs(tmp_path):
    paths = [write(tmp_path, kind, VALUES, name=kind)[0] for kind in ("npy-C", "zarr2")]
    assert [source_of(x).path for x in open_pair(*paths)] == paths


def test_source_of_the_newest_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr("kldiv_dask.storage.sources._MOST_SOURCES", 2)
    path, _ = write(tmp_path, "npy-C", VALUES)
    one, two = open_array(path, chunks=1), open_array(path, chunks=2)
    open_array(path, chunks=1)
    three = open_array(path, chunks=3)
    assert [source_of(x) is None for x in (one, two, three)] == [False, True, False]


@pytest.mark.skipif(EXPRESSIONS, reason="Dask's array expressions have other names then")
def test_source_of_what_was_pickled(tmp_path):
    x = open_array(write(tmp_path, "npy-C", VALUES)[0])
    assert source_of(pickle.loads(pickle.dumps(x))) == source_of(x)  # noqa: S301


def test_listings_are_not_kept(tmp_path):
    """File systems keep what they listed, and would not see a change."""
    path = f"memory:/{tmp_path}/x.zarr"
    make(path)[:] = 1
    system = fsspec.filesystem("memory")
    before = look(path)
    system.rm(f"{tmp_path}/x.zarr/c/1/1")
    assert len(look(path).missing) == len(before.missing) + 1 == 1
