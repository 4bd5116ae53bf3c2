"""What kernels make of stored numbers, and that no bit of it depends on the processor."""

import hashlib
import os
import subprocess
import sys

import ml_dtypes
import numba
import numpy as np
import pytest

from kldiv_dask import partial_sum
from kldiv_dask.kernels import pointwise, pointwise_sum
from kldiv_dask.kernels.stored_floats import as_stored, narrow, widen
from tests.helpers.cases import dtype_of, special_grid

HALVES = [np.float16, ml_dtypes.bfloat16]


@numba.njit
def widen_all(stored, out):
    for i in range(out.size):
        out[i] = widen(stored[i], out[i])


@numba.njit
def narrow_all(numbers, out):
    for i in range(out.size):
        out[i] = narrow(numbers[i], out[i])


def assert_equal(found, wanted):
    """Bits are equal, but for those of NaN."""
    nan = np.isnan(wanted.astype(np.float32))
    assert 0 < nan.sum() < nan.size / 4
    assert np.isnan(found.astype(np.float32))[nan].all()
    assert found[~nan].tobytes() == wanted[~nan].tobytes()


@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize("half", HALVES)
def test_every_half_is_widened(half, wide):
    stored = np.arange(2**16, dtype=np.uint16).view(half)
    out = np.empty(stored.size, wide)
    widen_all(as_stored(stored), out)
    with np.errstate(invalid="ignore"):  # of signaling NaN
        assert_equal(out, stored.astype(wide))


@pytest.mark.parametrize("half", HALVES)
def test_narrowing_rounds_to_nearest_even(half):
    every = np.arange(2**16, dtype=np.uint16).view(half)
    with np.errstate(all="ignore"):
        patterns = every.astype(np.float32).view(np.uint32)
        shift = 13 if half is np.float16 else 16
        steps = [0, 1, 2 ** (shift - 1) - 1, 2 ** (shift - 1), 2 ** (shift - 1) + 1, 2**shift - 1]
        beside = [patterns + np.uint32(step) for step in steps]  # around every tie
        sample = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)
        numbers = np.concatenate([*beside, sample]).view(np.float32)
        out = np.empty(numbers.size, half)
        narrow_all(numbers, as_stored(out))
        assert_equal(out, numbers.astype(half))


def digest(dtype, log_target):
    """Hash the terms of a million random and special pairs, and their sum."""
    rng = np.random.default_rng(0)
    size = dtype.itemsize
    patterns = rng.integers(0, 256, (2, 10**6 * size), np.uint8).view(f"u{size}").view(dtype)
    grid = special_grid(dtype)
    x, t = (np.concatenate(parts) for parts in zip(patterns, grid, strict=True))
    ordinary = -np.abs(rng.standard_normal(10**6)).astype(dtype)
    x, t = np.concatenate([x, ordinary]), np.concatenate([t, ordinary[::-1]])
    spec = pointwise.PointwiseSpec(dtype, log_target, True)
    terms = pointwise.block_terms(x, t, spec)
    state = partial_sum.zero()
    pointwise_sum.add_block(state, x, t, spec)
    finite = np.where(terms == terms, terms, dtype.type(0))
    return hashlib.sha256(finite.tobytes() + state.tobytes()).hexdigest()


ALL = [(name, log) for name in ("float16", "bfloat16", "float32", "float64") for log in (0, 1)]


def digests(cases):
    return [digest(dtype_of(name), bool(log)) for name, log in cases]


@pytest.mark.slow
def test_no_bit_depends_on_the_processor():
    """The generic one has neither AVX nor fused multiply-adds."""
    program = f"from tests.test_stored import digests; print(digests({ALL!r}))"
    generic = {**os.environ, "NUMBA_CPU_NAME": "generic"}
    out = subprocess.check_output([sys.executable, "-c", program], text=True, env=generic)
    assert out == f"{digests(ALL)}\n"
