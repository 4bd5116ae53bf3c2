"""Exponential and logarithm as operations on vectors or scalars, in two stages each.

The one source of these formulas: `elementary` makes functions of one number of them, and
`pointwise_loop` the stages of a loop. They are built of IEEE 754 operations and explicit fused
multiply-adds, so the bits depend on the argument alone.

Arguments of the stages are as `elementary.exp_normal` and `elementary.log_normal` take them; of
any other argument the result has no meaning, but is computed without harm.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from kldiv_dask.kernels.elementary_tables import FLOAT32, FLOAT64
from kldiv_dask.kernels.vectors import Vector


def _constants(x: Vector) -> SimpleNamespace:
    """Return the coefficients and the layout of the type of some numbers."""
    if str(x.element) == "float":
        return SimpleNamespace(**vars(FLOAT32), fraction=23, bias=127)
    return SimpleNamespace(**vars(FLOAT64), fraction=52, bias=1023)


def polynomial(x: Vector, coefficients: Any) -> Vector:
    """Sum ``coefficients[i] * x**i``; even and odd powers apart, for half the latency."""
    square = x * x

    def horner(lowest: Any, *higher: Any) -> Vector:
        return horner(*higher).fma(square, lowest) if higher else x.like(lowest)

    return horner(*coefficients[1::2]).fma(x, horner(*coefficients[::2]))


def exp_rounder(x: Vector) -> float:
    """Return what rounds to an integer, which the lowest bits of the sum then hold."""
    return float(1.5 * 2 ** _constants(x).fraction)


def exp_parts(x: Vector, rounder: Any) -> tuple[Vector, Vector, Vector, Vector]:
    """Return n, rounded to and beside `rounder`, and r with x = n ln 2 + r, 1 + r as a sum.

    That sum is of two parts, without which the error of the exponential would reach 0.9 ulp.
    """
    table = _constants(x)
    minus_ln2_high, minus_ln2_low = -float(table.ln2_high), -float(table.ln2_low)
    shifted = x.fma(table.log2_e, rounder)
    n = shifted - rounder
    high = n.fma(minus_ln2_high, x)
    r = n.fma(minus_ln2_low, high)
    head = high + 1.0
    tail = n.fma(minus_ln2_low, high - (head - 1.0))
    return shifted, r, head, tail


def exp_reduced(r: Vector, head: Vector, tail: Vector) -> Vector:
    """Return exp(r) from the parts of `exp_parts`."""
    coefficients: Any = _constants(r).exp
    return head + (r * r).fma(polynomial(r, coefficients), tail)


def scaled_normal(y: Vector, shifted: Vector) -> Vector:
    """Return y 2^n where that is normal, n being in the lowest bits of `shifted`."""
    fraction: int = _constants(y).fraction
    return (y.bits() + (shifted.bits() << fraction)).from_bits()


def log_parts(x: Vector) -> tuple[Vector, Vector, Vector]:
    """Return n, f and f / (2 + f) with x = 2^n (1 + f), f as near to 0 as there is.

    n comes as a multiple of `log_exponent_unit`: where the exponent of float32 stands, it is
    converted with two instructions less. Few processors convert vectors of 64-bit integers, so in
    float64 it is put beside a constant.
    """
    table = _constants(x)
    fraction = table.fraction
    start = int(np.asarray(table.log_start).view(f"u{x.element_bytes}"))
    bits = x.bits()
    if fraction == 23:
        exponent = (bits - start) & (-1 << fraction)
        n = exponent.from_integers()
        f = (bits - exponent).from_bits() - 1.0
    else:
        shifted = bits + ((table.bias << fraction) - start)
        f = ((shifted & ((1 << fraction) - 1)) + start).from_bits() - 1.0
        exponent = (shifted >> fraction) | ((table.bias + fraction) << fraction)
        n = exponent.from_bits() - float(2**fraction + table.bias)
    # A polynomial in f alone takes 20 terms in float64 and 1.4 times as long.
    return n, f, f / (f + 2.0)


def log_exponent_unit(x: Vector) -> float:
    """Return what n of `log_parts` counts one as."""
    return 2.0**23 if _constants(x).fraction == 23 else 1.0


def log_sum(n: Vector, f: Vector, s: Vector) -> Vector:
    """Return the logarithm from the parts of `log_parts`.

    log(1 + f) = f - f^2 / 2 + s (f^2 / 2 + R(s^2)) with s = f / (2 + f), as in fdlibm.
    """
    table = _constants(f)
    unit = log_exponent_unit(f)
    ln2_high, ln2_low = float(table.ln2_high) / unit, float(table.ln2_low) / unit
    # The sum n ln2_high + f in two parts, exactly.
    head = n.fma(ln2_high, f)
    tail = n.fma(ln2_high, -head) + f
    square, half_f = s * s, f * 0.5
    rest = square.fma(polynomial(square, table.log), half_f * f)
    return head + (-half_f).fma(f, s.fma(rest, n.fma(ln2_low, tail)))
