"""Small files that declare huge arrays, and names that write to the terminal."""

import json
import struct
import subprocess
import sys

import dask
import h5py
import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file

from kldiv_dask import open_array
from kldiv_dask.storage import ChunkReadError, change, source_of
from tests.helpers import llama_base

PREAMBLE = """
import json, os, resource, sys
import h5py, safetensors.numpy, zarr
from kldiv_dask import evaluate, open_array, open_pair
from kldiv_dask.cli import main
from kldiv_dask.storage import source_of
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
"""


def limited(code, folder, files):
    """Write files and run code on all in a process that has 1 GiB beside its imports, and 60 s."""
    for name, make in files.items():
        make(folder / name)
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code, *(folder / name for name in files)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def npy(path, shape, length=None):
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}) + "\n"
    length = len(header) if length is None else length
    path.write_bytes(b"\x93NUMPY\x02\0" + struct.pack("<I", length) + header.encode())


def zarr3(path, shape, chunks, shards=None):
    zarr.create_array(path, shape=shape, chunks=chunks, shards=shards, dtype="f4")


def zarr_metadata(path, **changes):
    zarr3(path, (4, 2), (2, 2))
    file = path / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def hdf5(path, shape, chunks, written=False):
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("x", shape=shape, chunks=chunks, dtype="f4")
        if written:
            dataset[5] = 1


def safetensors(path, shape, length=None):
    header = json.dumps({"x": {"dtype": "F4", "shape": shape, "data_offsets": [0, 0]}})
    header = header.replace("F4", "F32").encode()
    path.write_bytes(struct.pack("<Q", length or len(header)) + header)


REFUSED = {
    "header.npy": (lambda path: npy(path, (4,), 2**32 - 1), "not a readable .npy file"),
    "rows.npy": (lambda path: npy(path, (10**15, 4)), "is truncated"),
    "negative.npy": (lambda path: npy(path, (-1, 4)), "must have lengths from 0 on"),
    "nothing.npy": (lambda path: npy(path, (10**15, 10**15, 0)), "less than 2**63 bytes"),
    "rows.zarr": (lambda path: zarr3(path, (10**15, 1000), (1000, 1000)), "chunks, and there can"),
    "each.zarr": (lambda path: zarr3(path, (10**15,), (1,)), "100,000,000,000 chunks"),
    "beyond.zarr": (
        lambda path: zarr_metadata(path, shape=[2**62, 2**62]),
        "less than 2**63 bytes",
    ),
    "rows.h5": (lambda path: hdf5(path, (10**15, 1000), (1000, 1000)), "chunks, and there can"),
    "some.h5": (lambda path: hdf5(path, (10**15, 4), (10, 4), True), "chunks, and there can"),
    "flat.h5": (lambda path: hdf5(path, (10**15, 4), None), "chunks, and there can"),
    "length.safetensors": (lambda path: safetensors(path, [1], 2**62), "not a readable"),
    "rows.safetensors": (lambda path: safetensors(path, [10**15]), "not a readable"),
    "nothing.safetensors": (
        lambda path: safetensors(path, [10**15, 10**15, 0]),
        "not a readable",
    ),
    "base": (
        lambda path: path.write_bytes(llama_base.header(2**31 - 1, 2**31 - 1, 2**31 - 1)),
        "is truncated",
    ),
}

OPEN = """
def said(function):
    try:
        function()
    except ValueError as error:
        return str(error)
    except SystemExit as end:
        return end.code

for path in sys.argv[1:]:
    found = [
        said(lambda: open_array(path)),
        said(lambda: open_pair(path, path)),
        said(lambda: evaluate(path, path, progress=False)),
        *[said(lambda: main([command, path, path])) for command in ("compute", "evaluate")],
    ]
    print(json.dumps(found))
"""


def test_arrays_that_can_not_be_are_refused_at_once(tmp_path):
    found = limited(OPEN, tmp_path, {name: make for name, (make, _) in REFUSED.items()})
    for (name, (_, message)), (*errors, compute, evaluate) in zip(
        REFUSED.items(), found, strict=True
    ):
        for error in errors:
            assert message in error
            assert str(tmp_path / name) in error
        assert (compute, evaluate) == (2, 2)


# How to write it, how many chunks are missing of it, and what two rows add up to.
WORKS = {
    "hollow.zarr": (lambda path: zarr3(path, (10**11, 10), (10**6, 10)), 10_000 - 1, 0),
    "shards.zarr": (lambda path: zarr3(path, (10**8, 10), (1, 10), (10**8, 10)), 1, 0),
    "hollow.h5": (lambda path: hdf5(path, (10**11, 10), (10**6, 10)), 10_000, 0),
    "tiny.h5": (lambda path: hdf5(path, (10**9, 10), (1, 10), True), 10_000, 10),
    "flat.h5": (lambda path: hdf5(path, (10**11, 10), None), 1, 0),
    "empty.npy": (lambda path: npy(path, (10**15, 0)), 0, 0),
}

