"""Sums and means along some axes: NumPy's meaning, and the same bits however they are computed."""

import itertools
import tracemalloc
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client
from numpy.exceptions import AxisError

from kldiv_dask import kl_div, partial_sum
from kldiv_dask.graph import blocks, tree
from kldiv_dask.kernels.pointwise import PointwiseSpec
from kldiv_dask.kernels.pointwise_rows import RowSums
from kldiv_dask.options import Reduction
from tests import reference
from tests.helpers.bits import (
    SOME_TYPES,
    SORTS,
    TYPES,
    assert_same_bits,
    by_dtype,
    by_type,
    known,
    lazily,
    operands,
    terms_of,
)
from tests.helpers.cases import Array, Shape, all_chunkings, dtype_of, slow_unless, some_slow
from tests.test_bits import LAYOUTS, Source, cut
from tests.test_graph import random_pair, refuse, stages, stored_pair
from tests.test_operands import filtered, without_expressions

SMALL: list[tuple[Shape, Shape]] = [
    ((5,), (5,)),
    ((4, 3), (4, 3)),
    ((2, 1, 3), (2, 2, 1)),
    ((3,), (3, 3)),
    ((2, 3), ()),
]
LENGTHS = [1, 2, 3, 11, 12, 13, 255, 256, 257, 511, 512, 513, 1300]
SOME_SORTS = ("wide", "subnormal", "infinite")
KINDS = list(itertools.product(("sum", "mean"), (False, True)))  # (reduction, keepdims)

pytestmark = pytest.mark.filterwarnings("ignore:reduction='mean' divides:UserWarning")


def every_axis(ndim: int) -> list[Any]:
    """None, every tuple of axes, the empty one too, and each as an int, from either end."""
    counts = range(ndim + 1)
    tuples = itertools.chain(*(itertools.combinations(range(ndim), count) for count in counts))
    return [None, *range(-ndim, ndim), *tuples]


def wanted(terms: Array, dtype: str, reduction: str, axis: Any, keepdims: bool) -> Array:
    mask = np.ones(terms.shape, bool)
    return reference.reduce_along(terms, mask, reduction, axis, keepdims, dtype_of(dtype))


# Bits


@by_type
def test_every_chunking(dtype: str, log_target: bool) -> None:
    """Each chunking of each small shape, with one axis, sort of data and of sum after the other."""
    lazy, results = [], []
    for shapes in SMALL:
        shape = np.broadcast_shapes(*shapes)
        kinds = itertools.product(SORTS, (False, True), every_axis(len(shape)), KINDS)
        rota = itertools.cycle(
            np.random.default_rng(TYPES.index((dtype, log_target))).permutation(
                np.array([*kinds], object)
            )
        )
        for chunks in all_chunkings(shape):
            sort, zero_safe, axis, (reduction, keepdims) = next(rota)
            options = {"log_target": log_target, "zero_safe": zero_safe}
            x, t, terms = known(sort, shapes, dtype, log_target, zero_safe)
            along = {"reduction": reduction, "axis": axis, "keepdims": keepdims}
            lazy.append(kl_div(*lazily(x, t, chunks), **along, **options))
            result = wanted(terms, dtype, **along)
            results.append((result, sort, options, along, shapes, chunks))
    computed = dask.compute(*lazy, scheduler="synchronous")
    for promised, got, (result, *context) in zip(lazy, computed, results, strict=True):
        assert_same_bits(got, result, *context)
        assert (promised.shape, promised.dtype) == (got.shape, got.dtype), context


@by_type
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_every_axis(dtype: str, log_target: bool, reduction: str) -> None:
    shapes = (3, 1, 4), (2, 1)
    x, t = operands("special" if log_target else "wide", shapes, dtype, log_target)
    terms = terms_of(x, t, log_target=log_target)
    for chunks in ((3, 2, 4), (2, 1, 3)):
        pair = lazily(x, t, da.core.normalize_chunks(chunks, terms.shape))
        for axis, keepdims in itertools.product(every_axis(3), (False, True)):
            along = {"reduction": reduction, "axis": axis, "keepdims": keepdims}
            got = kl_div(*pair, log_target=log_target, **along)
            result = wanted(terms, dtype, **along)
            assert_same_bits(got.compute(scheduler="synchronous"), result, along)


