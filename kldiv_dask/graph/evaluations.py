"""States of evaluations, of each pair of chunks and of many."""

from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from kldiv_dask.align import Box, Pair, cut
from kldiv_dask.graph.blocks import blockwise_arrays
from kldiv_dask.graph.stages import stage
from kldiv_dask.graph.tree import reduce_blocks
from kldiv_dask.statistics import state
from kldiv_dask.statistics.chunks import EvaluationSpec, evaluate_chunks
from kldiv_dask.storage import check_maps

# The size of a state of many groups, in bytes.
STATE_BYTES = 8 * 2**20


@stage("block")
def _evaluate(
    input: npt.NDArray[Any],
    target: npt.NDArray[Any],
    *others: npt.NDArray[Any],
    names: tuple[str, ...],
    spec: EvaluationSpec,
) -> npt.NDArray[np.object_]:
    """Return the state of a pair of chunks in an array of one element."""
    ndim = len(spec.shape)
    start = tuple(int(first[0]) for first in others[:ndim])
    position_args = dict(zip(names, others[ndim:], strict=True))
    evaluation_state = evaluate_chunks(
        input,
        target,
        start,
        position_args.get("where"),
        position_args.get("groups"),
        position_args.get("labels"),
        spec,
    )
    check_maps(input, target, *position_args.values())
    return _boxed(evaluation_state, ndim + 1)


def _boxed(evaluation_state: state.EvaluationState, ndim: int) -> npt.NDArray[np.object_]:
    box = np.empty((1,) * ndim, object)
    box[(0,) * ndim] = evaluation_state
    return box


@stage("merge")
def _merge(states: npt.NDArray[np.object_], axis: tuple[int, ...], keepdims: bool) -> Any:
    return _boxed(state.merge(states.ravel().tolist()), states.ndim)


def states(
    pair: Pair,
    position_args: Mapping[str, da.Array | None],
    spec: EvaluationSpec,
    box: Box | None = None,
) -> da.Array:
    """Return the state of each pair of chunks; the grid has an axis of length one for classes.

    The classes of `pair` are last and in one chunk. `position_args` holds `where`, `groups` and
    `labels`: arrays chunked like the positions, or None. Of a `box` of the positions, only what is
    in it takes part.
    """
    ndim = pair.ndim - 1
    origin = (0,) * ndim
    if box is not None:
        pair, origin = pair.of_positions(box), tuple(start for start, _ in box)
        position_args = {
            name: None if a is None else cut(a, box) for name, a in position_args.items()
        }
    starts = [
        da.from_array(np.cumsum((first, *lengths[:-1])), chunks=1)
        for first, lengths in zip(origin, pair.chunks, strict=False)
    ]
    present = {name: array for name, array in position_args.items() if array is not None}
    axes = tuple(range(pair.ndim))
    arrays = [(array, axes[len(axes) - array.ndim :]) for array in (pair.input, pair.target)]
    arrays += [(start, (axis,)) for axis, start in enumerate(starts)]
    arrays += [(array, axes[ndim - array.ndim : ndim]) for array in present.values()]
    return blockwise_arrays(
        _evaluate,
        axes,
        arrays,
        dict.fromkeys(axes, 1),
        np.dtype(object),
        names=tuple(present),
        spec=spec,
    )


def reduce_states(states: da.Array) -> da.Array:
    """Merge the states of a grid of chunks."""
    return reduce_blocks(states, _merge, tuple(range(states.ndim)), None, STATE_BYTES)
