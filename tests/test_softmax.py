"""The divergence from logits: accuracy against 50 digits and more, special values, bits, memory."""

import hashlib
import itertools
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kldiv_dask.kernels import softmax
from kldiv_dask.kernels.elementary import EXP_NORMAL_F32
from tests.bits import FLOATS, assert_same_bits
from tests.cases import Array, compositions, dtype_of, narrow, special_values
from tests.reference import finfo
from tests.reference_logits import divergence, fast_divergence

CLASSES = (2, 3, 63, 64, 65, 1023, 1024, 1025, 5000)
TEMPERATURES = (1.0, 2.0, 0.5, 1.7, 10.0, 0.01)
DIVERGENCES = (50.0, 2.0, 1e-2, 1e-5, 1e-10)
SORTS = ("near", "input offset", "target offset", "one-hot", "excluded", "peaked student")

by_dtype = pytest.mark.parametrize("dtype", FLOATS)


def computed_in(x: Array, t: Array, temperature: float) -> np.dtype[Any]:
    return softmax.computed_in(np.float64 in (x.dtype.newbyteorder("="), t.dtype), temperature)


def whole(x: Array, t: Array, temperature: float = 1.0, where: Array | None = None) -> Array:
    dtype = computed_in(x, t, temperature)
    return softmax.block_divergences(x, t, where, dtype, temperature)


def split(x: Array, t: Array, chunks: Any, temperature: float = 1.0, fold: int = 0) -> Array:
    """All chunks merged at once; or `fold` at a time, from a random place among them on."""
    dtype, stops = computed_in(x, t, temperature), np.cumsum(chunks)[:-1]
    pairs = zip(np.split(x, stops, -1), np.split(t, stops, -1), strict=True)
    states = [softmax.block_states(a, b, None, dtype, temperature) for a, b in pairs]
    rng = np.random.default_rng(fold)
    while fold and len(states) > fold:
        i = int(rng.integers(len(states) - fold + 1))
        states[i : i + fold] = [merged(states[i : i + fold], temperature)]
    return softmax.divergences_of(merged(states, temperature), None)


def merged(states: list[Array], temperature: float) -> Array:
    return softmax.merge_states(np.stack(states, axis=-2), temperature)


def bound(x: Array, t: Array, temperature: float) -> float:
    return 1e-6 if computed_in(x, t, temperature) == np.float32 else 1e-12


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


@pytest.mark.parametrize("sort", SORTS)
@by_dtype
def test_error_against_mpmath(dtype: str, sort: str) -> None:
    """In one chunk, and split: the bound is the same."""
    seen = []
    rota = itertools.cycle(TEMPERATURES)
    for seed, (classes, size) in enumerate(itertools.product(CLASSES, DIVERGENCES)):
        if classes > 1000 and seed % 5 != seed // 5 % 5:
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
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
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


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from(FLOATS), st.sampled_from(TEMPERATURES))
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


# Bits and memory


def rows_of_every_sort(name: str) -> tuple[Array, Array]:
    """1e5 classes in 98 rows, some of which hold special values, far classes and soft masks."""
    rng = np.random.default_rng(3)
    x, t = (narrow(rng.standard_normal((98, 1030)) * 5, dtype_of(name)) for _ in range(2))
    t[20:40] = x[20:40] + narrow(1e-3 * rng.standard_normal((20, 1030)), dtype_of(name))
    for row, value in enumerate([-np.inf, -1e4, -200.0, 60.0, np.nan, np.inf] * 10):
        part = slice(row, row + 1), rng.random(1030) < 0.1
        for chosen in ((x, t), (t,), (x,))[row % 3]:
            chosen[part] = narrow(value, dtype_of(name))
    return x, t


