"""Standard errors of means of clusters, and confidence intervals."""

import math
from typing import Any

import numpy as np

from kldiv_dask import partial_sum
from kldiv_dask.partial_sum import Total
from kldiv_dask.statistics.tables import KeyedSums

CONFIDENCE = 0.95

Interval = tuple[float, float]

_FLOAT64 = np.dtype(np.float64)


def bad(total: Total) -> int:
    """Return how many summands are NaN or infinite."""
    return total.nan + total.posinf + total.neginf


def finite_part(total: Total) -> Total:
    """Return the sum of the summands that are finite."""
    return total._replace(nan=0, posinf=0, neginf=0)


def quotient(total: Total, count: int) -> float:
    """Return an exact sum divided by a count, rounded once to float64."""
    return float(partial_sum.quotient(total, count, _FLOAT64))


def interval(mean: float, error: float, dof: int) -> Interval:
    """Return the confidence interval of a mean, from Student's t distribution.

    Examples
    --------
    >>> [round(edge, 6) for edge in interval(0.0, 1.0, 10)]
    [-2.228139, 2.228139]
    """
    from scipy.special import stdtrit

    if not math.isfinite(error) or dof < 1:
        return math.nan, math.nan
    half = float(stdtrit(dof, (1 + CONFIDENCE) / 2)) * error
    return mean - half, mean + half


def p_value(difference: float, error: float, dof: int) -> float:
    """Return the probability of so large a difference if the true one is 0.

    Examples
    --------
    >>> round(p_value(2.0, 1.0, 10), 6)
    0.073388
    """
    from scipy.special import stdtr

    if error > 0:
        return 2 * float(stdtr(dof, -abs(difference) / error))
    return math.nan if math.isnan(error) else float(difference == 0)


def clustered(counts: Any, sums: Any) -> tuple[float, float]:
    """Return the mean of clusters of positions, and its standard error.

    Notes
    -----
    The variance of a ratio of sums over independent clusters: W. Cochran, "Sampling Techniques",
    3rd ed. (1977), section 6.3; with runs of clusters, K. Wolter's random groups ("Introduction to
    Variance Estimation", 2nd ed. 2007, chapter 2).
    """
    clusters, positions = len(counts), int(np.sum(counts))
    if not positions:
        return math.nan, math.nan
    # Squares and sums of numbers beyond 2**480 are computed in a unit, a power of two.
    largest = max(map(abs, sums))
    unit = 2.0 ** max(math.frexp(largest)[1] - 480, 0) if math.isfinite(largest) else 1.0
    sums = [cell / unit for cell in sums]
    mean = math.fsum(sums) / positions if math.isfinite(sum(sums)) else sum(sums)
    if clusters < 2 or not math.isfinite(mean):
        return mean * unit, math.nan
    residuals = math.fsum(
        (cell - count * mean) ** 2 for cell, count in zip(sums, counts, strict=True)
    )
    error = math.sqrt(residuals * clusters / (clusters - 1)) / positions
    return mean * unit, error * unit


def cell_sums(cells: KeyedSums) -> tuple[list[int], list[float]]:
    """Return the number of finite divergences of each cell that has some, and their rounded sum."""
    counts, sums = [], []
    for count, partials in zip(cells.counts[:, 0].tolist(), cells.sums, strict=True):
        total = partial_sum.total(partials[0])
        if count > bad(total):
            counts.append(count - bad(total))
            sums.append(quotient(finite_part(total), 1))
    return counts, sums
