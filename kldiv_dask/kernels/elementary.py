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

from kldiv_dask.kernels.jit import inner_function
from kldiv_dask.kernels.llvm_bits import scaled, scaled_normal, significand_exponent

Real = Any
"""A scalar of the type that a function is for."""


def _constants(real: Any, **hexadecimal: str) -> SimpleNamespace:
    """Read a table of numbers and, where there are more than one, tuples of numbers."""
    table = {
        name: tuple(real(float.fromhex(number)) for number in text.split())
        for name, text in hexadecimal.items()
    }
    return SimpleNamespace(**{k: v[0] if len(v) == 1 else v for k, v in table.items()})


# Both tables come from `python -m tests.derivations.elementary`, which says what each entry is.
FLOAT32 = _constants(
    np.float32,
    ln2_high="0x1.62e4p-1",
    ln2_low="0x1.7f7d1cp-20",
    log2_e="0x1.715476p+0",
    exp_lowest="-0x1.ap+6",
    exp_highest="0x1.64p+6",
    log_start="0x1.64p-1",
    exp="""
        0x1.fffff8p-2 0x1.55548ep-3 0x1.555b96p-5 0x1.123bcep-7 0x1.685346p-10
    """,
    log="""
        0x1.555586p-1 0x1.995292p-2 0x1.33372cp-2
    """,
    excess="""
        0x1p-1 0x1.555556p-3 0x1.55557p-5 0x1.1110c2p-7 0x1.6c024p-10 0x1.a03858p-13 0x1.a901e6p-16
        0x1.71cd16p-19
    """,
    jensen="""
        0x1.fffffcp-5 -0x1.fffd3ep-8 0x1.c6c5f2p-11 -0x1.7eb93cp-14 0x1.2990c8p-17 -0x1.6f3a7ap-21
        0x1.ecf282p-26
    """,
    mixture="""
        0x1.62e43p-2 -0x1.3a37f8p-3 -0x1.ffeac8p-3 0x1.51d91p-4 -0x1.18624cp-5
    """,
)

