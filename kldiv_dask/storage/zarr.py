"""Zarr arrays, format 2 or 3, in a local directory or behind any fsspec URL."""

import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask.base

from kldiv_dask.storage.source import Source, check_dtype, is_url, require

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
        touched = [
            range(n)[i][::1] if isinstance(i, slice) else range(i, i + 1)
            for i, n in zip(index, array.shape, strict=True)
        ]
        numbers = [
            sorted({j // size for j in axis})
            for axis, size in zip(touched, array.shards, strict=True)
        ]
        yield from map(array.metadata.encode_chunk_key, itertools.product(*numbers))


def _node(path: str, key: str | None) -> Any:
    """Open the array or group at `key`."""
    zarr = require("zarr", extra="zarr")
    if is_url(path):
        require("fsspec", extra="zarr")
    return zarr.open(path, mode="r", path=key or "")
