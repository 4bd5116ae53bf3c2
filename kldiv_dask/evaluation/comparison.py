"""The test of whether two inputs diverge equally from one target."""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask import partial_sum
from kldiv_dask.evaluation.result import Evaluation
from kldiv_dask.statistics import tables
from kldiv_dask.statistics.intervals import (
    Interval,
    bad,
    cell_sums,
    clustered,
    interval,
    p_value,
)


class Comparison(NamedTuple):
    """The difference of the mean divergences of two students, in nats.

    Examples
    --------
    >>> from kldiv_dask import Comparison
    >>> print(Comparison(0.25, 0.05, (0.15, 0.35), 4e-05, 40))
    mean divergences differ by 0.25 nats (95 % confidence 0.15 to 0.35, p = 4e-05, 40 clusters)
    """

    difference: float
    """Mean divergence of the first minus that of the second."""
    standard_error: float
    """Standard error of the difference, from its sums over clusters."""
    confidence_interval: Interval
    """95 % confidence interval of the difference."""
    p_value: float
    """Probability of so large a difference if the true one is 0, from Student's t test."""
    clusters: int
    """Number of clusters: sequences, or runs of neighboring ones."""
    left_out: int = 0
    """Number of clusters left out because a divergence in them is NaN or infinite."""

    def __str__(self) -> str:
        left_out = f"; {self.left_out} with NaN or infinity left out" if self.left_out else ""
        if self.clusters < 2:
            of = "one sequence" if self.clusters else "no sequence"
            return f"mean divergences differ by {self.difference:.4g} nats (of {of}{left_out})"
        low, high = self.confidence_interval
        return (
            f"mean divergences differ by {self.difference:.4g} nats (95 % confidence {low:.4g} to "
            f"{high:.4g}, p = {self.p_value:.2g}, {self.clusters} clusters{left_out})"
        )


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Test whether two students, evaluated at the same positions, diverge equally on average.

    The difference is taken sequence by sequence, so a text that is hard for both adds nothing to
    its error. Sequences, or runs of them, where a divergence of either is NaN or infinite are left
    out and counted.

    Parameters
    ----------
    a, b : Evaluation
        Of two inputs against the same target, at the same positions and with the same
        `cluster_axis`. Targets and positions are compared by their fingerprints, so it does not
        matter where they were read from, or in what pieces they were evaluated and merged.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        The positions, targets or options differ. Or one was merged from pieces with more than 1024
        sequences, which are joined to other runs than in the other evaluation.
    TypeError
        `a` or `b` is no Evaluation.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask.evaluation import compare, evaluate
    >>> rng = np.random.default_rng(0)
    >>> teacher = rng.normal(size=(64, 16, 10))
    >>> good, bad = (teacher + noise * rng.normal(size=teacher.shape) for noise in (0.1, 0.2))
    >>> runs = (evaluate(student, teacher, progress=False) for student in (bad, good))
    >>> comparison = compare(*runs)
    >>> comparison.difference > 0, comparison.p_value < 0.001
    (True, True)
    """
    for name, run in (("a", a), ("b", b)):
        if not isinstance(run, Evaluation):
            raise TypeError(f"{name} must be an Evaluation, got a {type(run).__name__}")
    for name in ("cluster_axis", "shape", "kind", "generalized", "temperature"):
        left, right = a.options[name], b.options[name]
        if left != right:
            raise ValueError(f"a and b differ in {name}, which is {left!r} and {right!r}")
    if a.fingerprints["positions"] != b.fingerprints["positions"]:
        raise ValueError(
            "a and b must be of the same positions, got others: their masks, or what was skipped, "
            "differ"
        )
    if a.fingerprints["target"] != b.fingerprints["target"]:
        raise ValueError(
            "a and b must be of the same target, got contents with the fingerprints "
            f"{a.fingerprints['target']} and {b.fingerprints['target']}: evaluate both against one "
            "target, of one data type and with its positions in one order"
        )
    cells = _common_cells(a, b)
    usable = np.all([_all_finite(table) for table in cells], axis=0)
    (counts, first), (_, second) = (
        cell_sums(table._replace(counts=table.counts[usable], sums=table.sums[usable]))
        for table in cells
    )
    differences = [left - right for left, right in zip(first, second, strict=True)]
    difference, error = clustered(counts, differences)
    dof = len(counts) - 1
    return Comparison(
        difference=difference,
        standard_error=error,
        confidence_interval=interval(difference, error, dof),
        p_value=p_value(difference, error, dof),
        clusters=len(counts),
        left_out=usable.size - len(counts),
    )


def _all_finite(cells: tables.KeyedSums) -> npt.NDArray[np.bool_]:
    """Return for each cell whether all divergences in it are finite."""
    return np.array([bad(partial_sum.total(sums[0])) == 0 for sums in cells.sums], bool)


def _common_cells(a: Evaluation, b: Evaluation) -> list[tables.KeyedSums]:
    """Return the sums of both over the same runs of sequences."""
    each = [run.clustering["each"] for run in (a, b)]
    cells = [tables.merge_groups(run.state.cells) for run in (a, b)]
    if None not in each:
        common = math.lcm(*each)
        cells = [
            tables.join_neighbors(table, common // length)
            for table, length in zip(cells, each, strict=True)
        ]
    if not all(np.array_equal(*pair) for pair in zip(cells[0][:2], cells[1][:2], strict=True)):
        raise ValueError(
            "a and b must have their sequences in the same clusters, got runs of other lengths, as "
            "of more than 1024 sequences in pieces that were merged: merge the same pieces in both"
        )
    return cells