@by_dtype
@pytest.mark.parametrize(
    ("sort", "length"),
    slow_unless(
        zip(itertools.cycle(SOME_SORTS), LENGTHS, strict=False),
        itertools.product(SOME_SORTS, LENGTHS),
    ),
)
def test_rows_of_every_length(sort: str, length: int, dtype: str) -> None:
    """Rows that begin and end anywhere in a tile, and many states side by side."""
    rng = np.random.default_rng(length)
    shape = (1100 if length < 20 else 23, length)
    log_target = length % 2 == 1
    x, t = operands(sort, (shape, shape), dtype, log_target)
    terms = terms_of(x, t, log_target=log_target)
    for layout in ("C", "Fortran"):
        pair = [da.from_array(Source(a, LAYOUTS[layout]), chunks=shape) for a in (x, t)]
        got = kl_div(*pair, reduction="sum", axis=1, log_target=log_target)
        some = rng.integers(0, shape[0], 23)
        result = wanted(terms[some], dtype, "sum", 1, False)
        assert_same_bits(got.compute(scheduler="synchronous")[some], result, layout)


@pytest.mark.parametrize("types", some_slow(SOME_TYPES, TYPES))
@pytest.mark.parametrize("sort", SORTS)
def test_large_arrays(sort: str, types: list[tuple[str, bool]]) -> None:
    """Cut anywhere and merged in any tree: whatever is cut, the bits are those of one chunk."""
    rng = np.random.default_rng(SORTS.index(sort))
    lazy, results = [], []
    for index, (dtype, log_target) in enumerate(types):
        shapes = [((37, 700), (37, 700)), ((5, 60, 41), (60, 1)), ((700, 37), (37,))][index % 3]
        options = {"log_target": log_target, "zero_safe": index % 2 == 0}
        x, t = operands(sort, shapes, dtype, log_target)
        terms = terms_of(x, t, **options)
        axis, reduction = [0, 1, (-1,)][(index + SORTS.index(sort)) % 3], ("sum", "mean")[index % 2]
        split: Any = [None, 2, {0: 3, 1: 2}][index % 3]
        pair = lazily(x, t, cut(rng, terms.shape))
        lazy.append(kl_div(*pair, reduction=reduction, axis=axis, split_every=split, **options))
        results.append(wanted(terms, dtype, reduction, axis, False))
    for got, result in zip(dask.compute(*lazy, scheduler="threads"), results, strict=True):
        assert_same_bits(got, result)


@by_dtype
def test_layouts(dtype: str) -> None:
    """Every layout of one operand with every layout of the other, along either axis."""
    shape = (67, 300)
    x, t = operands("wide", (shape, shape), dtype, False)
    terms = terms_of(x, t)
    results = [wanted(terms, dtype, "sum", axis, False) for axis in (0, 1)]
    names = [name for name in LAYOUTS if dtype != "bfloat16" or "swapped" not in name]
    for first, second in itertools.product(names, repeat=2):
        pair = [
            da.from_array(Source(a, LAYOUTS[layout]), chunks=shape)
            for a, layout in ((x, first), (t, second))
        ]
        lazy = [kl_div(*pair, reduction="sum", axis=axis) for axis in (0, 1)]
        for got, result in zip(dask.compute(*lazy, scheduler="sync"), results, strict=True):
            assert_same_bits(got, result, first, second)


def test_cluster(client: Client) -> None:
    rng = np.random.default_rng(0)
    lazy, results = [], []
    for (dtype, log_target), axis in zip(TYPES[3:6], (0, 1, -1), strict=True):
        x, t = operands("wide", ((61, 131),) * 2, dtype, log_target)
        terms = terms_of(x, t, log_target=log_target)
        pair = lazily(x, t, cut(rng, (61, 131)))
        lazy.append(kl_div(*pair, reduction="mean", axis=axis, log_target=log_target))
        results.append(wanted(terms, dtype, "mean", axis, False))
    for got, result in zip(dask.compute(*lazy, scheduler=client), results, strict=True):
        assert_same_bits(got, result)


