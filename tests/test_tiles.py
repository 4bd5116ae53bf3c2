"""What a kernel that works in tiles, grids and vectors must not let show.

A term depends on its own operands alone: not on its place, its neighbors, the length of the loop,
or the type it was stored in. And a sum is exact for whatever terms happen to share a tile.
"""

import itertools
from fractions import Fraction
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kldiv_dask import kl_div, partial_sum
from kldiv_dask.kernels import pointwise, pointwise_sum
from tests import reference
from tests.helpers.bits import (
    FLOATS,
    assert_same_bits,
    by_type,
    expected,
    operands,
    terms_of,
    widened,
)
from tests.helpers.cases import (
    Array,
    dtype_of,
    log_probabilities,
    narrow,
    probabilities,
    slow_unless,
    special_grid,
    special_values,
)

# Around powers of two and multiples of them: the ends of vectors, tiles, pages and buffers.
EDGES = [n + by for n in (64, 128, 256, 512, 1024, 1536, 2048, 16_384) for by in (-1, 0, 1)]
LENGTHS = [*range(1, 36), *EDGES]


def terms(x: Array, t: Array, chunks: Any = -1, **options: Any) -> Array:
    pair = (da.from_array(a, chunks=chunks) for a in (x, t))
    lazy = kl_div(*pair, reduction="none", **options)
    return np.asarray(lazy.compute(scheduler="synchronous"))


def every_sort_of_pair(name: str, log_target: bool) -> tuple[Array, Array]:
    """Ordinary pairs, special ones, special among ordinary, and targets of every magnitude.

    Those of log targets are also drawn around where the exponential starts to leave the range.
    """
    rng = np.random.default_rng(8)
    dtype = dtype_of(name)
    info = reference.finfo(dtype)
    ordinary = (
        log_probabilities(rng, (900,), dtype),
        (log_probabilities if log_target else probabilities)(rng, (900,), dtype),
    )
    values = special_values(dtype)
    among = [np.where(rng.random(600) < 0.05, rng.choice(values, 600), a[:600]) for a in ordinary]
    lowest = int(info.minexp) - int(info.nmant)
    sizes = np.exp2(rng.uniform(lowest, int(info.maxexp), 200))
    if log_target:
        limits = np.repeat([88.0, 103.0, 709.0, 745.0], 100)
        sizes = np.concatenate([sizes, rng.uniform(limits - 3, limits + 3)])
        sizes *= rng.choice([-1, 1], sizes.size)
    magnitudes = log_probabilities(rng, sizes.shape, dtype), narrow(sizes, dtype)
    parts = zip(ordinary, special_grid(dtype), among, magnitudes, strict=True)
    x, t = map(np.concatenate, parts)
    return x, t


# Terms


@pytest.mark.parametrize("zero_safe", [False, True])
@by_type
def test_a_term_depends_on_its_operands_alone(
    dtype: str, log_target: bool, zero_safe: bool
) -> None:
    """Each alone in its chunk, in other company, at another place, in loops of other lengths."""
    options = {"log_target": log_target, "zero_safe": zero_safe}
    x, t = every_sort_of_pair(dtype, log_target)
    together = terms(x, t, **options)
    assert np.isfinite(together).sum() > 1000
    assert np.isnan(together).sum() > 20
    assert_same_bits(terms(x, t, 1, **options), together)
    for shift in (1, 2, 3, 5, 7, 8, 13, 21, 31, 33, 1000):
        assert_same_bits(terms(x[shift:], t[shift:], **options), together[shift:], shift)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(x.size)
        assert_same_bits(terms(x[order], t[order], **options), together[order], seed)
    for place in range(0, x.size, 97):
        same = np.full(2051, x[place]), np.full(2051, t[place])
        assert_same_bits(terms(*same, **options), np.full(2051, together[place]), place)


