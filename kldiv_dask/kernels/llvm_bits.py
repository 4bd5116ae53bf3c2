"""The bit patterns of floating-point numbers, for compiled loops.

Numba widens integers to int64, which halves the number of float32 lanes in a vector; so what works
on the bits of narrow types is written here in LLVM's own terms.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_INT64 = ir.IntType(64)


@intrinsic
def float64_bits(context: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the pattern of a float64 as int64."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _INT64)

    return types.int64(types.float64), build


@intrinsic
def float64_from_bits(context: Any, pattern: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the float64 of a pattern."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), build


@intrinsic
def magnitude_bits(context: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the pattern of ``abs(value)`` as an integer as wide as `value`.

    Patterns are ordered as magnitudes are, with infinity and then NaN above all finite numbers.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _magnitude(builder, args[0], ir.IntType(value.bitwidth))

    return types.Integer.from_bitwidth(value.bitwidth, signed=False)(value), build


def _magnitude(builder: Any, number: Any, word: Any) -> Any:
    without_sign = ir.Constant(word, 2 ** (word.width - 1) - 1)
    return builder.and_(builder.bitcast(number, word), without_sign)


@intrinsic
def from_magnitude(context: Any, pattern: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Return as float64 the number, of the type of `like`, that `magnitude_bits` was given."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = builder.bitcast(args[0], context.get_value_type(like))
        return context.cast(builder, number, like, types.float64)

    return types.float64(pattern, like), build


def _ordered(builder: Any, pattern: Any) -> Any:
    """Invert all bits but the sign of a negative pattern; doing it twice changes nothing."""
    width = pattern.type.width
    sign = builder.ashr(pattern, ir.Constant(pattern.type, width - 1))
    return builder.xor(pattern, builder.lshr(sign, ir.Constant(pattern.type, 1)))


@intrinsic
def ordered_bits(context: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Return a signed integer as wide as `value` that is ordered as numbers are.

    NaN is beyond the infinity of its sign.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _ordered(builder, builder.bitcast(args[0], ir.IntType(value.bitwidth)))

    return types.Integer.from_bitwidth(value.bitwidth)(value), build


@intrinsic
def from_ordered(context: Any, pattern: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Return the number, of the type of `like`, that `ordered_bits` was given."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(_ordered(builder, args[0]), context.get_value_type(like))

    return like(pattern, like), build


@intrinsic
def nonzero_bits(context: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Return one less than `magnitude_bits`, which puts zero above all others."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(value.bitwidth)
        return builder.sub(_magnitude(builder, args[0], word), ir.Constant(word, 1))

    return types.Integer.from_bitwidth(value.bitwidth, signed=False)(value), build


@intrinsic
def from_nonzero(context: Any, pattern: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Return as float64 the number, of the type of `like`, that `nonzero_bits` was given."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.add(args[0], ir.Constant(args[0].type, 1))
        number = builder.bitcast(word, context.get_value_type(like))
        return context.cast(builder, number, like, types.float64)

    return types.float64(pattern, like), build


@intrinsic
def nonnormal_bits(context: Any, value: Any) -> tuple[Any, Callable[..., Any]]:
    """Return an integer that is negative unless `value` is positive, normal and finite."""
    lowest, infinity = {32: (1 << 23, 0xFF << 23), 64: (1 << 52, 0x7FF << 52)}[value.bitwidth]

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(value.bitwidth)
        bits = builder.bitcast(args[0], word)
        above = builder.sub(bits, ir.Constant(word, lowest))
        below = builder.sub(ir.Constant(word, infinity - 1), bits)
        return builder.or_(bits, builder.or_(above, below))

    return types.Integer.from_bitwidth(value.bitwidth)(value), build


@intrinsic
def narrow_or(context: Any, left: Any, right: Any) -> tuple[Any, Callable[..., Any]]:
    """Return ``left | right`` in the type that both have."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.or_(*args)

    return left(left, left), build


def _layout(real: Any) -> tuple[Any, int, int]:
    """Return the integer as wide as a type, the bits of its fraction and its exponent's bias."""
    fraction = {32: 23, 64: 52}[real.bitwidth]
    return ir.IntType(real.bitwidth), fraction, (1 << (real.bitwidth - fraction - 2)) - 1


@intrinsic
def scaled(context: Any, y: Any, shifted: Any) -> tuple[Any, Callable[..., Any]]:
    """Return y * 2^n for every n that exp meets; shifted is 1.5 * 2^fraction + 2 * bias + n.

    Of the two factors, 2^(n // 2) is exact and 2^(n - n // 2) rounds.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer, fraction, bias = _layout(y)
        value, shifted = args
        lower = builder.shl(builder.bitcast(shifted, integer), integer(fraction - 1))
        upper = builder.add(lower, integer(1 << (fraction - 1)))
        for half in lower, upper:
            exponent = builder.and_(half, integer((2 * bias + 1) << fraction))
            value = builder.fmul(value, builder.bitcast(exponent, value.type))
        return value

    return y(y, y), build
