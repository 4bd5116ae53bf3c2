"""States of evaluations, of each pair of chunks and of many."""

from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt

from kldiv_dask.graph.stages import stage
from kldiv_dask.graph.tree import fan_in, unchanged
from kldiv_dask.statistics import state
from kldiv_dask.statistics.chunks import Plan, evaluate_chunks

# States of many groups take megabytes.
FAN_IN = 8


class Operands(NamedTuple):
    """Arrays that are aligned: the classes of the first two are last and in one chunk.

    The others, of which each may be None, broadcast to the positions.
    """

    input: da.Array
    target: da.Array
    where: da.Array | None
    groups: da.Array | None
    labels: da.Array | None


@stage("block")
def _evaluate(
    input: npt.NDArray[Any],
    target: npt.NDArray[Any],
    *others: npt.NDArray[Any],
    names: tuple[str, ...],
    plan: Plan,
) -> npt.NDArray[np.object_]:
    """Return the state of a pair of chunks in an array of one element."""
    ndim = len(plan.shape)
    start = tuple(int(first[0]) for first in others[:ndim])
    small = dict(zip(names, others[ndim:], strict=True))
    found = evaluate_chunks(
        input, target, start, small.get("where"), small.get("groups"), small.get("labels"), plan
    )
    return _boxed(found, ndim + 1)


def _boxed(found: state.State, ndim: int) -> npt.NDArray[np.object_]:
    box = np.empty((1,) * ndim, object)
    box[(0,) * ndim] = found
    return box


@stage("merge")
def _merge(states: npt.NDArray[np.object_], axis: tuple[int, ...], keepdims: bool) -> Any:
    return _boxed(state.merge(states.ravel().tolist()), states.ndim)


def states(operands: Operands, plan: Plan) -> da.Array:
    """Return the state of each pair of chunks; the grid has an axis of length one for classes."""
    chunks = np.broadcast_shapes(operands.input.numblocks, operands.target.numblocks)
    ndim = len(chunks) - 1
    positions = _position_chunks(operands)
    starts = [da.from_array(np.cumsum((0, *lengths[:-1])), chunks=1) for lengths in positions]
    small = {
        name: array
        for name, array in zip(Operands._fields[2:], operands[2:], strict=True)
        if array is not None
    }
    axes = tuple(range(ndim + 1))
    indexed: list[Any] = []
    for array in operands[:2]:
        indexed += [array, axes[len(axes) - array.ndim :]]
    for axis, start in enumerate(starts):
        indexed += [start, (axis,)]
    for array in small.values():
        indexed += [array, axes[ndim - array.ndim : ndim]]
    return da.blockwise(
        _evaluate,
        axes,
        *indexed,
        names=tuple(small),
        plan=plan,
        adjust_chunks=dict.fromkeys(axes, 1),
        align_arrays=False,
        dtype=object,
        meta=np.empty((0,) * len(axes), object),
    )


def _position_chunks(operands: Operands) -> list[tuple[int, ...]]:
    """Return the chunks of the positions."""
    ndim = max(operands.input.ndim, operands.target.ndim)
    padded = [((1,),) * (ndim - array.ndim) + array.chunks for array in operands[:2]]
    pairs = list(zip(*padded, strict=True))[:-1]
    return [right if sum(left) == 1 else left for left, right in pairs]


def merged_state(states: da.Array) -> da.Array:
    """Merge the states of a grid of chunks."""
    if states.size == 1:
        return states
    axes = tuple(range(states.ndim))
    return da.reduction(
        states,
        unchanged,
        _merge,
        axis=axes,
        keepdims=True,
        dtype=object,
        split_every=fan_in(None, states.numblocks, FAN_IN),
        meta=np.empty((0,) * states.ndim, object),
    )
