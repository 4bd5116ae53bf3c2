"""Zarr arrays, format 2 or 3, in a local directory or behind any fsspec URL."""

import functools
import math
import os
from dataclasses import dataclass
from typing import Any

import dask.base

from kldiv_dask import config
from kldiv_dask.extras import require
from kldiv_dask.storage.attributes import missing_values, refuse_packed
from kldiv_dask.storage.contents import Contents
from kldiv_dask.storage.source import (
    Source,
    check_dtype,
    check_shape,
    display_name,
    is_url,
    name_some,
)
from kldiv_dask.storage.text import printable_errors
from kldiv_dask.storage.zarr_contents import (
    METADATA,
    chunk_name,
    contents_of_files,
    contents_of_objects,
    file_status,
    touched,
)

DESCRIPTION = "a Zarr array or group (a directory or an fsspec URL)"

_MARKERS = ("zarr.json", ".zarray", ".zgroup")


@dataclass(frozen=True, slots=True)
class ZarrSource(Source):
    """A Zarr array.

    Parameters
    ----------
    metadata : str
        Name of the array's metadata document, relative to `path`.
    version : str
        Digest of what the metadata says and when it was last written. Chunks that are rewritten
        in place leave it as it was.
    inner_chunks : tuple of int
        Shape of the chunks in a shard, which can be read by themselves; without shards, of the
        stored chunks.
    """

    metadata: str
    version: str
    inner_chunks: tuple[int, ...]

    @property
    def read_units(self) -> tuple[tuple[int, ...], ...]:
        """Shards, which are files, and what is in them; see `Source.read_units`."""
        return self.stored_chunks, self.inner_chunks

    def read(self, index: tuple[Any, ...]) -> Any:
        """Read and decode a region; see `Source.read`.

        A chunk that was never written reads as the fill value. On a local disk, three kinds of
        damage would read as fill values too, and are refused here: a store that has gone since it
        was opened, a chunk that is a link to nothing or no file, and a shard that a crash or a full
        disk left with no bytes in it. Looking takes 3 µs a stored chunk.
        """
        array = _opened(self)
        if not is_url(self.path):
            os.stat(os.path.join(self.path, self.metadata))
            for number in touched(self, index):
                name = chunk_name(self, array, number)
                status = file_status(self.path, name)
                if array.shards is not None and status is not None and status.st_size == 0:
                    raise ValueError(f"the shard {name} is empty")
        values = array[index]
        # NumPy turns strings of any length into its own by way of objects alone.
        return values.astype(object) if self.stored_dtype.kind == "T" else values

    @printable_errors()
    def contents(self) -> Contents:
        """Look at the files or objects of the array; see `Source.contents`.

        Local ones are looked at one by one, and the inner chunks of shards are looked up in the
        index of each. Of a store behind a URL its listing has to do, where there is one.
        """
        array = _opened(self)
        most = config.count("files-checked")
        # Zarr's choice where the metadata says none.
        fill = 0.0 if self.dtype.kind in "SU" else float(array.fill_value or 0)
        if fill in self.missing_values:
            fill = math.nan
        if is_url(self.path):
            return contents_of_objects(self, array, most, fill)
        return contents_of_files(self, array, most, fill)


@functools.lru_cache(maxsize=64)
def _opened(source: ZarrSource) -> Any:
    """Open the array behind a source, once a process."""
    array = _node(source.path, source.key)
    actual = (array.shape, array.dtype)
    if actual != (source.shape, source.stored_dtype):
        raise ValueError(
            f"its shape and dtype are {actual},"
            f" they were {(source.shape, source.stored_dtype)} when it was opened"
        )
    return array


# How an array is found


def can_open(path: str) -> bool:
    """Whether `path` is a URL, ends in ``.zarr``, or is a directory with Zarr metadata."""
    return (
        is_url(path)
        or path.lower().endswith(".zarr")
        or any(os.path.isfile(os.path.join(path, name)) for name in _MARKERS)
    )


def open_source(path: str, key: str | None) -> ZarrSource:
    """Read the metadata of a Zarr array.

    Parameters
    ----------
    path : str
        Absolute local path, or an fsspec URL. Credentials and other storage options come from
        fsspec's own configuration.
    key : str or None
        Path of the array within the group at `path`.

    Returns
    -------
    ZarrSource
        The handle of the array.

    Raises
    ------
    FileNotFoundError
        If there is neither an array nor a group at `path`.
    ValueError
        If `path` is a group and `key` does not name an array in it, `path` is an array and a key
        is given, its numbers are packed, or the metadata is damaged.
    TypeError
        If the data type can't be read.
    ImportError
        If zarr, or for a URL fsspec or the package behind its protocol, is not installed.
    """
    key = (key or "").strip("/") or None
    name = display_name(path, key)
    try:
        array = _node(path, key)
    except FileNotFoundError as error:
        if key is None:
            raise
        raise ValueError(f"{name} does not exist{_contents(path)}") from error
    if not hasattr(array, "shape"):
        raise ValueError(f"{name} is a Zarr group, not an array{_contents(path)}")
    attributes = dict(array.attrs)
    refuse_packed(attributes, path, key, "open_zarr")
    check_dtype(array.dtype, name)
    check_shape(array.shape, array.dtype, name)
    metadata = "/".join(filter(None, (key, METADATA[array.metadata.zarr_format])))
    return ZarrSource(
        path=path,
        key=key,
        shape=array.shape,
        stored_dtype=array.dtype,
        stored_chunks=array.shards or array.chunks,
        order="C",
        metadata=metadata,
        version=dask.base.tokenize(array.metadata.to_dict(), _modified(path, metadata)),
        inner_chunks=array.chunks,
        missing_values=missing_values(attributes | _of_xarray(array), array.dtype, name),
    )


def _of_xarray(array: Any) -> dict[str, Any]:
    """Give the attribute that xarray writes as the fill value, in format 2.

    Others write a fill value there for chunks that are not stored, which is no sign of no value.
    """
    by_xarray = array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in array.attrs
    return {"_FillValue": array.fill_value} if by_xarray and array.fill_value is not None else {}


def _node(path: str, key: str | None) -> Any:
    """Open the array or group at `key`."""
    zarr = require("zarr", "zarr", path)
    if is_url(path):
        require("fsspec", "zarr", path)
    try:
        return zarr.open(path, mode="r", path=key or "")
    except FileNotFoundError as error:
        hint = "; files of other formats must be local" if is_url(path) else ""
        name = display_name(path, key)
        raise FileNotFoundError(f"{name} is no Zarr array or group{hint}") from error
    except (ImportError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} could not be opened as Zarr: {reason}") from error


def _contents(path: str) -> str:
    """Say what a group holds, as the end of an error message."""
    group = _node(path, None)
    if not hasattr(group, "members"):
        return "; it is itself an array, so leave key out"
    names = [name for name, node in group.members(max_depth=None) if hasattr(node, "shape")]
    if not names:
        return "; it holds no arrays"
    return f"; {name_some(names)}"


def _modified(path: str, metadata: str) -> Any:
    """When the metadata document was last written, if the file system can tell."""
    if not is_url(path):
        return os.stat(os.path.join(path, metadata)).st_mtime_ns
    system, root = require("fsspec.core", "zarr", path).url_to_fs(path)
    try:
        return system.modified(f"{root}/{metadata}")
    except NotImplementedError:
        return None
