"""Vectors of a fixed width in LLVM's own terms, whose arithmetic is written as Python.

For loops that LLVM does not vectorize well by itself, and for formulas that serve vectors and
scalars alike. A function of `Vector` runs while Numba compiles, and leaves instructions behind.
LLVM maps vectors to whatever registers a processor has, so the operations, hence the bits, are the
same everywhere.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_INT32 = ir.IntType(32)
_BYTES = {"half": 2, "float": 4, "double": 8}
_REALS = {32: ir.FloatType(), 64: ir.DoubleType()}


class Vector:
    """A value of LLVM, of a vector or a scalar type, and the builder of its function.

    Numbers that it is combined with become constants of its type.
    """

    __slots__ = ("builder", "value")

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    @property
    def width(self) -> int:
        """How many numbers it holds; 0 where it is a scalar."""
        return self.value.type.count if isinstance(self.value.type, ir.VectorType) else 0

    @property
    def element(self) -> Any:
        """LLVM's type of one number."""
        return self.value.type.element if self.width else self.value.type

    @property
    def element_bytes(self) -> int:
        """The size of one number."""
        return _BYTES.get(str(self.element)) or self.element.width // 8

    def like(self, other: Any) -> "Vector":
        """Return a number as a constant of this type; a vector as it is."""
        if isinstance(other, Vector):
            return other
        if isinstance(self.element, ir.IntType):
            number = int(other) & ((1 << self.element.width) - 1)
        else:
            number = float(other)
        constant = ir.Constant(self.value.type, [number] * self.width if self.width else number)
        return Vector(self.builder, constant)

    def _apply(self, instruction: str, other: Any) -> "Vector":
        operation = getattr(self.builder, instruction)
        return Vector(self.builder, operation(self.value, self.like(other).value))

    def _by_type(self, real: str, integer: str, other: Any) -> "Vector":
        return self._apply(integer if isinstance(self.element, ir.IntType) else real, other)

    def __add__(self, other: Any) -> "Vector":
        return self._by_type("fadd", "add", other)

    def __sub__(self, other: Any) -> "Vector":
        return self._by_type("fsub", "sub", other)

    def __mul__(self, other: Any) -> "Vector":
        return self._by_type("fmul", "mul", other)

    def __truediv__(self, other: Any) -> "Vector":
        return self._apply("fdiv", other)

    def __and__(self, other: Any) -> "Vector":
        return self._apply("and_", other)

    def __or__(self, other: Any) -> "Vector":
        return self._apply("or_", other)

    def __xor__(self, other: Any) -> "Vector":
        return self._apply("xor", other)

    def __lshift__(self, other: Any) -> "Vector":
        return self._apply("shl", other)

    def __rshift__(self, other: Any) -> "Vector":
        return self._apply("lshr", other)

    def __neg__(self) -> "Vector":
        return Vector(self.builder, self.builder.fneg(self.value))

    def _as(self, element: Any) -> Any:
        return ir.VectorType(element, self.width) if self.width else element

    def bitcast(self, element: Any) -> "Vector":
        """Return what the same bits are in another type that is as wide."""
        return Vector(self.builder, self.builder.bitcast(self.value, self._as(element)))

    def bits(self) -> "Vector":
        """Return the patterns of numbers."""
        return self.bitcast(ir.IntType(8 * self.element_bytes))

    def from_bits(self) -> "Vector":
        """Return the numbers of which these are the patterns."""
        return self.bitcast(_REALS[self.element.width])

    def from_integers(self) -> "Vector":
        """Return signed integers as numbers of the type that is as wide."""
        kind = self._as(_REALS[self.element.width])
        return Vector(self.builder, self.builder.sitofp(self.value, kind))

    def widened(self, element: Any) -> "Vector":
        """Return floats, or unsigned integers, in a type that is at least as wide."""
        if element == self.element:
            return self
        extend = self.builder.zext if isinstance(element, ir.IntType) else self.builder.fpext
        return Vector(self.builder, extend(self.value, self._as(element)))

    def extended(self, bits: int) -> "Vector":
        """Return signed integers in a type of so many bits."""
        if self.element.width == bits:
            return self
        return Vector(self.builder, self.builder.sext(self.value, self._as(ir.IntType(bits))))

    def equals(self, other: Any) -> "Vector":
        """Return whether integers are equal, for `choose`."""
        compared = self.builder.icmp_unsigned("==", self.value, self.like(other).value)
        return Vector(self.builder, compared)

    def choose(self, true: "Vector", false: Any) -> "Vector":
        """Return the numbers of one vector where this is true, and those of another elsewhere."""
        chosen = self.builder.select(self.value, true.value, true.like(false).value)
        return Vector(self.builder, chosen)

    def smaller(self, other: Any) -> "Vector":
        """Return the smaller of unsigned integers."""
        return self._call("umin", other)

    def larger(self, other: Any) -> "Vector":
        """Return the larger of unsigned integers."""
        return self._call("umax", other)

    def fma(self, factor: Any, summand: Any) -> "Vector":
        """Return ``self * factor + summand`` with one rounding."""
        return self._call("fma", factor, summand)

    def _call(self, name: str, *others: Any) -> "Vector":
        arguments = [self.value, *(self.like(other).value for other in others)]
        kind = self.value.type
        element = {"float": "f32", "double": "f64"}.get(str(self.element), str(self.element))
        suffix = f"v{self.width}{element}" if self.width else element
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(kind, [kind] * len(arguments)),
            f"llvm.{name}.{suffix}",
        )
        return Vector(self.builder, self.builder.call(function, arguments))

    def reduce(self, combine: Callable[["Vector", "Vector"], "Vector"]) -> Any:
        """Combine the halves of a vector until one number is left, and return that of LLVM."""
        vector = self
        while vector.width > 1:
            half = vector.width // 2
            vector = combine(*(vector._part(start, half) for start in (0, half)))
        return self.builder.extract_element(vector.value, _INT32(0))

    def _part(self, start: int, width: int) -> "Vector":
        lanes = ir.Constant(ir.VectorType(_INT32, width), [*range(start, start + width)])
        return Vector(self.builder, self.builder.shuffle_vector(self.value, self.value, lanes))


