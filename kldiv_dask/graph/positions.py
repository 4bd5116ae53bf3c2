"""Divergences at positions from logits, whose last axis is that of the classes, and their sums.

The axis of the classes stays to the end, with length one: Dask fuses reading a chunk with the tasks
after it only where no axis is dropped.
"""

from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from kldiv_dask import partial_sum
from kldiv_dask.align import Pair, single_array_pair
from kldiv_dask.graph.blocks import Shape, blockwise, blockwise_arrays, pair_stage
from kldiv_dask.graph.finalize import squeeze
from kldiv_dask.graph.stages import stage
from kldiv_dask.graph.tree import SplitEvery, reduce_blocks
from kldiv_dask.kernels import softmax_kl
from kldiv_dask.kernels.exact_values import add_values
from kldiv_dask.kernels.softmax_kl import Chunk, Mask, Result, compute_dtype
from kldiv_dask.kernels.softmax_state import STATE_SIZE

__all__ = ["LogitsSpec", "compute_dtype", "divergences", "mask_positions", "position_partials"]

FLOAT64 = np.dtype(np.float64)


class LogitsSpec(NamedTuple):
    """A pair of logits, and what its divergences are.

    The last axis of `pair` is that of the classes; its `where` has length one along it. Logits are
    divided by `temperature`, and weights are computed in `dtype`.
    """

    pair: Pair
    temperature: float
    dtype: np.dtype[Any]


@pair_stage("block")
def _divergences(
    input: Chunk,
    target: Chunk,
    where: Mask | None,
    shape: Shape,
    *,
    temperature: float,
    compute: np.dtype[Any],
    to: np.dtype[Any],
) -> Any:
    """Return the divergences of a pair of chunks that hold all classes."""
    if not shape[-1]:
        raise ValueError("input and target must have at least 1 class, got 0")
    divergences = softmax_kl.block_divergences(input, target, _flat(where), compute, temperature)
    return _rounded(divergences, to)[..., None]


@pair_stage("block")
def _states(
    input: Chunk,
    target: Chunk,
    where: Mask | None,
    shape: Shape,
    *,
    temperature: float,
    compute: np.dtype[Any],
) -> Result:
    states = softmax_kl.block_states(input, target, _flat(where), compute, temperature)
    return states[..., None, :]


def _flat(where: Mask | None) -> Mask | None:
    """Drop the axis of the classes of a mask."""
    return None if where is None else where[..., 0]


def _rounded(divergences: Result, to: np.dtype[Any]) -> Any:
    with np.errstate(over="ignore", under="ignore"):
        return divergences.astype(to, copy=False)


class _Merge:
    """Merge states along the axis of the classes.

    A callable object, as `da.reduction` passes no arguments on, and merging takes the temperature.
    """

    __name__ = "kl-div-merge"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, states: Result, axis: Shape, keepdims: bool) -> Result:
        return softmax_kl.merge_states(states, self.temperature)[..., None, :]

    def __dask_tokenize__(self) -> tuple[str, float]:
        return self.__name__, self.temperature


@stage("block")
def _divergences_of_states(
    states: list[Result], where: Mask | None = None, *, to: np.dtype[Any]
) -> Any:
    """Return the divergences of merged states, which come in a list of one."""
    (merged,) = states
    return _rounded(softmax_kl.divergences_of(merged, where), to)


@pair_stage("block")
def _sum(divergences: Result, _: Result, where: Mask | None, shape: Shape) -> partial_sum.Partial:
    """Reduce a chunk of divergences to one partial."""
    result = partial_sum.zero((1,) * len(shape))
    accumulator = result.reshape(partial_sum.SIZE)
    values = divergences if where is None else divergences[np.broadcast_to(where, shape)]
    add_values(accumulator, values.reshape(-1))
    accumulator[partial_sum.NUMEL] = values.size
    accumulator[partial_sum.ROWS] = shape[0]
    return result


@stage("where")
def _with_axis(where: Mask) -> Mask:
    return where[..., None]


def mask_positions(pair: Pair, where: da.Array) -> Pair:
    """Return a pair of logits with a mask of positions, chunked like them."""
    ndim = where.ndim
    masks = da.map_blocks(
        _with_axis,
        where,
        new_axis=ndim,
        chunks=(*where.chunks, (1,)),
        dtype=bool,
        meta=np.empty((0,) * (ndim + 1), bool),
    )
    return pair._replace(where=masks)


def divergences(logits: LogitsSpec, to: np.dtype[Any], split_every: SplitEvery) -> da.Array:
    """Return the divergence at each position, 0 at those that are excluded, rounded to `to`."""
    with_class_axis = _divergences_with_class_axis(logits, to, split_every)
    return squeeze(with_class_axis, (with_class_axis.ndim - 1,))


def position_partials(logits: LogitsSpec, split_every: SplitEvery) -> tuple[Pair, da.Array]:
    """Return what stands for the positions, and the partial of each of their chunks."""
    pair = logits.pair
    positions = single_array_pair(
        _divergences_with_class_axis(logits, FLOAT64, split_every), pair.where, pair.nbytes
    )
    axes, size = dict.fromkeys(range(positions.ndim), 1), {positions.ndim: partial_sum.SIZE}
    return positions, blockwise(_sum, positions, axes, np.dtype(np.int64), size)


def _divergences_with_class_axis(
    logits: LogitsSpec, to: np.dtype[Any], split_every: SplitEvery
) -> da.Array:
    """Return the divergences with the axis of the classes, of length one."""
    pair, last = logits.pair, logits.pair.ndim - 1
    chunks = {**dict(enumerate(pair.chunks)), last: 1}
    options: dict[str, Any] = {"temperature": logits.temperature, "compute": logits.dtype}
    if len(pair.chunks[last]) == 1:
        return blockwise(_divergences, pair, chunks, to, to=to, **options)
    states = blockwise(_states, pair, chunks, FLOAT64, {last + 1: STATE_SIZE}, **options)
    merged = reduce_blocks(states, _Merge(logits.temperature), (last,), split_every)
    axes = tuple(range(last + 1))
    arrays = [(merged, (*axes, last + 1))]
    if pair.where is not None:
        arrays.append((pair.where, axes[last + 1 - pair.where.ndim :]))
    return blockwise_arrays(_divergences_of_states, axes, arrays, chunks, to, to=to)
