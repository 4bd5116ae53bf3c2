"""From a pair of chunks to the state of its positions."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels.comparison import MEASURES, measured
from kldiv_dask.statistics import state
from kldiv_dask.statistics.state import CELLS, COLUMNS, Positions, State

# torch's label of positions that have none.
NO_LABEL = -100

# States that are merged at a time.
AT_ONCE = 32


class Plan(NamedTuple):
    """What all chunks have to know.

    `shape` is that of all positions, `cluster_axis` the one along which sequences are counted.
    """

    shape: tuple[int, ...]
    cluster_axis: int
    kind: str
    temperature: float
    dtype: np.dtype[Any]
    tolerance: float


def evaluate_chunks(
    input: npt.NDArray[Any],
    target: npt.NDArray[Any],
    start: tuple[int, ...],
    where: npt.NDArray[np.bool_] | None,
    groups: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    plan: Plan,
) -> State:
    """Return the state of the positions of a pair of chunks.

    Parameters
    ----------
    input, target : arrays that broadcast together
        With all classes along the last axis.
    start : tuple of int
        Where the chunks begin among all positions.
    where, groups, labels : arrays that broadcast to the positions, optional
        Which positions to take part, the name of the group of each, and the class that is right.
    """
    *shape, classes = np.broadcast_shapes(input.shape, target.shape)
    names, codes = np.zeros(1, np.int64), None
    if groups is not None:
        names, codes = np.unique(groups, return_inverse=True)
        codes = np.broadcast_to(codes.reshape(groups.shape), shape).reshape(-1)
    included = None if where is None else np.broadcast_to(where, shape).reshape(-1)
    chosen, labelled = np.zeros(math.prod(shape), np.int64), None
    if labels is not None:
        labels = np.broadcast_to(labels, shape).reshape(-1).astype(np.int64)
        labelled = labels != NO_LABEL
        _check_labels(labels, labelled, classes, tuple(shape), start)
        chosen = np.where(labelled, labels, 0)
    states = [_nothing(names, labels is not None)]
    for batch in measured(input, target, chosen, plan.dtype, plan.temperature, plan.kind):
        size = batch.measures.shape[1]
        part = slice(batch.start, batch.start + size)
        taken = slice(None) if included is None else np.flatnonzero(included[part])
        flat = np.arange(part.start, part.stop)[taken]
        # NumPy has no index of an array without axes.
        inner = np.unravel_index(flat, tuple(shape)) if shape else ()
        places = [axis + first for axis, first in zip(inner, start, strict=True)]
        positions = Positions(
            measures=batch.measures[:, taken],
            places=np.ravel_multi_index(tuple(places), plan.shape) if places else flat,
            grouped=groups is not None,
            groups=names,
            codes=np.zeros(flat.size, np.int64) if codes is None else codes[flat],
            cells=_cells(places, plan) if places else flat,
            columns=_runs(places[-1], plan.shape[-1], COLUMNS) if len(places) > 1 else None,
            labelled=None if labelled is None else labelled[flat],
            tolerance=plan.tolerance,
        )
        states.append(state.of(positions))
        if len(states) == AT_ONCE or state.are_large(states):
            states = [state.merge(states)]
    return state.merge(states)


def _nothing(names: npt.NDArray[Any], with_labels: bool) -> State:
    """Return the state of no position."""
    none = np.zeros(0, np.int64)
    labelled = np.zeros(0, bool) if with_labels else None
    measures = np.zeros((MEASURES, 0))
    return state.of(Positions(measures, none, False, names, none, none, none, labelled, 0.0))


def _cells(places: list[npt.NDArray[np.int64]], plan: Plan) -> npt.NDArray[np.int64]:
    return _runs(places[plan.cluster_axis], plan.shape[plan.cluster_axis], CELLS)


def _runs(places: npt.NDArray[np.int64], length: int, most: int) -> npt.NDArray[np.int64]:
    """Return which of at most `most` runs of neighbours of equal length each place is in."""
    return places // -(-length // most)


def _check_labels(
    labels: npt.NDArray[np.int64],
    labelled: npt.NDArray[np.bool_],
    classes: int,
    shape: tuple[int, ...],
    start: tuple[int, ...],
) -> None:
    wrong = np.flatnonzero(labelled & ((labels < 0) | (labels >= classes)))
    if wrong.size:
        place = np.unravel_index(wrong[0], shape)
        index = tuple(int(i) + first for i, first in zip(place, start, strict=True))
        raise ValueError(
            f"labels has {labels[wrong[0]]} at {index}; accepted are classes from 0 to "
            f"{classes - 1}, and {NO_LABEL} where there is none"
        )
