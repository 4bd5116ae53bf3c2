"""Functions of one class, for compiled loops: its weight, and its part of a divergence.

The bits of each depend on its arguments alone, as those of `elementary` do.
"""

from typing import Any

import numba
import numpy as np

from kldiv_dask.kernels.bits import scaled_normal
from kldiv_dask.kernels.elementary import FLOAT32, FLOAT64, by_type, fma_f32, fma_f64, polynomial
from kldiv_dask.kernels.machine import inlined


def _elements(real: Any, fma: Any, table: Any) -> tuple[Any, ...]:
    """Make the functions of one class for one type."""
    zero, one, infinity = real(0), real(1), real(np.inf)
    log2_e, minus_ln2_high, minus_ln2_low = table.log2_e, -table.ln2_high, -table.ln2_low
    exp_coefficients, excess_coefficients = table.exp, table.excess
    jensen_coefficients, mixture_coefficients = table.jensen, table.mixture
    half, largest = real(0.5), real(np.finfo(real).max)
    integer = real(1.5 * 2 ** np.finfo(real).nmant)

    @numba.njit(nogil=True)
    def rounder(scale: Any) -> Any:
        """Return what has `power` divide by ``2**scale``."""
        return integer - scale

    @numba.njit(nogil=True)
    def power(z: Any, rounder: Any) -> Any:
        """Exponential of a number divided by a power of two, within 1.1 ulp where it is normal.

        As `elementary.exp_normal` does it, but for the last quarter of an ulp and of the time.
        """
        shifted = fma(z, log2_e, rounder)
        n = shifted - rounder
        r = fma(n, minus_ln2_low, fma(n, minus_ln2_high, z))
        return scaled_normal(one + fma(r * r, polynomial(r, exp_coefficients), r), shifted)

    @numba.njit(nogil=True)
    def weight(z: Any, rounder: Any, lowest: Any) -> Any:
        """Return `power`, but 0 below `lowest`, and NaN for NaN."""
        if_normal = power(lowest if z < lowest else z, rounder)
        return if_normal if z >= lowest else (zero if z < lowest else z)

    @numba.njit(nogil=True)
    def excess(u: Any, w: Any, v: Any, shift: Any) -> Any:
        """Return w (exp(u) - 1 - u), given w u and, for where u is far from 0, v = w exp(u)."""
        near = w * (u * u) * polynomial(u, excess_coefficients)
        return near if abs(u) < one else v - w - shift

    @numba.njit(nogil=True)
    def shift(u: Any, w: Any) -> Any:
        """Return w u, where the product is not what is wanted of an infinite u.

        A w of 0 belongs to a class that a takes for impossible; or, where u is -inf, to one that
        has just become too small for its type.
        """
        return w * u if w > zero else (u if u == -infinity else zero)

    @numba.njit(nogil=True)
    def finite(x: Any) -> Any:
        return x if abs(x) < infinity else zero

    @numba.njit(nogil=True, error_model="numpy")
    def both_ways(p: Any, q: Any, u: Any) -> tuple[Any, Any]:
        """Return q (exp(-u) - 1 + u), and the part of the Jensen-Shannon divergence.

        With the larger probability M, the smaller m, t = abs(u) and z = m / M = exp(-t), they are
        M (z - 1 + t) if q is the larger and M (1 - z - z t) if not, and
        M ((1 + z) log(2 / (1 + z)) - z t) / 2. Where t is small, that of the first is a polynomial
        that the second can be told from.
        """
        inlined()
        most = p if p > q else q
        least = q if p > q else p
        possible = most if most > zero else one
        t = abs(u)
        infinite = t if u > largest and q > zero else zero
        t = t if t < largest else largest
        z = least / possible
        zt = z * t
        square = t * t
        near = square * polynomial(-t, excess_coefficients)
        near = near if u > zero else fma(-t, near, square - near)
        far = z - one + t if u > zero else one - z - zt
        jensen_near = square * polynomial(t, jensen_coefficients)
        jensen_far = fma(-half, zt, polynomial(z, mixture_coefficients))
        reverse = near if t < one else far
        jensen = jensen_near if t < one else jensen_far
        # What both take for impossible is no part of either.
        return fma(most, reverse, infinite), most * jensen

    @numba.njit(nogil=True, error_model="numpy")
    def both_ways_near(p: Any, q: Any, u: Any) -> tuple[Any, Any]:
        """Return `both_ways` where it is known that abs(u) is below 1."""
        t = abs(u)
        most = p if p > q else q
        square = t * t
        near = square * polynomial(-t, excess_coefficients)
        reverse = near if u > zero else fma(-t, near, square - near)
        return most * reverse, most * (square * polynomial(t, jensen_coefficients))

    return rounder, power, weight, excess, shift, finite, both_ways, both_ways_near


_FLOAT32 = _elements(np.float32, fma_f32, FLOAT32)
_FLOAT64 = _elements(np.float64, fma_f64, FLOAT64)
rounder, power, weight, excess, shift, finite, both_ways, both_ways_near = map(
    by_type, _FLOAT32, _FLOAT64
)
