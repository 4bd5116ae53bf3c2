"""What is told of stores behind URLs."""

import re
from datetime import UTC, datetime

import dask
import fsspec
import pytest

from kldiv_dask.storage import change, open_array, source_of
from kldiv_dask.storage.contents import seen_object
from tests.helpers.cases import some_slow
from tests.helpers.stores import served
from tests.helpers.unwritten import look, make

# Stores behind URLs


@pytest.mark.parametrize("key", some_slow(None, "deep/scores"))
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


@pytest.mark.parametrize("key", some_slow(None, "deep/scores"))
@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("kind", some_slow("zarr3", "zarr2", "sharded"))
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
