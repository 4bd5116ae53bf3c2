"""Which chunks to read: whole stored chunks, of a size that suits the scheduler."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import dask
import dask.array as da
import numpy as np
from dask.utils import format_bytes, parse_bytes

from kldiv_dask import config
from kldiv_dask.storage.source import Source

# Dask takes 5 s to cut a part out of an array of so many chunks. Of 128 MiB each they are 134 TB.
_MOST_CHUNKS = 1_000_000
# Into how many chunks arrays are cut at least, so that there is work for all threads of a laptop
# and progress to see; but not into smaller ones, each of which costs a scheduler a millisecond.
_PARTS, _SMALL = 64, 8 * 2**20
# By how much chunks that can't be smaller may exceed their size without a warning.
_EXCESS = 2

Chunks: TypeAlias = int | str | Sequence[Any] | Mapping[int, Any] | None
NormalizedChunks: TypeAlias = tuple[tuple[int, ...], ...]


def plan_chunks(sources: Sequence[Source], chunks: Chunks = None) -> NormalizedChunks:
    """Choose one chunking for arrays that are read together.

    `dask.array`'s own automatic chunks keep an aspect ratio, so they cut the last axis, the
    classes, before they need to, and cut stored chunks that are larger than the limit.

    Parameters
    ----------
    sources : sequence of Source
        Arrays whose shapes broadcast.
    chunks : int, str, tuple, mapping or None
        ``None`` or ``'auto'`` for about 128 MiB of the widest array in a chunk, or what
        ``kldiv.chunk-size`` of Dask's configuration says, of arrays below 8 GiB a 64th, and at
        least 8 MiB; a size such as ``'64 MiB'`` for another limit; or anything else that
        `dask.array.from_array` takes, said of the broadcast shape.

    Returns
    -------
    tuple of tuple of int
        Chunks of the broadcast shape; `chunks_for` gives those of one array.

    Raises
    ------
    ValueError
        If `chunks` or the configuration can't be understood, or `chunks` does not suit the shape:
        there would be more than a million.

    Warns
    -----
    UserWarning
        Stored chunks have more than twice the size that was given; they are read whole.
    """
    shape = np.broadcast_shapes(*(source.shape for source in sources))
    dtype = max((source.dtype for source in sources), key=lambda dtype: dtype.itemsize)
    itemsize = dtype.itemsize or 64  # strings of any length
    is_size = isinstance(chunks, str) and chunks != "auto"
    limit = 0 if is_size else config.size("chunk-size")
    try:
        if is_size:
            limit = parse_bytes(chunks)
        unit = _read_unit(sources, shape, limit // itemsize)
        if chunks is None or isinstance(chunks, str):
            largest = max(sources, key=lambda source: source.nbytes)
            _warn_of_size(sources, limit)
            part = max(math.prod(shape) * itemsize // _PARTS, _SMALL)
            limits = limit, limit if is_size else min(limit, part)
            bound = min(source.most_elements for source in sources)
            most = [min(nbytes // itemsize, bound) for nbytes in limits]
            chunks = _grow(unit, shape, most, largest.order)
        _check_count(chunks, shape, math.prod(shape) * itemsize)
        planned: NormalizedChunks = da.core.normalize_chunks(
            chunks, shape=shape, dtype=dtype, previous_chunks=unit
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        names = " and ".join(source.name for source in sources)
        raise ValueError(
            f"chunks={chunks!r} does not suit the shape {shape} of {names}: {error}"
        ) from error
    return planned


def chunks_for(chunks: NormalizedChunks, shape: tuple[int, ...]) -> NormalizedChunks:
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
    trailing = chunks[len(chunks) - len(shape) :]
    return tuple((1,) if n == 1 else sizes for n, sizes in zip(shape, trailing, strict=True))


def _read_unit(sources: Sequence[Source], shape: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """Find the smallest chunk of the broadcast shape, in elements, that cuts no stored chunk.

    Where that is over the limit, inner chunks take the place of shards; and where that is too, the
    chunks that are the dearest to decode twice win.
    """
    options = [
        [_broadcast(unit, source, shape) for unit in source.read_units] for source in sources
    ]
    fitting = [
        next((u for u in candidates if math.prod(u) <= limit), candidates[-1])
        for candidates in options
    ]
    smallest = [candidates[-1] for candidates in options]
    for units in [candidates[0] for candidates in options], fitting, smallest:
        common = tuple(min(math.lcm(*sizes), n) for *sizes, n in zip(*units, shape, strict=True))
        if math.prod(common) <= limit:
            return common
    cost = [math.prod(u) * s.dtype.itemsize for u, s in zip(smallest, sources, strict=True)]
    return tuple(smallest[cost.index(max(cost))])


def _broadcast(unit: Sequence[int], source: Source, shape: tuple[int, ...]) -> list[int]:
    """Give what a unit of a source is in the broadcast shape; an axis of length 1 cuts none."""
    lengths = [1 if n == 1 else min(size, n) for size, n in zip(unit, source.shape, strict=True)]
    return [1] * (len(shape) - len(lengths)) + lengths


def _warn_of_size(sources: Sequence[Source], limit: int) -> None:
    """Warn if what is read at a time can't but be much more than was asked for."""
    sizes = [math.prod(map(min, s.read_units[-1], s.shape)) * s.dtype.itemsize for s in sources]
    size = max(sizes)
    if size > _EXCESS * limit:
        warnings.warn(
            f"{sources[sizes.index(size)].name} has stored chunks of {format_bytes(size)}, and none"
            f" can be read in part: each thread reads so much at a time, not {format_bytes(limit)}."
            " Store it in smaller chunks, or ask for chunks of this size if that is meant",
            stacklevel=5,
        )


