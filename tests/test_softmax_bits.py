"""The divergence from logits: what its bits depend on, and the memory it takes."""

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

from kldiv_dask.kernels import softmax_kl
from kldiv_dask.kernels.elementary import EXP_NORMAL_F32
from tests.helpers.bits import assert_same_bits
from tests.helpers.cases import Array, dtype_of, narrow, some_slow
from tests.test_softmax import compute_dtype, merged, split, whole

# Those of 16 bits take kernels of their own.
TYPES = ["float32", *some_slow("float64", "float16", "bfloat16")]


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
@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_depends_on_itself_alone(dtype: str, temperature: float) -> None:
    """Not on its neighbors, its place, its layout, the type it is stored in, or `where`."""
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
        kernel = softmax_kl.compute_dtype(dtype == "float64", temperature)
        got = softmax_kl.block_divergences(a, b, None, kernel, temperature)
        assert_same_bits(got, together, a.strides, a.dtype)
    if dtype != "float64":
        wide = x.astype(np.float32), t.astype(np.float32)
        assert_same_bits(whole(*wide, temperature), together)
    where = np.random.default_rng(5).random(len(x)) < 0.5
    assert np.isnan(together[~where]).any()
    wanted = np.where(where, together, 0.0)
    assert_same_bits(whole(x, t, temperature, where), wanted)
    kernel = compute_dtype(x, t, temperature)
    states = [
        softmax_kl.block_states(x[:, part], t[:, part], where, kernel, temperature)
        for part in (slice(1024), slice(1024, None))
    ]
    assert_same_bits(softmax_kl.divergences_of(merged(states, temperature), where), wanted)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("dtype", TYPES)
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


@pytest.mark.slow
def test_bits_do_not_depend_on_the_processor() -> None:
    generic = subprocess.run(
        [sys.executable, "-c", "from tests.test_softmax_bits import digest; print(digest())"],
        env={**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert generic.stdout.strip() == digest()


@pytest.mark.parametrize("function", [softmax_kl.block_divergences, softmax_kl.block_states])
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
