"""Numbers as they are stored, and how compiled loops widen them to the type of computation."""

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_INT16 = ir.IntType(16)
_INT32 = ir.IntType(32)
_FLOAT = ir.FloatType()

# Numba has no 16-bit floats on a CPU. Kernels take their patterns, in an integer type for each.
_PATTERNS = {"float16": np.dtype(np.uint16), "bfloat16": np.dtype(np.int16)}


def as_stored(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View a floating-point array as a kernel takes it."""
    array = np.asarray(array)
    pattern = _PATTERNS.get(array.dtype.name, array.dtype)
    return array.view(pattern.newbyteorder(array.dtype.byteorder))


def _converts_float16() -> bool:
    """Whether the processor that code is compiled for has instructions that decode float16."""
    named = numba.config.CPU_NAME or numba.config.CPU_FEATURES
    features = {} if named else llvmlite.binding.get_host_cpu_features()
    return bool(features.get("f16c"))


def _float16(builder: Any, pattern: Any) -> Any:
    """Decode IEEE 754 binary16 to float32."""
    if _converts_float16():
        return builder.fpext(builder.bitcast(pattern, ir.HalfType()), _FLOAT)
    return _float16_from_integers(builder, pattern)


def _float16_from_integers(builder: Any, pattern: Any) -> Any:
    """Decode IEEE 754 binary16 to float32 by operations on its bits.

    No arithmetic on a subnormal is involved, which some processors do a hundred times slower: a
    subnormal is put behind the leading bit of 2**-14, which is then subtracted.
    """

    def constant(value: int) -> Any:
        return ir.Constant(_INT32, value)

    word = builder.zext(pattern, _INT32)
    magnitude = builder.shl(builder.and_(word, constant(0x7FFF)), constant(13))
    exponent = builder.and_(magnitude, constant(0x1F << 23))
    normal = builder.add(magnitude, constant((127 - 15) << 23))
    special = builder.add(magnitude, constant((255 - 31) << 23))
    smallest = constant((127 - 14) << 23)
    subnormal = builder.bitcast(
        builder.fsub(
            builder.bitcast(builder.add(magnitude, smallest), _FLOAT),
            builder.bitcast(smallest, _FLOAT),
        ),
        _INT32,
    )
    is_special = builder.icmp_unsigned("==", exponent, constant(0x1F << 23))
    is_subnormal = builder.icmp_unsigned("==", exponent, constant(0))
    decoded = builder.select(is_special, special, builder.select(is_subnormal, subnormal, normal))
    sign = builder.shl(builder.and_(word, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(decoded, sign), _FLOAT)


def _bfloat16(builder: Any, pattern: Any) -> Any:
    """Decode bfloat16, the upper half of a float32."""
    return builder.bitcast(builder.shl(builder.zext(pattern, _INT32), _INT32(16)), _FLOAT)


@intrinsic
def widen(context: Any, stored: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Return a stored number in the type of `like`, which is at least as wide."""
    decode = {types.uint16: _float16, types.int16: _bfloat16}.get(stored)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if decode is None:
            return context.cast(builder, args[0], stored, like)
        return context.cast(builder, decode(builder, args[0]), types.float32, like)

    return like(stored, like), build
