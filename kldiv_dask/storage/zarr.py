"""Zarr arrays, format 2 or 3, in a local directory or behind any fsspec URL."""

import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask.base

from kldiv_dask.storage.source import (
    Source,
    check_dtype,
    display_name,
    is_url,
    name_some,
    require,
    spans,
)

DESCRIPTION = "a Zarr array or group (a directory or an fsspec URL)"

_METADATA = {2: ".zarray", 3: "zarr.json"}
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
    """

    metadata: str
    version: str

    def read(self, index: tuple[Any, ...]) -> Any:
        """Read and decode a region; see `Source.read`.

        A chunk that was never written reads as the fill value. On a local disk, two kinds of
        damage would read as fill values too, and are refused here: a store that has gone since it
        was opened, and a shard that a crash or a full disk left with no bytes in it.
        """
        array = _opened(self)
        if not is_url(self.path):
            os.stat(os.path.join(self.path, self.metadata))
            for shard in _shards(array, index):
                file = os.path.join(self.path, self.key or "", shard)
                if os.path.exists(file) and os.path.getsize(file) == 0:
                    raise ValueError(f"the shard {shard} is empty")
        return array[index]


@functools.lru_cache(maxsize=64)
def _opened(source: ZarrSource) -> Any:
    """Open the array behind a source, once a process."""
    array = _node(source.path, source.key)
    found = (array.shape, array.dtype)
    if found != (source.shape, source.stored_dtype):
        raise ValueError(
            f"its shape and dtype are {found},"
            f" they were {(source.shape, source.stored_dtype)} when it was opened"
        )
    return array


def _shards(array: Any, index: tuple[Any, ...]) -> Iterator[str]:
    """Name the shards that a region lies in; none if the array is not sharded."""
    if array.shards is not None:
        numbers = [
            range(start // size, -(-stop // size))
            for (start, stop), size in zip(spans(index, array.shape), array.shards, strict=True)
        ]
        yield from map(array.metadata.encode_chunk_key, itertools.product(*numbers))


def recognises(path: str) -> bool:
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
        is given, or the metadata is damaged.
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
    check_dtype(array.dtype, name)
    metadata = "/".join(filter(None, (key, _METADATA[array.metadata.zarr_format])))
    return ZarrSource(
        path=path,
        key=key,
        shape=array.shape,
        stored_dtype=array.dtype,
        stored_chunks=array.shards or array.chunks,
        order="C",
        metadata=metadata,
        version=dask.base.tokenize(array.metadata.to_dict(), _modified(path, metadata)),
    )


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
