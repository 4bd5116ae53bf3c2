"""Functions of one class, for compiled loops: its weight, and its part of a divergence.

The bits of each depend on its arguments alone, as those of `elementary` do.
"""

from typing import Any

import numpy as np

from kldiv_dask.kernels.elementary import by_type, fma_f32, fma_f64, polynomial, scaled_normal
from kldiv_dask.kernels.elementary_tables import FLOAT32, FLOAT64
from kldiv_dask.kernels.jit import inner_function
from kldiv_dask.kernels.llvm_hints import inlined

# From which difference on a part of the Jensen-Shannon divergence is no polynomial of it.
JENSEN_NEAR = 2


def _elements(real: Any, fma: Any, table: Any) -> tuple[Any, ...]:
    """Make the functions of one class for one type."""
    zero, one, infinity = real(0), real(1), real(np.inf)
    log2_e, minus_ln2_high, minus_ln2_low = table.log2_e, -table.ln2_high, -table.ln2_low
    exp_coefficients, excess_coefficients = table.exp, table.excess
    jensen_coefficients, mixture_coefficients = table.jensen, table.mixture
    half, near_range = real(0.5), real(JENSEN_NEAR)
    tiny, largest = np.finfo(real).tiny, np.finfo(real).max
    integer = real(1.5 * 2 ** np.finfo(real).nmant)

    @inner_function
    def rounder(scale: Any) -> Any:
        """Return what has `exp_scaled` divide by ``2**scale``."""
        return integer - scale

    @inner_function
    def exp_scaled(z: Any, rounder: Any) -> Any:
        """Exponential of a number divided by a power of two, within 1.1 ulp where it is normal.

        As `elementary.exp_normal` does it, but for the last quarter of an ulp and of the time.
        """
        shifted = fma(z, log2_e, rounder)
        n = shifted - rounder
        r = fma(n, minus_ln2_low, fma(n, minus_ln2_high, z))
        return scaled_normal(one + fma(r * r, polynomial(r, exp_coefficients), r), shifted)

    @inner_function
    def weight(z: Any, rounder: Any, lowest: Any) -> Any:
        """Return `exp_scaled`, but 0 below `lowest`, and NaN for NaN."""
        if_normal = exp_scaled(lowest if z < lowest else z, rounder)
        return if_normal if z >= lowest else (zero if z < lowest else z)

    @inner_function
    def excess(u: Any, w: Any, v: Any, shift: Any) -> Any:
        """Return w (exp(u) - 1 - u), given w u and, for where u is far from 0, v = w exp(u)."""
        near = w * (u * u) * polynomial(u, excess_coefficients)
        return near if abs(u) < one else v - w - shift

    @inner_function
    def shift(u: Any, w: Any) -> Any:
        """Return w u, where the product is not what is wanted of an infinite u.

        A w of 0 belongs to a class that a takes for impossible; or, where u is -inf, to one that
        has just become too small for its type.
        """
        return w * u if w > zero else (u if u == -infinity else zero)

    @inner_function
    def back_shift(u: Any, v: Any) -> Any:
        """Return v u, where a class that b takes for impossible is no part of it."""
        return v * u if v > zero else zero

    @inner_function
    def finite(x: Any) -> Any:
        return x if abs(x) < infinity else zero

    @inner_function
    def excesses(u: Any, w: Any, v: Any, shift: Any, back_shift: Any) -> tuple[Any, Any]:
        """Return `excess`, with the same bits, and w (1 - exp(u) + u exp(u)), given v u too."""
        square = w * (u * u)
        rest = polynomial(u, excess_coefficients)
        # Of the second, exp(u) = 1 + u + u^2 rest leaves u^2 (1 + (u - 1) rest).
        near, near_back = square * rest, square * fma(u - one, rest, one)
        is_near = abs(u) < one
        return (
            near if is_near else v - w - shift,
            near_back if is_near else w - v + back_shift,
        )

    @inner_function
    def jensen_shannon_near(p: Any, q: Any, u: Any) -> Any:
        """Return `jensen` where it is known that abs(u) is below 2."""
        square = u * u
        return (p + q) * (square * polynomial(square, jensen_coefficients))

    @inner_function
    def jensen(p: Any, q: Any, u: Any) -> Any:
        """Return the part of the Jensen-Shannon divergence, given u = log(q / p).

        With the larger probability M and z = exp(-abs(u)), it is
        M ((1 + z) log(2 / (1 + z)) + z log(z)) / 2. An exponential for z would take 1.3 times as
        long as the quotient of the probabilities.
        """
        inlined()
        most = p if p > q else q
        least = q if p > q else p
        t = abs(u)
        t = t if t < largest else largest
        z = least / (most if most > tiny else tiny)
        far = most * fma(-half, z * t, polynomial(z, mixture_coefficients))
        return jensen_shannon_near(p, q, u) if t < near_range else far

    return (
        rounder,
        exp_scaled,
        weight,
        excess,
        shift,
        back_shift,
        finite,
        excesses,
        jensen_shannon_near,
        jensen,
    )


_FLOAT32 = _elements(np.float32, fma_f32, FLOAT32)
_FLOAT64 = _elements(np.float64, fma_f64, FLOAT64)
(
    rounder,
    exp_scaled,
    weight,
    excess,
    shift,
    back_shift,
    finite,
    excesses,
    jensen_shannon_near,
    jensen,
) = map(by_type, _FLOAT32, _FLOAT64)
