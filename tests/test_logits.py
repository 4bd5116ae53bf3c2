"""Divergences from logits: values, chunks, shapes and types; `test_softmax.py` has the accuracy.

A result is compared, bit for bit, with what one call of the kernel on whole arrays gives at each
position, summed as a fraction and rounded once.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
from distributed import Client

from kldiv_dask import KLDivSummary, kl_div_with_logits, kl_div_with_logits_summary
from kldiv_dask.kernels.softmax_kl import block_divergences
from tests import reference
from tests.helpers.bits import FLOATS, assert_same_bits
from tests.helpers.cases import (
    REDUCTIONS,
    Array,
    Shape,
    all_chunkings,
    compositions,
    dtype_of,
    narrow,
    operand_chunks,
    random_chunking,
    slow_unless,
    some_slow,
)
from tests.reference_logits import divergence
from tests.test_bits import LAYOUTS, Source

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
    rows = rows if where is None else reference.included_batch_rows(values, mask)
    assert fields[3:] == (total.count, rows, total.nan, total.posinf, 0)


# Values


@pytest.mark.parametrize("chunks", [(1, 32, 6625), (1, 5, 6625), (1, 32, 1000), (1, 9, 811)])
@pytest.mark.parametrize("dtype", some_slow(None, "float64"))
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


@pytest.mark.slow
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


@pytest.mark.parametrize("types", some_slow(*TYPES[2:], *TYPES[:2]))
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


@pytest.mark.parametrize("types", some_slow(TYPES[2], TYPES[3], *TYPES[:2]))
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
    ((7,), (7,)), ((7,), (3, 7)), ((1, 7), (3, 7)), ((3, 4, 7), (4, 7)), ((2, 3, 1, 7), (3, 1, 7)),
    ((1, 7), (1, 7)), ((2, 1), (2, 1)), ((0, 7), (0, 7)), ((0, 7), (7,)), ((3, 0, 7), (3, 0, 7)),
    ((0, 3, 7), (3, 7)), ((1, 0, 7), (3, 0, 7)),
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


@pytest.mark.parametrize("shapes", [((5, 3, 7), (5, 3, 7)), ((1, 3, 7), (5, 3, 7)), ((4, 7),) * 2])
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


# (types of the operands, dtype, type of the result)
DTYPES = [
    *((types, None, "float64" if "float64" in types else "float32") for types in TYPES),
    (("float32", "bfloat16"), None, "float32"),
    *((types, dtype, dtype) for types in TYPES[2:4] for dtype in FLOATS),
]
SOME_DTYPES = [*DTYPES[:4:2], (TYPES[2], "float64", "float64"), (TYPES[3], "float16", "float16")]


@pytest.mark.parametrize(("types", "dtype", "result"), slow_unless(SOME_DTYPES, DTYPES))
def test_types(types: tuple[str, str], dtype: str | None, result: str) -> None:
    x, t = operands("usual", ((4, 7), (7,)), types)
    values = positions(x, t, dtype=None if dtype is None else dtype_of(dtype))
    check(values, dtype_of(result), *lazily(x, t, (2,)), dtype=dtype)
    # Narrow logits are exact: they are those of the wide type.
    wide = positions(x.astype("f8"), t.astype("f8"))
    np.testing.assert_allclose(values, wide, rtol=1e-12 if "float64" in (*types, dtype) else 1e-6)
