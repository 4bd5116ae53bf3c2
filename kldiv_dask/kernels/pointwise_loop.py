"""The fast loop: the terms of a strip of pairs, and their exact sum, in vector registers.

For `pointwise`. Each term is split, in the type that it has, on two to four grids, each as much
finer than the one before as the type has bits of fraction. Beside a large constant a number is
rounded to a multiple of the grid, which the low bits of the sum then hold: the extraction that
`exact_sum` describes, here with as few as two grids of float32, no conversion, and integer lanes
that count what lies on each grid.

How coarse the first grid has to be, and how many there must be, is not known before. Both are
guessed from the strips before, and flags tell after the strip whether the guess was right. If it
was not, the caller throws the counts away and adds the strip as `exact_sum` does. Invariant: a
strip whose flags are all clear has been counted exactly; so the sum does not depend on the guess.

Stages of the loop work on vectors that follow each other: while one is loaded, the term of the one
before is computed, and those before are split. What is between stages is carried in registers.
Without this a processor can't look ahead far enough to hide the latency of a stage.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kldiv_dask.kernels import formulas
from kldiv_dask.kernels.elementary import EXP_NORMAL_F32, EXP_NORMAL_F64
from kldiv_dask.kernels.stored_floats import widened
from kldiv_dask.kernels.vectors import Variable, Vector, broadcast, constant

# Bytes of a vector. Processors with narrower registers take several for one.
VECTOR_BYTES = 64

# Why a strip has to be added in another way: its targets are for the careful functions; a term is
# too large for the first grid, infinite or NaN; a term is no multiple of the last grid.
CAREFUL, TOO_LARGE, TOO_SMALL = 1, 2, 4

# The place of the reason among what the loop returns, behind the counts on as many grids.
FEWEST_GRIDS = 2
FAILED = 4

# A strip has at least so many vectors, as the loop runs over three more, and at most four tiles:
# 2048 terms of float32, which count less than 2**22 on a grid each and 2048 / 16 of which are added
# in 32 bits; or 1024 of float64, which count less than 2**51 and are added in 63 bits.
SHORTEST = 4


class _Loop:
    """The stages of the loop, for one combination of types, while it is compiled."""

    def __init__(
        self, builder: Any, grid: Any, stored: tuple[Any, Any], log_target: bool, grids: int
    ) -> None:
        self.builder, self.stored, self.log_target = builder, stored, log_target
        self.real = grid.type
        self.bits = {"float": 32, "double": 64}[str(self.real)]
        self.fraction = {32: 23, 64: 52}[self.bits]
        self.width = 8 * VECTOR_BYTES // self.bits
        self.magnitude = (1 << (self.bits - 1)) - 1
        first = broadcast(builder, grid, self.width)
        self.grids = [first * 2.0 ** (-self.fraction * k) for k in range(grids)]
        zero = constant(builder, ir.VectorType(ir.IntType(self.bits), self.width), 0)
        self.counts = [Variable(zero) for _ in self.grids]
        self.spread, self.left, self.signs = Variable(zero), Variable(zero), Variable(zero)
        self.largest, self.smallest = Variable(zero), Variable(zero.like(-1))

    def stages(self) -> list[Callable[..., Any]]:
        """Return what follows loading; each stage takes what the one before returns."""
        if self.log_target:
            return [self.start_exponential, self.exponential_term, self.coarse, self.fine]
        return [self.start_logarithm, self.logarithm_term, self.coarse, self.fine]

    def load(self, x: Any, t: Any, mask: Any) -> tuple[Vector, ...]:
        """Return the operands at some addresses; an excluded pair becomes one whose term is 0."""
        operands = [
            widened(self._loaded(address, stored), stored, self.real)
            for address, stored in zip((x, t), self.stored, strict=True)
        ]
        if mask is None:
            return tuple(operands)
        excluded = self._loaded(mask, types.uint8).equals(0)
        # exp(0) (0 - 0) or 1 (log 1 - 0)
        harmless = (0, 0 if self.log_target else 1)
        return tuple(
            excluded.choose(operand.like(number), operand)
            for operand, number in zip(operands, harmless, strict=True)
        )

    def _loaded(self, address: Any, stored: Any) -> Vector:
        vector = ir.VectorType(_element(stored), self.width)
        address = self.builder.bitcast(address, vector.as_pointer())
        return Vector(self.builder, self.builder.load(address, align=stored.bitwidth // 8))

    def start_exponential(self, x: Vector, t: Vector) -> tuple[Vector, ...]:
        """Begin the terms exp(t) (t - x)."""
        self.largest.set(self.largest.now.larger(t.bits() & self.magnitude))
        shifted, *parts = formulas.exp_parts(t, formulas.exp_rounder(t))
        return t - x, shifted, *parts

    def exponential_term(
        self, difference: Vector, shifted: Vector, *parts: Vector
    ) -> tuple[Vector]:
        """Return the terms exp(t) (t - x)."""
        exponential = formulas.scaled_normal(formulas.exp_reduced(*parts), shifted)
        return (exponential * difference,)

    def start_logarithm(self, x: Vector, t: Vector) -> tuple[Vector, ...]:
        """Begin the terms t log(t) - t x."""
        # Zeros stay here: what is computed of them is finite, and 0 times that is 0.
        self.signs.set(self.signs.now | t.bits())
        self.smallest.set(self.smallest.now.smaller(t.bits() - 1))
        return t, t * x, *formulas.log_parts(t)

    def logarithm_term(self, t: Vector, product: Vector, *parts: Vector) -> tuple[Vector]:
        """Return the terms t log(t) - t x."""
        return (t * formulas.log_sum(*parts) - product,)

    def coarse(self, term: Vector) -> tuple[Vector]:
        """Count what lies on the first grid, and leave the rest, which is exact."""
        grid = self.grids[0]
        shifted = term + grid
        # Where a term is too large or not finite, the exponent of the sum is another.
        self.spread.set(self.spread.now | (shifted.bits() ^ grid.bits()))
        self.counts[0].set(self.counts[0].now + shifted.bits())
        return (term - (shifted - grid),)

    def fine(self, rest: Vector) -> tuple[()]:
        """Count what lies on the other grids, after which nothing must be left."""
        for count, grid in zip(self.counts[1:], self.grids[1:], strict=True):
            shifted = rest + grid
            count.set(count.now + shifted.bits())
            rest = rest - (shifted - grid)
        self.left.set(self.left.now | rest.bits())
        return ()

    def totals(self, vectors: Any) -> list[Any]:
        """Return the sum of the counts on each grid, of so many vectors."""
        sums = []
        for count, grid in zip(self.counts, self.grids, strict=True):
            constants = grid.bits() * broadcast(self.builder, vectors, self.width)
            counted = (count.now - constants).extended(64)
            sums.append(counted.reduce(lambda one, other: one + other))
        return sums

    def failures(self) -> Any:
        """Return the reasons for which the strip has to be added in another way, or 0."""
        integer = ir.IntType(self.bits)
        exponents = integer(((1 << self.bits) - 1) ^ ((1 << self.fraction) - 1))
        builder = self.builder
        spread, left, signs = (
            flag.now.reduce(lambda one, other: one | other)
            for flag in (self.spread, self.left, self.signs)
        )
        largest = self.largest.now.reduce(Vector.larger)
        smallest = self.smallest.now.reduce(Vector.smaller)
        limit = {32: EXP_NORMAL_F32, 64: EXP_NORMAL_F64}[self.bits]
        if self.log_target:
            is_careful = builder.fcmp_unordered(
                ">", builder.bitcast(largest, self.real), self.real(limit)
            )
        else:
            below = integer((1 << self.fraction) - 1)
            is_careful = builder.or_(
                builder.icmp_signed("<", signs, integer(0)),
                builder.icmp_unsigned("<", smallest, below),
            )
        is_large = builder.icmp_unsigned("!=", builder.and_(spread, exponents), integer(0))
        is_small = builder.icmp_unsigned("!=", builder.shl(left, integer(1)), integer(0))
        reasons = ir.IntType(64)(0)
        for is_so, reason in ((is_careful, CAREFUL), (is_large, TOO_LARGE), (is_small, TOO_SMALL)):
            flag = builder.select(is_so, reasons.type(reason), reasons.type(0))
            reasons = builder.or_(reasons, flag)
        return reasons


def _element(stored: Any) -> Any:
    """Return LLVM's type of numbers as they are stored, or of their patterns."""
    if isinstance(stored, types.Integer):
        return ir.IntType(stored.bitwidth)
    return {32: ir.FloatType(), 64: ir.DoubleType()}[stored.bitwidth]


