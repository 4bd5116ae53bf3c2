"""Student's t distribution, for intervals and tests."""

import functools
import math
import statistics

# Beyond so many degrees of freedom the first terms of the expansion below are exact to 1e-10.
MANY = 10_000


def t_probability(t: float, freedom: int) -> float:
    """Return how probably a t-distributed number is within `t` of 0.

    Parameters
    ----------
    t : float
        At least 0.
    freedom : int
        Degrees of freedom, at least 1.

    Notes
    -----
    M. Abramowitz and I. Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4.

    Examples
    --------
    >>> round(t_probability(2.0, 10), 6)
    0.926612
    """
    angle = math.atan2(t, math.sqrt(freedom))
    square = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= square * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + total) if odd else total


@functools.cache
def t_quantile(probability: float, freedom: int) -> float:
    """Return within what distance from 0 a t-distributed number is with a probability.

    Notes
    -----
    For many degrees of freedom, Abramowitz and Stegun, 26.7.5.

    Examples
    --------
    >>> round(t_quantile(0.95, 10), 6)
    2.228139
    """
    if freedom > MANY:
        z = statistics.NormalDist().inv_cdf((1 + probability) / 2)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if t_probability(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return high
