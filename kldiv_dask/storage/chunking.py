"""Which chunks to read: whole stored chunks, of a size that suits the scheduler."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from dask.utils import parse_bytes

from kldiv_dask import config
from kldiv_dask.storage.source import Source

Chunks: TypeAlias = int | str | Sequence[Any] | Mapping[int, Any] | None
NormalisedChunks: TypeAlias = tuple[tuple[int, ...], ...]


def plan_chunks(sources: Sequence[Source], chunks: Chunks = None) -> NormalisedChunks:
    """Choose one chunking for arrays that are read together.

    `dask.array`'s own automatic chunks keep an aspect ratio, so they cut the last axis, the
    classes, before they need to, and cut stored chunks that are larger than the limit.

    Parameters
    ----------
    sources : sequence of Source
        Arrays whose shapes broadcast.
    chunks : int, str, tuple, mapping or None
        ``None`` or ``'auto'`` for about 128 MiB of the widest array in a chunk, or what
        ``kldiv.chunk-size`` of Dask's configuration says; a size such as ``'64 MiB'`` for another
        limit; or anything else that `dask.array.from_array` takes, said of the broadcast shape.

    Returns
    -------
    tuple of tuple of int
        Chunks of the broadcast shape; `restrict` gives those of one array.

    Raises
    ------
    ValueError
        If `chunks` or the configuration can't be understood, or `chunks` does not suit the shape.
    """
    shape = np.broadcast_shapes(*(source.shape for source in sources))
    dtype = max((source.dtype for source in sources), key=lambda dtype: dtype.itemsize)
    given = isinstance(chunks, str) and chunks != "auto"
    limit = 0 if given else config.size("chunk-size")
    try:
        if given:
            limit = parse_bytes(chunks)
        unit = _read_unit(sources, shape, limit // dtype.itemsize)
        if chunks is None or isinstance(chunks, str):
            largest = max(sources, key=lambda source: source.nbytes)
            chunks = _grow(unit, shape, limit // dtype.itemsize, largest.order)
        planned: NormalisedChunks = da.core.normalize_chunks(
            chunks, shape=shape, dtype=dtype, previous_chunks=unit
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"chunks={chunks!r} does not suit the shape {shape}: {error}") from error
    return planned


def restrict(chunks: NormalisedChunks, shape: tuple[int, ...]) -> NormalisedChunks:
    """Give the part of a broadcast chunking that concerns an array of `shape`.

    Parameters
    ----------
    chunks : tuple of tuple of int
        Chunks of the broadcast shape.
    shape : tuple of int
        Shape of an array that broadcasts to it.

    Returns
    -------
    tuple of tuple of int
        Chunks of the array; an axis of length 1 is one chunk.
    """
    own = chunks[len(chunks) - len(shape) :]
    return tuple((1,) if n == 1 else sizes for n, sizes in zip(shape, own, strict=True))


def _read_unit(sources: Sequence[Source], shape: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """Find the smallest chunk of the broadcast shape, in elements, that cuts no stored chunk.

    Where that is over the limit, the stored chunks that are the dearest to decode twice win.
    """
    units = []
    for source in sources:
        stored = zip(source.stored_chunks, source.shape, strict=True)
        own = [1 if n == 1 else min(size, n) for size, n in stored]
        units.append([1] * (len(shape) - len(own)) + own)
    common = tuple(min(math.lcm(*sizes), n) for *sizes, n in zip(*units, shape, strict=True))
    if math.prod(common) <= limit:
        return common
    cost = [math.prod(u) * s.dtype.itemsize for u, s in zip(units, sources, strict=True)]
    return tuple(units[cost.index(max(cost))])


def _grow(unit: tuple[int, ...], shape: tuple[int, ...], limit: int, order: str) -> tuple[int, ...]:
    """Repeat a unit along one axis after another, the contiguous axis first, up to a limit.

    So the classes stay whole if they can, and the chunks of an axis are about equal.
    """
    sizes = [max(size, 1) for size in unit]
    axes = range(len(shape))
    for axis in axes if order == "F" else reversed(axes):
        room = max(limit // math.prod(sizes), 1)
        units = -(-shape[axis] // sizes[axis])
        pieces = max(-(-units // room), 1)
        sizes[axis] = max(min(sizes[axis] * -(-units // pieces), shape[axis]), 1)
    return tuple(sizes)
