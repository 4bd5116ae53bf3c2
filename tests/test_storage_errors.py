"""What goes wrong with stored arrays, and that the error says where."""

import itertools
import os
import pickle
import re
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import zarr

from kldiv_dask.storage import ChunkReadError, open_array, open_pair
from tests.helpers.stores import VALUES, ZARR_FILES, chunk_files, date_later, write


def npy_header(path, shape, data=b""):
    with open(path, "wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(data)


def zarr_metadata(path, text):
    path.mkdir()
    (path / "zarr.json").write_text(text)


def zarr_group(path, names):
    group = zarr.open_group(path, mode="w")
    for name in names:
        group.create_array(name, shape=(2,), dtype="f4")


KNOWN = "a .npy file, a .safetensors file, a Zarr array .*, an HDF5 file or a base file of llama"

BROKEN = {
    "missing.npy": (lambda path: None, FileNotFoundError, "does not exist"),
    "missing.zarr": (lambda path: None, FileNotFoundError, "does not exist"),
    "hollow.zarr": (lambda path: path.mkdir(), FileNotFoundError, "no Zarr array or group"),
    "folder": (lambda path: path.mkdir(), ValueError, f"it must be {KNOWN}"),
    "x.csv": (lambda path: path.write_text("1,2"), ValueError, f"it must be {KNOWN}"),
    "text.npy": (lambda path: path.write_text("1,2 and 3,4"), ValueError, "magic string"),
    "empty.npy": (lambda path: path.touch(), ValueError, "magic string"),
    "new.npy": (lambda path: path.write_bytes(b"\x93NUMPY\x09\0"), ValueError, r"version \(9, 0\)"),
    "cut.npy": (
        lambda path: npy_header(path, (9, 2), bytes(100)),
        ValueError,
        r"truncated.*\(9, 2\).*takes 272 bytes.*has 228",
    ),
    "pickle.npy": (lambda path: np.save(path, np.array([{}, None])), TypeError, "dtype object"),
    "bf16.npy": (
        lambda path: np.save(path, np.ones(3, ml_dtypes.bfloat16)),
        TypeError,
        "bfloat16 loses its name.*save it as float32",
    ),
    "record.npy": (lambda path: np.save(path, np.zeros(2, "f4,f4")), TypeError, "floating"),
    "complex.npy": (lambda path: np.save(path, np.zeros(2, "c8")), TypeError, "complex64"),
    "complex.zarr": (
        lambda path: zarr.create_array(path, shape=(2,), dtype="c8"),
        TypeError,
        "complex64",
    ),
    "json.zarr": (lambda path: zarr_metadata(path, "{"), ValueError, "JSONDecodeError"),
    "hole.zarr": (
        lambda path: zarr_metadata(path, '{"zarr_format": 3, "node_type": "array"}'),
        ValueError,
        "could not be opened as Zarr: KeyError",
    ),
    "group.zarr": (
        lambda path: zarr_group(path, ["p", "deep/q"]),
        ValueError,
        "is a Zarr group.*pass key=, one of ('p', 'deep/q'|'deep/q', 'p')$",
    ),
    "big.zarr": (
        lambda path: zarr_group(path, [f"a{i}" for i in range(12)]),
        ValueError,
        "one of ('a[0-9]+', ){9}'a[0-9]+' and 2 more$",
    ),
    "bare.zarr": (lambda path: zarr_group(path, []), ValueError, "holds no arrays"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refused_when_opened(tmp_path, name):
    make, error, message = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(error, match=message) as caught:
        open_array(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        ("npy-C", "q", "key='q'.*holds one unnamed array"),
        ("zarr3", "q", ":q does not exist; it is itself an array, so leave key out"),
        ("group", "q", ":q does not exist; pass key=, one of 'deep/scores'"),
        ("group", "deep", ":deep is a Zarr group, not an array; pass key=, one of 'deep/scores'"),
    ],
)
def test_refused_keys(tmp_path, kind, key, message):
    path, _ = write(tmp_path, kind, VALUES)
    with pytest.raises(ValueError, match=message) as caught:
        open_array(path, key=key)
    assert path in str(caught.value)


@pytest.mark.parametrize("key", [None, "q"])
def test_refused_urls(key):
    with pytest.raises(FileNotFoundError, match=r"memory://nowhere.* is no Zarr.*must be local"):
        open_array("memory://nowhere", key=key)
    with pytest.raises(ValueError, match=r"s3://bucket/x\.npy is a URL.*must be local"):
        open_array("s3://bucket/x.npy", key=key)
    with pytest.raises(ValueError, match="nonsense://x could not be opened"):
        open_array("nonsense://x", key=key)


@pytest.mark.parametrize("chunks", [0, -2, (3,), (3, 3, 3), ((3, 3), (6,)), "12 parsecs", {0: "x"}])
def test_refused_chunks(tmp_path, chunks):
    path, _ = write(tmp_path, "npy-C", VALUES)
    with pytest.raises(ValueError, match=r"chunks=.*does not suit the shape \(10, 6\)"):
        open_array(path, chunks=chunks)


def test_refused_pairs(tmp_path):
    x, _ = write(tmp_path, "npy-C", VALUES, name="x")
    t, _ = write(tmp_path, "zarr3", VALUES[:, :4], name="t")
    labels, _ = write(tmp_path, "npy-C", VALUES.astype("i8"), name="labels")
    with pytest.raises(ValueError, match=r"\(10, 6\).*x\.npy.*\(10, 4\).*t\.zarr.*not broadcast"):
        open_pair(x, t)
    for pair in (x, labels), (labels, x):
        with pytest.raises(
            TypeError, match=r"labels\.npy must be of dtype .*float16, bfloat16.* got int64$"
        ):
            open_pair(*pair)


@pytest.mark.parametrize(
    ("package", "path"), [("zarr", "x.zarr"), ("zarr", "memory://x"), ("fsspec", "memory://x")]
)
def test_missing_packages_are_named(tmp_path, monkeypatch, package, path):
    monkeypatch.chdir(tmp_path)
    os.mkdir("x.zarr")
    monkeypatch.setitem(sys.modules, package, None)
    message = rf'{path} needs the package {package}: pip install "kldiv-dask\[zarr\]"'
    with pytest.raises(ImportError, match=message):
        open_array(path)


@pytest.mark.parametrize("garbage", [b"", b"garbage", bytes(range(256)) * 2])
@pytest.mark.parametrize(("which", "region"), [(3, "[4:8, 3:6]"), (5, "[8:10, 3:6]")])
@pytest.mark.parametrize("kind", ZARR_FILES)
def test_corrupt_chunks_are_named(tmp_path, kind, which, region, garbage):
    path, key = write(tmp_path, kind, VALUES, chunks=(4, 3))
    x = open_array(path, key=key, chunks=(4, 3))
    chunk_files(path)[which].write_bytes(garbage)
    with pytest.raises(ChunkReadError) as caught:
        x.sum().compute()
    error = caught.value
    assert (error.path, error.key, error.region) == (path, key, region)
    assert error.__cause__ is not None
    assert str(error).startswith(f"{path}{f':{key}' if key else ''} {region} could not be read")
    assert str(error.__cause__) in str(error)
    assert np.array_equal(x[:4].compute(), VALUES[:4])

    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is ChunkReadError
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_corrupt_chunks_are_named_by_other_processes(tmp_path):
    path, key = write(tmp_path, "group", VALUES, chunks=(4, 3))
    x = open_array(path, key=key, chunks=(4, 3))
    chunk_files(path)[-1].write_bytes(b"garbage")
    with pytest.raises(ChunkReadError, match=r"scores\.zarr:deep/scores \[8:10, 3:6\] could not"):
        x.sum().compute(scheduler="processes", num_workers=1)


def shrink(path):
    os.truncate(path, os.path.getsize(path) - 8)


@pytest.mark.parametrize(
    ("kind", "damage", "cause", "message"),
    [
        ("npy-C", shrink, ValueError, "has 600 bytes, it had 608 when it was opened"),
        ("npy-C", date_later, ValueError, "the file was written at"),
        ("npy-F", os.remove, FileNotFoundError, "No such file"),
        ("npy-F", lambda path: np.save(path, VALUES[0]), ValueError, "has 176 bytes"),
        ("zarr2", shutil.rmtree, FileNotFoundError, "(No such file|no Zarr array)"),
        ("zarr3", shutil.rmtree, FileNotFoundError, "(No such file|no Zarr array)"),
    ],
)
@pytest.mark.parametrize("used", [False, True])
def test_damage_after_opening(tmp_path, kind, damage, cause, message, used):
    path, _ = write(tmp_path, kind, VALUES)
    x = open_array(path)
    if used:
        assert x.sum().compute() == VALUES.sum()
    damage(path)
    with pytest.raises(
        ChunkReadError, match=rf"\[0:10, 0:6\] could not be read.*{message}"
    ) as caught:
        x.sum().compute()
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.path == path


def replaced(path):
    np.save(f"{path}.new.npy", -VALUES)
    date_later(f"{path}.new.npy")
    os.replace(f"{path}.new.npy", path)


def rewritten_in_place(path):
    with open(path, "r+b") as file:
        file.seek(-VALUES.nbytes, os.SEEK_END)
        file.write((-VALUES).tobytes())
    date_later(path)


@pytest.mark.parametrize("change", [replaced, rewritten_in_place])
@pytest.mark.parametrize("used", [False, True])
def test_npy_file_of_equal_size_after_opening(tmp_path, change, used):
    """One half of a sum would be of the old file, the other of the new."""
    path, _ = write(tmp_path, "npy-C", VALUES)
    x = open_array(path, chunks=(5, -1))
    held = x[:5].compute() if used else None  # and the map of the old file with it
    change(path)
    with pytest.raises(
        ChunkReadError, match=r"\[5:10, 0:6\] could not be read.*file was written"
    ) as e:
        x[5:].compute()
    assert (held is not None) == used
    assert re.search(r"at 20\d\d-.*Z, before it was opened it was at 20\d\d-.*Z", str(e.value))
    assert "must keep their times (cp -p, rsync -t)" in str(e.value)
    assert np.array_equal(open_array(path).compute(), -VALUES)


@pytest.mark.parametrize("copy", [["cp", "-p"], ["cp", "--preserve=timestamps"]])
def test_copies_that_keep_their_times_are_the_same(tmp_path, copy):
    path, _ = write(tmp_path, "npy-C", VALUES)
    x = open_array(path)
    os.rename(path, tmp_path / "original.npy")
    subprocess.run([*copy, tmp_path / "original.npy", path], check=True)
    assert np.array_equal(x.compute(), VALUES)


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


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        *itertools.product(ZARR_FILES, [dangling, directory]),
        # of format 2, chunks lie beside the metadata
        *itertools.product(sorted({*ZARR_FILES} - {"zarr2"}), [dangling_folder]),
    ],
)
def test_chunks_that_are_no_files_are_no_fill_values(tmp_path, kind, damage):
    path, key = write(tmp_path, kind, VALUES, chunks=(4, 3))
    x = open_array(path, key=key, chunks=(4, 3))
    damage(chunk_files(path)[-1])
    with pytest.raises(
        ChunkReadError, match=r"\[8:10, 3:6\] .*: .* must be a file, got a"
    ) as caught:
        x[8:, 3:].compute()
    assert isinstance(caught.value.__cause__, ValueError)
    assert np.array_equal(x[:8].compute(), VALUES[:8])


def test_zarr_array_replaced_after_opening(tmp_path):
    path, _ = write(tmp_path, "zarr3", VALUES)
    x = open_array(path)
    write(tmp_path, "zarr3", VALUES[:8].astype("f4"))
    with pytest.raises(ChunkReadError, match=r"\(8, 6\).*they were.*\(10, 6\)"):
        x.compute()