@by_type
def test_an_odd_target_does_not_change_its_neighbors(dtype: str, log_target: bool) -> None:
    """A tile of ordinary targets may be computed another way; the bits may not differ."""
    rng = np.random.default_rng(9)
    stored = dtype_of(dtype)
    info = reference.finfo(stored)
    x = log_probabilities(rng, (3000,), stored)
    t = (log_probabilities if log_target else probabilities)(rng, (3000,), stored)
    # all magnitudes, so that every part of the logarithm and the exponential is met
    size = np.exp2(rng.uniform(int(info.minexp), int(info.maxexp), 1000))
    t[1000:2000] = narrow(-size if log_target else size, stored)
    wanted = terms(x, t, log_target=log_target)
    for value in special_values(stored):
        odd = t.copy()
        odd[::500] = value
        got = terms(x, odd, log_target=log_target)
        got[::500] = wanted[::500]
        assert_same_bits(got, wanted, value)


# A kernel for each combination takes seconds to compile.
@pytest.mark.parametrize(
    ("name", "other", "log_target"),
    slow_unless(
        [("bfloat16", "float32", True)],
        itertools.product(["float16", "bfloat16"], FLOATS, [False, True]),
    ),
)
def test_every_number_of_16_bits(name: str, other: str, log_target: bool) -> None:
    """All 65536, on either side, are decoded as NumPy does it."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype_of(name))
    partner = np.linspace(-4, 4, every.size).astype(dtype_of(other))
    for x, t in ((every, partner), (partner, every)):
        with np.errstate(invalid="ignore"):  # signaling NaN
            wanted = narrow(terms_of(x, t, log_target=log_target), reference.result_type(x, t))
        assert_same_bits(terms(x, t, log_target=log_target), wanted)


@by_type
def test_zero_safe_changes_nothing_else(dtype: str, log_target: bool) -> None:
    x, t = every_sort_of_pair(dtype, log_target)
    usual, safe = (terms(x, t, log_target=log_target, zero_safe=safe) for safe in (False, True))
    absent = (t == (-np.inf if log_target else 0)) & ~np.isnan(x)
    assert np.isnan(usual[absent]).any()
    assert_same_bits(safe, np.where(absent, usual.dtype.type(0), usual))


# Sums


@by_type
def test_every_length(dtype: str, log_target: bool) -> None:
    x, t = operands("wide", ((LENGTHS[-1],),) * 2, dtype, log_target)
    every = terms_of(x, t, log_target=log_target)
    lazy = [
        kl_div(da.from_array(x[:n], -1), da.from_array(t[:n], -1), None, None, "sum", log_target)
        for n in LENGTHS
    ]
    for n, got in zip(LENGTHS, dask.compute(*lazy, scheduler="synchronous"), strict=True):
        assert_same_bits(got, expected(every[:n], x, dtype)["sum"], n)


@st.composite
def tiles(draw: st.DrawFn) -> Array:
    """A few tiles of numbers: how large, how far apart, how many bits each, and of which sign."""
    dtype = draw(st.sampled_from(["float32", "float64"]))
    info = np.finfo(dtype)
    lowest = int(info.minexp) - int(info.nmant)
    highest = draw(st.integers(lowest, int(info.maxexp) - 1))
    reach = draw(st.sampled_from([0, 1, 24, 49, 50, 51, 52, 53, 77, 78, 79, 101, 103, 130, 2200]))
    size = draw(st.sampled_from([2, 3, 255, 256, 257, 511, 512, 513, 700, 1024, 1025, 2500]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    exponents = rng.integers(max(lowest, highest - reach), highest + 1, size)
    exponents[:2] = highest, max(lowest, highest - reach)
    kept = draw(st.sampled_from([0, 1, 2, 24, 52]))  # few bits make ties on any grid
    mantissas = np.floor(rng.uniform(1, 2, size) * 2.0**kept) / 2.0**kept
    if draw(st.booleans()):
        mantissas = np.full(size, 2 - float(info.eps))
    if draw(st.booleans()):
        mantissas[rng.random(size) < 0.5] *= -1
    if draw(st.booleans()):
        mantissas[rng.random(size) < 0.9] = 0
    values: Array = np.ldexp(mantissas.astype(dtype), exponents.astype(np.intc))
    for value in draw(st.lists(st.sampled_from(special_values(dtype).tolist()), max_size=2)):
        values[rng.integers(size)] = value
    return values


@settings(max_examples=300, deadline=None)
@given(tiles(), st.booleans())
def test_any_terms_are_summed_exactly(values: Array, log_target: bool) -> None:
    """With targets of 1 a term is minus the input, so terms can be anything.

    The sum is compared before it is rounded, which hides what is lost far below the largest term.
    """
    t = np.full_like(values, 0 if log_target else 1)
    state = partial_sum.zero()
    pointwise_sum.add_block(
        state, -values, t, pointwise.PointwiseSpec(values.dtype, log_target, False)
    )
    sums, total = partial_sum.total(state), reference.exact_sum(values)
    assert Fraction(sums.units, 2**1074) == total.exact
    assert sums[1:4] == total[1:4]


@pytest.mark.parametrize("size", [1, 2, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_may_leave_the_range_on_the_way(dtype: str, size: int) -> None:
    """No running total overflows, and nothing is lost below it."""
    info = np.finfo(dtype)
    largest = np.full(size, info.max, dtype)
    tiny = np.array([info.smallest_subnormal], dtype)
    x = np.concatenate([-largest, tiny, largest, tiny])
    t = np.zeros_like(x)
    for chunks in (-1, 1000, 7) if size < 2000 else (-1, 1000):
        pair = da.from_array(x, chunks), da.from_array(t, chunks)
        total = kl_div(*pair, reduction="sum", log_target=True)
        up = kl_div(*(a[:size] for a in pair), reduction="batchmean", log_target=True)
        total, up = dask.compute(total, up, scheduler="synchronous")
        assert_same_bits(total, -2 * tiny[0])
        assert_same_bits(up, info.max)


# Types


# Two types and whether the target is given by its logarithm.
MIXED_TYPES = [(*pair, log) for pair in itertools.permutations(FLOATS, 2) for log in (False, True)]
SOME_TYPES = [("float16", "float32", True)]


@pytest.mark.parametrize(("first", "second", "log_target"), slow_unless(SOME_TYPES, MIXED_TYPES))
def test_operands_of_two_types(first: str, second: str, log_target: bool) -> None:
    """The same bits as of operands cast to the type of the computation beforehand."""
    x, _ = every_sort_of_pair(first, log_target)
    _, t = every_sort_of_pair(second, log_target)
    size = min(x.size, t.size)
    for a, b in ((x[:size], t[:size]), (x[:size], t[4]), (x[4], t[:size])):
        a, b = np.asarray(a), np.asarray(b)
        wide = terms(*widened(a, b), log_target=log_target)
        assert_same_bits(
            terms(a, b, log_target=log_target), narrow(wide, reference.result_type(a, b))
        )
        finite = np.isfinite(wide)
        pair = (da.from_array(v[finite] if v.ndim else v, 100) for v in (a, b))
        total = kl_div(*pair, reduction="sum", log_target=log_target)
        wanted = expected(wide[finite], a, reference.result_type(a, b))["sum"]
        assert_same_bits(total.compute(scheduler="synchronous"), wanted)


@pytest.mark.parametrize(("dtype", "stored", "log_target"), slow_unless(SOME_TYPES, MIXED_TYPES))
def test_dtype_casts_both_operands(dtype: str, stored: str, log_target: bool) -> None:
    x, t = every_sort_of_pair(stored, log_target)
    cast = narrow(x, dtype_of(dtype)), narrow(t, dtype_of(dtype))
    every = terms_of(*cast, log_target=log_target)
    with np.errstate(over="ignore"):
        got = terms(x, t, 500, log_target=log_target, dtype=dtype)
    assert_same_bits(got, narrow(every, dtype_of(dtype)))
    pair = (da.from_array(a[:900], 400) for a in (x, t))
    total = kl_div(*pair, reduction="sum", log_target=log_target, dtype=dtype)
    assert_same_bits(total.compute(scheduler="synchronous"), expected(every[:900], x, dtype)["sum"])


@by_type
def test_a_zero_target_hides_an_infinite_input_but_not_a_nan(dtype: str, log_target: bool) -> None:
    x, t = special_grid(dtype_of(dtype))
    found = terms(x, t, log_target=log_target, zero_safe=True)
    absent = t == (-np.inf if log_target else 0)
    assert (absent & np.isnan(x)).any()
    assert (absent & np.isinf(x)).any()
    assert np.isnan(found[absent & np.isnan(x)]).all()
    assert (found[absent & ~np.isnan(x)] == 0).all()
    plain = terms(x, t, log_target=log_target)
    assert found[~absent].tobytes() == plain[~absent].tobytes()
