"""The state of an evaluation, and how states are merged.

Every field is an integer or an unmodified input value, so the state does not depend on how data
were split.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import fingerprint
from kldiv_dask.statistics import extremes, tables
from kldiv_dask.statistics.extremes import Extremes
from kldiv_dask.statistics.tables import Floats, Integers, KeyedSums

# What is summed for each group, the second only if there are labels. "nll_unpaired" is the part of
# sum(nll_input) - sum(nll_target) from positions where only one of the two is finite; it is NaN
# where neither is.
SUMS = ("kl", "kl_squared", "reverse_kl", "jensen_shannon")
LABEL_SUMS = (
    "nll_input",
    "nll_target",
    "nll_change_squared",
    "nll_unpaired",
    "p_change",
    "p_change_squared",
)

# Columns of counts after that of all positions: those with equal top classes, and with a label.
AGREEING, LABELED = 1, 2

# The data checks: the positions that fail each are counted.
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

# The sums of neighboring sequences are joined to at most so many cells. With more sequences than
# cells, the standard error has 1023 degrees of freedom, and so an error of 2 %.
CELLS = 1024

# The most runs of neighbors along the last axis whose means are computed.
COLUMNS = 4096

# The most cells, and columns, of all groups together; beyond, pairs of neighbors are joined.
MAX_RUNS = 2**17

# The most bytes of sums that are merged at once.
MAX_MERGED_BYTES = 2**28

# How many positions with the largest divergences are stored, and how many that fail a check.
WORST = 20
FIRST = 5

# Added to the number of a bin, which may be negative, to make it a key.
BIN_OFFSET = 1 << 20


class EvaluationState(NamedTuple):
    """The counts, exact sums and extremes of some positions.

    `groups` are the sorted names of the groups, or one 0 if there are none. The tables have these
    keys: `totals` each group; `cells` each group and run of sequences; `columns` each run along the
    last axis; `group_columns`, if there are groups, each group and such run; `bins` and
    `label_bins` each group and bin; `checks` each group and kind of check. `lowest` is the smallest
    divergence of each group, `worst` has the largest finite divergences, `infinite` the first
    infinite ones, and `first` the first positions that fail each check. `deviations` are the
    largest distances from 1 of the sum of a row's probabilities, of input and target.
    `fingerprints` are those of the positions, and of input and target there.
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


def are_large(states: Sequence[EvaluationState]) -> bool:
    """Whether the sums of some states take too many bytes to merge all at once.

    Merging holds two copies of them.
    """
    tables = (value for state in states for value in state if isinstance(value, KeyedSums))
    return sum(table.sums.nbytes for table in tables) > MAX_MERGED_BYTES


def merge(states: Sequence[EvaluationState]) -> EvaluationState:
    """Merge the states of disjoint sets of positions."""
    if len(states) == 1:
        return _coarsen_to_limit(states[0])
    if len(states) > 2 and are_large(states):
        half = len(states) // 2
        return merge([merge(states[:half]), merge(states[half:])])
    groups = np.unique(np.concatenate([state.groups for state in states]))
    codes = [np.searchsorted(groups, state.groups) for state in states]

    def merge_tables(name: str) -> KeyedSums:
        return tables.merge(
            [
                tables.regroup(getattr(state, name), new)
                for state, new in zip(states, codes, strict=True)
            ]
        )

    def merge_extremes(name: str) -> Extremes:
        regrouped = [
            extremes.regroup(getattr(state, name), new)
            for state, new in zip(states, codes, strict=True)
        ]
        return extremes.top_k(extremes.concatenate(regrouped), WORST)

    lowest = np.full(groups.size, np.inf)
    for state, new in zip(states, codes, strict=True):
        lowest[new] = np.minimum(lowest[new], state.lowest)
    first = extremes.concatenate([state.first for state in states])
    return _coarsen_to_limit(
        EvaluationState(
            groups=groups,
            totals=merge_tables("totals"),
            cells=merge_tables("cells"),
            columns=tables.merge([state.columns for state in states]),
            group_columns=merge_tables("group_columns"),
            bins=merge_tables("bins"),
            label_bins=merge_tables("label_bins"),
            lowest=lowest,
            worst=merge_extremes("worst"),
            infinite=merge_extremes("infinite"),
            checks=merge_tables("checks"),
            first=extremes.top_k(first, FIRST),
            deviations=np.max([state.deviations for state in states], axis=0),
            fingerprints=fingerprint.merge(np.stack([state.fingerprints for state in states])),
        )
    )


def _coarsen_to_limit(state: EvaluationState) -> EvaluationState:
    """Join neighboring cells and columns until there are at most `MAX_RUNS` of each."""
    return state._replace(
        cells=tables.coarsen_to_limit(state.cells, MAX_RUNS),
        group_columns=tables.coarsen_to_limit(state.group_columns, MAX_RUNS),
    )


def merge_groups(state: EvaluationState) -> EvaluationState:
    """Join all groups to one."""
    zeros = np.zeros(state.groups.size, np.int64)
    worst, infinite = (
        extremes.top_k(extremes.regroup(of_groups, zeros), WORST)
        for of_groups in (state.worst, state.infinite)
    )
    return state._replace(
        groups=np.zeros(1, np.int64),
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
    """Add a number to the number of each position."""
    return state._replace(
        worst=extremes.offset(state.worst, positions),
        infinite=extremes.offset(state.infinite, positions),
        first=extremes.offset(state.first, positions),
        fingerprints=fingerprint.moved(state.fingerprints, positions),
    )


def offset_clusters(
    state: EvaluationState, before: EvaluationState, cells: int | None
) -> tuple[EvaluationState, bool]:
    """Renumber the cells of a state to follow those of another.

    Parameters
    ----------
    state, before : EvaluationState
        The state to renumber, and the one that it follows.
    cells : int or None
        How many cells the positions before these have, before any were joined; None if that is
        unknown.

    Returns
    -------
    EvaluationState
        The state, renumbered.
    bool
        Whether the cells follow without a gap. They do if `cells` is a multiple of the cells that
        `state` has joined to one, so that no joined cell spans both states.
    """
    table = state.cells
    if cells is not None and cells % (1 << table.halvings) == 0:
        shift = cells >> table.halvings
        return state._replace(cells=table._replace(keys=table.keys + shift)), True
    halvings = max(table.halvings, before.cells.halvings)
    table = tables.coarsen(table, halvings)
    # A multiple of the length of any run of cells.
    last = int(before.cells.rest.max(initial=-1)) << before.cells.halvings
    shift = max((last // CELLS + 1) * CELLS >> halvings, (last >> halvings) + 1)
    return state._replace(cells=table._replace(keys=table.keys + shift)), False
