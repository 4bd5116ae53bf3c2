"""From a pair of chunks to the state of their positions."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels.softmax_batches import measured
from kldiv_dask.kernels.softmax_measures import MEASURES
from kldiv_dask.statistics import state
from kldiv_dask.statistics.positions import Positions, state_of
from kldiv_dask.statistics.state import CELLS, COLUMNS, EvaluationState
from kldiv_dask.statistics.tables import Integers

# torch's label of positions without one.
NO_LABEL = -100

# How many states are merged at once.
MERGED_AT_ONCE = 32


class EvaluationSpec(NamedTuple):
    """What is the same for all chunks.

    `shape` is that of all positions, and `cluster_axis` the axis along which sequences are counted.
    `tolerances` are how far from 1 the probabilities of input and target may sum. `generalized`
    says to add - p + q to each summand of the divergence, for rows that do not sum to 1.
    """

    shape: tuple[int, ...]
    cluster_axis: int
    kind: str
    temperature: float
    dtype: np.dtype[Any]
    tolerances: tuple[float, float]
    generalized: bool = False

    @property
    def sequences_per_cell(self) -> int:
        """How many neighboring sequences are joined, so that there are at most `CELLS` cells."""
        return run_length(self.shape[self.cluster_axis], CELLS) if self.shape else 1


def evaluate_chunks(
    input: npt.NDArray[Any],
    target: npt.NDArray[Any],
    start: tuple[int, ...],
    where: npt.NDArray[np.bool_] | None,
    groups: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any] | None,
    spec: EvaluationSpec,
) -> EvaluationState:
    """Return the state of the positions of a pair of chunks.

    Parameters
    ----------
    input, target : arrays that broadcast together
        With all classes along the last axis.
    start : tuple of int
        The index of the first of these positions among all.
    where, groups, labels : arrays that broadcast to the positions, optional
        Which positions to include, the name of the group of each, and the class that is right.
    spec : EvaluationSpec
        What is the same for all chunks.
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
    states = [_empty_state(names, labels is not None)]
    options = spec.dtype, spec.temperature, spec.kind, spec.tolerances, spec.generalized
    for batch in measured(input, target, chosen, *options):
        size = batch.measures.shape[1]
        part = slice(batch.start, batch.start + size)
        selection = slice(None) if included is None else np.flatnonzero(included[part])
        local = np.arange(part.start, part.stop)[selection]
        indices, axes = _indices(local, tuple(shape), start, spec.shape)
        positions = Positions(
            measures=batch.measures[:, selection],
            hashes=batch.hashes[:, selection],
            indices=indices,
            is_grouped=groups is not None,
            groups=names,
            codes=np.zeros(local.size, np.int64) if codes is None else codes[local],
            cells=axes[spec.cluster_axis] // spec.sequences_per_cell if axes else indices,
            columns=axes[-1] // run_length(spec.shape[-1], COLUMNS) if len(axes) > 1 else None,
            labeled=None if labeled is None else labeled[local],
            tolerances=spec.tolerances,
        )
        states.append(state_of(positions))
        if len(states) == MERGED_AT_ONCE or state.are_large(states):
            states = [state.merge(states)]
    return state.merge(states)


def _indices(
    local: Integers, shape: tuple[int, ...], start: tuple[int, ...], full_shape: tuple[int, ...]
) -> tuple[Integers, list[Integers]]:
    """Return the numbers of positions among all, and their indices along each axis.

    Parameters
    ----------
    local : int64 array
        Their numbers, in C order, among the positions of the chunks.
    shape : tuple of int
        The shape of the positions of the chunks.
    start : tuple of int
        The index of the first position of the chunks.
    full_shape : tuple of int
        The shape of all positions.
    """
    if not shape:  # NumPy has no index of an array without axes
        return local, []
    inner = np.unravel_index(local, shape)
    axes = [index + first for index, first in zip(inner, start, strict=True)]
    return np.ravel_multi_index(tuple(axes), full_shape), axes


def _empty_state(names: npt.NDArray[Any], with_labels: bool) -> EvaluationState:
    """Return the state of no position."""
    none = np.zeros(0, np.int64)
    return state_of(
        Positions(
            measures=np.zeros((MEASURES, 0)),
            hashes=np.zeros((2, 0), np.uint64),
            indices=none,
            is_grouped=False,
            groups=names,
            codes=none,
            cells=none,
            columns=none,
            labeled=np.zeros(0, bool) if with_labels else None,
            tolerances=(0.0, 0.0),
        )
    )


def run_length(length: int, max_runs: int) -> int:
    """Return the length of equal runs of neighbors, so that there are at most `max_runs`.

    Examples
    --------
    >>> run_length(10, 4)
    3
    """
    return max(-(-length // max_runs), 1)


def _check_labels(
    labels: npt.NDArray[np.int64],
    labeled: npt.NDArray[np.bool_],
    classes: int,
    shape: tuple[int, ...],
    start: tuple[int, ...],
) -> None:
    wrong = np.flatnonzero(labeled & ((labels < 0) | (labels >= classes)))
    if wrong.size:
        local = np.unravel_index(wrong[0], shape)
        index = tuple(int(i) + first for i, first in zip(local, start, strict=True))
        raise ValueError(
            f"labels must be classes from 0 to {classes - 1}, and {NO_LABEL} where there is none, "
            f"got {labels[wrong[0]]} at {index}"
        )
