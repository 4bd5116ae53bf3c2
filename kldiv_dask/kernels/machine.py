"""What compiled loops tell the compiler and the processor beyond what Numba can say."""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

Built = tuple[Any, Callable[..., Any]]

# Bytes that memory moves at once, on every x86-64 and most Arm processors.
CACHE_LINE = 64

# A tile of 512 float32 or 256 float64. With so many the cost of a tile's ends is small (256 float32
# took 1.2 times as long as 512), and a tile is short enough for `prefetch` to spread its loads.
TILE_BYTES = 2048


def tile_length(dtype: Any) -> int:
    """Return how many numbers of a NumPy type make a tile."""
    length: int = TILE_BYTES // dtype.itemsize
    return length


@intrinsic
def tile_size(context: Any, array: Any) -> Built:
    """Return `tile_length` of an array's type as a constant, for loops without a remainder."""
    length = TILE_BYTES // (array.dtype.bitwidth // 8)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, length)

    return types.intp(array), build


@intrinsic
def wide_vectors(context: Any) -> Built:
    """Let the loops of the calling function use 512-bit vectors where the processor has them.

    LLVM holds back on account of Intel's first such servers, which lowered their clock for them.
    On later ones whole kernels took 0.8 of the time with them.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite's own `add` knows no attributes with a value.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def _prefetch(context: Any, array: Any, index: Any) -> Built:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), cgutils.voidptr_t)
        int32 = ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, *[int32] * 3])
        function = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        builder.call(function, [address, int32(0), int32(3), int32(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), build


@numba.njit(nogil=True, error_model="numpy")
def prefetch(array, start, count):
    """Ask for `count` elements from `start` to be in the cache soon. May reach past the end.

    The kernels alternate between loading and computing. Without this, where a processor does not
    foresee the loads, the two took turns: 1.7 ns an element instead of 1.0.
    """
    for index in range(start, start + count, CACHE_LINE // array.itemsize):
        _prefetch(array, index)
