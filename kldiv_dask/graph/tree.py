"""From the partials of all blocks to numbers: merge and finalise."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import dask.array as da
import numpy as np

from kldiv_dask import partial
from kldiv_dask.graph.stages import stage
from kldiv_dask.options import Reduction

# Partials merged by one task. A partial is under 1 kB, so a merge costs less than its own
# scheduling, and 32 keep the tree over 1e5 blocks four levels high.
FAN_IN = 32


@stage("block")
def _pass(block: partial.Partial, axis: tuple[int, ...], keepdims: bool) -> partial.Partial:
    # The first stage of da.reduction; it fuses with the block that has done the work already.
    return block


@stage("merge")
def _merge(partials: partial.Partial, axis: tuple[int, ...], keepdims: bool) -> partial.Partial:
    return partial.merge(partials, axis, keepdims)


@stage("finalise")
def _finalise(merged: partial.Partial, reduction: Reduction, copies: int, to: np.dtype[Any]) -> Any:
    sums = partial.total(merged.reshape(partial.SIZE))
    divisor = sums.numel if reduction.kind == "mean" else 1
    if reduction.per_batch:
        divisor *= sums.rows // copies
    return partial.quotient(sums, divisor, to)


@stage("finalise")
def _finalise_count(merged: partial.Partial, slot: int, copies: int) -> Any:
    return merged.reshape(partial.SIZE)[slot] // copies


def merged(blocks: da.Array, split_every: int | Mapping[int, int] | None) -> da.Array:
    """Merge partials of shape ``(*numblocks, SIZE)`` to one, of shape ``(1, ..., 1, SIZE)``."""
    ndim = blocks.ndim - 1
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


def value(merged: da.Array, reduction: Reduction, copies: int, dtype: np.dtype[Any]) -> da.Array:
    """Return the reduced value of a merged partial, 0-d, rounded once to `dtype`.

    `copies` is how many blocks have counted each batch row.
    """
    return _scalar(_finalise, merged, dtype, reduction=reduction, copies=copies, to=dtype)


def count(
    merged: da.Array, what: Literal["numel", "rows", "nan", "posinf", "neginf"], copies: int = 1
) -> da.Array:
    """Return a count that a merged partial holds, 0-d int64."""
    slot = getattr(partial, what.upper())
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