WORK = """
for path in sys.argv[1:]:
    x = open_array(path)
    value = float(x[5:7].sum().compute(scheduler="sync"))
    print(json.dumps([len(source_of(x).contents().missing), value]))
"""


@pytest.mark.slow
def test_arrays_that_are_huge_and_empty_work(tmp_path):
    found = limited(WORK, tmp_path, {name: make for name, (make, *_) in WORKS.items()})
    assert dict(zip(WORKS, found, strict=True)) == {
        name: [missing, value] for name, (_, missing, value) in WORKS.items()
    }


def test_missing_chunks_between_written_ones(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", shape=(5, 7), chunks=(2, 3), dtype="f4")
        dataset[0, 3] = dataset[3, 0] = dataset[4, 6] = 1
    found = source_of(open_array(tmp_path / "x.h5")).contents().missing
    places = [(0, 0), (0, 6), (2, 3), (2, 6), (4, 0), (4, 3)]
    assert found == tuple(((r, min(r + 2, 5)), (c, min(c + 3, 7))) for r, c in places)


def test_a_shard_without_room_for_its_index_is_damaged(tmp_path):
    path = tmp_path / "x.zarr"
    zarr.create_array(path, data=np.ones((10, 4)), chunks=(1, 4), shards=(10, 4))
    (path / "c" / "0" / "0").write_bytes(b"x" * 100)
    x = open_array(path)
    assert source_of(x).contents().missing == ()
    with pytest.raises(ChunkReadError):
        x.compute()


@pytest.mark.parametrize(
    "chunks", [1, (1, -1), {0: 1}, {-2: 1}, (1, "auto"), ((1,) * 2_000_000, 4)]
)
def test_a_million_chunks_is_the_most(tmp_path, chunks):
    zarr3(tmp_path / "x.zarr", (2_000_000, 4), (1000, 4))
    assert open_array(tmp_path / "x.zarr", chunks=(2, -1)).npartitions == 1_000_000
    with pytest.raises(ValueError, match=r"there would be [28],000,000 chunks, .* be 1,000,000"):
        open_array(tmp_path / "x.zarr", chunks=chunks)


# Names that write to the terminal

NAME = "red\x1b[31m\n\x07"
SHOWN = r"red\x1b[31m\n\x07"


def of_zarr(path):
    zarr.open_group(path, mode="w").create_array(NAME, data=np.ones((4, 2)), chunks=(2, 2))
    return path


def of_hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset(NAME, data=np.ones((4, 2)), chunks=(2, 2))
    return path


def of_safetensors(path):
    save_file({NAME: np.ones((4, 2)), "z": np.ones(2)}, path)
    return path


def of_npy(path):
    np.save(path, np.ones((4, 2)))
    return path


MAKERS = {"zarr": of_zarr, "h5": of_hdf5, "safetensors": of_safetensors, "npy": of_npy}


@pytest.mark.parametrize("end", MAKERS)
def test_names_are_shown_without_control_characters(tmp_path, end):
    path = MAKERS[end](tmp_path / f"{NAME}.{end}")
    key = None if end == "npy" else NAME
    x = open_array(path, key=key)
    said = [source_of(x).name]
    contents = source_of(x).contents()
    for other in ({"shape": [1]}, {"digest": ""}, {"key": "q", "path": "q"}):
        was = contents.to_dict() | other
        said.append(change(was, contents.to_dict()))
    with pytest.raises(ValueError, match=r"does not exist|was given") as caught:
        open_array(path, key=f"{NAME}?")
    said.append(str(caught.value))
    with pytest.raises(ValueError, match="does not suit") as caught:
        open_array(path, key=key, chunks=(3, 3, 3))
    said.append(str(caught.value))
    if end in ("zarr", "h5"):
        with pytest.warns(UserWarning, match="has stored chunks of") as warned:
            open_array(path, key=key, chunks="8 B")
        said.append(str(warned[0].message))
    for file in [path] if path.is_file() else path.rglob("0"):
        if file.is_file():
            file.write_bytes(b"x")
    with dask.config.set({"kldiv.retry-delays": []}), pytest.raises(ChunkReadError) as caught:
        x.compute()
    said.append(str(caught.value))
    for message in said:
        assert message.isprintable(), message
        assert SHOWN in message


def test_a_chunk_that_is_no_file_is_shown_without_control_characters(tmp_path):
    path = of_zarr(tmp_path / f"{NAME}.zarr")
    (chunk,) = path.rglob("c/1/0")
    chunk.unlink()
    chunk.mkdir()
    with pytest.raises(ValueError, match="must be a file, got a directory") as caught:
        source_of(open_array(path, key=NAME)).contents()
    assert str(caught.value).isprintable()
