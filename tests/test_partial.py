"""The mergeable state: exact, canonical, independent of order and grouping, and rounded once."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kldiv_dask import partial_sum
from kldiv_dask.kernels import exact_sum
from kldiv_dask.kernels.exact_sum import ACCUMULATOR_SIZE, ENDURANCE, LIMBS
from kldiv_dask.kernels.llvm_hints import tile_length
from tests import reference
from tests.helpers.bits import assert_same_bits
from tests.helpers.cases import FLOATS, dtype_of

Partial = npt.NDArray[np.int64]

MAX = float(np.finfo(np.float64).max)
TINY = 5e-324
# Positions of the lowest bit, in units of 2**-1074, of the finite float64.
POSITIONS = st.integers(0, 2045)

floats = st.one_of(
    st.floats(),
    st.sampled_from([0.0, -0.0, TINY, -TINY, 2.0**-1022, MAX, -MAX, 2.0**32, 1.0, -1.0]),
    st.builds(math.ldexp, st.integers(-(2**53), 2**53), st.integers(-1074, 960)),
)


def partial_of(values: list[float]) -> Partial:
    """The canonical partial of a few floats, added one by one."""
    state = partial_sum.zero()
    for value in values:
        exact_sum.add(state, np.float64(value))
    state[partial_sum.NUMEL] = len(values)
    exact_sum.carry(state)
    return state


def integer(limbs: Partial) -> int:
    """What limbs stand for, canonical or not."""
    return sum(int(limb) << 32 * i for i, limb in enumerate(limbs[:LIMBS]))


def assert_canonical(state: Partial) -> None:
    assert ((state[: LIMBS - 1] >= 0) & (state[: LIMBS - 1] < 2**32)).all()


def merged(rng: Any, parts: list[Partial]) -> Partial:
    """Merge neighbors chosen at random, two to five at a time, until one is left."""
    while len(parts) > 1:
        start = rng.randrange(len(parts) - 1)
        group = slice(start, start + rng.randint(2, 5))
        parts[group] = [partial_sum.merge(np.stack(parts[group]), axis=(0,))]
    return parts[0]


# Adding and merging


@settings(deadline=None)
@given(st.lists(floats, min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_any_order_and_grouping_give_the_same_vector(values: list[float], rng: Any) -> None:
    whole = partial_of(values)
    total = reference.exact_sum(np.array(values))
    sums = partial_sum.total(whole)
    assert Fraction(sums.units, 2**1074) == total.exact
    assert sums[1:5] == total[1:]
    assert_canonical(whole)

    shuffled = rng.sample(values, len(values))
    assert np.array_equal(partial_of(shuffled), whole)
    cuts = sorted(rng.randrange(len(values) + 1) for _ in range(rng.randrange(10)))
    edges = itertools.pairwise([0, *cuts, len(values)])
    parts = [partial_of(shuffled[start:stop]) for start, stop in edges]
    assert np.array_equal(merged(rng, parts), whole)


@settings(deadline=None)
@given(st.lists(floats, min_size=1, max_size=40), st.sampled_from([np.float32, np.float64]))
def test_a_tile_is_as_good_as_its_elements(values: list[float], dtype: Any) -> None:
    terms = np.zeros(tile_length(np.dtype(dtype)), dtype)
    with np.errstate(over="ignore"):
        terms[: len(values)] = np.array(values).astype(dtype)
    state = partial_sum.zero()
    exact_sum.add_tile(state, terms, np.empty(terms.size))
    exact_sum.carry(state)
    state[partial_sum.NUMEL] = terms.size
    assert np.array_equal(state, partial_of(terms.tolist()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("top", [100, -20])
def test_a_tile_is_exact_at_every_distance(dtype: Any, top: int) -> None:
    """The smallest term ends in a one, and goes from above the last place of the grids to below."""
    one_more = 1 + np.finfo(dtype).eps
    for distance in range(110):
        terms = np.zeros(tile_length(np.dtype(dtype)), dtype)
        terms[:2] = dtype(2.0**top), np.ldexp(one_more, top - distance)
        assert terms[1] > 0
        state = partial_sum.zero()
        exact_sum.add_tile(state, terms, np.empty(terms.size))
        exact_sum.carry(state)
        state[partial_sum.NUMEL] = terms.size
        assert np.array_equal(state, partial_of(terms.tolist())), distance


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_what_cancels_leaves_nothing(values: list[float]) -> None:
    state = partial_of([*values, *(-value for value in values)])
    assert not state[:ACCUMULATOR_SIZE].any()
    if any(values):
        assert (
            state[:ACCUMULATOR_SIZE].tolist()
            != partial_of([*values, *values])[:ACCUMULATOR_SIZE].tolist()
        )


def test_merging_along_any_axes() -> None:
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    values = np.ldexp(rng.uniform(-1, 1, shape), rng.integers(-1000, 1000, shape))
    parts = np.stack([partial_of([value]) for value in values.ravel().tolist()])
    parts = parts.reshape(*shape, partial_sum.SIZE)
    before = parts.copy()
    for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2), ()):
        for keepdims in (False, True):
            got = partial_sum.merge(parts, axes, keepdims)
            slots = values.sum(axis=axes, keepdims=keepdims).shape
            assert got.shape == (*slots, partial_sum.SIZE)
            first = values[tuple(slice(None) if i in axes else 0 for i in range(3))]
            assert np.array_equal(
                got.reshape(-1, partial_sum.SIZE)[0], partial_of(first.ravel().tolist())
            )
            again = partial_sum.merge(got, tuple(range(got.ndim - 1)))
            assert np.array_equal(again, partial_of(values.ravel().tolist()))
    assert np.array_equal(parts, before)


# Carrying, and how far it may be put off


@given(st.lists(st.integers(-(2**62), 2**62), min_size=LIMBS, max_size=LIMBS))
def test_carry_is_canonical_and_keeps_the_sum(limbs: list[int]) -> None:
    # The uppermost limb takes what is carried into it and has nowhere to carry to.
    limbs[-1] >>= 30
    state = np.array([*limbs, 1, 2, 3, 4, 5], dtype=np.int64)
    carried = state.copy()
    exact_sum.carry(carried)
    assert_canonical(carried)
    assert integer(carried) == integer(state)
    assert carried[LIMBS:].tolist() == [1, 2, 3, 4, 5]
    assert partial_sum.total(carried) == (integer(state), 1, 2, 3, 4, 5)

    once_more = carried.copy()
    exact_sum.carry(once_more)
    assert np.array_equal(once_more, carried)
    compiled = state.copy()
    exact_sum.carry_compiled(compiled)
    assert np.array_equal(compiled, carried)


EXTREMES = [2**62 - 1, -(2**62) + 1, 2**53 - 1, -(2**53) + 1, 2**32, -1, 1]


@given(st.one_of(st.integers(-(2**62) + 1, 2**62 - 1), st.sampled_from(EXTREMES)), POSITIONS)
def test_an_addition_is_exact_and_leaves_headroom_for_more(value: int, position: int) -> None:
    state = partial_sum.zero()
    exact_sum.add_scaled(state, value, position)
    assert integer(state) == value << position
    # Adding a number n times leaves n times the limbs, and they must fit beside a canonical one.
    most = np.abs(state[:LIMBS]).max().item() * ENDURANCE + 2**32
    assert most < 2**63
    state *= ENDURANCE
    exact_sum.carry(state)
    assert_canonical(state)
    assert integer(state) == (value << position) * ENDURANCE


@pytest.mark.parametrize("value", [MAX, -MAX, 2.0**1023, -(2.0**1023), 1.0, TINY, -TINY])
def test_two_to_the_64_equal_terms(value: float) -> None:
    state = partial_of([value])
    for _ in range(64):
        state = partial_sum.merge(np.stack([state, state]), axis=(0,))
    sums = partial_sum.total(state)._replace(numel=2**64)  # the count itself stops short of it
    assert sums.units == int(Fraction(value) * 2**1138)
    assert partial_sum.quotient(sums, sums.numel, np.dtype(float)) == value
    undone = partial_sum.merge(np.stack([state, *[partial_of([-value])] * 3]), axis=(0,))
    assert partial_sum.total(undone).units == int(Fraction(value) * (2**1138 - 3 * 2**1074))


def test_many_full_partials_are_merged_at_once() -> None:
    full = np.full(partial_sum.SIZE, 2**32 - 1, dtype=np.int64)
    full[LIMBS - 1] = -(2**20)
    many = partial_sum.merge(np.broadcast_to(full, (200_000, partial_sum.SIZE)), axis=(0,))
    assert_canonical(many)
    assert partial_sum.total(many) == tuple(200_000 * value for value in partial_sum.total(full))


# Rounding


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_finite(dtype: str) -> None:
    inf, nan = math.inf, math.nan
    for values, wanted in [
        ([inf, 1.0, -MAX], inf), ([-inf, MAX], -inf), ([inf, -inf], nan), ([nan, inf], nan),
        ([nan, 1.0], nan), ([], 0.0), ([-0.0], 0.0), ([1e-300, -1e-300], 0.0),
    ]:  # fmt: skip
        sums = partial_sum.total(partial_of(values))
        assert_same_bits(partial_sum.quotient(sums, 1, np.dtype(dtype)), np.array(wanted, dtype))
        assert np.isnan(partial_sum.quotient(sums, 0, np.dtype(dtype)))


NAMES = [*FLOATS, "bfloat16"]
bits = st.integers(0, 2**70)
ratios = st.builds(
    lambda a, b, shift: Fraction(a, b) * Fraction(2) ** shift,
    st.integers(-(2**120), 2**120),
    st.one_of(st.just(1), st.integers(1, 2**40)),
    st.integers(-1250, 1050),
)


def assert_rounded(value: Fraction, name: str) -> None:
    dtype = dtype_of(name)
    got = partial_sum.round_ratio(value.numerator, value.denominator, dtype)
    assert_same_bits(got, reference.round_fraction(value, dtype), value)


@pytest.mark.parametrize("name", NAMES)
@given(ratios)
def test_any_ratio(name: str, value: Fraction) -> None:
    assert_rounded(value, name)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300)
@given(st.integers(0, 2**64), st.sampled_from([0, 1, 2, 20, 50, 60, 200, 2000]), st.booleans())
@example(-1, 60, False)
@example(0, 60, False)
def test_halfway_and_a_hair_beside_it(name: str, pattern: int, hair: int, negative: bool) -> None:
    """Rounding to float64 on the way would make these ties, or break them the wrong way."""
    dtype = dtype_of(name)
    info = reference.finfo(dtype)
    spread = int(np.array(info.max).view(f"u{dtype.itemsize}")) + 1
    word = np.array(pattern % spread, dtype=f"u{dtype.itemsize}")
    lower = Fraction(float(word.view(dtype)))
    following = float((word + word.dtype.type(1)).view(dtype))
    upper = Fraction(following) if math.isfinite(following) else Fraction(2) ** int(info.maxexp)
    tie = (lower + upper) / 2
    for beside in (-1, 0, 1):
        value = tie + beside * (upper - lower) / 2 ** (hair + 2)
        assert_rounded(-value if negative else value, name)


# Many at once


def limbs_of(units: int) -> Partial:
    """The canonical partial of a sum, in units of 2**-1074."""
    state = partial_sum.zero()
    state[: LIMBS - 1] = [(units >> 32 * i) & 0xFFFFFFFF for i in range(LIMBS - 1)]
    state[LIMBS - 1] = units >> 32 * (LIMBS - 1)
    return state


def assert_quotients(sums: list[int], divisors: list[int]) -> None:
    """Those of many are those of one by one, in every type."""
    states = np.stack([limbs_of(units) for units in sums])
    for name in NAMES:
        got = partial_sum.quotients(states, np.array(divisors), dtype_of(name))
        one_by_one = [
            partial_sum.quotient(partial_sum.total(state), divisor, dtype_of(name))
            for state, divisor in zip(states, divisors, strict=True)
        ]
        assert_same_bits(got, np.array(one_by_one, dtype_of(name)), name)


whole = st.builds(
    lambda digits, shift, beside: (digits << shift) + beside,
    st.integers(-(2**70), 2**70),
    st.integers(0, 2060),
    st.sampled_from([0, 1, -1, 2**31, -(2**33)]),
)
divisors = st.one_of(st.integers(0, 9), st.integers(0, 2**31 - 1), st.just(2**31 - 1))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(whole, divisors), min_size=1, max_size=20))
@example([(sign * (2**2144 - 1), 1) for sign in (1, -1)])
@example([(2**bits, 3) for bits in range(2140)])
@example([(-(2**bits), 1) for bits in range(2140)])
def test_many_quotients(pairs: list[tuple[int, int]]) -> None:
    assert_quotients(*map(list, zip(*pairs, strict=True)))


@pytest.mark.parametrize("divisor", [1, 3, 1000, 2**31 - 1, 2**31, 2**40])
def test_many_halfway_cases(divisor: int) -> None:
    """Ties of every type and a unit beside them, normal and subnormal, where limbs meet and not."""
    rng = np.random.default_rng(1)
    sums = []
    for name in NAMES:
        info = reference.finfo(dtype_of(name))
        lowest = 1074 + int(info.minexp) - int(info.nmant) - 1  # half the smallest subnormal
        for shift in [*range(max(lowest, 0), max(lowest, 0) + 70), *range(70, 2000, 61)]:
            odd = 2 * int(rng.integers(0, 2 ** (int(info.nmant) + 1))) + 1
            sums += [((odd << shift) * divisor + beside) * (-1) ** shift for beside in (-1, 0, 1)]
    assert_quotients(sums, [divisor] * len(sums))


def test_many_that_are_not_finite() -> None:
    counts = list(itertools.product((0, 1, 7), repeat=3))
    states = np.stack([limbs_of(units) for units in (5 << 1074, -5 << 1074, 0) for _ in counts])
    states[:, [exact_sum.NAN, exact_sum.POSINF, exact_sum.NEGINF]] = counts * 3
    for divisor, name in itertools.product((0, 2), NAMES):
        dtype = dtype_of(name)
        got = partial_sum.quotients(states, np.full(len(states), divisor), dtype)
        one_by_one = [partial_sum.quotient(partial_sum.total(s), divisor, dtype) for s in states]
        assert_same_bits(got, np.array(one_by_one, dtype))
        if divisor:
            assert {-np.inf, -2.5, 0, 2.5, np.inf} < set(got.tolist())