def constant(builder: Any, kind: Any, number: Any) -> Vector:
    """Return a constant of one of LLVM's types."""
    return Vector(builder, ir.Constant(kind, ir.Undefined)).like(number)


def broadcast(builder: Any, value: Any, width: int) -> Vector:
    """Return a vector that holds one scalar of LLVM in each lane."""
    kind = ir.VectorType(value.type, width)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT32(0))
    lanes = ir.Constant(ir.VectorType(_INT32, width), [0] * width)
    return Vector(builder, builder.shuffle_vector(first, first, lanes))


class Variable:
    """A vector that a loop changes; it begins as `start` at the end of a block, or where it is."""

    def __init__(self, start: Vector, block: Any = None) -> None:
        self._builder = start.builder
        self._place = cgutils.alloca_once(start.builder, start.value.type)
        with start.builder.goto_block(block or start.builder.block):
            self.set(start)

    @property
    def now(self) -> Vector:
        """What it holds where the builder is."""
        return Vector(self._builder, self._builder.load(self._place))

    def set(self, value: Vector) -> None:
        """Have it hold another vector."""
        self._builder.store(value.value, self._place)


def scalar_function(results: int = 1) -> Callable[[Callable[[Vector, Vector], Any]], Any]:
    """Make a function for compiled loops of a formula.

    The formula takes two values of one type, and returns so many of that type.
    """

    def decorate(formula: Callable[[Vector, Vector], Any]) -> Any:
        @intrinsic
        def function(context: Any, x: Any, y: Any) -> Any:
            def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                result = formula(*(Vector(builder, value) for value in values))
                if results == 1:
                    return result.value
                parts = [part.value for part in result]
                return context.make_tuple(builder, signature.return_type, parts)

            returned = x if results == 1 else types.UniTuple(x, results)
            return (returned(x, x), build) if x == y else None

        return function

    return decorate
