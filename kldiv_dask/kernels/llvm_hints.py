"""LLVM hints and intrinsics that Numba does not expose: vector width, prefetch, sums in lanes."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kldiv_dask.kernels.jit import inner_function

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
def inlined(context: Any) -> Built:
    """Have the calling function made part of its callers, however long it is.

    A loop that calls a function is not vectorized.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.function.attributes.add("alwaysinline")
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def address(context: Any, array: Any) -> Built:
    """Return where the first element of an array lies in memory."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), build


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


@inner_function
def prefetch(array, start, count):
    """Ask for `count` elements from `start` to be in the cache soon. May reach past the end.

    The kernels alternate between loading and computing. Without this, where a processor does not
    foresee the loads, the two took turns: 1.7 ns an element instead of 1.0.
    """
    for index in range(start, start + count, CACHE_LINE // array.itemsize):
        _prefetch(array, index)


# Sums that run side by side: enough to hide the latency of additions in 512-bit vectors.
LANES = 64


@intrinsic
def lane_sum(context: Any, array: Any) -> Built:
    """Sum a contiguous array in `LANES` interleaved sums, and those in pairs.

    The length must be a multiple of `LANES`. LLVM may not reorder additions of floating-point
    numbers; here the order is spelled out with a vector type that it maps to whatever registers
    there are, so the result has the same bits on every processor.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(array)(context, builder, args[0])
        number = context.get_value_type(array.dtype)
        vector = ir.VectorType(number, LANES)
        sums = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES))
        step = context.get_constant(types.intp, LANES)
        with cgutils.for_range_slice(builder, step.type(0), view.nitems, step) as (index, _):
            address = builder.bitcast(builder.gep(view.data, [index]), vector.as_pointer())
            loaded = builder.load(address, align=array.dtype.bitwidth // 8)
            builder.store(builder.fadd(builder.load(sums), loaded), sums)
        total, width = builder.load(sums), LANES
        while width > 1:
            width //= 2
            halves = (
                builder.shuffle_vector(
                    total, total, ir.Constant(ir.VectorType(ir.IntType(32), width), list(indices))
                )
                for indices in (range(width), range(width, 2 * width))
            )
            total = builder.fadd(*halves)
        return builder.extract_element(total, ir.IntType(32)(0))

    return array.dtype(array), build
