"""Two students over the same positions."""

import math
from typing import Any, NamedTuple

import numpy as np

from kldiv_dask.evaluation.intervals import t_probability
from kldiv_dask.evaluation.result import Evaluation
from kldiv_dask.evaluation.statistics import Interval, cell_sums, clustered, interval
from kldiv_dask.statistics import tables
from kldiv_dask.storage.opening import OF_FILE


class Comparison(NamedTuple):
    """The difference of the mean divergences of two students, in nats.

    Examples
    --------
    >>> from kldiv_dask import Comparison
    >>> print(Comparison(0.25, 0.05, (0.15, 0.35), 4e-05, 40))
    mean divergences differ by 0.25 nats (95 % confidence 0.15 to 0.35, p = 4e-05, 40 clusters)
    """

    difference: float
    """The mean divergence of the first less that of the second."""
    standard_error: float
    """Of the difference, from its sums over sequences, or runs of neighbouring ones."""
    confidence_interval: Interval
    """Of the difference, at 95 %."""
    p_value: float
    """How probable a difference as large would be if there were none, from Student's t test.

    It is off by at most 1e-13, so that what is less than 1e-12 says no more than that.
    """
    clusters: int
    """How many sums that is from."""

    def __str__(self) -> str:
        if self.clusters < 2:
            return f"mean divergences differ by {self.difference:.4g} nats (of one sequence)"
        low, high = self.confidence_interval
        p = "p < 1e-12" if self.p_value < 1e-12 else f"p = {self.p_value:.2g}"
        return (
            f"mean divergences differ by {self.difference:.4g} nats (95 % confidence "
            f"{low:.4g} to {high:.4g}, {p}, {self.clusters} clusters)"
        )


def _is_of_file(identity: Any) -> bool:
    return str(identity).startswith(OF_FILE)


def compare(a: Evaluation, b: Evaluation) -> Comparison:
    """Test whether two students, evaluated at the same positions, diverge equally on average.

    The difference is taken sequence by sequence, so what makes a text hard for both is no part of
    its error.

    Parameters
    ----------
    a, b : Evaluation
        Of two inputs against the same target, at the same positions and with the same
        `cluster_axis`. That the targets are the same is checked where `evaluate` was given both
        input and target by their paths.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        They are not of the same positions and target.
    TypeError
        They are not evaluations.

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
            raise TypeError(f"{name} is a {type(run).__name__}; accepted is an Evaluation")
    for name in ("target", "cluster_axis", "shape", "kind", "temperature"):
        left, right = a.fingerprint[name], b.fingerprint[name]
        # The name of an array also says how it is cut; files are known by what is in them.
        if name == "target" and not all(map(_is_of_file, (left, right))):
            continue
        if left != right:
            raise ValueError(f"a and b differ in {name}, which is {left!r} and {right!r}")
    halvings = max(run.state.cells.halvings for run in (a, b))
    cells = [tables.in_one_group(tables.coarser(run.state.cells, halvings)) for run in (a, b)]
    if not all(np.array_equal(*pair) for pair in zip(cells[0][:2], cells[1][:2], strict=True)):
        raise ValueError("a and b have different numbers of positions in their sequences")
    (counts, first), (_, second) = map(cell_sums, cells)
    differences = [left - right for left, right in zip(first, second, strict=True)]
    difference, error = clustered(counts, differences)
    freedom = len(counts) - 1
    p_value = math.nan
    if error > 0:
        p_value = max(1 - t_probability(abs(difference) / error, freedom), 0.0)
    elif error == 0:
        p_value = 0.0 if difference else 1.0
    return Comparison(
        difference=difference,
        standard_error=error,
        confidence_interval=interval(difference, error, freedom),
        p_value=p_value,
        clusters=len(counts),
    )
