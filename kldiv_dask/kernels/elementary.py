"""Exponential, logarithm and fused multiply-add, with the same bits on every machine.

Sums can be reproducible only if their terms are, and the mathematical library of one system
rounds differently from that of the next. These functions are built of IEEE 754 operations and
explicit fused multiply-adds alone, so each is a pure function of its argument, whatever the
vector width, the place in the array or the processor. Nothing branches, so that a plain loop over
contiguous arrays compiles to packed instructions.

Errors stay below 0.8 units in the last place (ulp), subnormal arguments and results included: for
each of the 2^32 arguments in float32, and wherever float64 has been tried.

The names that end in ``_f32`` and ``_f64`` take ``numpy.float32`` and ``numpy.float64``; those
without go by the type of the argument. They are for compiled loops, and all but ``fma`` can be
called from Python too.
"""

import functools
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import typeof, types
from numba.extending import intrinsic, overload

from kldiv_dask.kernels import formulas
from kldiv_dask.kernels.elementary_tables import FLOAT32, FLOAT64
from kldiv_dask.kernels.jit import inner_function
from kldiv_dask.kernels.llvm_bits import scaled
from kldiv_dask.kernels.vectors import Vector, scalar_function

Real = Any
"""A scalar of the type that a function is for."""


def _fused(real: Any) -> Any:
    """Make the fused multiply-add of one type."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    @intrinsic
    def fma(typingctx: Any, x: Any, y: Any, z: Any) -> Any:
        """Compute ``x * y + z`` with one rounding; compilation fails for any other type."""
        return (real(real, real, real), codegen) if x == y == z == real else None

    return fma


fma_f32 = _fused(types.float32)
fma_f64 = _fused(types.float64)


@intrinsic
def polynomial(typingctx: Any, x: Any, coefficients: Any) -> Any:
    """Sum ``coefficients[i] * x**i`` as `formulas.polynomial` does."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, packed = arguments
        terms = [
            Vector(builder, builder.extract_value(packed, i)) for i in range(len(coefficients))
        ]
        return formulas.polynomial(Vector(builder, x), terms).value

    return x(x, coefficients), codegen


scaled_normal = scalar_function()(formulas.scaled_normal)


@scalar_function(results=2)
def _reduced(x: Vector, rounder: Vector) -> tuple[Vector, Vector]:
    shifted, *parts = formulas.exp_parts(x, rounder)
    return formulas.exp_reduced(*parts), shifted


@scalar_function()
def _logarithm(x: Vector, tiny_exponent: Vector) -> Vector:
    """Logarithm of x times two to the power of `tiny_exponent`, which is counted as n is."""
    n, f, s = formulas.log_parts(x)
    return formulas.log_sum(n + tiny_exponent, f, s)


def _exponentials(real: Any, table: SimpleNamespace) -> tuple[Any, Any]:
    """Make `exp` and `exp_normal` for one type."""
    lowest, highest = table.exp_lowest, table.exp_highest
    # Adding this rounds to an integer, which the lowest bits of the sum then hold.
    info = np.finfo(real)
    rounder = real(1.5 * 2**info.nmant)
    biased_rounder = real(rounder + 2 * (info.maxexp - 1))

    @inner_function
    def exp(x: Real) -> Real:
        """Exponential of any number.

        Parameters
        ----------
        x : float32 or float64
            Infinities and NaN included.

        Returns
        -------
        float32 or float64
            Within 0.8 ulp, or 0.7 where it is normal; it underflows gradually.

        Examples
        --------
        >>> float(exp(np.float64(-745)))
        5e-324
        """
        x = highest if x > highest else x
        x = lowest if x < lowest else x
        y, shifted = _reduced(x, biased_rounder)
        return scaled(y, shifted)

    @inner_function
    def exp_normal(x: Real) -> Real:
        """Exponential of a number of moderate size, in three quarters of the time.

        Parameters
        ----------
        x : float32 or float64
            At most 87 in magnitude in float32 and 708 in float64.

        Returns
        -------
        float32 or float64
            The same bits as `exp`. Meaningless for any other argument.

        Examples
        --------
        >>> float(exp_normal(np.float64(1)))
        2.718281828459045
        """
        y, shifted = _reduced(x, rounder)
        return scaled_normal(y, shifted)

    return exp, exp_normal


def _logarithms(real: Any) -> tuple[Any, Any]:
    """Make `log` and `log_normal` for one type."""
    infinity, nan = real(np.inf), real(np.nan)
    # Unlike 0, LLVM leaves out where -0 is added.
    zero, nothing = real(0), real(-0.0)
    info = np.finfo(real)
    smallest_normal = info.smallest_normal
    tiny_scale = real(2**info.nmant)
    # As `formulas.log_parts` counts exponents.
    tiny_exponent = real(-info.nmant * (2**23 if real == np.float32 else 1))

    @inner_function
    def log(x: Real) -> Real:
        """Natural logarithm of any number.

        Parameters
        ----------
        x : float32 or float64
            Subnormals, zeros, negative numbers, infinities and NaN included.

        Returns
        -------
        float32 or float64
            Within 0.8 ulp; -inf for zeros and NaN for anything below.

        Examples
        --------
        >>> float(log(np.float64(5e-324)))
        -744.4400719213812
        """
        tiny = x < smallest_normal
        y = _logarithm(x * tiny_scale if tiny else x, tiny_exponent if tiny else nothing)
        y = y if x < infinity else x
        y = y if x > zero else nan
        return -infinity if x == zero else y

    @inner_function
    def log_normal(x: Real) -> Real:
        """Natural logarithm of a positive normal number, in three quarters of the time.

        Parameters
        ----------
        x : float32 or float64
            Positive, normal and finite.

        Returns
        -------
        float32 or float64
            The same bits as `log`. Meaningless for any other argument.

        Examples
        --------
        >>> float(log_normal(np.float64(1)))
        0.0
        """
        return _logarithm(x, nothing)

    return log, log_normal


# `exp_normal` is `exp` for arguments of at most this magnitude: ln 2^-126 is -87.3, and ln 2^-1022
# is -708.4.
EXP_NORMAL_F32, EXP_NORMAL_F64 = 87.0, 708.0

exp_f32, exp_normal_f32 = _exponentials(np.float32, FLOAT32)
exp_f64, exp_normal_f64 = _exponentials(np.float64, FLOAT64)
log_f32, log_normal_f32 = _logarithms(np.float32)
log_f64, log_normal_f64 = _logarithms(np.float64)


def by_type(float32: Any, float64: Any) -> Any:
    """Make one function of the functions of either type; the first argument decides."""
    functions = {types.float32: float32, types.float64: float64}

    @functools.wraps(float32.py_func)
    def function(x: Real, *others: Real) -> Any:
        if typeof(x) not in functions:
            raise TypeError(f"x must be a float32 or float64 scalar, not {typeof(x)}")
        return functions[typeof(x)](x, *others)

    def choose(x: Any, *others: Any) -> Any:
        return functions[x].py_func if x in functions else None

    # Numba wants the names of the arguments to be those of the function that is chosen.
    choose.__signature__ = inspect.signature(float32.py_func)  # type: ignore[attr-defined]
    overload(function)(choose)
    return function


exp = by_type(exp_f32, exp_f64)
exp_normal = by_type(exp_normal_f32, exp_normal_f64)
log = by_type(log_f32, log_f64)
log_normal = by_type(log_normal_f32, log_normal_f64)
