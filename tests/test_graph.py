"""The graphs: one task for each pair of chunks, the same keys again, nothing computed early."""

import itertools
import math
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.array.utils import assert_eq
from dask.base import normalize_token
from dask.core import get_dependencies
from hypothesis import given
from hypothesis import strategies as st

from kldiv_dask import KLDivLoss, kl_div, kl_div_summary, open_pair
from kldiv_dask.graph.tree import fan_in
from tests.helpers.cases import FLOATS, REDUCTIONS, Array, slow_unless

# Dask's array expressions lack `from_zarr` and boolean masks, and don't fuse reads with the rest.
EXPRESSIONS = bool(dask.config.get("array.query-planning", None))
without_expressions = pytest.mark.skipif(EXPRESSIONS, reason="not in Dask's array expressions")

pytestmark = pytest.mark.filterwarnings("ignore:reduction='mean' divides:UserWarning")


def random_pair(shape: tuple[int, ...], chunks: Any) -> tuple[da.Array, da.Array]:
    rng = np.random.default_rng(0)
    x, t = (da.from_array(-rng.random(shape), chunks=chunks) for _ in range(2))
    return x, t


def stored_pair(folder: Path, shape: tuple[int, ...], chunks: tuple[int, ...]) -> list[str]:
    paths = [str(folder / f"{name}.zarr") for name in ("input", "target")]
    for path in paths:
        zarr.create_array(path, shape=shape, chunks=chunks, dtype="f4", fill_value=0.5)
    return paths


def stages(lazy: Any) -> Counter[str]:
    """How many tasks there are of each name."""
    keys = lazy.__dask_graph__()
    names = (key[0] if isinstance(key, tuple) else key for key in keys)
    return Counter(re.sub(r"-[0-9a-f]{32}$", "", name) for name in names)


# One task for each pair of chunks


