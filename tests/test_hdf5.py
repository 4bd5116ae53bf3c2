"""Datasets of HDF5 files: what is read, and what is refused."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import dask
import h5py
import ml_dtypes
import numpy as np
import pytest

from kldiv_dask.storage import ChunkReadError, hdf5, open_array, open_pair
from tests.helpers.stores import VALUES, date_later

# Dask's array expressions do not fuse `from_array` with what follows yet.
EXPRESSIONS = dask.config.get("array.query-planning", False)

LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (4, 3)},
    "gzip": {"chunks": (4, 3), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "resizable": {"chunks": (4, 3), "maxshape": (None, None)},
}


def make(path, key="scores", data=VALUES, **layout):
    with h5py.File(path, "w") as file:
        file.create_dataset(key, data=data, **layout)
    return path


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "x.h5", "deep/scores", **LAYOUTS["gzip"])


def bits(x):
    return x.dtype, x.shape, x.tobytes()


# What is read


@pytest.mark.parametrize("chunks", [None, 3, (4, -1), ((1, 9), (2, 4)), "100 B"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values(tmp_path, layout, chunks):
    x = open_array(make(tmp_path / "x.h5", **LAYOUTS[layout]), chunks=chunks)
    for scheduler in "sync", "threads":
        assert bits(x.compute(scheduler=scheduler)) == bits(VALUES)


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", "f4", "f8", ">f2", ">f8", ">i2"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtypes_are_kept_in_native_byte_order(tmp_path, layout, dtype):
    make(tmp_path / "x.h5", data=VALUES.astype(dtype), **LAYOUTS[layout])
    x = open_array(tmp_path / "x.h5", chunks=(4, 3))
    native = np.dtype(dtype).newbyteorder("=")
    assert x.dtype == native
    assert bits(x.compute()) == bits(VALUES.astype(native))


def test_enumerations_are_integers(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        kind = h5py.enum_dtype({"no": 0, "yes": 1}, basetype="i2")
        file.create_dataset("x", data=[0, 1, 1], dtype=kind)
    x = open_array(tmp_path / "x.h5")
    assert x.dtype == np.int16
    assert x.dtype.metadata is None
    assert x.compute().tolist() == [0, 1, 1]


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1)])
def test_scalar_and_empty_arrays(tmp_path, shape):
    values = np.full(shape, 7.0)
    assert bits(open_array(make(tmp_path / "x.h5", data=values)).compute()) == bits(values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_indexing_the_opened_array(tmp_path, layout):
    x = open_array(make(tmp_path / "x.h5", **LAYOUTS[layout]), chunks=(4, 3))
    for index in (np.s_[1:9:2, 4], np.s_[None, ::-1, -1], np.s_[7], np.s_[2:3, 5]):
        assert np.array_equal(x[index].compute(), VALUES[index])
    if not EXPRESSIONS:  # a list of positions fails for any array there
        assert np.array_equal(x[[7, 0, 3]].compute(), VALUES[[7, 0, 3]])


@pytest.mark.parametrize("name", ["x.h5", "x.HDF5", "x.he5", "x.bin", "x"])
def test_recognized_by_name_or_by_signature(tmp_path, name):
    assert bits(open_array(make(tmp_path / name)).compute()) == bits(VALUES)


@pytest.mark.parametrize("name", ["x.npy", "x.zarr", "x.safetensors"])
def test_the_names_of_other_formats_are_theirs(tmp_path, name):
    make(tmp_path / name)
    with pytest.raises((ValueError, OSError), match=rf"{name} is (not a readable \.|no Zarr)"):
        open_array(tmp_path / name)


def test_keys(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["p"] = VALUES
        file["deep/q"] = VALUES + 1
        file["link"] = h5py.SoftLink("/deep/q")
    for key, wanted in {"p": 0, "/p": 0, "deep/q": 1, "/deep/q/": 1, "link": 1}.items():
        assert np.array_equal(open_array(tmp_path / "x.h5", key=key).compute(), VALUES + wanted)
    x, t = open_pair(tmp_path / "x.h5", tmp_path / "x.h5", input_key="p", target_key="deep/q")
    assert (t - x).sum().compute() == 60


@pytest.mark.parametrize("key", [None, "deep/scores", "/deep/scores"])
def test_the_only_dataset_is_found(path, key):
    source = hdf5.open_source(str(path), key)
    assert source == hdf5.open_source(str(path), "deep/scores")
    assert (source.key, source.stored_chunks) == ("deep/scores", (4, 3))


def test_stored_chunks_are_not_cut(path):
    assert open_array(path, chunks="300 B").chunks == ((4, 4, 2), (6,))
    assert open_array(path, chunks="99 B").chunks == ((4, 4, 2), (3, 3))


def test_handles_pickle_small_and_keys_follow_the_contents(path):
    source = hdf5.open_source(str(path), None)
    assert np.array_equal(source[:], VALUES)
    pickled = pickle.dumps(source)
    assert len(pickled) - len(str(path)) < 400
    assert pickle.loads(pickled) == source  # noqa: S301
    first = open_array(path)
    assert open_array(path).name == first.name
    assert np.array_equal(first.compute(), VALUES)
    make(path, data=VALUES + 1)  # which HDF5 refuses for as long as this process has it open
    date_later(path)
    second = open_array(path)
    assert second.name != first.name
    assert np.array_equal(second.compute(), VALUES + 1)


def test_many_threads(tmp_path):
    values = np.arange(4000.0).reshape(400, 10)
    path = make(tmp_path / "x.h5", data=values, chunks=(3, 10), compression="gzip")
    source = hdf5.open_source(str(path), None)
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda i: source[i], range(400)))
    assert np.array_equal(rows, values)


def test_on_a_cluster(path, client):
    x = open_array(path, chunks=(4, 3))
    assert bits(x.compute(scheduler=client)) == bits(VALUES)


# What is refused


def h5(fill):
    def make(path):
        with h5py.File(path, "w") as file:
            fill(file)

    return make


def several(file):
    for i in range(12):
        file[f"a{i:02}"] = i


def virtual(file):
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (3,))
    file.create_virtual_dataset("x", layout)


def compound(file):
    file["x"] = np.zeros(2, "f4,f4")


def bfloat16(file):
    file["x"] = np.ones(3, ml_dtypes.bfloat16)


def scrambled(path):
    make(path)
    content = path.read_bytes()
    with open(path, "wb") as file:
        file.write(content.replace(b"TREE", b"GRUB"))


def truncated(path):
    make(path)
    os.truncate(path, os.path.getsize(path) - 8)


NOT_READABLE = "is damaged or no HDF5 file: .*"
BROKEN = {
    "empty": (lambda path: path.touch(), ValueError, NOT_READABLE + "signature not found"),
    "foreign": (lambda path: path.write_text("1,2"), ValueError, NOT_READABLE + "signature"),
    "truncated": (truncated, ValueError, NOT_READABLE + "truncated file"),
    "scrambled": (scrambled, ValueError, NOT_READABLE + "B-tree"),
    "folder": (lambda path: path.mkdir(), IsADirectoryError, "Is a directory"),
    "missing": (lambda path: None, FileNotFoundError, "does not exist"),
    "bare": (h5(lambda file: file.create_group("x")), ValueError, "holds 0 datasets; it holds no"),
    "several": (h5(several), ValueError, "holds 12 datasets; pass .*'a00', .*'a09' and 2 more$"),
    "complex": (h5(lambda file: file.update(x=np.zeros(2, "c8"))), TypeError, "complex64"),
    "compound": (h5(compound), TypeError, "boolean, integer, real floating and string"),
    "bfloat16": (h5(bfloat16), TypeError, "bfloat16 loses its name in this format"),
    "shapeless": (h5(lambda file: file.update(x=h5py.Empty("f4"))), ValueError, "neither a shape"),
    "virtual": (h5(virtual), ValueError, ":x has its data in other files"),
    "external": (
        h5(lambda file: file.create_dataset("x", (3,), "f4", external="raw.bin")),
        ValueError,
        ":x has its data in other files",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refused_when_opened(tmp_path, name):
    prepare, error, message = BROKEN[name]
    path = tmp_path / "x.h5"
    prepare(path)
    with pytest.raises(error, match=message) as caught:
        open_array(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("q", ":q does not exist; pass key=, one of 'deep/scores'"),
        ("deep", ":deep is not a dataset; pass key=, one of 'deep/scores'"),
        ("deep/scores/x", ":deep/scores/x does not exist"),
        ("away", ":away has its data in other files"),
        ("nowhere", ":nowhere does not exist"),
    ],
)
def test_refused_keys(path, tmp_path, key, message):
    make(tmp_path / "other.h5")
    with h5py.File(path, "a") as file:
        file["away"] = h5py.ExternalLink("other.h5", "scores")
        file["nowhere"] = h5py.ExternalLink("missing.h5", "scores")
    with pytest.raises(ValueError, match=message) as caught:
        open_array(path, key=key)
    assert str(path) in str(caught.value)


def test_refused_urls():
    with pytest.raises(FileNotFoundError, match=r"memory://x\.h5 is no Zarr.* must be local"):
        open_array("memory://x.h5")


def test_missing_package_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        ImportError, match=r'x\.h5 needs the package h5py: pip install "kldiv-dask\[hdf5\]"'
    ):
        open_array(path)


WRITER = """
import sys, h5py
file = h5py.File(sys.argv[1], "a")
print("open", flush=True)
sys.stdin.read()
"""


def test_open_for_writing_elsewhere(path):
    command = [sys.executable, "-c", WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as writer:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(BlockingIOError, match=r"x\.h5 is locked: another process has it open"):
            open_array(path)
        writer.stdin.close()
    assert np.array_equal(open_array(path).compute(), VALUES)


def damage_chunk(path):
    """Damage the stored chunk at (8, 3), as a disk would: no metadata changes."""
    before = os.stat(path)
    with h5py.File(path) as file:
        where = file["deep/scores"].id.get_chunk_info_by_coord((8, 3))
    with open(path, "r+b") as file:
        file.seek(where.byte_offset)
        file.write(b"garbage")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_damaged_chunks_are_named(path):
    x = open_array(path, chunks=(4, 3))
    damage_chunk(path)
    with pytest.raises(ChunkReadError) as caught:
        x.sum().compute()
    error = caught.value
    assert (error.path, error.key, error.region) == (str(path), "deep/scores", "[8:10, 3:6]")
    # Not one of the system's, which would have been waited for.
    assert isinstance(error.__cause__, ValueError)
    said = "filter returned failure", "detected by Fletcher32"  # depends on the version of HDF5
    assert any(words in str(error) for words in said)
    assert np.array_equal(x[:8].compute(), VALUES[:8])


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (date_later, "the file was written at 20.*Z, before .*must keep their times .cp -p, rsync"),
        (lambda path: os.truncate(path, 100), "the file has 100 bytes, it had"),
        (os.remove, "No such file"),
    ],
)
def test_changed_after_opening(path, damage, message, used):
    x = open_array(path)
    if used:
        assert np.array_equal(x.compute(), VALUES)
    damage(path)
    with pytest.raises(ChunkReadError, match=rf"\[0:10, 0:6\] could not be read: .*{message}"):
        x.compute()


# Chunks and filters


def test_a_dataset_without_chunks_is_read_in_large_parts(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", shape=(10**6, 100), dtype="f4")
    assert open_array(tmp_path / "x.h5").numblocks == (48, 1)  # of 8 MiB


WITHOUT_PLUGINS = """
import sys
sys.modules["hdf5plugin"] = None  # as if it was not installed
from kldiv_dask import open_array
try:
    open_array(sys.argv[1])
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(("code", "spelled"), [(32001, "32001 (blosc)"), (32900, "32900")])
def test_a_filter_that_is_missing_is_named(tmp_path, code, spelled):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        options = {"compression": code, "allow_unknown_filter": True}
        dataset = file.create_dataset("x", shape=(4, 2), chunks=(4, 2), dtype="f4", **options)
        dataset.id.write_direct_chunk((0, 0), b"encoded")
    command = [sys.executable, "-c", WITHOUT_PLUGINS, str(tmp_path / "x.h5")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{tmp_path / 'x.h5'}:x needs the HDF5 filter {spelled} to be read, ")
    assert "pip install hdf5plugin" in said


def test_filters_of_hdf5plugin_are_found(tmp_path):
    """A process that reads need not have imported it."""
    plugins = pytest.importorskip("hdf5plugin")
    make(tmp_path / "x.h5", chunks=(4, 3), compression=plugins.Zstd())
    code = (
        "import sys; from kldiv_dask import open_array; print(open_array(sys.argv[1]).sum()"
        ".compute(scheduler='processes', num_workers=1))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.h5")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(said) == VALUES.sum()
