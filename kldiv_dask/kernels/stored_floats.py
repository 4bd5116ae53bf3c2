"""Widening stored float16 and bfloat16 to float32 in compiled loops, and narrowing results."""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kldiv_dask.dtypes import TABLE
from kldiv_dask.kernels.vectors import Vector

_INT16 = ir.IntType(16)
_INT32 = ir.IntType(32)
_FLOAT = ir.FloatType()

# Numba has no such floats on a CPU. Kernels take their patterns, in an integer type for each.
_PATTERNS = {name: np.dtype(row.pattern) for name, row in TABLE.items() if row.pattern}


def as_stored(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View a floating-point array as a kernel takes it."""
    array = np.asarray(array)
    pattern = _PATTERNS.get(array.dtype.name, array.dtype)
    return array.view(pattern.newbyteorder(array.dtype.byteorder))


def stored_type(array: npt.NDArray[Any]) -> Any:
    """Return Numba's type of the elements of an array from `as_stored`, in native byte order."""
    return numba.from_dtype(array.dtype.newbyteorder("="))


def _converts_float16() -> bool:
    """Whether the processor that code is compiled for has instructions that convert float16."""
    named = numba.config.CPU_NAME or numba.config.CPU_FEATURES
    features = {} if named else llvmlite.binding.get_host_cpu_features()
    return bool(features.get("f16c"))


def _float16(pattern: Vector) -> Vector:
    """Decode IEEE 754 binary16 to float32."""
    if _converts_float16():
        return pattern.bitcast(ir.HalfType()).widened(_FLOAT)
    return _float16_from_integers(pattern)


def _float16_from_integers(pattern: Vector) -> Vector:
    """Decode IEEE 754 binary16 to float32 by operations on its bits.

    No arithmetic on a subnormal is involved, which some processors do a hundred times slower: a
    subnormal is put behind the leading bit of 2**-14, which is then subtracted.
    """
    word = pattern.widened(_INT32)
    magnitude = (word & 0x7FFF) << 13
    exponent = magnitude & (0x1F << 23)
    normal = magnitude + ((127 - 15) << 23)
    special = magnitude + ((255 - 31) << 23)
    smallest = (127 - 14) << 23
    subnormal = ((magnitude + smallest).from_bits() - 2.0**-14).bits()
    finite = exponent.equals(0).choose(subnormal, normal)
    decoded = exponent.equals(0x1F << 23).choose(special, finite)
    return (decoded | ((word & 0x8000) << 16)).from_bits()


def _bfloat16(pattern: Vector) -> Vector:
    """Decode bfloat16, the upper half of a float32."""
    return (pattern.widened(_INT32) << 16).from_bits()


def _float8_e4m3fn(pattern: Vector) -> Vector:
    """Decode float8_e4m3fn, which is 1 bit of sign, 4 of exponent and 3 of significand.

    Moved to where float16 has them, the bits are those of a number 2**8 times smaller, as the bias
    of the exponent is 7 rather than 15. There is no infinity; NaN has all bits set but the sign.
    """
    word = pattern.widened(_INT16)
    magnitude = word & 0x7F
    number = _float16(((word & 0x80) << 8) | (magnitude << 7)) * 2.0**8
    return magnitude.equals(0x7F).choose(number.like(float("nan")), number)


_DECODE = {
    "float8_e4m3fn": _float8_e4m3fn,
    "float16": _float16,
    "bfloat16": _bfloat16,
}
_DECODERS = {numba.from_dtype(_PATTERNS[name]): decode for name, decode in _DECODE.items()}


def widened(numbers: Vector, stored: Any, element: Any) -> Vector:
    """Return stored numbers, of one of Numba's types, in one of LLVM's that is at least as wide."""
    decode = _DECODERS.get(stored)
    return (decode(numbers) if decode else numbers).widened(element)


@intrinsic
def widen(context: Any, stored: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Return a stored number in the type of `like`, which is at least as wide."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return widened(Vector(builder, args[0]), stored, context.get_value_type(like)).value

    return like(stored, like), build


def _to_float16(builder: Any, number: Any) -> Any:
    """Round float32 to IEEE 754 binary16, ties to even."""
    if _converts_float16():
        return builder.bitcast(builder.fptrunc(number, ir.HalfType()), _INT16)
    return _to_float16_by_integers(builder, number)


def _to_float16_by_integers(builder: Any, number: Any) -> Any:
    word = builder.bitcast(number, _INT32)
    magnitude = builder.and_(word, _INT32(0x7FFFFFFF))
    normal = _rounded_off(builder, builder.sub(magnitude, _INT32((127 - 15) << 23)), 13)
    # Beside 0.5, the last place of a float32 is the unit of subnormals, 2**-24.
    half = builder.bitcast(_INT32(126 << 23), _FLOAT)
    beside_half = builder.fadd(builder.bitcast(magnitude, _FLOAT), half)
    subnormal = builder.sub(builder.bitcast(beside_half, _INT32), _INT32(126 << 23))

    def below(limit: int) -> Any:
        return builder.icmp_unsigned("<", magnitude, _INT32(limit))

    finite = builder.select(below((127 - 14) << 23), subnormal, normal)
    # 65520 is half way from the largest number to the next, which there is not.
    infinite_or_nan = builder.select(below((0xFF << 23) + 1), _INT32(0x7C00), _INT32(0x7E00))
    rounded = builder.select(below(0x477FF000), finite, infinite_or_nan)
    sign = builder.and_(builder.lshr(word, _INT32(16)), _INT32(0x8000))
    return builder.trunc(builder.or_(rounded, sign), _INT16)


def _to_bfloat16(builder: Any, number: Any) -> Any:
    """Round float32 to bfloat16, ties to even."""
    word = builder.bitcast(number, _INT32)
    magnitude = builder.and_(word, _INT32(0x7FFFFFFF))
    is_nan = builder.icmp_unsigned(">", magnitude, _INT32(0xFF << 23))
    quiet = builder.or_(builder.lshr(word, _INT32(16)), _INT32(0x40))
    return builder.trunc(builder.select(is_nan, quiet, _rounded_off(builder, word, 16)), _INT16)


def _rounded_off(builder: Any, word: Any, bits: int) -> Any:
    """Shift an integer right by some bits, rounding to nearest, ties to even."""
    odd = builder.and_(builder.lshr(word, _INT32(bits)), _INT32(1))
    nudged = builder.add(builder.add(word, _INT32((1 << (bits - 1)) - 1)), odd)
    return builder.lshr(nudged, _INT32(bits))


@intrinsic
def narrow(context: Any, number: Any, stored: Any) -> tuple[Any, Callable[..., Any]]:
    """Return a number as it is stored in the type of `stored`."""
    encode = {types.uint16: _to_float16, types.int16: _to_bfloat16}.get(stored)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return encode(builder, args[0]) if encode else args[0]

    return stored(number, stored), build
