"""Dask graphs over an aligned pair: block, merge, finalise.

Everything here is public Dask API, so that the result works under Dask's default arrays and under
``array.query-planning``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import dask.array as da
import numpy as np

from kldiv_dask import partial
from kldiv_dask.align import Pair
from kldiv_dask.kernels import pointwise
from kldiv_dask.kernels.pointwise import Chunk, Term
from kldiv_dask.options import Reduction

# Partials merged by one task. A partial is under 1 kB, so a merge costs less than its own
# scheduling, and 32 keep the tree over 1e5 blocks four levels high.
FAN_IN = 32

Function = TypeVar("Function", bound=Callable[..., Any])


def _stage(name: str) -> Callable[[Function], Function]:
    """Name a function so that Dask names its tasks ``kl-div-<name>``."""

    def rename(function: Function) -> Function:
        function.__name__ = f"kl-div-{name}"
        return function

    return rename


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


@_stage("terms")
def _terms(input: Chunk, target: Chunk, matching: tuple[int, ...], term: Term) -> Chunk:
    _check_lengths(input, target, matching)
    return pointwise.block_terms(input, target, term)


@_stage("block")
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


@_stage("block")
def _pass(block: partial.Partial, axis: tuple[int, ...], keepdims: bool) -> partial.Partial:
    # The first stage of da.reduction; it fuses with the block that has done the work already.
    return block


@_stage("merge")
def _merge(partials: partial.Partial, axis: tuple[int, ...], keepdims: bool) -> partial.Partial:
    return partial.merge(partials, axis, keepdims)


@_stage("finalise")
def _finalise(merged: partial.Partial, reduction: Reduction, copies: int, to: np.dtype[Any]) -> Any:
    sums = partial.total(merged.reshape(partial.SIZE))
    divisor = sums.numel if reduction.kind == "mean" else 1
    if reduction.per_batch:
        divisor *= sums.rows // copies
    return partial.quotient(sums, divisor, to)


@_stage("finalise")
def _finalise_count(merged: partial.Partial, slot: int, copies: int) -> Any:
    return merged.reshape(partial.SIZE)[slot] // copies


def terms(pair: Pair, term: Term) -> da.Array:
    """Return the terms, in the broadcast shape."""
    return _blockwise(_terms, pair, dict(enumerate(pair.chunks)), term.dtype, term=term)


def merged_partial(pair: Pair, term: Term, split_every: int | Mapping[int, int] | None) -> da.Array:
    """Return the partial of all terms, of shape ``(1, ..., 1, SIZE)``."""
    ndim = len(pair.chunks)
    blocks = _blockwise(
        _block,
        pair,
        dict.fromkeys(range(ndim), 1),
        np.dtype(np.int64),
        new_axes={ndim: partial.SIZE},
        term=term,
    )
    shares = fan_in(split_every, blocks.numblocks[:ndim])
    if math.prod(blocks.numblocks) == 1:
        return blocks
    return da.reduction(
        blocks,
        _pass,
        _merge,
        axis=tuple(range(ndim)),
        keepdims=True,
        dtype=np.int64,
        split_every=shares,
        meta=partial.zero((0,) * ndim),
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


def fan_in(
    split_every: int | Mapping[int, int] | None, numblocks: tuple[int, ...]
) -> dict[int, int]:
    """Spread `split_every` over the axes so that one merge takes about that many partials.

    Dask gives every axis the same share, which on an (n, 1) grid of blocks makes 4 of 16. Here the
    shortest axes are served first and what they do not use goes to the longer ones.

    Examples
    --------
    >>> fan_in(16, (1000, 1))
    {0: 16, 1: 1}
    >>> fan_in(16, (1000, 2))
    {0: 8, 1: 2}
    """
    if isinstance(split_every, Mapping):
        return {axis: _checked(split_every.get(axis, FAN_IN)) for axis in range(len(numblocks))}
    left = FAN_IN if split_every is None else _checked(split_every)
    shares = {}
    by_length = sorted(range(len(numblocks)), key=lambda axis: numblocks[axis])
    for position, axis in enumerate(by_length):
        even = int(left ** (1 / (len(by_length) - position)) + 1e-9)
        shares[axis] = min(numblocks[axis], max(even, 2))
        left = max(left // shares[axis], 1)
    return dict(sorted(shares.items()))


def _checked(split_every: Any) -> int:
    if isinstance(split_every, bool) or not isinstance(split_every, int | np.integer):
        raise TypeError(
            f"split_every is {split_every!r}; accepted are an integer of at least 2, or a dict "
            "from axis to such an integer"
        )
    if split_every < 2:
        raise ValueError(f"split_every is {split_every}; it must be at least 2")
    return int(split_every)


def _copies(pair: Pair) -> int:
    """Return how many blocks count each row of `input`: those side by side in one row of blocks."""
    blocks = math.prod(map(len, pair.chunks))
    return blocks // pair.input.numblocks[0] if pair.input.ndim else blocks


def value(merged: da.Array, pair: Pair, reduction: Reduction, dtype: np.dtype[Any]) -> da.Array:
    """Return the reduced value of a merged partial, 0-d, rounded once to `dtype`."""
    return _scalar(_finalise, merged, dtype, reduction=reduction, copies=_copies(pair), to=dtype)


def count(
    merged: da.Array, pair: Pair, what: Literal["numel", "rows", "nan", "posinf", "neginf"]
) -> da.Array:
    """Return a count that a merged partial holds, 0-d int64."""
    slot = getattr(partial, what.upper())
    copies = _copies(pair) if what == "rows" else 1
    return _scalar(_finalise_count, merged, np.dtype(np.int64), slot=slot, copies=copies)


def _scalar(
    function: Callable[..., Any], merged: da.Array, dtype: np.dtype[Any], **keywords: Any
) -> da.Array:
    return da.map_blocks(
        function,
        merged,
        drop_axis=list(range(merged.ndim)),
        dtype=dtype,
        meta=np.zeros((), dtype),  # its value goes into the key
        **keywords,
    )