@pytest.mark.parametrize(("shape", "axis"), [
    ((0,), 0), ((0, 3), 0), ((0, 3), 1), ((3, 0), 1), ((2, 0, 3), (0, 2)), ((2, 0, 3), 1),
    ((0,), ()), ((), ()), ((), None),
])  # fmt: skip
@pytest.mark.parametrize("keepdims", [False, True])
def test_nothing(shape: Shape, axis: Any, keepdims: bool) -> None:
    """The sum of nothing is 0, and its mean is NaN."""
    x = da.zeros(shape, chunks=2)
    sums, means = (
        kl_div(x, x, reduction=reduction, axis=axis, keepdims=keepdims, log_target=True)
        for reduction in ("sum", "mean")
    )
    zeros = np.zeros(shape).sum(axis=axis, keepdims=keepdims)
    assert_same_bits(sums.compute(), zeros)
    nothing = np.ones(shape).sum(axis=axis, keepdims=keepdims) == 0
    assert_same_bits(means.compute(), np.where(nothing, np.nan, zeros))


def test_means_divide_by_what_they_are_means_of() -> None:
    """And round once, also where the divisor needs more than 31 bits."""
    few, numel = 3, 2**31 + 8
    parts = partial_sum.zero((few,))
    parts[:, 40], parts[:, partial_sum.NUMEL] = [1, 5, 2**31 + 8], numel
    got = partial_sum.quotients(parts, parts[:, partial_sum.NUMEL], np.dtype("f8"))
    unit = 2.0 ** (32 * 40 - 1074)
    assert got.tolist() == [unit / numel, 5 * unit / numel, unit]


# What is asked for


@pytest.mark.parametrize("axis", [2, -3, (0, 2), (0, -3), (0, 0), (1, -1), (0, 1, 0)])
def test_errors_are_those_of_numpy(axis: Any) -> None:
    x = np.zeros((2, 3))
    with pytest.raises((AxisError, ValueError)) as numpys:
        x.sum(axis=axis)
    with pytest.raises((AxisError, ValueError)) as ours:
        kl_div(x, x, reduction="sum", axis=axis)
    assert ours.type is numpys.type
    assert "axis" in str(ours.value)


def test_other_errors() -> None:
    x = np.zeros((2, 3))
    for axis in (1.5, "0", [0], (0, 0.5)):
        with pytest.raises(
            TypeError, match=r"^axis must be an integer, a tuple of integers or None, got "
        ):
            kl_div(x, x, reduction="sum", axis=axis)
    for reduction in ("none", "batchmean"):
        for axis in (0, (), (0, 1), 7):
            text = rf"^axis must be None with reduction='{reduction}', got .*; use 'sum' or"
            with pytest.raises(ValueError, match=text):
                kl_div(x, x, reduction=reduction, axis=axis)
    with pytest.raises(ValueError, match=r"^keepdims is True with reduction='none'"):
        kl_div(x, x, reduction="none", keepdims=True)
    with pytest.raises(ValueError, match=r"^split_every must be at least 2, got 1"):
        kl_div(x, x, reduction="sum", axis=1, split_every=1)
    with (
        pytest.warns(UserWarning, match="use reduction='none' instead"),
        pytest.raises(ValueError, match=r"^axis must be None with reduction='none'"),
    ):
        kl_div(x, x, reduce=False, axis=0)
    with pytest.warns(UserWarning, match="use reduction='sum' instead"):
        assert kl_div(x, x, size_average=False, axis=0).shape == (3,)


def test_keepdims_of_everything() -> None:
    x = np.full((2, 3), -0.5)
    for reduction in ("sum", "mean", "batchmean"):
        kept = kl_div(x, -x, reduction=reduction, keepdims=True)
        assert kept.shape == (1, 1)
        assert_same_bits(kept.compute(), kl_div(x, -x, reduction=reduction).compute()[None, None])


# Graphs


def results(x: Any, t: Any) -> list[da.Array]:
    along = [((), False), *itertools.product((0, 1, (0, 1)), (False, True))]
    kinds = itertools.product(("sum", "mean"), along)
    return [kl_div(x, t, reduction=r, axis=axis, keepdims=keep) for r, (axis, keep) in kinds]


def test_keys_are_deterministic_and_distinct_and_nothing_is_computed() -> None:
    x, t = random_pair((12, 6), (3, 2))
    with dask.config.set(scheduler=refuse):
        names = [lazy.name for lazy in results(x, t)]
        assert names == [lazy.name for lazy in results(x, t)]
    assert len(set(names)) == len(names)