def layouts(array: Array) -> list[Array]:
    spread = np.full((array.shape[0], 3 * array.shape[1]), np.nan, array.dtype)
    spread[:, 1::3] = array
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    raw[...] = array
    return [
        np.asfortranarray(array),
        spread[:, 1::3],
        np.ascontiguousarray(array[:, ::-1])[:, ::-1],
        np.ascontiguousarray(array[::-1])[::-1],
        array.astype(array.dtype.newbyteorder()),
        raw,
    ]


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@by_dtype
def test_a_row_depends_on_itself_alone(dtype: str, temperature: float) -> None:
    """Not on its neighbours, its place, its layout, the type it is stored in, or `where`."""
    x, t = rows_of_every_sort(dtype)
    together = whole(x, t, temperature)
    assert np.isfinite(together).sum() > 50
    assert np.isnan(together).sum() > 10
    alone = [whole(x[i : i + 1], t[i], temperature)[0] for i in range(len(x))]
    assert_same_bits(np.array(alone), together)
    order = np.random.default_rng(4).permutation(len(x))
    assert_same_bits(whole(x[order], t[order], temperature), together[order])
    cube = (2, 49, 1030)
    assert_same_bits(
        whole(x.reshape(cube), t.reshape(cube), temperature), together.reshape(cube[:2])
    )
    for first, second in [(x, t[7]), (x[30], t)]:
        copies = (np.broadcast_to(a, x.shape).copy() for a in (first, second))
        assert_same_bits(whole(first, second, temperature), whole(*copies, temperature))
    for a, b in [*((v, t) for v in layouts(x)), *zip(layouts(x), layouts(t), strict=True)]:
        kernel = softmax.computed_in(dtype == "float64", temperature)
        got = softmax.block_divergences(a, b, None, kernel, temperature)
        assert_same_bits(got, together, a.strides, a.dtype)
    if dtype != "float64":
        wide = x.astype(np.float32), t.astype(np.float32)
        assert_same_bits(whole(*wide, temperature), together)
    where = np.random.default_rng(5).random(len(x)) < 0.5
    assert np.isnan(together[~where]).any()
    wanted = np.where(where, together, 0.0)
    assert_same_bits(whole(x, t, temperature, where), wanted)
    kernel = computed_in(x, t, temperature)
    states = [
        softmax.block_states(x[:, part], t[:, part], where, kernel, temperature)
        for part in (slice(1024), slice(1024, None))
    ]
    assert_same_bits(softmax.divergences_of(merged(states, temperature), where), wanted)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@by_dtype
def test_an_odd_class_does_not_change_the_others(dtype: str, temperature: float) -> None:
    """A piece with -inf in it takes slower loops; the bits are those of the faster."""
    reach = 50.0 if temperature == 1 and dtype != "float64" else 300.0
    assert reach < EXP_NORMAL_F32 or temperature != 1 or dtype == "float64"
    rng = np.random.default_rng(6)
    for classes, spread in itertools.product((2, 5, 63, 130, 1000), (1e-3, 1.0, 15.0, reach)):
        rows = (rng.uniform(-spread, spread, (20, classes)) / 2 for _ in range(2))
        x, t = (narrow(row, dtype_of(dtype)) for row in rows)
        usual = whole(x, t, temperature)
        padded = [np.pad(a, ((0, 0), (0, 1)), constant_values=-np.inf) for a in (x, t)]
        if (classes + 1) % 64 != 1:  # or a lane more is summed
            assert_same_bits(whole(*padded, temperature), usual, classes, spread)
        chunks = (classes, 1)
        assert_same_bits(split(*padded, chunks, temperature), split(x, t, (classes,), temperature))


def digest() -> str:
    """Fingerprint of the divergences of both types of computation."""
    sha = hashlib.sha256()
    for dtype, temperature in [("float16", 1.0), ("float32", 1.0), ("float64", 1.7)]:
        x, t = rows_of_every_sort(dtype)
        result = whole(x, t, temperature)
        sha.update(np.where(np.isnan(result), np.nan, result).tobytes())
    return sha.hexdigest()


def test_bits_do_not_depend_on_the_processor() -> None:
    generic = subprocess.run(
        [sys.executable, "-c", "from tests.test_softmax import digest; print(digest())"],
        env={**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert generic.stdout.strip() == digest()


@pytest.mark.parametrize("function", [softmax.block_divergences, softmax.block_states])
@pytest.mark.parametrize("layout", ["contiguous", "Fortran", "strided", "byte-swapped"])
def test_a_block_takes_less_than_a_mebibyte(layout: str, function: Any) -> None:
    rng = np.random.default_rng(7)
    x, t = rng.standard_normal((2, 64, 32768), np.float32)
    t = {
        "contiguous": lambda a: a,
        "Fortran": np.asfortranarray,
        "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    }[layout](t)
    for a in (x, x[::-1]):
        arguments = a, t, None, np.dtype(np.float32), 1.0
        function(*arguments)  # compiles
        tracemalloc.start()
        try:
            result = function(*arguments)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert np.isfinite(result).all()
        assert peak - result.nbytes < 2**20
