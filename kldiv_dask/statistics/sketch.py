"""Bins of equal relative width, and quantiles from the counts in them.

A bin has all float64 numbers with the same sign, exponent and 7 leading bits of the significand, as
in HdrHistogram: it is 1/128 of a power of two wide, so its middle is within 1/256, or 0.39 %, of
every number in it. Counts are integers, so they are added exactly, and the bin of a number does not
depend on a function of the mathematical library.
"""

import numpy as np
import numpy.typing as npt

# How many of the 64 bits of a number do not decide on its bin.
OPEN = 52 - 7

RELATIVE_ERROR = 2.0**-8

INFINITY = 0x7FF << (52 - OPEN)

Bins = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def bins_of(values: Floats) -> Bins:
    """Return the bin of each number, in the order of the numbers; none may be NaN.

    Zeros are in bin 0 and numbers up to 2**-1022 in the bins beside it.
    """
    patterns = values.view(np.int64)
    magnitudes = (patterns & 0x7FFFFFFFFFFFFFFF) >> OPEN
    return np.where(patterns < 0, -magnitudes, magnitudes)


def middles(bins: Bins) -> Floats:
    """Return the middle of each bin, infinities for those of infinities, and 0 for that of 0."""
    magnitudes = np.abs(bins)
    # Numbers of equal exponent are evenly spaced, and so are their patterns.
    halfway = ((magnitudes << OPEN) + (1 << OPEN - 1)).view(np.float64)
    middle = np.where(magnitudes >= INFINITY, np.inf, halfway)
    return np.where(magnitudes == 0, 0.0, np.copysign(middle, bins))


def edges(bins: Bins) -> Floats:
    """Return the lower edge of each bin of numbers that are not negative."""
    return np.asarray(bins << OPEN).view(np.float64)


def quantiles(bins: Bins, counts: Bins, probabilities: Floats) -> Floats:
    """Return quantiles by linear interpolation between ranks, as `numpy.quantile` has them.

    Parameters
    ----------
    bins, counts : int64 arrays
        In ascending order, each bin once.
    probabilities : float64 array
        Between 0 and 1.

    Returns
    -------
    float64 array
        Within `RELATIVE_ERROR` of the exact quantiles if all numbers have one sign; NaN if there
        are no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> quantiles(bins_of(np.array([1.0, 2.0])), np.array([1, 1]), np.array([0.5])).round(1)
    array([1.5])
    """
    total = int(counts.sum())
    if not total:
        return np.full(probabilities.shape, np.nan)
    ranks = probabilities * (total - 1)
    below = np.floor(ranks)
    values, upto = middles(bins), np.cumsum(counts)
    low = values[np.searchsorted(upto, below, side="right")]
    high = values[np.searchsorted(upto, np.ceil(ranks), side="right")]
    fraction = ranks - below
    with np.errstate(invalid="ignore"):  # between an infinity and itself
        between = low * (1 - fraction) + high * fraction
    return np.where(low == high, low, between)
