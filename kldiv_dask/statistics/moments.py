"""Means and variances from the counts and exact sums of a group."""

import math
from typing import Any

import numpy as np

from kldiv_dask import partial_sum
from kldiv_dask.partial_sum import UNITS_IN_ONE
from kldiv_dask.statistics.intervals import bad, finite_part, quotient
from kldiv_dask.statistics.results import Finite

FLOAT64 = np.dtype(np.float64)


class Moments:
    """The counts and exact sums of a group.

    Parameters
    ----------
    counts : int64 array
        The number of positions, and the other counts of `EvaluationState.totals`.
    sums : int64 array of shape (sums, SIZE)
        The partial of each sum.
    names : tuple of str
        The name of each sum.
    """

    def __init__(self, counts: Any, sums: Any, names: tuple[str, ...]) -> None:
        self.count = int(counts[0])
        self.counts = [int(number) for number in counts]
        self.totals = {
            name: partial_sum.total(partial) for name, partial in zip(names, sums, strict=True)
        }

    def mean(self, name: str, count: int | None = None) -> float:
        """Return a sum divided by a count, by default that of all positions."""
        return quotient(self.totals[name], self.count if count is None else count)

    def finite(self, name: str, count: int | None = None) -> Finite:
        """Return the mean of the finite summands, of `count` summands in all."""
        total = self.totals[name]
        finite = (self.count if count is None else count) - bad(total)
        mean = quotient(finite_part(total), finite)
        return Finite(mean, finite, total.nan, total.posinf + total.neginf)

    def variance_of_mean(self, units: int, squares: str, finite: Finite) -> float:
        """Return the variance of a mean of independent numbers.

        Parameters
        ----------
        units : int
            The exact sum of the finite numbers, in units of `partial_sum`.
        squares : str
            The name of the sum of their squares.
        finite : Finite
            How many numbers are finite, and how many are not.
        """
        square, count = self.totals[squares], finite.count
        # Squares of finite numbers may be beyond float64.
        if count < 2 or bad(square) > finite.nan + finite.infinite:
            return math.nan
        spread = count * square.units * UNITS_IN_ONE - units * units
        # Squares are rounded, so the spread of equal numbers may be a little below 0.
        return ratio(max(spread, 0), count * count * (count - 1) * UNITS_IN_ONE**2)


def ratio(numerator: int, denominator: int) -> float:
    """Return a quotient of integers, rounded once; an infinity if it is beyond float64."""
    return float(partial_sum.round_ratio(numerator, denominator, FLOAT64))
