"""Memory: what a block needs beside its chunks, and what a worker needs for data larger than it."""

import tracemalloc

import ml_dtypes  # noqa: F401 - teaches NumPy the name bfloat16
import numpy as np
import pytest

from kldiv_dask import kl_div, open_pair, partial_sum
from kldiv_dask.kernels import pointwise, pointwise_sum
from tests.benchmarks import out_of_core
from tests.helpers.bits import by_type

LAYOUTS = {
    "contiguous": lambda a: a,
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(np.repeat(a, 2, axis=0), 2, axis=1)[::2, ::2],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "broadcast row": lambda a: a[:1],
    "broadcast column": lambda a: a[:, :1],
}


@by_type
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_takes_less_than_a_mebibyte(layout, dtype, log_target):
    rng = np.random.default_rng(0)
    x = -rng.random((1024, 4096)).astype(dtype)
    t = LAYOUTS[layout](rng.random((1024, 4096)).astype(dtype))
    spec = pointwise.PointwiseSpec(np.dtype(dtype), log_target, False)
    pointwise_sum.add_block(partial_sum.zero(), x[:1], t[:1], spec)  # compiles
    tracemalloc.start()
    try:
        pointwise_sum.add_block(partial_sum.zero(), x, t, spec)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.slow
def test_a_pair_larger_than_the_worker(tmp_path):
    limit = 576 * 2**20
    paths = out_of_core.write_pair(tmp_path, 768 * 2**20)
    run = out_of_core.reduce_pair(paths, limit, threads=1, chunks="64 MiB")
    assert run.data_bytes == 768 * 2**20
    assert run.peak_bytes < limit
    other = kl_div(*open_pair(*paths, chunks="32 MiB"), reduction="sum").compute()
    assert run.value == other


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_what_a_worker_needs(tmp_path, dtype):
    """Half as much again as the pairs of chunks at hand, and 300 MiB for Python and all that."""
    threads = 2
    pair = 2 * np.dtype(dtype).itemsize * out_of_core.CHUNK_ROWS * out_of_core.CLASSES
    paths = out_of_core.write_pair(tmp_path, 12 * pair, dtype)
    stored = (out_of_core.CHUNK_ROWS, out_of_core.CLASSES)
    run = out_of_core.reduce_pair(paths, 4 * 2**30, threads=threads, chunks=stored)
    assert run.data_bytes == 12 * pair
    assert pair * threads < run.peak_bytes <= 1.5 * pair * threads + 300 * 2**20, run
