"""From what the kernels measure at some positions to the state of these positions."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import checks, fingerprint, softmax_measures
from kldiv_dask.statistics import tables
from kldiv_dask.statistics.extremes import Extremes, top_k
from kldiv_dask.statistics.sketch import bins_of
from kldiv_dask.statistics.state import BIN_OFFSET, FIRST, WORST, EvaluationState
from kldiv_dask.statistics.tables import Floats, Integers, KeyedSums, key_of


class Positions(NamedTuple):
    """Some positions, and what was measured at each.

    `hashes` are those of the rows of input and target, and `indices` the numbers of the positions
    in C order. `is_grouped` says whether there are groups; `groups` are the names of those here,
    and `codes` the group of each position. `cells` and `columns` are the run of sequences, and the
    run along the last axis, of each position. `labeled` says which positions have a label.
    `tolerances` are how far from 1 the probabilities of input and target may sum.
    """

    measures: Floats
    hashes: npt.NDArray[np.uint64]
    indices: Integers
    is_grouped: bool
    groups: npt.NDArray[Any]
    codes: Integers
    cells: Integers
    columns: Integers | None
    labeled: npt.NDArray[np.bool_] | None
    tolerances: tuple[float, float]


def state_of(positions: Positions) -> EvaluationState:
    """Return the state of some positions."""
    measures, codes, indices = positions.measures, positions.codes, positions.indices
    kl = measures[softmax_measures.FORWARD]
    with np.errstate(over="ignore"):
        squared = kl * kl
    sums = [
        kl,
        squared,
        measures[softmax_measures.BACKWARD],
        measures[softmax_measures.JENSEN_SHANNON],
    ]
    counts = [measures[softmax_measures.AGREES].astype(np.int64)]
    label_bins = tables.keyed_sums(np.zeros(0, np.int64), [], [])
    if positions.labeled is not None:
        counts.append(positions.labeled.astype(np.int64))
        sums += _label_sums(measures, positions.labeled)
        change = measures[softmax_measures.CHANGE]
        usable = positions.labeled & ~np.isnan(change)
        label_bins = _count_bins(codes[usable], change[usable])
    ordered, finite, infinite = ~np.isnan(kl), np.isfinite(kl), np.isinf(kl)
    failures, first, deviations = _checked(positions, kl)
    columns = np.zeros(0, np.int64) if positions.columns is None else positions.columns
    in_groups = columns if positions.is_grouped else columns[:0]
    return EvaluationState(
        groups=positions.groups,
        totals=tables.keyed_sums(key_of(codes, 0), counts, sums),
        cells=tables.keyed_sums(key_of(codes, positions.cells), [], [kl]),
        columns=tables.keyed_sums(columns, [], [kl[: columns.size]]),
        group_columns=tables.keyed_sums(
            key_of(codes[: in_groups.size], in_groups), [], [kl[: in_groups.size]]
        ),
        bins=_count_bins(codes[ordered], kl[ordered]),
        label_bins=label_bins,
        lowest=_lowest(codes[ordered], kl[ordered], positions.groups.size),
        worst=top_k(Extremes(codes[finite], kl[finite], indices[finite]), WORST),
        infinite=top_k(Extremes(codes[infinite], kl[infinite], indices[infinite]), WORST),
        checks=failures,
        first=top_k(first, FIRST),
        deviations=deviations,
        fingerprints=fingerprint.of_rows(indices, positions.hashes),
    )


def _label_sums(measures: Floats, labeled: npt.NDArray[np.bool_]) -> list[Floats]:
    """Return the summands of `LABEL_SUMS` at each position, 0 where there is no label."""
    log_input, log_target, change = measures[softmax_measures.LOG_INPUT :]
    with np.errstate(invalid="ignore", over="ignore"):
        nll_change = log_target - log_input
        squared = nll_change * nll_change
        finite_input, finite_target = np.isfinite(log_input), np.isfinite(log_target)
        cases = [finite_input & finite_target, finite_input, finite_target]
        unpaired = np.select(cases, [0.0, -log_input, log_target], np.nan)
        values = [-log_input, -log_target, squared, unpaired, change, change * change]
    return [np.where(labeled, value, 0.0) for value in values]


def _count_bins(codes: Integers, values: Floats) -> KeyedSums:
    """Count the values of each group and bin."""
    return tables.keyed_sums(key_of(codes, bins_of(values) + BIN_OFFSET), [], [])


def _lowest(codes: Integers, values: Floats, groups: int) -> Floats:
    """Return the smallest value of each group; infinity for a group without one."""
    lowest = np.full(groups, np.inf)
    np.minimum.at(lowest, codes, values)
    return lowest


def _checked(positions: Positions, kl: Floats) -> tuple[KeyedSums, Extremes, Floats]:
    """Return the failures of each check, their positions, and `EvaluationState.deviations`."""
    measures = positions.measures
    # NaN, of rows that need not sum to 1, exceeds no tolerance.
    distances = np.abs(measures[[softmax_measures.MASS_INPUT, softmax_measures.MASS_TARGET]] - 1)
    resembles = measures[[softmax_measures.RESEMBLES_INPUT, softmax_measures.RESEMBLES_TARGET]]
    labeled = False if positions.labeled is None else positions.labeled
    failures = [
        np.isnan(kl),
        np.isinf(kl),
        measures[softmax_measures.EXCLUDES_INPUT] != 0,
        measures[softmax_measures.EXCLUDES_TARGET] != 0,
        *(distances > np.array(positions.tolerances)[:, None]),
        *(measures[[softmax_measures.CONSTANT_INPUT, softmax_measures.CONSTANT_TARGET]] != 0),
        *(resembles == checks.RESEMBLES_PROBS),
        *(resembles == checks.RESEMBLES_LOG_PROBS),
        *(resembles == checks.OUT_OF_RANGE),
        *((measures[[softmax_measures.FLOOR_INPUT, softmax_measures.FLOOR_TARGET]] != 0) & labeled),
    ]
    kinds, failing = np.nonzero(failures)
    finite = np.where(np.isfinite(distances), distances, 0.0)
    return (
        tables.keyed_sums(key_of(positions.codes[failing], kinds), [], []),
        # All values are equal, so that `top_k` selects the first positions.
        Extremes(kinds, np.zeros(failing.size), positions.indices[failing]),
        finite.max(axis=1, initial=0.0),
    )
