"""What one pair of chunks becomes: its terms, or their partial."""

import math
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np

from kldiv_dask import partial
from kldiv_dask.align import Pair
from kldiv_dask.graph.stages import stage
from kldiv_dask.kernels import pointwise
from kldiv_dask.kernels.pointwise import Chunk, Term


def _check_lengths(input: Chunk, target: Chunk, matching: tuple[int, ...]) -> None:
    """Refuse blocks of unequal length, which only arrays of unknown chunk sizes can bring here.

    NumPy would broadcast a block of length one silently.
    """
    for axis in matching:
        if input.shape[axis] != target.shape[axis]:
            raise ValueError(
                f"input and target have chunks of unequal shapes {input.shape} and {target.shape} "
                "at the same place; call compute_chunk_sizes() on both and give them equal chunks"
            )


@stage("terms")
def _terms(input: Chunk, target: Chunk, matching: tuple[int, ...], term: Term) -> Chunk:
    _check_lengths(input, target, matching)
    return pointwise.block_terms(input, target, term)


@stage("block")
def _block(input: Chunk, target: Chunk, matching: tuple[int, ...], term: Term) -> partial.Partial:
    """Reduce a pair of chunks to one partial."""
    _check_lengths(input, target, matching)
    shape = np.broadcast_shapes(input.shape, target.shape)
    result = partial.zero((1,) * len(shape))
    state = result.reshape(partial.SIZE)
    pointwise.add_block(state, input, target, term)
    state[partial.NUMEL] = math.prod(shape)
    state[partial.ROWS] = input.shape[0] if input.ndim else 1
    return result


def terms(pair: Pair, term: Term) -> da.Array:
    """Return the terms, in the broadcast shape."""
    return _blockwise(_terms, pair, dict(enumerate(pair.chunks)), term.dtype, term=term)


def partials(pair: Pair, term: Term) -> da.Array:
    """Return a partial for each pair of chunks, of shape ``(*numblocks, SIZE)``."""
    ndim = len(pair.chunks)
    return _blockwise(
        _block,
        pair,
        dict.fromkeys(range(ndim), 1),
        np.dtype(np.int64),
        new_axes={ndim: partial.SIZE},
        term=term,
    )


def _blockwise(
    function: Callable[..., Any],
    pair: Pair,
    adjust_chunks: dict[int, Any],
    dtype: np.dtype[Any],
    new_axes: dict[int, int] | None = None,
    **keywords: Any,
) -> da.Array:
    new_axes = new_axes or {}
    axes = tuple(range(len(pair.chunks)))
    return da.blockwise(
        function,
        (*axes, *new_axes),
        pair.input,
        axes[len(axes) - pair.input.ndim :],
        pair.target,
        axes[len(axes) - pair.target.ndim :],
        matching=pair.matching,
        new_axes=new_axes,
        adjust_chunks=adjust_chunks,
        align_arrays=False,
        dtype=dtype,
        meta=np.empty((0,) * (len(axes) + len(new_axes)), dtype),
        **keywords,
    )