@without_expressions
@pytest.mark.parametrize("keepdims", [False, True])
def test_one_task_for_each_pair_of_stored_chunks(tmp_path: Any, keepdims: bool) -> None:
    """Reading included. Axes of one chunk are finished there."""
    paths = stored_pair(tmp_path, (64, 6), (2, 6))
    pair = [da.from_zarr(path) for path in paths]
    (whole,) = dask.optimize(kl_div(*pair, reduction="sum", axis=1, keepdims=keepdims))
    tasks = stages(whole)
    aliases = 0 if keepdims else 32
    assert tasks.total() == 32 + aliases + 2  # from_zarr adds a key for each array
    (tree_of_rows,) = dask.optimize(kl_div(*pair, reduction="sum", axis=0, keepdims=keepdims))
    tasks = stages(tree_of_rows)
    assert tasks["kl-div-block"] == 32
    assert tasks.total() <= 32 + 5


def test_stages_are_named() -> None:
    x, t = random_pair((100, 6), (1, 3))
    names = stages(kl_div(x, t, reduction="sum", axis=0)) - stages(x) - stages(t)
    assert {name for name in names if not name.startswith("kl-div-")} == set()
    names = stages(kl_div(x.rechunk((1, 6)), t.rechunk((1, 6)), reduction="sum", axis=1))
    assert names["kl-div-block"] == 100


@pytest.mark.parametrize(("outputs", "merged"), [(100, 32), (10_000, 11), (200_000, 2)])
def test_merges_of_many_outputs_stay_small(outputs: int, merged: int) -> None:
    parts = da.zeros((64, outputs, partial_sum.SIZE), chunks=(1, -1, -1), dtype=np.int64)
    graph = tree.tree_reduce(parts, None, (0,)).__dask_graph__()
    firsts = -(-64 // merged)
    named = [key for key in graph if str(key).startswith("('kl-div-merge-partial")]
    assert sum(1 for key in named) >= firsts > len(named) / 2
    block = outputs * partial_sum.SIZE * 8
    assert merged == 2 or merged * block <= 2**26 < (merged + 1) * block or merged == 32


# Unknown chunk sizes


@without_expressions
def test_unknown_chunk_sizes() -> None:
    keep = [0, 1, 2, 5]
    x, t = operands("usual", ((6, 4),) * 2, "float32", False)
    terms = terms_of(x[keep], t[keep])
    pair = filtered(x, keep), filtered(t, keep)
    for axis, keepdims in itertools.product((0, 1, (0, 1)), (False, True)):
        got = kl_div(*pair, reduction="mean", axis=axis, keepdims=keepdims)
        result = wanted(terms, "float32", "mean", axis, keepdims)
        assert_same_bits(got.compute(scheduler="synchronous"), result, axis)
    unequal = kl_div(filtered(x, [0, 2]), filtered(t, [0, 1, 2]), reduction="sum", axis=1)
    with pytest.raises(ValueError, match="unequal shapes"):
        unequal.compute(scheduler="synchronous")


# Memory

LARGE = [(2**20, 2), (1024, 2048), (3, 2**20)]
SOME_LAYOUTS = ("C", "Fortran", "strided")


@pytest.mark.parametrize("dtype", some_slow("float64", "float16"))
@pytest.mark.parametrize(
    ("shape", "layout"),
    slow_unless(
        zip(LARGE, SOME_LAYOUTS, strict=True),
        itertools.product(LARGE, SOME_LAYOUTS),
    ),
)
def test_a_block_takes_less_than_a_mebibyte_beside_its_result(
    shape: Shape, layout: str, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    x = LAYOUTS[layout](-rng.random(shape).astype(dtype))
    t = rng.random(shape).astype(dtype)
    where = rng.random(shape) < 0.5
    spec = PointwiseSpec(np.dtype(dtype), False, False)
    options: dict[str, Any] = {"matching": (-2, -1), "masked": (-2, -1), "spec": spec}
    options |= {"axes": (1,), "reduction": Reduction("mean", False)}
    blocks._sums(x[:1], t[:1], where[:1], **options)  # compiles
    for _ in range(3):  # the threads of a cluster for other tests allocate too, now and then
        tracemalloc.start()
        try:
            result = blocks._sums(x, t, where, **options)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if peak - result.nbytes < 2**20:
            break
    assert peak - result.nbytes < 2**20


def test_pieces_are_few_outputs() -> None:
    x = np.full((5000, 3), -0.5)
    sums = RowSums(x, -x, None, (1,), PointwiseSpec(x.dtype, False, False))
    pieces = [sums.included(piece).size for piece in sums.runs]
    assert sum(pieces) == 5000
    assert max(pieces) <= 512
