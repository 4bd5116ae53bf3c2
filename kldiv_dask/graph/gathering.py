"""Axes that are reduced, gathered in one chunk where partial sums would be larger than the data."""

import math
import warnings

import dask.array as da
from dask.utils import format_bytes

from kldiv_dask import config, partial_sum
from kldiv_dask.align import Chunks, Pair
from kldiv_dask.graph.tree import MERGE_BYTES

# Of a partial.
BYTES = 8 * partial_sum.SIZE


def gathered(pair: Pair, axes: tuple[int, ...], *, stacklevel: int) -> Pair:
    """Return a pair with some axes in one chunk each, if that is cheaper than partials of pieces.

    A partial takes as much as 73 pairs of float32. Where the chunks have fewer along the axes, it
    is cheaper to bring the chunks together if they fit into one, and to cut the other axes instead
    if two partials, the least that a merge holds, are larger than all there is along the axes:
    rechunking holds no more than that. Otherwise there is only a warning of what it takes.
    """
    shape = tuple(map(sum, pair.chunks))
    outputs = [max(pair.chunks[axis]) for axis in range(pair.ndim) if axis not in axes]
    block = BYTES * math.prod(outputs)
    pieces = math.prod(len(pair.chunks[axis]) for axis in axes)
    each = pair.input.dtype.itemsize + pair.target.dtype.itemsize
    data = each * math.prod(max(pair.chunks[axis]) for axis in axes)
    # NaN, for an unknown length, compares false.
    if pieces == 1 or not (block > MERGE_BYTES and data < BYTES and math.prod(shape) > 0):
        return pair
    limit = config.size("chunk-size")
    itemsize = max(pair.input.dtype.itemsize, pair.target.dtype.itemsize)
    length = math.prod(shape[axis] for axis in axes)
    fits = itemsize * length * math.prod(outputs) <= limit
    wanted: Chunks = tuple(
        (shape[axis],) if axis in axes else lengths for axis, lengths in enumerate(pair.chunks)
    )
    if not fits:
        chosen = tuple(-1 if axis in axes else "auto" for axis in range(pair.ndim))
        least = max(limit, itemsize * length)
        wanted = da.core.normalize_chunks(chosen, shape, least, pair.dtype, pair.chunks)
    named = f"axis {axes[0]} is" if len(axes) == 1 else f"axes {', '.join(map(str, axes))} are"
    every = pieces * BYTES * math.prod(shape) // length
    takes = (
        f"{named} cut into {pieces:,} pieces, of which each takes {BYTES} bytes for every element "
        f"of the result: {format_bytes(block)} for a pair of chunks, {format_bytes(every)} for all"
    )
    so = f"chunks={tuple(max(lengths) for lengths in wanted)} of kldiv_dask.open_pair"
    cheaper = fits or each * length <= 2 * BYTES
    if cheaper:
        advice = (
            f"input and target ({format_bytes(int(pair.nbytes))}) are rechunked instead, which "
            f"copies and may move all of them once more; open them in larger pieces, as {so} does"
        )
    else:
        advice = f"open input and target in larger pieces of it, as {so} does"
    warnings.warn(f"{takes}; {advice}", da.PerformanceWarning, stacklevel=stacklevel + 1)
    return _rechunked(pair, wanted) if cheaper else pair


def _rechunked(pair: Pair, chunks: Chunks) -> Pair:
    arrays = {"input": pair.input, "target": pair.target, "where": pair.where}
    for name, array in arrays.items():
        if array is not None:
            axes = zip(array.shape, array.chunks, chunks[pair.ndim - array.ndim :], strict=True)
            arrays[name] = array.rechunk(tuple(c if n == 1 else new for n, c, new in axes))
    return pair._replace(**arrays, chunks=chunks)
