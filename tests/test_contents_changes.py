"""What has changed in a stored array, and which source an array has."""

import json
import os
import pickle

import dask
import dask.array as da
import fsspec
import h5py
import numpy as np
import pytest
import zarr

from kldiv_dask.storage import change, open_array, open_pair, source_of
from kldiv_dask.storage import zarr as zarr_format
from kldiv_dask.storage.contents import in_utc
from tests.helpers.stores import VALUES, write
from tests.helpers.unwritten import look, make

# Dask's array expressions have names of their own.
EXPRESSIONS = dask.config.get("array.query-planning", False)


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