def _run(loop: _Loop, arrays: list[Any], count: Any) -> Any:
    """Run the stages over `count` elements, and return how many vectors each of them took.

    Stage k takes the vector before that of stage k - 1. Before there is one it takes zeros, and
    behind the last one zeros are loaded: the term of a pair of zeros is 0. So the ends of the loop
    need no instructions of their own, which would take several times as long to compile.
    """
    builder, stages = loop.builder, loop.stages()
    zeros = cgutils.global_constant(
        builder, "kldiv_zeros", ir.Constant(ir.ArrayType(ir.IntType(8), VECTOR_BYTES), None)
    )
    entrance = builder.block

    def delayed(value: Vector) -> Vector:
        carried = Variable(value.like(0), entrance)
        before = carried.now
        carried.set(value)
        return before

    behind = count.type((len(stages) - 1) * loop.width)
    end, step = builder.add(count, behind), count.type(loop.width)
    with cgutils.for_range_slice(builder, count.type(0), end, step) as (index, _):
        is_inside = builder.icmp_signed("<", index, count)
        places = [
            array
            and builder.select(
                is_inside, builder.gep(array, [index]), builder.bitcast(zeros, array.type)
            )
            for array in arrays
        ]
        values = loop.load(*places)
        for stage in stages[:-1]:
            values = tuple(map(delayed, stage(*values)))
        stages[-1](*values)
    return builder.udiv(end, step)


