"""What is told of a stored array: its files, and what of it was never written."""

import os
import re
import shutil

import dask
import h5py
import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file

from kldiv_dask.storage import change, hdf5, open_array, source_of
from kldiv_dask.storage.contents import sample
from tests.helpers import llama_base
from tests.helpers.stores import VALUES, write
from tests.helpers.unwritten import look, make, size_below

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
