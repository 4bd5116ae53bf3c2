"""Divergences at positions from logits, whose last axis is that of the classes, and their sums."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from kldiv_dask import partial
from kldiv_dask.align import Pair
from kldiv_dask.graph.blocks import checked_shape
from kldiv_dask.graph.stages import stage
from kldiv_dask.graph.tree import fan_in
from kldiv_dask.kernels import softmax
from kldiv_dask.kernels.softmax import Chunk, Mask, Result, computed_in
from kldiv_dask.kernels.states import STATE
from kldiv_dask.kernels.values import add_values

__all__ = ["Logits", "computed_in", "divergences", "position_partials"]

Shape = tuple[int, ...]


class Logits(NamedTuple):
    """A pair of logits, and what its divergences are.

    The last axis of `pair` is that of the classes. `where` is None, or an array of booleans that
    is chunked like the positions where it is not of length one. Logits are divided by
    `temperature`, and weights are computed in `dtype`.
    """

    pair: Pair
    where: da.Array | None
    temperature: float
    dtype: np.dtype[Any]


@stage("block")
def _divergences(
    input: list[Chunk],
    target: list[Chunk],
    where: Mask | None = None,
    *,
    matching: Shape,
    temperature: float,
    compute: np.dtype[Any],
    to: np.dtype[Any],
) -> Any:
    """Return the divergences of a pair of chunks that hold all classes, each in a list of one."""
    (x,), (t,) = input, target
    checked_shape(x, t, None, matching, ())
    divergences = softmax.block_divergences(x, t, where, compute, temperature)
    with np.errstate(over="ignore", under="ignore"):
        return divergences.astype(to, copy=False)


@stage("block")
def _states(
    input: Chunk,
    target: Chunk,
    where: Mask | None = None,
    *,
    matching: Shape,
    temperature: float,
    compute: np.dtype[Any],
) -> Result:
    checked_shape(input, target, None, matching, ())
    return softmax.block_states(input, target, where, compute, temperature)[..., None, :]


@stage("block")
def _pass(states: Result, axis: Shape, keepdims: bool) -> Result:
    return states


class _Merge:
    """Merge states along the axis of the classes; a class, since the temperature has to be said."""

    __name__ = "kl-div-merge"

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, states: Result, axis: Shape, keepdims: bool) -> Result:
        return softmax.merge_states(states, self.temperature)[..., None, :]

    def __dask_tokenize__(self) -> tuple[str, float]:
        return self.__name__, self.temperature


@stage("finalise")
def _conclude(states: list[list[Result]], where: Mask | None = None, *, to: np.dtype[Any]) -> Any:
    ((merged,),) = states
    with np.errstate(over="ignore", under="ignore"):
        return softmax.divergences_of(merged[..., 0, :], where).astype(to, copy=False)


@stage("block")
def _sum(values: Result, where: Mask | None = None) -> partial.Partial:
    """Reduce a chunk of divergences to one partial."""
    result = partial.zero((1,) * values.ndim)
    state = result.reshape(partial.SIZE)
    included = values.reshape(-1) if where is None else values[np.broadcast_to(where, values.shape)]
    add_values(state, included)
    state[partial.NUMEL] = included.size
    state[partial.ROWS] = values.shape[0] if values.ndim else 1
    return result


def divergences(
    logits: Logits, to: np.dtype[Any], split_every: int | Mapping[int, int] | None
) -> da.Array:
    """Return the divergence at each position, 0 at those that are excluded, rounded to `to`."""
    pair = logits.pair
    last = pair.ndim - 1
    positions, chunks = tuple(range(last)), dict(enumerate(pair.chunks[:last]))
    options = {"temperature": logits.temperature, "compute": logits.dtype}
    operands = _indexed((pair.input, pair.target), (*positions, last))
    where = [] if logits.where is None else _indexed((logits.where,), positions)
    if len(pair.chunks[last]) == 1:
        return _blockwise(
            _divergences,
            positions,
            chunks,
            to,
            *operands,
            *where,
            matching=pair.matching,
            to=to,
            **options,
        )
    state = last + 1
    states = _blockwise(
        _states,
        (*positions, last, state),
        {**chunks, last: 1},
        np.dtype(np.float64),
        *operands,
        *where,
        matching=pair.matching,
        new_axes={state: STATE},
        **options,
    )
    merge = _Merge(logits.temperature)
    numblocks = (1,) * last + states.numblocks[last : last + 1]
    merged = da.reduction(
        states,
        _pass,
        merge,
        combine=merge,
        axis=last,
        keepdims=True,
        dtype=np.float64,
        split_every={last: fan_in(split_every, numblocks)[last]},
        meta=np.empty((0,) * states.ndim),
    )
    axes = (*positions, last, state)
    return _blockwise(_conclude, positions, chunks, to, merged, axes, *where, to=to)


def position_partials(divergences: da.Array, where: da.Array | None) -> da.Array:
    """Return the partials of each chunk of divergences; the last axis is that of a partial."""
    axes = tuple(range(divergences.ndim))
    masks = [] if where is None else _indexed((where,), axes)
    return _blockwise(
        _sum,
        (*axes, divergences.ndim),
        dict.fromkeys(axes, 1),
        np.dtype(np.int64),
        divergences,
        axes,
        *masks,
        new_axes={divergences.ndim: partial.SIZE},
    )


def _indexed(arrays: tuple[da.Array, ...], axes: Shape) -> list[Any]:
    """Put behind each array its axes, which are the last of those given."""
    return [part for array in arrays for part in (array, axes[len(axes) - array.ndim :])]


def _blockwise(
    function: Callable[..., Any],
    axes: Shape,
    adjust_chunks: dict[int, Any],
    dtype: np.dtype[Any],
    *operands: Any,
    **keywords: Any,
) -> da.Array:
    return da.blockwise(
        function,
        axes,
        *operands,
        adjust_chunks=adjust_chunks,
        align_arrays=False,
        dtype=dtype,
        meta=np.empty((0,) * len(axes), dtype),
        **keywords,
    )
