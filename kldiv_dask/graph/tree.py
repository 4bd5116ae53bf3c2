"""Merging the blocks of an array in a tree: partials to one for each output, states to one."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import dask.array as da
import numpy as np

from kldiv_dask import config, partial_sum
from kldiv_dask.graph.stages import stage

SplitEvery = int | Mapping[int, int] | None

# A merge takes no more bytes of blocks than this if it can.
MERGE_BYTES = 64 * 2**20


@stage("block")
def identity(block: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    """Return the block: what `da.reduction` takes as its first stage, where blocks are reduced."""
    return block


@stage("merge")
def _merge(
    partials: partial_sum.Partial, axis: tuple[int, ...], keepdims: bool
) -> partial_sum.Partial:
    return partial_sum.merge(partials, axis, keepdims)


def tree_reduce(blocks: da.Array, split_every: SplitEvery, axes: tuple[int, ...]) -> da.Array:
    """Merge partials of shape ``(..., SIZE)`` along `axes`, which become of length one."""
    block_bytes = 8 * math.prod(max(lengths) for lengths in blocks.chunks)
    return reduce_blocks(blocks, _merge, axes, split_every, block_bytes)


def reduce_blocks(
    blocks: da.Array,
    merge: Callable[..., Any],
    axes: tuple[int, ...],
    split_every: SplitEvery,
    block_bytes: float = 0,
) -> da.Array:
    """Merge the blocks of an array along `axes`, which become of length one.

    `merge` takes some blocks in one, the axes to merge, and `keepdims`. `block_bytes` is the size
    of a block, NaN if it is unknown: of large blocks, fewer are merged at once by default.
    """
    numblocks = tuple(n if axis in axes else 1 for axis, n in enumerate(blocks.numblocks))
    limit = config.count("split-every", least=2)
    if block_bytes * limit > MERGE_BYTES:  # which NaN is not
        limit = max(2, int(MERGE_BYTES // block_bytes))
    shares = fan_in(split_every, numblocks, limit)
    if math.prod(numblocks) == 1:
        return blocks
    # What is merged has a length of its own along the last axis, if that is not merged.
    *_, last = blocks.shape
    length = 0 if blocks.ndim - 1 in axes else last
    return da.reduction(
        blocks,
        identity,
        merge,
        axis=axes,
        keepdims=True,
        dtype=blocks.dtype,
        split_every={axis: shares[axis] for axis in axes},
        meta=np.empty((0,) * (blocks.ndim - 1) + (length,), blocks.dtype),
    )


def fan_in(
    split_every: SplitEvery, numblocks: tuple[int, ...], default: int | None = None
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
    default = default or config.count("split-every", least=2)
    if isinstance(split_every, Mapping):
        return {axis: _checked(split_every.get(axis, default)) for axis in range(len(numblocks))}
    left = default if split_every is None else _checked(split_every)
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
            "split_every must be an integer of at least 2, or a dict from axis to such an integer, "
            f"got {split_every!r}"
        )
    if split_every < 2:
        raise ValueError(f"split_every must be at least 2, got {split_every}")
    return int(split_every)
