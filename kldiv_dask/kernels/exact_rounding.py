"""Many exact sums, each divided by a whole number and rounded once, to nearest, ties to even.

For results of many outputs; one output is rounded in Python integers by `partial_sum`, with the
same bits. A long division gives the leading bits of the quotient, and whether anything is left,
which is all that rounding has to know (D. Knuth, The Art of Computer Programming 2, sections 4.2.1
and 4.3.1).
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.dtypes import TABLE
from kldiv_dask.kernels.exact_sum import LIMBS, NAN, NEGINF, POSINF
from kldiv_dask.kernels.jit import compiled, inner_function
from kldiv_dask.kernels.llvm_bits import float64_bits

# A remainder and a limb behind it fit an int64 up to here.
MAX_DIVISOR = 2**31 - 1

# As a pattern, and in no format is infinity above it.
FLOAT64_INFINITY = np.int64(2047 << 52)

_LIMB_MASK = np.int64(0xFFFFFFFF)


@inner_function
def _digit(accumulator, index, lowest_limb, negative):
    """Return a limb of the magnitude; that of a negative sum is the complement."""
    if index < lowest_limb:
        return np.int64(0)
    limb = accumulator[index] & _LIMB_MASK
    if not negative:
        return limb
    return _LIMB_MASK + 1 - limb if index == lowest_limb else _LIMB_MASK - limb


@inner_function
def _magnitude(accumulator, divisor, precision, lowest_bit):
    """Return the pattern of the finite sum's magnitude divided by `divisor`, rounded to even.

    It is a whole number of the format's smallest subnormals, counted as patterns are: one for each
    representable number. What is too large for the format is for the caller to see.
    """
    negative = accumulator[LIMBS - 1] < 0
    lowest_limb = 0
    while lowest_limb < LIMBS and accumulator[lowest_limb] == 0:
        lowest_limb += 1
    if lowest_limb == LIMBS:
        return np.int64(0)
    index = LIMBS - 1
    while _digit(accumulator, index, lowest_limb, negative) == 0:
        index -= 1
    # Long division to three limbs from the first that is not 0, which is that of the sum's first
    # limb or the next. Below the lowest limb there are only zeros.
    first = np.int64(0)
    remainder = _digit(accumulator, index, lowest_limb, negative)
    if remainder >= divisor:
        first = remainder // divisor
        remainder %= divisor
    while first == 0:
        index -= 1
        remainder = (remainder << 32) | _digit(accumulator, index, lowest_limb, negative)
        first = remainder // divisor
        remainder %= divisor
    remainder = (remainder << 32) | _digit(accumulator, index - 1, lowest_limb, negative)
    second = remainder // divisor
    remainder = ((remainder % divisor) << 32) | _digit(
        accumulator, index - 2, lowest_limb, negative
    )
    third = remainder // divisor
    inexact = remainder % divisor != 0 or lowest_limb < index - 2
    # The first 62 bits, the last of which is also 1 where anything follows.
    high = (first << 30) | (second >> 2)
    low = ((second & 3) << 32) | third
    spare = 62 - 30 - ((float64_bits(np.float64(first)) >> 52) - 1022)
    left = 34 - spare
    significand = (high << spare) | (low >> left)
    if inexact or low & ((np.int64(1) << left) - 1) != 0:
        significand |= 1
    exponent = 32 * (index - 2) - 1074 + left
    shift = min(max(62 - precision, lowest_bit - exponent), 63)
    rounded = significand >> shift
    rest = significand & ((np.int64(1) << shift) - 1)
    half = np.int64(1) << (shift - 1)
    if rest > half or (rest == half and rounded & 1):
        rounded += 1
    # A carry into the next power of two, or from the largest subnormal, comes out right.
    scale = max(exponent + shift - lowest_bit, 0)
    return (scale << (precision - 1)) + rounded if scale < 2046 else FLOAT64_INFINITY


def _round_quotients(accumulators, divisors, out, precision, lowest_bit, infinity, sign):
    for i in range(out.size):
        accumulator = accumulators[i]
        pattern = infinity
        negative = accumulator[LIMBS - 1] < 0
        if (
            accumulator[NAN] > 0
            or (accumulator[POSINF] > 0 and accumulator[NEGINF] > 0)
            or divisors[i] == 0
        ):
            pattern |= np.int64(1) << (precision - 2)  # a quiet NaN
        elif accumulator[POSINF] > 0 or accumulator[NEGINF] > 0:
            negative = accumulator[NEGINF] > 0
        else:
            pattern = min(_magnitude(accumulator, divisors[i], precision, lowest_bit), infinity)
        out[i] = pattern | sign if negative else pattern


def round_quotients(
    accumulators: npt.NDArray[np.int64], divisors: npt.NDArray[np.int64], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return exact sums divided by whole numbers, each rounded once to nearest, ties to even.

    NaN where a sum has NaN terms or infinities of both signs, and where the divisor is 0; an
    infinity where it has infinities of one sign.

    Parameters
    ----------
    accumulators : int64 array of shape (n, ACCUMULATOR_SIZE) or wider
        Canonical.
    divisors : int64 array of shape (n,)
        From 0 to `MAX_DIVISOR`.
    dtype : numpy.dtype
        One that results can have.

    Returns
    -------
    array of shape (n,)
        Of type `dtype`.
    """
    format = TABLE[dtype.name]
    out = np.empty(len(accumulators), f"i{dtype.itemsize}")
    words = [numba.int64] * 4
    types = (numba.int64[:, ::1], numba.int64[::1], numba.from_dtype(out.dtype)[::1], *words)
    infinity = (2 ** (format.bits - format.precision) - 1) << (format.precision - 1)
    kernel = compiled(_round_quotients, types)
    sign = -(2 ** (format.bits - 1))
    kernel(accumulators, divisors, out, format.precision, format.lowest, infinity, sign)
    return out.view(dtype)