def _strip_sums(grids: int) -> Any:
    """Make the loop for some number of grids."""

    @intrinsic
    def strip_sums(
        context: Any, x: Any, t: Any, mask: Any, start: Any, count: Any, grid: Any, log_target: Any
    ) -> Any:
        """Return how often the terms of a strip hold each grid, and why that is wrong, or 0.

        `count` is a multiple of a vector's width, and at most a strip;
        `grid` is 1.5 * 2**fraction times the unit of the first grid, in the type of the terms.
        """
        returned = types.UniTuple(types.int64, FAILED + 1)

        def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            # llvmlite's own `add` knows no attributes with a value.
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
            loop = _Loop(builder, values[5], (x.dtype, t.dtype), log_target != types.none, grids)
            arrays: list[Any] = []
            for kind, value in zip((x, t, mask), values, strict=False):
                if kind == types.none:
                    arrays.append(None)
                else:
                    data = context.make_array(kind)(context, builder, value).data
                    arrays.append(builder.gep(data, [values[3]]))
            vectors = _run(loop, arrays, values[4])
            if loop.bits < vectors.type.width:
                vectors = builder.trunc(vectors, ir.IntType(loop.bits))
            sums = loop.totals(vectors)
            sums += [ir.IntType(64)(0)] * (FAILED - grids)
            return context.make_tuple(builder, returned, [*sums, loop.failures()])

        return returned(x, t, mask, start, count, grid, log_target), build

    return strip_sums


on_two_grids, on_three_grids, on_four_grids = (_strip_sums(grids) for grids in (2, 3, 4))
