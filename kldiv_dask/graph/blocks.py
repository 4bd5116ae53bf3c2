"""What one pair of chunks becomes: its terms, its partials, or its sums."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import dask.array as da
import numpy as np

from kldiv_dask import partial_sum
from kldiv_dask.align import Pair
from kldiv_dask.graph.stages import Function, stage
from kldiv_dask.kernels import pointwise, pointwise_sum
from kldiv_dask.kernels.pointwise import Chunk, Mask, PointwiseSpec
from kldiv_dask.kernels.pointwise_rows import OUTPUTS, RowSums
from kldiv_dask.options import Reduction
from kldiv_dask.storage import check_maps

Shape = tuple[int, ...]


def _checked_shape(
    input: Chunk, target: Chunk, where: Mask | None, matching: Shape, masked: Shape
) -> Shape:
    """Return the shape of a block, and refuse unequal lengths along the axes that are to match.

    Only arrays of unknown chunk sizes can bring them here, and NumPy would broadcast a block of
    length one silently.
    """
    for axis in matching:
        if input.shape[axis] != target.shape[axis]:
            raise ValueError(
                f"input and target have chunks of unequal shapes {input.shape} and {target.shape} "
                "at the same place; call compute_chunk_sizes() on both and give them equal chunks"
            )
    shape = np.broadcast_shapes(input.shape, target.shape)
    for axis in masked:
        if where is not None and where.shape[axis] != shape[axis]:
            raise ValueError(
                f"where has a chunk of shape {where.shape} at the place of one of shape {shape}; "
                "call compute_chunk_sizes() on all operands and give them equal chunks"
            )
    return shape


def pair_stage(name: str) -> Callable[[Function], Any]:
    """Make a stage of a function of two chunks, that of a mask or None, and their shape."""

    def decorate(function: Function) -> Any:
        @stage(name)
        @functools.wraps(function)
        def checked(
            input: Chunk,
            target: Chunk,
            where: Mask | None = None,
            *,
            matching: Shape,
            masked: Shape,
            **options: Any,
        ) -> Any:
            shape = _checked_shape(input, target, where, matching, masked)
            result = function(input, target, where, shape, **options)
            check_maps(input, target, where)
            return result

        return checked

    return decorate


@pair_stage("terms")
def _terms(
    input: Chunk,
    target: Chunk,
    where: Mask | None,
    shape: Shape,
    *,
    spec: PointwiseSpec,
) -> Chunk:
    return pointwise.block_terms(input, target, spec, where)


@pair_stage("block")
def _block(
    input: Chunk,
    target: Chunk,
    where: Mask | None,
    shape: Shape,
    *,
    spec: PointwiseSpec,
) -> partial_sum.Partial:
    """Reduce a pair of chunks to one partial."""
    result = partial_sum.zero((1,) * len(shape))
    accumulator = result.reshape(partial_sum.SIZE)
    pointwise_sum.add_block(accumulator, input, target, spec, where)
    numel = math.prod(shape)
    if where is not None and numel:
        numel = int(np.count_nonzero(where)) * (numel // where.size)
    accumulator[partial_sum.NUMEL] = numel
    accumulator[partial_sum.ROWS] = input.shape[0] if input.ndim else 1
    return result


@pair_stage("block")
def _partials(
    input: Chunk,
    target: Chunk,
    where: Mask | None,
    shape: Shape,
    *,
    spec: PointwiseSpec,
    axes: Shape,
) -> partial_sum.Partial:
    """Reduce some axes of a pair of chunks to length one, with a partial for each output."""
    sums = RowSums(input, target, where, axes, spec)
    result = partial_sum.zero(_reduced(shape, axes))
    partials = result.reshape(*sums.shape, partial_sum.SIZE)
    for slices in sums.runs:
        accumulators = partials[slices].reshape(-1, partial_sum.SIZE)
        sums.add(accumulators, slices)
        accumulators[:, partial_sum.NUMEL] = sums.included(slices)
    return result


@pair_stage("block")
def _sums(
    input: Chunk,
    target: Chunk,
    where: Mask | None,
    shape: Shape,
    *,
    spec: PointwiseSpec,
    axes: Shape,
    reduction: Reduction,
) -> Chunk:
    """Reduce some axes of a pair of chunks, which are whole in it, to length one."""
    sums = RowSums(input, target, where, axes, spec)
    result = np.empty(sums.shape, spec.dtype)
    partials = partial_sum.zero((min(OUTPUTS, result.size),))
    for slices in sums.runs:
        out = result[slices]
        accumulators = partials[: out.size]
        accumulators[...] = 0
        sums.add(accumulators, slices)
        # Counting what a mask includes takes up to half as long as summing it.
        divisors = reduction.divisor(sums.included(slices) if reduction.divides_by_numel else 0)
        out[...] = partial_sum.quotients(accumulators, divisors, spec.dtype).reshape(out.shape)
    return result.reshape(_reduced(shape, axes))


def _reduced(shape: Shape, axes: Shape) -> Shape:
    return tuple(1 if axis in axes else length for axis, length in enumerate(shape))


def terms(pair: Pair, spec: PointwiseSpec) -> da.Array:
    """Return the terms, in the broadcast shape."""
    return blockwise(_terms, pair, dict(enumerate(pair.chunks)), spec.dtype, spec=spec)


def partials(pair: Pair, spec: PointwiseSpec, axes: Shape) -> da.Array:
    """Return the partials of each pair of chunks, reduced to length one along `axes`.

    The last axis is that of a partial.
    """
    reduces_all = len(axes) == pair.ndim
    keywords = {} if reduces_all else {"axes": axes}
    return blockwise(
        _block if reduces_all else _partials,
        pair,
        _chunks(pair, axes),
        np.dtype(np.int64),
        new_axes={pair.ndim: partial_sum.SIZE},
        spec=spec,
        **keywords,
    )


def sums(pair: Pair, spec: PointwiseSpec, axes: Shape, reduction: Reduction) -> da.Array:
    """Return sums or means along `axes`, which have one chunk each, as axes of length one."""
    chunks = _chunks(pair, axes)
    return blockwise(_sums, pair, chunks, spec.dtype, spec=spec, axes=axes, reduction=reduction)


def _chunks(pair: Pair, axes: Shape) -> dict[int, Any]:
    return dict(enumerate(pair.chunks)) | dict.fromkeys(axes, 1)


def blockwise(
    function: Callable[..., Any],
    pair: Pair,
    adjust_chunks: dict[int, Any],
    dtype: np.dtype[Any],
    new_axes: dict[int, int] | None = None,
    **keywords: Any,
) -> da.Array:
    """Apply a function of `pair_stage` to each pair of chunks, and to the chunk of `where`."""
    axes = tuple(range(pair.ndim))
    operands = [array for array in (pair.input, pair.target, pair.where) if array is not None]
    return blockwise_arrays(
        function,
        axes,
        [(array, axes[len(axes) - array.ndim :]) for array in operands],
        adjust_chunks,
        dtype,
        new_axes,
        matching=pair.matching,
        masked=pair.masked,
        **keywords,
    )


def blockwise_arrays(
    function: Callable[..., Any],
    axes: Shape,
    arrays: Iterable[tuple[da.Array, Shape]],
    adjust_chunks: dict[int, Any],
    dtype: np.dtype[Any],
    new_axes: dict[int, int] | None = None,
    /,  # these names are free for the keywords of the function
    **keywords: Any,
) -> da.Array:
    """Apply a function to the chunks of arrays that are at one place of a grid with some axes.

    Each array comes with its axes in the grid. All are chunked alike along them.
    """
    new_axes = new_axes or {}
    return da.blockwise(
        function,
        (*axes, *new_axes),
        *itertools.chain.from_iterable(arrays),
        new_axes=new_axes,
        adjust_chunks=adjust_chunks,
        align_arrays=False,
        dtype=dtype,
        meta=np.empty((0,) * (len(axes) + len(new_axes)), dtype),
        **keywords,
    )