def _check_count(chunks: Any, shape: tuple[int, ...], nbytes: int) -> None:
    """Raise ValueError if there would be too many chunks, before there are."""
    count = 1
    each = [chunks] * len(shape) if isinstance(chunks, int) else chunks
    if isinstance(chunks, Mapping):
        each = [chunks.get(axis, chunks.get(axis - len(shape))) for axis in range(len(shape))]
    for axis_chunks, n in zip(each, shape, strict=False):
        if isinstance(axis_chunks, int) and axis_chunks > 0:
            count *= -(-n // axis_chunks)
        elif isinstance(axis_chunks, Sequence) and not isinstance(axis_chunks, str):
            count *= len(axis_chunks)
    if any(
        isinstance(axis_chunks, str) for axis_chunks in each
    ):  # at least, if all are as large as they may be
        count = max(count, nbytes // parse_bytes(dask.config.get("array.chunk-size")))
    if count > _MOST_CHUNKS:
        raise ValueError(
            f"there would be {count:,} chunks, and there can be {_MOST_CHUNKS:,}; ask for larger"
            " ones, or look whether the file is damaged if its shape can't be"
        )


def _grow(
    unit: tuple[int, ...], shape: tuple[int, ...], limits: Sequence[int], order: str
) -> tuple[int, ...]:
    """Repeat a unit along one axis after another, the contiguous axis first, up to a limit.

    So the classes stay whole if they can, and the chunks of an axis are about equal. The first
    limit is that for the contiguous axis, the second for the others.
    """
    if 0 in shape:
        return shape
    sizes = [max(size, 1) for size in unit]
    limit, others = limits
    axes = range(len(shape))
    for axis in axes if order == "F" else reversed(axes):
        room = max(limit // math.prod(sizes), 1)
        units = -(-shape[axis] // sizes[axis])
        pieces = max(-(-units // room), 1)
        sizes[axis] = max(min(sizes[axis] * -(-units // pieces), shape[axis]), 1)
        limit = others
    return tuple(sizes)
