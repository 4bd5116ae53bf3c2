"""The divergence from logits: accuracy against 50 digits and more, and special values."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kldiv_dask.kernels import softmax_kl
from tests.helpers.bits import FLOATS, assert_same_bits, by_dtype
from tests.helpers.cases import (
    Array,
    compositions,
    dtype_of,
    narrow,
    slow_unless,
    some_slow,
    special_values,
)
from tests.reference import finfo
from tests.reference_logits import divergence, fast_divergence

CLASSES = (2, 3, 63, 64, 65, 1023, 1024, 1025, 5000)
TEMPERATURES = (1.0, 2.0, 0.5, 1.7, 10.0, 0.01)
DIVERGENCES = (50.0, 2.0, 1e-2, 1e-5, 1e-10)
SORTS = ("near", "input offset", "target offset", "one-hot", "excluded", "peaked student")


def compute_dtype(x: Array, t: Array, temperature: float) -> np.dtype[Any]:
    return softmax_kl.compute_dtype(np.float64 in (x.dtype.newbyteorder("="), t.dtype), temperature)


def whole(x: Array, t: Array, temperature: float = 1.0, where: Array | None = None) -> Array:
    dtype = compute_dtype(x, t, temperature)
    return softmax_kl.block_divergences(x, t, where, dtype, temperature)


def split(x: Array, t: Array, chunks: Any, temperature: float = 1.0, fold: int = 0) -> Array:
    """All chunks merged at once; or `fold` at a time, from a random place among them on."""
    dtype, stops = compute_dtype(x, t, temperature), np.cumsum(chunks)[:-1]
    pairs = zip(np.split(x, stops, -1), np.split(t, stops, -1), strict=True)
    states = [softmax_kl.block_states(a, b, None, dtype, temperature) for a, b in pairs]
    rng = np.random.default_rng(fold)
    while fold and len(states) > fold:
        i = int(rng.integers(len(states) - fold + 1))
        states[i : i + fold] = [merged(states[i : i + fold], temperature)]
    return softmax_kl.divergences_of(merged(states, temperature), None)


def merged(states: list[Array], temperature: float) -> Array:
    return softmax_kl.merge_states(np.stack(states, axis=-2), temperature)


def bound(x: Array, t: Array, temperature: float) -> float:
    return 1e-6 if compute_dtype(x, t, temperature) == np.float32 else 1e-12


def assert_close(got: Any, exact: Any, relative: float, *context: Any) -> None:
    """Within a relative error, or for the smallest divergences an absolute one of 1e-21."""
    got = float(got)
    if not abs(exact) < np.inf:
        assert_same_bits(got, float(exact), *context)
        return
    assert got >= 0, (got, *context)
    assert abs(got - exact) <= max(relative * exact, 1e-21), (got, float(exact), *context)


def pair(
    sort: str, size: float, classes: int, dtype: np.dtype[Any], scale: float = 1.0, seed: int = 0
) -> tuple[Array, Array]:
    """Rows (input, target) that diverge by very roughly `size`, at a temperature of `scale`."""
    rng = np.random.default_rng([SORTS.index(sort), classes, seed])
    step = (2 * size) ** 0.5
    # A type of few bits cannot tell large logits that differ by so little.
    t = rng.standard_normal(classes) * min(3.0, step * 2.0 ** int(finfo(dtype).nmant - 3))
    x = t + step * rng.standard_normal(classes)
    hot = int(rng.integers(classes))
    if sort in ("input offset", "target offset"):
        offset = rng.choice([-1e4, 1e4])
        moved = narrow(t * scale + offset, dtype)
        other = moved.astype(float) - offset
        other = narrow(other + step * scale * rng.standard_normal(classes), dtype)
        return (moved, other) if sort == "input offset" else (other, moved)
    if sort in ("one-hot", "excluded"):
        t = np.where(np.arange(classes) == hot, 0.0, -np.inf if sort == "excluded" else -800.0)
        x[:] = np.log(np.expm1(size) / (classes - 1))
        x[hot] = 0
    elif sort == "peaked student":
        x[hot] += size
    return narrow(x * scale, dtype), narrow(t * scale, dtype)


# Accuracy


@pytest.mark.parametrize(
    ("dtype", "sort"),
    slow_unless(
        [*(("float32", sort) for sort in SORTS[::2]), *(("float64", sort) for sort in SORTS[1::2])],
        itertools.product(FLOATS, SORTS),
    ),
)
def test_error_against_mpmath(dtype: str, sort: str) -> None:
    """In one chunk, and split: the bound is the same."""
    seen = []
    rota = itertools.cycle(TEMPERATURES)
    turn = FLOATS.index(dtype) + SORTS.index(sort)
    for seed, (classes, size) in enumerate(itertools.product(CLASSES, DIVERGENCES)):
        if classes > 1000 and (seed % 5 != seed // 5 % 5 or (seed // 5 + turn) % 2):
            continue  # for mpmath is slow
        temperature = next(rota)
        x, t = pair(sort, size, classes, dtype_of(dtype), temperature)
        exact = divergence(x, t, temperature)
        context = sort, size, classes, temperature
        relative = bound(x, t, temperature)
        assert_close(whole(x, t, temperature), exact, relative, *context)
        cuts = np.random.default_rng(seed).choice([1, 1, 7, 64, 700, 1024], classes)
        stops = np.minimum(np.cumsum(cuts), classes)
        chunks = np.diff(np.unique([0, *stops, classes]))
        for fold in (0, 2, 3):
            assert_close(split(x, t, chunks, temperature, fold), exact, relative, *context, fold)
        seen.append(float(exact))
    if dtype in ("float32", "float64"):
        assert max(seen) > (1 if "offset" in sort else 10)
        assert min(value for value in seen if value > 0) < (1e-6 if "peaked" in sort else 1e-8)


@pytest.mark.parametrize(
    ("x", "t", "temperature"),
    [
        ([0.17918303608894348, -0.08934038877487183], [10000.1796875, 9999.9111328125], 1.0),
        ([-4.1391496658325195, -2.310115098953247], [9995.861328125, 9997.6904296875], 0.5),
        (
            [-9999.9560546875, -9999.8017578125, -9999.68359375],
            [0.04346568137407303, 0.19772391021251678, 0.3158918619155884],
            0.25,
        ),
        ([-2.8298850059509277, 4.06129789352417], [-4.335821151733398, 4.06129789352417], 1.0),
        ([-9999.9404296875, -9996.71875], [0.05918640270829201, 3.281698226928711], 0.5),
    ],
)
def test_the_worst_that_a_search_found(x: Any, t: Any, temperature: float) -> None:
    x, t = np.float32(x), np.float32(t)
    exact = divergence(x, t, temperature)
    assert exact > 1e-10
    assert_close(whole(x, t, temperature), exact, 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_200_000_classes(dtype: str) -> None:
    small = pair("near", 1e-5, 5000, dtype_of(dtype))
    assert abs(fast_divergence(*small) / divergence(*small) - 1) < 1e-14
    for size in (1e-10, 1.0):
        x, t = pair("near", size, 200_000, dtype_of(dtype))
        exact = fast_divergence(x, t)
        assert_close(whole(x, t), exact, bound(x, t, 1.0), size)
        chunks = (1, 65_536, 1023, 100_000, 33_440)
        for fold in (0, 2):
            assert_close(split(x, t, chunks, 1.0, fold), exact, bound(x, t, 1.0), size)


@by_dtype
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_equal_models_do_not_diverge(dtype: str, temperature: float) -> None:
    """Exactly; and where one is the other plus a number, by no more than roundings squared."""
    rng = np.random.default_rng(1)
    for classes in (1, *CLASSES):
        logits = rng.integers(-8, 8, classes)
        for offset in (0, 16, 100, -128, -10_000):
            x, t = narrow(logits + offset, dtype_of(dtype)), narrow(logits, dtype_of(dtype))
            if (x.astype(float) - t.astype(float) != offset).any():
                continue  # this type cannot represent it
            for a, b in ((x, t), (t, x)):
                assert 0 <= whole(a, b, temperature) < 1e-20, (classes, offset)
        x = narrow(rng.standard_normal(classes), dtype_of(dtype))
        assert_same_bits(whole(x, x, temperature), np.float64(0.0), classes)
        cuts = [classes // 2, classes - classes // 2] if classes > 1 else [1]
        assert_same_bits(split(x, x, cuts, temperature), np.float64(0.0), classes)


# Finite masks and special values


@pytest.mark.parametrize("temperature", TEMPERATURES)
@by_dtype
def test_soft_masks(dtype: str, temperature: float) -> None:
    # What is summed are products with weights of up to 1024 classes.
    lowest = float(finfo(dtype_of(dtype)).min) * min(temperature, 1) / 2048
    rows = np.array([0.3, -1.2, 2.5, 4.0]), np.array([0.5, 1.2, -2.0, 4.0])
    masks = [(), (0,), (0, 3), (3,), (0, 1, 2, 3)]
    values = (-1e4, -1e9, lowest) if lowest < -1e9 else (-1e4, lowest)
    for value, *places in itertools.product(values, masks, masks):
        x, t = (narrow(row, dtype_of(dtype)) for row in rows)
        x[list(places[0])], t[list(places[1])] = value, value
        exact = divergence(x, t, temperature)
        context = value, places
        relative = bound(x, t, temperature)
        if exact < np.finfo(np.float64).max:
            assert_close(whole(x, t, temperature), exact, relative, *context)
            assert_close(split(x, t, (1, 2, 1), temperature), exact, relative, *context)
        else:
            assert_same_bits(whole(x, t, temperature), np.float64(np.inf), *context)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", some_slow("float32", "float64", "bfloat16"))
def test_huge_logits(dtype: str, temperature: float) -> None:
    """Equal classes at 1e30 beside others, in one model or both, of one sign or two."""
    inf = np.inf
    masked, mixed = [1e30, 1e30, -inf], [1e30, -1e30, 1e30]
    rows = [[1e30, 1e30, 0], [-1e30, -1e30, -1e30], masked, mixed, [0, 0, 1]]
    for first, second in itertools.product(rows, repeat=2):
        x, t = (narrow(row, dtype_of(dtype)) for row in (first, second))
        exact, relative = divergence(x, t, temperature), bound(x, t, temperature)
        for got in (whole(x, t, temperature), split(x, t, (1, 1, 1), temperature)):
            assert_close(got, exact, relative, first, second)


@by_dtype
def test_subnormal_differences(dtype: str) -> None:
    tiny = finfo(dtype_of(dtype)).smallest_subnormal
    rng = np.random.default_rng(2)
    for classes in (2, 65, 1025):
        x, t = (tiny * rng.integers(-9, 9, classes).astype(dtype_of(dtype)) for _ in range(2))
        assert_close(whole(x, t), divergence(x, t), bound(x, t, 1.0), classes)


@by_dtype
def test_special_values_at_every_place(dtype: str) -> None:
    """Each in each place of either row of two or three classes, and in every split."""
    values = narrow([0.0, 1.5, -np.inf, np.inf, np.nan], dtype_of(dtype))
    count = 0
    for classes in (1, 2, 3):
        for chosen in itertools.product(values[: 5 if classes < 3 else 3], repeat=2 * classes):
            x, t = np.array(chosen[:classes]), np.array(chosen[classes:])
            exact = divergence(x, t)
            assert_close(whole(x, t), exact, bound(x, t, 1.0), x, t)
            for chunks in compositions(classes):
                assert_close(split(x, t, chunks), exact, bound(x, t, 1.0), x, t, chunks)
            count += not abs(exact) < np.inf
    assert count > 500


@by_dtype
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_every_pair_of_the_ends_of_a_type(dtype: str, temperature: float) -> None:
    """Also the largest numbers, whose difference overflows, where the divergence does not."""
    values = special_values(dtype_of(dtype))
    for chosen in itertools.product(values, repeat=2):
        for beside in ((0.5, 0.5), (-np.inf, -np.inf), (0.5, -np.inf), (-np.inf, 0.5)):
            rows = zip(chosen, beside, strict=True)
            x, t = (narrow(np.array(row, np.float64), dtype_of(dtype)) for row in rows)
            exact = divergence(x, t, temperature)
            got, most = whole(x, t, temperature), np.finfo(np.float64).max
            if most / 2 <= exact < np.inf:
                assert got >= most / 2
            else:
                assert_close(got, exact, bound(x, t, temperature), x, t)


def test_a_piece_that_the_input_excludes() -> None:
    """1024 classes, which the library takes at a time, and one -inf in all."""
    for classes in (1025, 2048, 3000):
        for part in (slice(1024), slice(1024, None), slice(5, 6)):
            x, t = np.zeros(classes, np.float32), np.zeros(classes, np.float32)
            x[part] = -np.inf
            assert_same_bits(whole(x, t), np.float64(np.inf), classes, part)
            t[part] = -np.inf
            assert_same_bits(whole(x, t), np.float64(0.0), classes, part)
            x[part] = 0
            exact = divergence(x, t)
            assert_close(whole(x, t), exact, 1e-6, classes, part)


ORDINARY = st.floats(-1e3, 1e3) | st.floats(-3, 3)
ODD = st.sampled_from([0.0, -np.inf, -1e4, -1e9, 1e-40, 84.0])
WILD = ORDINARY | ODD


@by_dtype
@settings(max_examples=400, deadline=None)
@given(data=st.data(), temperature=st.sampled_from(TEMPERATURES))
def test_anything(data: st.DataObject, dtype: str, temperature: float) -> None:
    classes = data.draw(st.integers(1, 5))
    value = WILD if data.draw(st.booleans()) else WILD | st.sampled_from([np.nan, np.inf])
    rows = data.draw(st.lists(st.tuples(value, value), min_size=classes, max_size=classes))
    x, t = (narrow(row, dtype_of(dtype)) for row in zip(*rows, strict=True))
    exact, relative = divergence(x, t, temperature), bound(x, t, temperature)
    # Below 1e-10 a float32 tells divergences with an absolute error.
    slack = max(relative, float(1e-16 / exact) if 0 < exact < 1e-10 else 0)
    assert_close(whole(x, t, temperature), exact, slack)
    chunks = data.draw(st.sampled_from(list(compositions(classes))))
    assert_close(
        split(x, t, chunks, temperature, data.draw(st.sampled_from([0, 2, 3]))), exact, slack
    )
