"""Divergences from logits: sums, shapes, masks and graphs; `test_softmax.py` has the accuracy.

A result is compared, bit for bit, with what one call of the kernel on whole arrays gives at each
position, summed as a fraction and rounded once.
"""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
from distributed import Client
from numpy.exceptions import AxisError

from kldiv_dask import KLDivSummary, kl_div_with_logits, kl_div_with_logits_summary
from kldiv_dask.kernels.softmax import block_divergences
from tests import reference
from tests.bits import FLOATS, assert_same_bits
from tests.cases import (
    REDUCTIONS,
    Array,
    Shape,
    all_chunkings,
    compositions,
    dtype_of,
    narrow,
    operand_chunks,
    random_chunking,
)
from tests.reference_logits import divergence
from tests.test_bits import LAYOUTS, Source
from tests.test_graph import Counting, refuse, stages
from tests.test_operands import filtered, without_expressions
from tests.test_where import lazy_mask, mask_shapes, masks

OCR = Path(__file__).parent / "data" / "ocr"
SORTS = ("usual", "near", "masked", "special")
TYPES = [
    ("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "float32"),
    ("float64", "float64"), ("float16", "bfloat16"), ("float64", "float32"),
]  # fmt: skip
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


def operands(sort: str, shapes: tuple[Shape, Shape], types: tuple[str, str]) -> tuple[Array, Array]:
    """Logits, with the classes last, of one of `SORTS`."""
    rng = np.random.default_rng(SORTS.index(sort))
    x, t = (3 * rng.standard_normal(shape) for shape in shapes)
    if sort == "near":
        t = np.resize(x, shapes[1]) + 0.01 * t
    if sort == "masked":
        excluded = np.arange(shapes[0][-1]) % 4 == 1
        x[..., excluded] = t[..., excluded] = -np.inf
    if sort == "special":
        for a in (x, t):
            odd = rng.random(a.shape) < 0.5 / a.shape[-1]
            a[odd] = rng.choice([np.nan, np.inf, -np.inf], odd.sum())
    first, second = (narrow(a, dtype_of(name)) for a, name in zip((x, t), types, strict=True))
    return first, second


def positions(x: Array, t: Array, temperature: float = 1.0, dtype: Any = None) -> Array:
    """The divergence at each position, in float64 whatever the computation was in."""
    shape = np.broadcast_shapes(x.shape, t.shape)
    wide = np.float64 in (x.dtype, t.dtype, dtype) or math.log2(temperature) % 1 != 0
    x, t = (np.ascontiguousarray(np.broadcast_to(a, shape)) for a in (x, t))
    compute = np.dtype(np.float64 if wide else np.float32)
    return block_divergences(x, t, None, compute, temperature).reshape(shape[:-1])


def result_type(x: Array, t: Array) -> np.dtype[Any]:
    return np.dtype(np.float64 if np.float64 in (x.dtype, t.dtype) else np.float32)


def wanted(values: Array, reduction: str, dtype: npt.DTypeLike, where: Any = None) -> Array:
    if where is not None:
        return reference.reduce_included(values, values, reduction, dtype, where=where)
    return reference.reduce(values, reduction, values.shape[0] if values.ndim else None, dtype)


def lazily(x: Array, t: Array, chunks: Any, classes: Any = -1) -> list[da.Array]:
    """Logits with the given chunks of the positions."""
    own = (operand_chunks(a.shape[:-1], chunks) for a in (x, t))
    return [da.from_array(a, (*c, classes)) for a, c in zip((x, t), own, strict=True)]


def check(
    values: Array, result: npt.DTypeLike, *pair: Any, where: Any = None,
    scheduler: Any = "synchronous", **options: Any,
) -> None:  # fmt: skip
    """All reductions and the summary, from the divergences at the positions."""
    lazy = [kl_div_with_logits(*pair, where=where, reduction=r, **options) for r in REDUCTIONS]
    summary = kl_div_with_logits_summary(*pair, where=where, **options)
    *computed, fields = dask.compute(*lazy, tuple(summary), scheduler=scheduler)
    where = where.compute() if isinstance(where, da.Array) else where
    results = {r: wanted(values, r, result, where) for r in REDUCTIONS}
    for promised, got, reduction in zip(lazy, computed, REDUCTIONS, strict=True):
        assert_same_bits(got, results[reduction], reduction, where, options)
        assert promised.dtype == result
        assert promised.shape == got.shape or np.isnan(promised.shape).any()
    fields = KLDivSummary(*fields)
    for reduction in ("sum", "mean", "batchmean"):
        assert_same_bits(getattr(fields, reduction), results[reduction], reduction, where, options)
    mask = np.broadcast_to(True if where is None else where, values.shape)
    total = reference.exact_sum(values[mask])
    rows = values.shape[0] if values.ndim else 1
    rows = rows if where is None else reference.included_rows(values, mask)
    assert fields[3:] == (total.count, rows, total.nan, total.posinf, 0)


# Values


@pytest.mark.parametrize("chunks", [(1, 32, 6625), (1, 5, 6625), (1, 32, 1000), (1, 9, 811)])
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_stored_logits(dtype: str | None, chunks: Shape) -> None:
    known = json.loads((OCR / "expected.json").read_text())["logits"]
    pair = [da.from_array(np.load(OCR / f"{m}_logits.npy"), chunks) for m in ("student", "teacher")]
    lazy = [kl_div_with_logits(*pair, reduction=r, dtype=dtype) for r in ("none", "mean")]
    each, mean = dask.compute(*lazy)
    assert each.dtype == mean.dtype == (dtype or "float32")
    close = {"rtol": TOLERANCE[each.dtype.name], "atol": 0}
    np.testing.assert_allclose(each, known["per_position"], **close)
    np.testing.assert_allclose(mean, np.mean(known["per_position"]), **close)
    assert list(np.unravel_index(each.argmax(), each.shape)) == known["worst_position"]


@pytest.mark.parametrize("temperature", [0.5, 3])
def test_stored_logits_at_a_temperature(temperature: float) -> None:
    x, t = (np.load(OCR / f"{model}_logits.npy")[:, 3:6] for model in ("student", "teacher"))
    known = [[float(divergence(*rows, temperature)) for rows in zip(x[0], t[0], strict=True)]]
    for (dtype, tolerance), chunks in itertools.product(TOLERANCE.items(), (-1, 1000)):
        pair = [da.from_array(a, (1, 2, chunks)) for a in (x, t)]
        options = {"temperature": temperature, "dtype": dtype}
        each = kl_div_with_logits(*pair, reduction="none", **options).compute()
        np.testing.assert_allclose(each, known, rtol=tolerance, atol=0)
        mean = kl_div_with_logits_summary(*pair, **options).compute().mean
        np.testing.assert_allclose(mean, np.mean(known), rtol=tolerance, atol=0)


def test_every_sort_of_class() -> None:
    """Ordinary, excluded, infinite and NaN ones, in every combination and every split."""
    sorts = list(itertools.product([0, -np.inf, np.inf, np.nan], repeat=3))
    pairs = np.array(list(itertools.product(sorts, repeat=2)))
    x, t = pairs[:, 0] + [1, 0.3, -0.2], pairs[:, 1] + [0.1, -1, 0.4]
    known = np.array([float(divergence(*rows, 1)) for rows in zip(x, t, strict=True)])
    assert np.isfinite(known).any()
    assert np.isposinf(known).any()
    for split in compositions(3):
        got = kl_div_with_logits(*lazily(x, t, (-1,), split), reduction="none").compute()
        np.testing.assert_allclose(got, known, rtol=1e-12, atol=1e-16, err_msg=str(split))


# Chunks


@pytest.mark.parametrize("types", TYPES)
def test_every_chunking(types: tuple[str, str]) -> None:
    sorts = itertools.cycle(SORTS)
    for shape in [(4,), (3, 2), (2, 1, 2)]:
        for chunks in all_chunkings(shape):
            x, t = operands(next(sorts), ((*shape, 7),) * 2, types)
            check(positions(x, t), result_type(x, t), *lazily(x, t, chunks))


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize(("types", "temperature"), [(TYPES[0], 4), (TYPES[2], 3), (TYPES[3], 0.7)])
def test_random_chunkings(types: tuple[str, str], temperature: float, sort: str) -> None:
    """Of classes that fill several pieces of the kernel, whole and split."""
    rng = np.random.default_rng(SORTS.index(sort))
    x, t = operands(sort, ((5, 4, 2500),) * 2, types)
    values, dtype = positions(x, t, temperature), result_type(x, t)
    close = {"rtol": TOLERANCE[dtype.name], "atol": 1e-15}
    split = tuple(np.diff([0, *sorted(rng.integers(0, 2501, 5)), 2500]).tolist())
    merged = []
    for scheduler in ("threads", "synchronous"):
        chunks, split_every = random_chunking(rng, (5, 4)), int(rng.integers(2, 9))
        options = {"temperature": temperature, "scheduler": scheduler, "split_every": split_every}
        check(values, dtype, *lazily(x, t, chunks), **options)
        pair = lazily(x, t, chunks, split)
        lazy = kl_div_with_logits(*pair, reduction="none", temperature=temperature, split_every=3)
        merged.append(lazy.compute(scheduler=scheduler))
        np.testing.assert_allclose(merged[-1], narrow(values, dtype), **close)
    # Of split classes too, the chunks of the positions do not matter.
    assert_same_bits(*merged)


@pytest.mark.parametrize("types", TYPES[2:4])
def test_every_split_of_the_classes(types: tuple[str, str]) -> None:
    pairs = [operands(sort, ((4, 6),) * 2, types) for sort in SORTS]
    x, t = (np.concatenate(column) for column in zip(*pairs, strict=True))
    values = narrow(positions(x, t), types[0])
    where = np.isfinite(values) & (np.arange(16) % 3 > 0)
    close = {"rtol": TOLERANCE[types[0]], "atol": 1e-15}
    for split in compositions(6):
        pair = lazily(x, t, (5,), split)
        lazy = [kl_div_with_logits(*pair, reduction=r, where=w, split_every=2)
                for r, w in (("none", None), ("none", where), ("mean", where))]  # fmt: skip
        got, included, mean = dask.compute(*lazy, scheduler="synchronous")
        np.testing.assert_allclose(got, values, err_msg=str(split), **close)
        assert_same_bits(included, np.where(where, got, np.zeros_like(got)))
        np.testing.assert_allclose(mean, values[where].mean(), **close)


def test_empty_chunks_of_classes() -> None:
    x, t = (a - 1e4 for a in operands("usual", ((4, 7),) * 2, TYPES[3]))
    for split in ((0, 7), (7, 0), (3, 0, 4), (0, 0, 7)):
        got = kl_div_with_logits(*lazily(x, t, (2,), split), reduction="none").compute()
        np.testing.assert_allclose(got, positions(x, t), rtol=1e-12, err_msg=str(split))


def test_a_piece_that_only_one_operand_excludes() -> None:
    """Where classes fill several pieces, and where chunks do."""
    x, t = operands("usual", ((2, 1030),) * 2, TYPES[2])
    excluded = np.arange(1030) >= 1024
    for chunks in (-1, 1024, 512, 1020):
        pair = lazily(np.where(excluded, -np.inf, x), t, (2,), chunks)
        assert (kl_div_with_logits(*pair, reduction="none").compute() == np.inf).all()
        got = kl_div_with_logits(*pair[::-1], reduction="none").compute()
        known = [float(divergence(*rows, 1)) for rows in zip(t, pair[0].compute(), strict=True)]
        np.testing.assert_allclose(got, known, rtol=1e-6)


def test_cluster(client: Client) -> None:
    rng = np.random.default_rng(2)
    x, t = operands("masked", ((61, 131),) * 2, TYPES[2])
    pair = lazily(x, t, random_chunking(rng, (61,)))
    check(positions(x, t), x.dtype, *pair, where=rng.random(61) < 0.5, scheduler=client)
    split = (a.rechunk({1: 50}) for a in pair)
    got = kl_div_with_logits(*split, reduction="none", temperature=3).compute(scheduler=client)
    np.testing.assert_allclose(got, positions(x, t, 3), rtol=1e-6)


@pytest.mark.parametrize("types", TYPES[:4])
def test_layouts(types: tuple[str, str]) -> None:
    x, t = operands("masked", ((261, 83),) * 2, types)
    values, dtype = positions(x, t), result_type(x, t)
    # A pickled bfloat16 of other byte order spoils the native one in NumPy when it is loaded.
    names = [name for name in LAYOUTS if types[0] != "bfloat16" or "swapped" not in name]
    few = ("C", "strided")
    for pair in (*itertools.product(names, few), *itertools.product(few, names)):
        sources = (Source(a, LAYOUTS[name]) for a, name in zip((x, t), pair, strict=True))
        lazy = [da.from_array(source, chunks=(220, 83)) for source in sources]
        for reduction in ("none", "sum"):
            got = kl_div_with_logits(*lazy, reduction=reduction).compute(scheduler="synchronous")
            assert_same_bits(got, wanted(values, reduction, dtype), reduction, pair)


# Shapes and types


@pytest.mark.parametrize("shapes", [
    ((7,), (7,)), ((7,), (3, 7)), ((1, 7), (3, 7)), ((3, 1, 7), (4, 7)), ((2, 1, 1, 7), (3, 1, 7)),
    ((1, 7), (1, 7)), ((2, 1), (2, 1)), ((0, 7), (0, 7)), ((0, 7), (7,)), ((3, 0, 7), (3, 0, 7)),
    ((0, 1, 7), (3, 7)), ((1, 0, 7), (3, 1, 7)),
])  # fmt: skip
def test_broadcasting(shapes: tuple[Shape, Shape]) -> None:
    for pair in (shapes, shapes[::-1]):
        x, t = operands("usual", pair, TYPES[3])
        values = positions(x, t)
        full = np.broadcast_shapes(x.shape, t.shape)
        rows = (np.broadcast_to(a, full).reshape(values.size, -1) for a in (x, t) if values.size)
        known = [float(divergence(*two, 1)) for two in zip(*rows, strict=True)]
        np.testing.assert_allclose(values.ravel(), known, rtol=1e-12, atol=0)
        for chunks in all_chunkings(values.shape):
            check(values, x.dtype, *lazily(x, t, chunks))
        check(values, x.dtype, x, t)


@pytest.mark.parametrize("shapes", [((5, 3, 7), (5, 3, 7)), ((1, 3, 7), (5, 1, 7)), ((4, 7),) * 2])
def test_class_axis(shapes: tuple[Shape, Shape]) -> None:
    x, t = operands("usual", shapes, TYPES[3])
    values = positions(x, t)
    for place, where in itertools.product(range(x.ndim), (None, values > np.median(values))):
        for axis in (place, place - x.ndim, np.int64(place)):
            pair = lazily(x, t, tuple((1, length - 1) for length in values.shape))
            # `moveaxis` is not in Dask's array expressions.
            order = list(range(x.ndim - 1))
            order.insert(place, x.ndim - 1)
            moved = [a.transpose(order) for a in pair]
            check(values, x.dtype, *moved, axis=axis, where=where)
            check(values, x.dtype, *(np.moveaxis(a, -1, place) for a in (x, t)), axis=axis)


DTYPES = [
    *((types, None, "float64" if "float64" in types else "float32") for types in TYPES),
    (("float32", "bfloat16"), None, "float32"),
    *((types, dtype, dtype) for types in TYPES[2:4] for dtype in FLOATS),
]


@pytest.mark.parametrize(("types", "dtype", "result"), DTYPES)
def test_types(types: tuple[str, str], dtype: str | None, result: str) -> None:
    x, t = operands("usual", ((4, 7), (7,)), types)
    values = positions(x, t, dtype=None if dtype is None else dtype_of(dtype))
    check(values, dtype_of(result), *lazily(x, t, (2,)), dtype=dtype)
    # Narrow logits are exact: they are those of the wide type.
    wide = positions(x.astype("f8"), t.astype("f8"))
    np.testing.assert_allclose(values, wide, rtol=1e-12 if "float64" in (*types, dtype) else 1e-6)


# Masks


@pytest.mark.parametrize(("types", "shapes"), [
    (TYPES[2], ((4, 3, 7), (4, 3, 7))), (TYPES[3], ((4, 1, 7), (3, 7))), (TYPES[3], ((7,), (7,))),
    (TYPES[3], ((5, 7), (7,))), (TYPES[3], ((0, 3, 7), (0, 3, 7))), (TYPES[3], ((3, 0, 7), (7,))),
])  # fmt: skip
def test_masks_of_every_shape(types: tuple[str, str], shapes: tuple[Shape, Shape]) -> None:
    rng = np.random.default_rng(3)
    sorts = itertools.cycle(SORTS)
    for own in dict.fromkeys(mask_shapes(np.broadcast_shapes(*shapes)[:-1])):
        for where in masks(rng, own):
            x, t = operands(next(sorts), shapes, types)
            values = positions(x, t)
            pair = lazily(x, t, random_chunking(rng, values.shape))
            check(values, x.dtype, *pair, where=lazy_mask(rng, where))


def test_masks_of_every_layout() -> None:
    x, t = operands("usual", ((6, 4, 7),) * 2, TYPES[2])
    values, where = positions(x, t), np.arange(24).reshape(6, 4) % 5 > 1
    for name in ("C", "Fortran", "strided", "reversed rows", "reversed columns", "read-only"):
        check(values, x.dtype, x, t, where=LAYOUTS[name](where))
    spread = np.repeat(where[:, 0], 2)
    check(values[:, 0], x.dtype, x[:, 0], t[:, 0], where=spread[::2])
    check(values[:, 0], x.dtype, x[:, 0], t[:, 0], where=[True])


def test_what_is_excluded_does_no_harm() -> None:
    rng = np.random.default_rng(4)
    x, t = operands("usual", ((6, 5, 7),) * 2, TYPES[2])
    where = rng.random((6, 5)) < 0.6
    where[2] = False
    pairs = [(x, t)]
    for spoilt in itertools.product((False, True), repeat=2):
        pair = [np.array(a) for a in (x, t)]
        for a in itertools.compress(pair, spoilt):
            a[~where] = rng.choice([np.nan, np.inf, -np.inf, 3e38], a[~where].shape)
        pairs.append((pair[0], pair[1]))
    for pair in pairs:
        check(positions(x, t), x.dtype, *lazily(*pair, ((4, 2), (3, 2))), where=where)
        split = lazily(*pair, ((4, 2), (3, 2)), 3)
        got = kl_div_with_logits(*split, where=where, reduction="none").compute()
        np.testing.assert_allclose(got, np.where(where, positions(x, t), 0), rtol=1e-6)
    summary = kl_div_with_logits_summary(*pairs[-1], where=where).compute()
    assert (summary.numel, summary.batch_size, summary.nan_count) == (where.sum(), 5, 0)


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
    with pytest.raises(ValueError, match="classes"):
        none.compute(scheduler="synchronous")
    # Of several chunks each may be empty; in all of them together there is no distribution.
    none = kl_div_with_logits(*(filtered(a.T, [], 2).T for a in (x, t)), reduction="none")
    assert np.isnan(none.compute(scheduler="synchronous")).all()


# Errors and warnings

X, T = operands("usual", ((6, 4),) * 2, TYPES[3])
LAZY_X, LAZY_T = da.from_array(X, chunks=(2, 4)), da.from_array(T, chunks=(3, 4))
OF_DTYPE = "accepted are float16, bfloat16, float32, float64"
UNEQUAL = "input of shape {} and target of shape {} have {} and {} classes along axis {}; "
UNEQUAL += "accepted are equal numbers from 1 on"
POSITIVE = "accepted is a positive finite number"

ERRORS: list[tuple[Any, ...]] = [
    (TypeError, f"target is of dtype complex64; {OF_DTYPE}", (X.astype(int), T.astype("c8")), {}),
    (TypeError, f"input is of dtype int64; {OF_DTYPE}", (X.astype(int), T), {}),
    (TypeError, f"dtype is of dtype int32; {OF_DTYPE}", (X, T), {"dtype": "i4"}),
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
    *((TypeError, f"axis is {axis!r}; accepted is an integer, the axis of the classes", (X, T),
       {"axis": axis}) for axis in ((1,), (0, 1), None, 1.0, "1")),
    *((ValueError, f"temperature is {temperature!r}; {POSITIVE}", (X, T),
       {"temperature": temperature}) for temperature in (0, -1.5, math.nan, math.inf)),
    *((TypeError, f"temperature is {temperature!r}; {POSITIVE}", (X, T),
       {"temperature": temperature}) for temperature in ("1", None, [1.0], 2j)),
    *((ValueError, f"reduction is {r!r}; accepted are 'none', 'mean', 'batchmean', 'sum'",
       (X, T), {"reduction": r}) for r in ("average", "elementwise_mean", None, ["sum"])),
    (TypeError, "where is of dtype int64; accepted is bool", (X, T), {"where": [1] * 6}),
    (ValueError, "where of shape (6, 4) does not broadcast to the shape (6,) of the result", (X, T),
     {"where": X > 0}),
    (ValueError, "split_every is 1; it must be at least 2", (LAZY_X, LAZY_X), {"split_every": 1}),
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
            yield from kl_div_with_logits_summary(*pair, **options)[3:]


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
    (optimised,) = dask.optimize(kl_div_with_logits(*pair, reduction=reduction))
    assert sum(n for name, n in stages(optimised).items() if name.startswith("kl-div-block")) == 32
    assert stages(optimised).total() == 32 + more


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