@without_expressions
@pytest.mark.parametrize("opener", ["from_zarr", "open_pair"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
def test_one_task_for_each_pair_of_stored_chunks(
    tmp_path: Path, opener: str, reduction: str
) -> None:
    paths = stored_pair(tmp_path, (64, 6), (2, 6))
    if opener == "open_pair":
        pair = open_pair(*paths, chunks=(2, 6))
    else:
        pair = tuple(da.from_zarr(path) for path in paths)
    (optimized,) = dask.optimize(kl_div(*pair, reduction=reduction))
    tasks = stages(optimized)
    assert tasks["kl-div-block"] == 32
    # and two for the tree and the end; from_zarr adds a key for each array
    assert tasks.total() == (34 if opener == "open_pair" else 36)


@without_expressions
def test_elementwise_is_one_task_for_each_pair_too(tmp_path: Path) -> None:
    x, t = open_pair(*stored_pair(tmp_path, (64, 6), (2, 6)), chunks=(2, 6))
    (optimized,) = dask.optimize(kl_div(x.astype("f8"), t, reduction="none"))
    assert stages(optimized) == {"kl-div-terms": 32}


@without_expressions
def test_ten_thousand_pairs(tmp_path: Path) -> None:
    x, t = open_pair(*stored_pair(tmp_path, (200, 200), (1, 4)), chunks=(1, 4))
    assert math.prod(x.numblocks) == 10_000
    (optimized,) = dask.optimize(kl_div(x, t, reduction="sum"))
    assert len(dict(optimized.__dask_graph__())) <= 1.05 * 10_000


def test_stages_are_named() -> None:
    x, t = random_pair((100, 6), (1, 3))
    assert stages(kl_div(x, t, reduction="sum", split_every=4)) - stages(x) - stages(t) == {
        "kl-div-block": 400,  # a pass of Dask's reduction is fused into each
        "kl-div-merge-partial": 50 + 25 + 13 + 7 + 4 + 2,
        "kl-div-merge-aggregate": 1,
        "kl-div-finalized": 1,
    }
    assert stages(kl_div(x, t, reduction="none")) - stages(x) - stages(t) == {"kl-div-terms": 200}
    x, t = random_pair((3,), -1)
    single = kl_div(x, t, reduction="mean")
    assert stages(single) - stages(x) - stages(t) == {"kl-div-block": 1, "kl-div-finalized": 1}


# Keys


def results(x: Any, t: Any) -> Iterator[da.Array]:
    for reduction, log_target, zero_safe, dtype in itertools.product(
        REDUCTIONS, (False, True), (False, True), FLOATS
    ):
        yield kl_div(x, t, None, None, reduction, log_target, dtype=dtype, zero_safe=zero_safe)
    yield from [*kl_div_summary(x, t)][3:]


def names_of_fixed_results() -> list[str]:
    x, t = (da.full((6, 4), value, chunks=(2, 3)) for value in (-1.0, 0.5))
    return [result.name for result in results(x, t)]


def test_keys_are_deterministic_and_distinct() -> None:
    names = names_of_fixed_results()
    assert len(set(names)) == len(names)
    dask.compute(*results(*random_pair((6, 4), (2, 3))), scheduler="synchronous")
    assert names_of_fixed_results() == names


def test_keys_are_the_same_in_another_process() -> None:
    program = "from tests.test_graph import names_of_fixed_results as n; print(*n(), sep='\\n')"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONWARNINGS": "ignore"}
    output = subprocess.check_output(
        [sys.executable, "-c", program], text=True, env=environment, cwd=Path(__file__).parents[1]
    )
    assert output.split() == names_of_fixed_results()


# Laziness


def refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("something was computed while the graph was built")


def test_building_computes_nothing() -> None:
    x, t = random_pair((12, 6), (3, 2))
    array = np.full((12, 6), -0.5)
    with dask.config.set(scheduler=refuse):
        with pytest.raises(AssertionError, match="something was computed"):
            x.sum().compute()
        lazy = [
            *results(x, t),
            *results(array, array.tolist()),
            KLDivLoss(reduction="sum")(x, t),
        ]
        if not EXPRESSIONS:
            rows = x[:, 0] < -0.5
            lazy += results(x[rows], t[rows][:, :1])
        with pytest.warns(da.PerformanceWarning):
            lazy += results(x, t.rechunk((4, 6)))
        assert all(isinstance(result, da.Array) for result in lazy)


class Counting:
    """An array-like that counts how often each region is read."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.shape, self.ndim, self.dtype = values.shape, values.ndim, values.dtype
        self.reads: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __dask_tokenize__(self) -> Any:
        return normalize_token(self.values)

    def __getitem__(self, key: Any) -> Array:
        chunk = self.values[key]
        if chunk.size:  # Dask asks for an empty piece to learn the type
            with self._lock:
                self.reads[str(key)] += 1
        return chunk


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("chunks", [(12, 6), (3, 6), (2, 2), (1, 1), None])
def test_summary_reads_each_chunk_once(chunks: Any, scheduler: str) -> None:
    sources = [Counting(-np.random.default_rng(seed).random((12, 6))) for seed in range(2)]
    if chunks is None:
        summary = kl_div_summary(*sources)
        count = 1
    else:
        arrays = [da.from_array(source, chunks=chunks) for source in sources]
        summary = kl_div_summary(*arrays)
        count = math.prod(arrays[0].numblocks)
    assert not any(source.reads for source in sources)
    summary.compute(scheduler=scheduler)
    for source in sources:
        assert set(source.reads.values()) == {1}
        assert len(source.reads) == count


# What is declared is what comes


@pytest.mark.parametrize(
    ("dtype", "chunks"),
    slow_unless(
        [("float32", (3, 6))],
        [("float16", (12, 6)), ("float32", (3, 6)), ("float64", (5, 4))],
    ),
)
def test_declared_dtype_shape_and_chunks(dtype: str, chunks: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x, t = -rng.random((12, 6)).astype(dtype), rng.random(6).astype(dtype)
    lazy_x, lazy_t = da.from_array(x, chunks), da.from_array(t, chunks[1])
    terms = kl_div(lazy_x, lazy_t, reduction="none")
    assert terms.chunks == lazy_x.chunks
    assert_eq(terms, terms.compute(scheduler="synchronous"))
    for result in (*results(lazy_x, lazy_t), *kl_div_summary(lazy_x, lazy_t)):
        assert result.chunks == (lazy_x.chunks if result.ndim else ())
        assert_eq(result, result.compute(scheduler="synchronous"), equal_nan=True)
    assert kl_div(lazy_x, lazy_t, reduction="sum").dtype == dtype
    assert kl_div_summary(lazy_x, lazy_t).nan_count.dtype == np.int64


# The tree

grids = st.lists(st.integers(1, 10**5), max_size=5).map(tuple)


@given(grids, st.integers(2, 1000))
def test_every_axis_gets_a_share_and_the_product_is_as_asked(
    numblocks: tuple[int, ...], split_every: int
) -> None:
    shares = fan_in(split_every, numblocks)
    assert list(shares) == list(range(len(numblocks)))
    long = [axis for axis, blocks in enumerate(numblocks) if blocks > 1]
    for axis, share in shares.items():
        assert (share >= 2) == (axis in long)
        assert 1 <= share <= numblocks[axis]
    product = math.prod(shares.values())
    assert product <= max(split_every, 2 ** len(long))
    # The rounding of shares to whole numbers loses less than half, unless there is no more.
    assert 2 * product > min(split_every, math.prod(numblocks))

    left, height = numblocks, 0
    while math.prod(left) > 1:
        left = tuple(-(-blocks // shares[axis]) for axis, blocks in enumerate(left))
        height += 1
    assert height <= math.ceil(math.log2(max(numblocks, default=1)) + 1e-9)


@given(grids, st.dictionaries(st.integers(0, 4), st.integers(2, 100)))
def test_shares_given_for_each_axis_are_kept(
    numblocks: tuple[int, ...], split_every: dict[int, int]
) -> None:
    shares = fan_in(split_every, numblocks)
    assert shares == {axis: split_every.get(axis, 32) for axis in range(len(numblocks))}


@pytest.mark.parametrize(
    ("split_every", "shape", "most"),
    [(None, (1000, 1), 32), (16, (300, 1), 16), (16, (1, 300), 16), (16, (40, 2), 16),
     (np.int64(7), (100, 1), 7), ({0: 3, 1: 2}, (30, 30), 6), (2, (4, 4), 4)],
)  # fmt: skip
def test_a_merge_takes_as_many_partials_as_asked(
    split_every: Any, shape: tuple[int, int], most: int
) -> None:
    x, t = random_pair(shape, (1, 1))
    graph = dict(kl_div(x, t, reduction="sum", split_every=split_every).__dask_graph__())
    merges = [key for key in graph if str(key).startswith("('kl-div-merge")]
    assert max(len(get_dependencies(graph, key)) for key in merges) == most


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {0: s}, lambda s: {0: 4, 1: s}])
@pytest.mark.parametrize("chunks", [(1, 1), (4, 4)])
def test_split_every_is_checked(wrap: Any, chunks: tuple[int, int]) -> None:
    x, t = random_pair((4, 4), chunks)
    for split_every in (1, 0, -3):
        with pytest.raises(ValueError, match=f"^split_every must be at least 2, got {split_every}"):
            kl_div(x, t, reduction="sum", split_every=wrap(split_every))
    for split_every in (2.5, "8", True, [4]):
        with pytest.raises(TypeError, match=r"^split_every must be an integer .* dict .*, got "):
            kl_div_summary(x, t, split_every=wrap(split_every))


# Dask's other arrays


def test_the_configured_arrays_are_under_test() -> None:
    assert hasattr(da.zeros(1), "expr") == EXPRESSIONS


@pytest.mark.slow
@without_expressions
def test_with_array_expressions() -> None:
    """This file, and some of others, once more with Dask's array expressions."""
    selected = [
        "test_graph.py",
        "test_operands.py",
        "test_axis.py::test_every_axis[sum-float64-True]",
        "test_axis.py::test_large_arrays[wide-types0]",
        "test_axis.py::test_stages_are_named",
        "test_where.py::test_every_chunking[float32-False]",
        "test_where.py::test_summary[float32]",
        "test_where.py::test_stages_are_named",
        "test_bits.py::test_every_chunking[float32-False]",
        "test_bits.py::test_large_arrays[float64-True-wide]",
        "test_bits.py::test_large_arrays[float16-False-masked]",
        "test_bits.py::test_broadcast_views[float64-False]",
        "test_display.py::test_names_after_fusion",
    ]
    folder = Path(__file__).parent
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n0",
            "-m",
            "",
            *(str(folder / name) for name in selected),
        ],
        env={**os.environ, "DASK_ARRAY__QUERY_PLANNING": "True"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
