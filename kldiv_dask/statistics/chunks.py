"""From a pair of chunks to the state of its positions."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels.softmax_batches import measured
from kldiv_dask.kernels.softmax_measures import MEASURES
from kldiv_dask.statistics import state
from kldiv_dask.statistics.state import CELLS, COLUMNS, EvaluationState, Positions

# torch's label of positions that have none.
NO_LABEL = -100

# States that are merged at a time.
AT_ONCE = 32


class EvaluationSpec(NamedTuple):
    """What all chunks have to know.

    `shape` is that of all positions, `cluster_axis` the one along which sequences are counted;
    `tolerances` are how far from 1 the probabilities of input and target may sum; `generalized`
    says to add - p + q to each summand of the divergence, as they do not.
    """

    shape: tuple[int, ...]
    cluster_axis: int
    kind: str
    temperature: float
    dtype: np.dtype[Any]
    tolerances: tuple[float, float]
    generalized: bool = False

    @property
    def each(self) -> int:
        """How many neighboring sequences are put together, so that there are at most `CELLS`."""
        return run_length(self.shape[self.cluster_axis], CELLS) if self.shape else 1


def evaluate_chunks(
    input: npt.NDArray[Any],
    target: npt.NDArray[Any],
    start: tuple[int, ...],
    where: npt.NDArray[np.bool_] | None,
    groups: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    plan: EvaluationSpec,
) -> EvaluationState:
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
    chosen, labeled = np.zeros(math.prod(shape), np.int64), None
    if labels is not None:
        labels = np.broadcast_to(labels, shape).reshape(-1).astype(np.int64)
        labeled = labels != NO_LABEL
        _check_labels(labels, labeled, classes, tuple(shape), start)
        chosen = np.where(labeled, labels, 0)
    states = [_nothing(names, labels is not None)]
    options = plan.dtype, plan.temperature, plan.kind, plan.tolerances, plan.generalized
    for batch in measured(input, target, chosen, *options):
        size = batch.measures.shape[1]
        part = slice(batch.start, batch.start + size)
        taken = slice(None) if included is None else np.flatnonzero(included[part])
        flat = np.arange(part.start, part.stop)[taken]
        # NumPy has no index of an array without axes.
        inner = np.unravel_index(flat, tuple(shape)) if shape else ()
        places = [axis + first for axis, first in zip(inner, start, strict=True)]
        positions = Positions(
            measures=batch.measures[:, taken],
            hashes=batch.hashes[:, taken],
            places=np.ravel_multi_index(tuple(places), plan.shape) if places else flat,
            grouped=groups is not None,
            groups=names,
            codes=np.zeros(flat.size, np.int64) if codes is None else codes[flat],
            cells=places[plan.cluster_axis] // plan.each if places else flat,
            columns=places[-1] // run_length(plan.shape[-1], COLUMNS) if len(places) > 1 else None,
            labeled=None if labeled is None else labeled[flat],
            tolerances=plan.tolerances,
        )
        states.append(state.state_of(positions))
        if len(states) == AT_ONCE or state.are_large(states):
            states = [state.merge(states)]
    return state.merge(states)


def _nothing(names: npt.NDArray[Any], with_labels: bool) -> EvaluationState:
    """Return the state of no position."""
    none = np.zeros(0, np.int64)
    labeled = np.zeros(0, bool) if with_labels else None
    measures, hashes = np.zeros((MEASURES, 0)), np.zeros((2, 0), np.uint64)
    zero = (0.0, 0.0)
    return state.state_of(
        Positions(measures, hashes, none, False, names, none, none, none, labeled, zero)
    )


def run_length(length: int, most: int) -> int:
    """Return how long equal runs of neighbors are, of which there are to be at most so many."""
    return max(-(-length // most), 1)


def _check_labels(
    labels: npt.NDArray[np.int64],
    labeled: npt.NDArray[np.bool_],
    classes: int,
    shape: tuple[int, ...],
    start: tuple[int, ...],
) -> None:
    wrong = np.flatnonzero(labeled & ((labels < 0) | (labels >= classes)))
    if wrong.size:
        place = np.unravel_index(wrong[0], shape)
        index = tuple(int(i) + first for i, first in zip(place, start, strict=True))
        raise ValueError(
            f"labels must be classes from 0 to {classes - 1}, and {NO_LABEL} where there is none, "
            f"got {labels[wrong[0]]} at {index}"
        )
