"""The mergeable state of an evaluation: what positions add to it, and how two are merged.

All in it is an integer, or a number that is kept as it was met, so that equal data give equal
states whatever pieces they came in.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import checks, fingerprint, softmax_measures
from kldiv_dask.statistics import tables
from kldiv_dask.statistics.sketch import bins_of
from kldiv_dask.statistics.tables import Floats, Integers, KeyedSums, key_of

# What is summed for each group; the second part only where there are labels. "nll_unpaired" is what
# the difference of the sums of both "nll" has from positions where only one of them is finite; it
# is NaN where none is.
SUMS = ("kl", "kl_squared", "reverse_kl", "jensen_shannon")
LABEL_SUMS = (
    "nll_input",
    "nll_target",
    "nll_change_squared",
    "nll_unpaired",
    "p_change",
    "p_change_squared",
)

# What is counted beside positions: where the top classes agree, and where there is a label.
AGREEING, LABELED = 1, 2

# What may be wrong with the data: what is counted of positions.
CHECKS = (
    "nan",
    "infinite",
    "input_excludes_classes",
    "target_excludes_classes",
    "input_not_normalized",
    "target_not_normalized",
    "input_constant",
    "target_constant",
    "input_resembles_probs",
    "target_resembles_probs",
    "input_resembles_log_probs",
    "target_resembles_log_probs",
    "input_out_of_range",
    "target_out_of_range",
    "input_label_at_floor",
    "target_label_at_floor",
)

# Sequences are put into at most so many cells, runs of neighbors, whose sums are kept. With more
# sequences than cells the standard error has 1023 degrees of freedom, and so an error of 2 %.
CELLS = 1024

# Runs of neighbors along the last axis whose means are kept.
COLUMNS = 4096

# Cells, and columns, of all groups together; beyond, neighbors are joined by twos.
MOST_RUNS = 2**17

# Sums that are joined at once, in bytes.
MOST_BYTES = 2**28

WORST = 20
FIRST = 5

# Added to the number of a bin, which may be negative, for a key.
BIN_OFFSET = 1 << 20


class Extremes(NamedTuple):
    """Positions that stand out, by group: the number of each and its value."""

    groups: Integers
    values: Floats
    places: Integers


class EvaluationState(NamedTuple):
    """What is known of the positions so far.

    `groups` are the names of the groups, sorted, or one 0. `totals` has a key for each group;
    `cells` for each group and run of sequences, `columns` for each run along the last axis and
    `group_columns`, if there are groups, for each group and such run, `bins` and `label_bins` for
    each group and bin, `checks` for each group and kind of check. `worst` has the largest finite
    divergences, `infinite` the first infinite ones. `fingerprints` are those of the
    positions, and of input and target there.
    """

    groups: npt.NDArray[Any]
    totals: KeyedSums
    cells: KeyedSums
    columns: KeyedSums
    group_columns: KeyedSums
    bins: KeyedSums
    label_bins: KeyedSums
    lowest: Floats
    worst: Extremes
    infinite: Extremes
    checks: KeyedSums
    first: Extremes
    deviations: Floats
    fingerprints: Integers


class Positions(NamedTuple):
    """What a state is made of: some positions and what was measured there.

    `hashes` are those of the rows of input and target, `places` the numbers of the positions in C
    order, `grouped` whether there are groups, `groups` the names of those here and `codes` which of
    them each is in, `cells` and `columns` the run of sequences and that along the last axis that
    each is in, `labeled` whether there is a label, `tolerances` how far from 1 the probabilities
    of input and target may sum.
    """

    measures: Floats
    hashes: npt.NDArray[np.uint64]
    places: Integers
    grouped: bool
    groups: npt.NDArray[Any]
    codes: Integers
    cells: Integers
    columns: Integers | None
    labeled: npt.NDArray[np.bool_] | None
    tolerances: tuple[float, float]


def state_of(positions: Positions) -> EvaluationState:
    """Return the state of some positions."""
    measures, codes = positions.measures, positions.codes
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
    label_bins = _no_table(1, 0)
    if positions.labeled is not None:
        chosen = positions.labeled
        counts.append(chosen.astype(np.int64))
        sums += _label_sums(measures, chosen)
        change = measures[softmax_measures.CHANGE]
        usable = chosen & ~np.isnan(change)
        label_bins = _binned(codes[usable], change[usable])
    ordered, finite, infinite = ~np.isnan(kl), np.isfinite(kl), np.isinf(kl)
    failed, first, deviations = _checked(positions, kl)
    columns = np.zeros(0, np.int64) if positions.columns is None else positions.columns
    in_groups = columns if positions.grouped else columns[:0]
    return EvaluationState(
        groups=positions.groups,
        totals=tables.keyed_sums(key_of(codes, 0), counts, sums),
        cells=tables.keyed_sums(key_of(codes, positions.cells), [], [kl]),
        columns=tables.keyed_sums(columns, [], [kl[: columns.size]]),
        group_columns=tables.keyed_sums(
            key_of(codes[: in_groups.size], in_groups), [], [kl[: in_groups.size]]
        ),
        bins=_binned(codes[ordered], kl[ordered]),
        label_bins=label_bins,
        lowest=_lowest(codes[ordered], kl[ordered], positions.groups.size),
        worst=top_k(Extremes(codes[finite], kl[finite], positions.places[finite]), WORST),
        infinite=top_k(Extremes(codes[infinite], kl[infinite], positions.places[infinite]), WORST),
        checks=failed,
        first=top_k(first, FIRST),
        deviations=deviations,
        fingerprints=fingerprint.of_rows(positions.places, positions.hashes),
    )


def _label_sums(measures: Floats, chosen: npt.NDArray[np.bool_]) -> list[Floats]:
    """Return the summands of what labels tell, 0 where there is none."""
    log_input, log_target, change = measures[softmax_measures.LOG_INPUT :]
    with np.errstate(invalid="ignore", over="ignore"):
        nll_change = log_target - log_input
        squared = nll_change * nll_change
        finite_input, finite_target = np.isfinite(log_input), np.isfinite(log_target)
        alone = [finite_input & finite_target, finite_input, finite_target]
        unpaired = np.select(alone, [0.0, -log_input, log_target], np.nan)
        values = [-log_input, -log_target, squared, unpaired, change, change * change]
    return [np.where(chosen, value, 0.0) for value in values]


def _no_table(counts: int, sums: int) -> KeyedSums:
    return tables.keyed_sums(np.zeros(0, np.int64), [np.zeros(0, np.int64)] * (counts - 1), [])


def _binned(codes: Integers, values: Floats) -> KeyedSums:
    return tables.keyed_sums(key_of(codes, bins_of(values) + BIN_OFFSET), [], [])


def _lowest(codes: Integers, values: Floats, groups: int) -> Floats:
    lowest = np.full(groups, np.inf)
    np.minimum.at(lowest, codes, values)
    return lowest


def _checked(positions: Positions, kl: Floats) -> tuple[KeyedSums, Extremes, Floats]:
    """Return how often and where checks have failed, and how far from 1 probabilities sum to."""
    measures = positions.measures
    # NaN, where nothing is to sum to 1, is never far from it.
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
    kinds, which = np.nonzero(failures)
    finite = np.where(np.isfinite(distances), distances, 0.0)
    return (
        tables.keyed_sums(key_of(positions.codes[which], kinds), [], []),
        # Of equal values, the first positions are kept.
        Extremes(kinds, np.zeros(which.size), positions.places[which]),
        finite.max(axis=1, initial=0.0),
    )


def top_k(extremes: Extremes, count: int) -> Extremes:
    """Keep the largest values of each group, and of equal ones the first."""
    order = np.lexsort((extremes.places, -extremes.values, extremes.groups))
    groups = extremes.groups[order]
    starts = np.searchsorted(groups, groups)
    kept = order[np.arange(groups.size) - starts < count]
    return Extremes(extremes.groups[kept], extremes.values[kept], extremes.places[kept])


def are_large(states: Sequence[EvaluationState]) -> bool:
    """Whether states have more in them than should be joined at once, which copies it twice."""
    tables = (value for state in states for value in state if isinstance(value, KeyedSums))
    return sum(table.sums.nbytes for table in tables) > MOST_BYTES


def merge(states: Sequence[EvaluationState]) -> EvaluationState:
    """Merge states of positions that none of them shares."""
    if len(states) == 1:
        return _coarsened_to_limit(states[0])
    if len(states) > 2 and are_large(states):
        half = len(states) // 2
        return merge([merge(states[:half]), merge(states[half:])])
    groups = np.unique(np.concatenate([state.groups for state in states]))
    places = [np.searchsorted(groups, state.groups) for state in states]

    def joined(name: str) -> KeyedSums:
        found = [getattr(state, name) for state in states]
        return tables.merge([tables.regrouped(*pair) for pair in zip(found, places, strict=True)])

    lowest = np.full(groups.size, np.inf)
    for state, place in zip(states, places, strict=True):
        lowest[place] = np.minimum(lowest[place], state.lowest)

    def extreme(name: str) -> Extremes:
        found = [getattr(state, name) for state in states]
        moved = [
            one._replace(groups=place[one.groups]) for one, place in zip(found, places, strict=True)
        ]
        return top_k(concatenated(moved), WORST)

    return _coarsened_to_limit(
        EvaluationState(
            groups=groups,
            totals=joined("totals"),
            cells=joined("cells"),
            columns=tables.merge([state.columns for state in states]),
            group_columns=joined("group_columns"),
            bins=joined("bins"),
            label_bins=joined("label_bins"),
            lowest=lowest,
            worst=extreme("worst"),
            infinite=extreme("infinite"),
            checks=joined("checks"),
            first=top_k(concatenated([state.first for state in states]), FIRST),
            deviations=np.max([state.deviations for state in states], axis=0),
            fingerprints=fingerprint.merge(np.stack([state.fingerprints for state in states])),
        )
    )


def concatenated(parts: Sequence[Extremes]) -> Extremes:
    """Join what stands out in each of some parts."""
    return Extremes(*map(np.concatenate, zip(*parts, strict=True)))


def _coarsened_to_limit(state: EvaluationState) -> EvaluationState:
    """Join neighbors until there are not too many."""
    return state._replace(
        cells=tables.coarsen_to_limit(state.cells, MOST_RUNS),
        group_columns=tables.coarsen_to_limit(state.group_columns, MOST_RUNS),
    )


def merge_groups(state: EvaluationState) -> EvaluationState:
    """Return the state of all groups as one."""
    everywhere = np.zeros(1, np.int64)
    nowhere = np.zeros(state.groups.size, np.int64)
    worst, infinite = (
        top_k(one._replace(groups=nowhere[one.groups]), WORST)
        for one in (state.worst, state.infinite)
    )
    return state._replace(
        groups=everywhere,
        totals=tables.merge_groups(state.totals),
        cells=tables.merge_groups(state.cells),
        group_columns=state.columns,
        bins=tables.merge_groups(state.bins),
        label_bins=tables.merge_groups(state.label_bins),
        lowest=np.full(1, state.lowest.min(initial=np.inf)),
        worst=worst,
        infinite=infinite,
        checks=tables.merge_groups(state.checks),
    )


def offset_positions(state: EvaluationState, positions: int) -> EvaluationState:
    """Renumber positions to follow so many others."""
    return state._replace(
        worst=state.worst._replace(places=state.worst.places + positions),
        infinite=state.infinite._replace(places=state.infinite.places + positions),
        first=state.first._replace(places=state.first.places + positions),
        fingerprints=fingerprint.moved(state.fingerprints, positions),
    )


def offset_clusters(
    state: EvaluationState, before: EvaluationState, cells: int | None
) -> tuple[EvaluationState, bool]:
    """Renumber cells to follow those of another state, and say whether they do so without a gap.

    They do if it is known how many cells are before them, and those have not been joined so that
    the first of these would be a part of one.
    """
    own = state.cells
    if cells is not None and cells % (1 << own.halvings) == 0:
        moved = cells >> own.halvings
        return state._replace(cells=own._replace(keys=own.keys + moved)), True
    halvings = max(own.halvings, before.cells.halvings)
    own = tables.coarsen(own, halvings)
    # A multiple of the length of any run of cells.
    last = int(before.cells.rest.max(initial=-1)) << before.cells.halvings
    moved = max((last // CELLS + 1) * CELLS >> halvings, (last >> halvings) + 1)
    return state._replace(cells=own._replace(keys=own.keys + moved)), False
