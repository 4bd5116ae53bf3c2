"""Divergences from logits: chunks of unknown sizes, errors and warnings, and the graphs."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from numpy.exceptions import AxisError

from kldiv_dask import kl_div_with_logits, kl_div_with_logits_summary
from tests.helpers.bits import assert_same_bits
from tests.helpers.cases import REDUCTIONS, Shape
from tests.test_graph import Counting, refuse, stages
from tests.test_logits import TYPES, check, operands, positions, wanted
from tests.test_operands import filtered, without_expressions

# Unknown chunk sizes


@without_expressions
@pytest.mark.parametrize("keep", [[0, 1, 2, 5], [3], []])
def test_unknown_chunk_sizes(keep: list[int]) -> None:
    x, t = operands("usual", ((6, 4),) * 2, TYPES[2])
    values, where = positions(x[keep], t[keep]), np.arange(6) % 2 == 0
    pair = filtered(x, keep), filtered(t, keep)
    check(values, x.dtype, *pair)
    check(values, x.dtype, *(a.T for a in pair), axis=0)
    check(positions(x[keep], t[0]), x.dtype, pair[0], t[0])
    got = kl_div_with_logits(*(a.rechunk({1: 3}) for a in pair), reduction="none").compute()
    np.testing.assert_allclose(got, values, rtol=1e-6)
    for reduction in REDUCTIONS:
        lazy = kl_div_with_logits(*pair, where=filtered(where, keep), reduction=reduction)
        assert_same_bits(lazy.compute(), wanted(values, reduction, x.dtype, where[keep]), reduction)


@without_expressions
def test_unknown_chunk_sizes_that_do_not_match() -> None:
    x, t = operands("usual", ((6, 4),) * 2, TYPES[2])
    for other, classes in itertools.product(([0], [0, 1, 2, 3, 4, 5]), (4, 3)):
        pair = (filtered(a, keep).rechunk({1: classes}) for a, keep in ((x, [0, 2, 4]), (t, other)))
        lazy = kl_div_with_logits(*pair, reduction="sum")
        with pytest.raises(ValueError, match=r"unequal shapes .*compute_chunk_sizes"):
            lazy.compute(scheduler="synchronous")


@without_expressions
@pytest.mark.parametrize("classes", [4, 3])
def test_unknown_chunk_sizes_of_a_mask_that_do_not_match(classes: int) -> None:
    x, t = operands("usual", ((6, 4),) * 2, TYPES[2])
    pair = [filtered(a, [0, 1, 2, 3]).rechunk({1: classes}) for a in (x, t)]
    for rows, reduction in itertools.product(([0, 2, 4], [0]), ("none", "sum")):
        where = filtered(np.ones(6, bool), rows)
        lazy = kl_div_with_logits(*pair, reduction=reduction, where=where)
        with pytest.raises(ValueError, match=r"where has a chunk of shape .*compute_chunk_sizes"):
            lazy.compute(scheduler="synchronous")


@without_expressions
def test_unknown_numbers_of_classes() -> None:
    x, t = operands("usual", ((5, 6),) * 2, TYPES[3])
    for chunks, keep in itertools.product((6, 2), ([0, 1, 3], [5])):
        pair = [filtered(a.T, keep, chunks).T for a in (x, t)]
        got = kl_div_with_logits(*pair, reduction="none").compute()
        np.testing.assert_allclose(got, positions(x[:, keep], t[:, keep]), rtol=1e-12)
    pair = [filtered(a.T, keep).T for a, keep in ((x, [0, 1]), (t, [0, 1, 2]))]
    with pytest.raises(ValueError, match=r"unequal shapes .*compute_chunk_sizes"):
        kl_div_with_logits(*pair).compute(scheduler="synchronous")
    none = kl_div_with_logits(*(filtered(a.T, [], 6).T for a in (x, t)), reduction="none")
    with pytest.raises(ValueError, match="must have at least 1 class"):
        none.compute(scheduler="synchronous")
    # Of several chunks each may be empty; in all of them together there is no distribution.
    none = kl_div_with_logits(*(filtered(a.T, [], 2).T for a in (x, t)), reduction="none")
    assert np.isnan(none.compute(scheduler="synchronous")).all()


# Errors and warnings

X, T = operands("usual", ((6, 4),) * 2, TYPES[3])
LAZY_X, LAZY_T = da.from_array(X, chunks=(2, 4)), da.from_array(T, chunks=(3, 4))
OF_RESULT = "must be one of float16, bfloat16, float32, float64, got"
OF_DTYPE = OF_RESULT.replace("float16", "float8_e4m3fn, float8_e5m2, float16", 1)
UNEQUAL = (
    "input and target must have as many classes along axis {4}, at least 1, got {2} and {3} in "
)
UNEQUAL += "shapes {0} and {1}"
POSITIVE = "temperature must be a positive finite number, got"

ERRORS: list[tuple[Any, ...]] = [
    (TypeError, f"the dtype of target {OF_DTYPE} complex64", (X.astype(int), T.astype("c8")), {}),
    (TypeError, f"the dtype of input {OF_DTYPE} int64", (X.astype(int), T), {}),
    (TypeError, f"dtype {OF_RESULT} int32", (X, T), {"dtype": "i4"}),
    (ValueError, UNEQUAL.format((6, 3), (6, 4), 3, 4, -1), (X[:, 1:], T), {}),
    (ValueError, UNEQUAL.format((6, 1), (6, 4), 1, 4, -1), (LAZY_X[:, :1], LAZY_T), {}),
    (ValueError, UNEQUAL.format((1, 4), (6, 4), 1, 6, -2), (X[:1], T), {"axis": 0}),
    (ValueError, UNEQUAL.format((6, 0), (6, 0), 0, 0, -1), (X[:, :0], T[:, :0]), {}),
    (ValueError, UNEQUAL.format((0, 4), (0, 4), 0, 0, -2), (X[:0], T[:0]), {"axis": 0}),
    (ValueError, "input of shape (5, 4) and target of shape (6, 4) do not broadcast together",
     (X[1:], T), {}),
    (ValueError, "input of shape () has no axis -1 of classes", (1.0, T), {}),
    (ValueError, "target of shape (4,) has no axis -2 of classes", (X, T[0]), {"axis": 0}),
    (AxisError, "axis: axis -1 is out of bounds for array of dimension 0", (1.0, 2.0), {}),
    (AxisError, "axis: axis 2 is out of bounds for array of dimension 2", (X, T), {"axis": 2}),
    *((TypeError, f"axis must be an integer, the axis of the classes, got {axis!r}", (X, T),
       {"axis": axis}) for axis in ((1,), (0, 1), None, 1.0, "1")),
    *((ValueError, f"{POSITIVE} {temperature!r}", (X, T),
       {"temperature": temperature}) for temperature in (0, -1.5, math.nan, math.inf)),
    *((TypeError, f"{POSITIVE} {temperature!r}", (X, T),
       {"temperature": temperature}) for temperature in ("1", None, [1.0], 2j)),
    *((ValueError, f"reduction must be one of 'none', 'mean', 'batchmean', 'sum', got {r!r}",
       (X, T), {"reduction": r}) for r in ("average", "elementwise_mean", None, ["sum"])),
    (ValueError, "where must be booleans, or integers of 0 and 1, got 3", (X, T),
     {"where": [3] * 6}),
    (ValueError, "where of shape (6, 4) does not broadcast to the shape (6,) of the result", (X, T),
     {"where": X > 0}),
    (ValueError, "split_every must be at least 2, got 1", (LAZY_X, LAZY_X), {"split_every": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("category", "text", "pair", "options"), ERRORS)
def test_errors(
    category: type[Exception], text: str, pair: tuple[Any, Any], options: dict[str, Any]
) -> None:
    functions = [kl_div_with_logits, kl_div_with_logits_summary]
    for function in functions[:1] if "reduction" in options else functions:
        with pytest.raises(category) as caught:
            function(*pair, **options)
        assert type(caught.value) is category
        assert str(caught.value) == text


def test_dimensions_are_not_kept() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'keepdims'"):
        kl_div_with_logits(X, T, keepdims=True)


def test_warnings_are_of_chunks_alone_and_at_the_callers_line() -> None:
    calls: list[tuple[Callable[[], Any], int]] = [
        (lambda: kl_div_with_logits(LAZY_X, LAZY_T), 1),
        (lambda: kl_div_with_logits(LAZY_X, LAZY_T, reduction="none", axis=0), 1),
        (lambda: kl_div_with_logits_summary(LAZY_X, LAZY_T), 1),
        (lambda: kl_div_with_logits(X, T), 0),
        (lambda: kl_div_with_logits(LAZY_X, T, reduction="mean"), 0),
    ]
    for call, count in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [(w.category, w.filename, w.lineno) for w in caught] == count * [
            (da.PerformanceWarning, __file__, call.__code__.co_firstlineno)
        ]


# Graphs


def built() -> Iterator[da.Array]:
    """Results that all differ."""
    where = np.arange(6) % 2 == 0
    every: list[dict[str, Any]] = [
        {}, {"temperature": 2.0}, {"temperature": 0.3}, {"axis": 0}, {"dtype": "float32"},
        {"where": where}, {"where": ~where}, {"where": da.zeros(6, chunks=4, dtype=bool)},
    ]  # fmt: skip
    for classes, options in itertools.product((4, 3), every):
        pair = [da.from_array(a, (2, classes)) for a in (X, T)]
        yield from (kl_div_with_logits(*pair, reduction=r, **options) for r in REDUCTIONS)
        if "dtype" not in options:
            yield from [*kl_div_with_logits_summary(*pair, **options)][3:]


def test_nothing_is_computed_and_keys_are_the_same_again() -> None:
    with dask.config.set(scheduler=refuse):
        names = [lazy.name for lazy in built()]
        assert names == [lazy.name for lazy in built()]
    assert len(set(names)) == len(names)
    assert all(name.startswith("kl-div-") for name in names)


@pytest.mark.parametrize("options", [{}, {"where": da.ones(64, chunks=2, dtype=bool)}])
@pytest.mark.parametrize("classes", [6, 2])
def test_stages_are_named(classes: int, options: dict[str, Any]) -> None:
    pair = [da.from_array(-np.random.default_rng(s).random((64, 6)), (2, classes)) for s in (0, 1)]
    for reduction in REDUCTIONS:
        names = stages(kl_div_with_logits(*pair, reduction=reduction, **options))
        for operand in (*pair, *options.values()):
            names -= stages(operand)
        assert names["kl-div-block"] >= 32
        assert all(name.startswith("kl-div-") for name in names)


@without_expressions
@pytest.mark.parametrize(("reduction", "more"), [("mean", 2), ("batchmean", 2), ("none", 32)])
def test_one_task_for_each_pair_of_chunks(reduction: str, more: int) -> None:
    """And two for the tree and the end, or for 'none' another name of each result."""
    sources = (Counting(np.full((64, 6), value)) for value in (0.0, 1.0))
    pair = (da.from_array(source, (2, 6), inline_array=True) for source in sources)
    (optimized,) = dask.optimize(kl_div_with_logits(*pair, reduction=reduction))
    assert sum(n for name, n in stages(optimized).items() if name.startswith("kl-div-block")) == 32
    assert stages(optimized).total() == 32 + more


@pytest.mark.parametrize("chunks", [(12, 6), (3, 6), (3, 2), (1, 1)])
def test_the_summary_reads_each_chunk_once(chunks: Shape) -> None:
    sources = [Counting(-np.random.default_rng(seed).random((12, 6))) for seed in range(2)]
    arrays = [da.from_array(source, chunks=chunks) for source in sources]
    summary = kl_div_with_logits_summary(*arrays, where=np.arange(12) % 3 > 0)
    assert not any(source.reads for source in sources)
    summary.compute(scheduler="threads")
    for source in sources:
        assert set(source.reads.values()) == {1}
        assert len(source.reads) == math.prod(arrays[0].numblocks)