FLOAT64 = _constants(
    np.float64,
    ln2_high="0x1.62e42fefa38p-1",
    ln2_low="0x1.ef35793c7673p-45",
    log2_e="0x1.71547652b82fep+0",
    exp_lowest="-0x1.75p+9",
    exp_highest="0x1.63p+9",
    log_start="0x1.64p-1",
    exp="""
        0x1.000000000000bp-1 0x1.555555555550fp-3 0x1.55555555502a5p-5 0x1.1111111122b4dp-7
        0x1.6c16c1852a4d3p-10 0x1.a01a0144951d3p-13 0x1.a01997cc14d22p-16 0x1.71deec72940f7p-19
        0x1.28af3c914bc67p-22 0x1.add74cf57f726p-26
    """,
    log="""
        0x1.55555555555cep-1 0x1.999999996ba88p-2 0x1.24924954197eep-2 0x1.c71c431cefd0dp-3
        0x1.74695428be8d6p-3 0x1.3951ef21b86b7p-3 0x1.322947669afc4p-3
    """,
    excess="""
        0x1.fffffffffffffp-2 0x1.5555555555502p-3 0x1.5555555555783p-5 0x1.111111111a578p-7
        0x1.6c16c16be65e8p-10 0x1.a01a018d510f5p-13 0x1.a01a01cf86b4fp-16 0x1.71de4a95f51fp-19
        0x1.27e4e818eecb4p-22 0x1.ae56b3de6d05bp-26 0x1.1ef2ffdea9fafp-29 0x1.669e4a9d82e5ep-33
        0x1.94f8239e288a1p-37
    """,
    jensen="""
        0x1.ffffffffffffdp-5 -0x1.ffffffffff657p-8 0x1.c71c71c6c48cep-11 -0x1.82d82d6ed654fp-14
        0x1.427a8ba77fa48p-17 -0x1.0a3a2eac97eaap-20 0x1.b52e175a158aap-24 -0x1.65a4901bbe006p-27
        0x1.234a2df26afddp-30 -0x1.d4b76b2f7f5d2p-34 0x1.6ad42fc57f8adp-37 -0x1.fd25de09048a4p-41
        0x1.241c34be1186ap-44 -0x1.d1f415ee4d0dcp-49 0x1.750cdfcfa00cap-54
    """,
    mixture="""
        0x1.62e42fefa39efp-2 -0x1.3a37a020b8b5fp-3 -0x1.00000000032fbp-2 0x1.555555583d03ap-4
        -0x1.555555fa5e8aap-5 0x1.9999a895b92b6p-6 -0x1.1110a7d282b35p-6 0x1.85eb65495c707p-7
        -0x1.221638a0bea51p-7 0x1.a281e959f1915p-8 -0x1.b0ab0dbbe5fadp-9
    """,
)


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
    """Sum ``coefficients[i] * x**i``; even and odd powers apart, for half the latency."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, packed = arguments
        square = builder.fmul(x, x)
        terms = [builder.extract_value(packed, i) for i in range(len(coefficients))]

        def horner(value: Any, *terms: Any) -> Any:
            return builder.fma(horner(*terms), square, value) if terms else value

        return builder.fma(horner(*terms[1::2]), x, horner(*terms[::2]))

    return x(x, coefficients), codegen


def _exponentials(real: Any, fma: Any, table: SimpleNamespace) -> tuple[Any, Any]:
    """Make `exp` and `exp_normal` for one type."""
    one = real(1)
    lowest, highest, coefficients = table.exp_lowest, table.exp_highest, table.exp
    log2_e, minus_ln2_high, minus_ln2_low = table.log2_e, -table.ln2_high, -table.ln2_low
    # Adding this rounds to an integer, which the lowest bits of the sum then hold.
    info = np.finfo(real)
    rounder = real(1.5 * 2**info.nmant)
    biased_rounder = real(rounder + 2 * (info.maxexp - 1))

    @inner_function
    def reduced(x: Real, rounder: Real) -> tuple[Real, Real]:
        shifted = fma(x, log2_e, rounder)
        n = shifted - rounder
        high = fma(n, minus_ln2_high, x)
        r = fma(n, minus_ln2_low, high)
        # 1 + high in two parts, without which the error would reach 0.9 ulp.
        head = one + high
        tail = high - (head - one)
        rest = fma(r * r, polynomial(r, coefficients), fma(n, minus_ln2_low, tail))
        return head + rest, shifted

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
        y, shifted = reduced(x, biased_rounder)
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
        y, shifted = reduced(x, rounder)
        return scaled_normal(y, shifted)

    return exp, exp_normal


def _logarithms(real: Any, fma: Any, table: SimpleNamespace) -> tuple[Any, Any]:
    """Make `log` and `log_normal` for one type."""
    zero, half, one, two = real(0), real(0.5), real(1), real(2)
    infinity, nan = real(np.inf), real(np.nan)
    start, coefficients = table.log_start, table.log
    ln2_high, ln2_low = table.ln2_high, table.ln2_low
    info = np.finfo(real)
    smallest_normal = info.smallest_normal
    bias = real(2**info.nmant + info.maxexp - 1)
    tiny_bias = real(bias + info.nmant)
    tiny_scale = real(2**info.nmant)

    # Numba's check of the divisor would keep the loop from being vectorized.
    @inner_function
    def logarithm(x: Real, bias: Real) -> Real:
        m, exponent = significand_exponent(x, start)
        n = exponent - bias
        f = m - one
        # The sum n * ln2_high + f in two parts, exactly.
        head = fma(n, ln2_high, f)
        tail = fma(n, ln2_high, -head) + f
        # log(1 + f) = f - f^2 / 2 + s * (f^2 / 2 + R(s^2)) with s = f / (2 + f), as in fdlibm;
        # a polynomial in f alone takes 20 terms in float64 and 1.4 times as long.
        s = f / (f + two)
        square = s * s
        half_f = half * f
        rest = fma(square, polynomial(square, coefficients), half_f * f)
        return head + fma(-half_f, f, fma(s, rest, fma(n, ln2_low, tail)))

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
        y = logarithm(x * tiny_scale if tiny else x, tiny_bias if tiny else bias)
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
        return logarithm(x, bias)

    return log, log_normal


# `exp_normal` is `exp` for arguments of at most this magnitude: ln 2^-126 is -87.3, and ln 2^-1022
# is -708.4.
EXP_NORMAL_F32, EXP_NORMAL_F64 = 87.0, 708.0

exp_f32, exp_normal_f32 = _exponentials(np.float32, fma_f32, FLOAT32)
exp_f64, exp_normal_f64 = _exponentials(np.float64, fma_f64, FLOAT64)
log_f32, log_normal_f32 = _logarithms(np.float32, fma_f32, FLOAT32)
log_f64, log_normal_f64 = _logarithms(np.float64, fma_f64, FLOAT64)


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
