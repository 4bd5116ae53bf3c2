"""The same data gives the same bits, and a sum has no rounding error but the last.

Every result is compared, bit for bit, with the exact sum of the terms as a fraction, rounded once.
The terms are the library's own, from ``reduction='none'``; whether those are right is the concern
of other files. Operands of 16 bits are cast up first, as their terms are computed in float32.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

from kldiv_dask import KLDivLoss, kl_div, kl_div_summary
from tests import reference
from tests.helpers.bits import (
    REDUCED,
    SOME_TYPES,
    SORTS,
    TYPES,
    assert_same_bits,
    by_type,
    expected,
    known,
    lazily,
    operands,
    terms_of,
)
from tests.helpers.cases import (
    Array,
    Chunks,
    Shape,
    all_chunkings,
    dtype_of,
    narrow,
    random_chunking,
    some_slow,
)

SMALL: list[tuple[Shape, Shape]] = [
    ((5,), (5,)),
    ((4, 3), (4, 3)),
    ((2, 1, 3), (2, 2, 1)),
    ((3, 1), (1, 4)),
    ((3,), (3, 3)),
    ((1, 3), (3, 3)),
    ((), (2, 3)),
    ((2, 3), ()),
]
LARGE: list[tuple[Shape, Shape]] = [
    ((20_011,), (20_011,)),
    ((61, 131), (61, 131)),
    ((3, 5, 401), (5, 1)),
    ((401,), (13, 401)),
]

pytestmark = pytest.mark.filterwarnings("ignore:reduction='mean' divides:UserWarning")


def cut(rng: np.random.Generator, shape: Shape) -> Chunks:
    """At most 5 chunks along each axis, of any length, zero included."""
    return tuple(
        tuple(np.diff([0, *sorted(rng.integers(0, n + 1, rng.integers(5))), n]).tolist())
        if n > 1
        else (n,)
        for n in shape
    )


def split_every(rng: np.random.Generator) -> Any:
    options = [None, 2, 3, int(rng.integers(2, 40)), {0: int(rng.integers(2, 5))}, {0: 2, 1: 3}]
    return options[rng.integers(len(options))]


@by_type
def test_the_data_are_as_bad_as_they_should_be(dtype: str, log_target: bool) -> None:
    terms, safe = (
        {
            sort: terms_of(
                *operands(sort, ((131, 257),) * 2, dtype, log_target),
                log_target=log_target,
                zero_safe=zero_safe,
            ).astype(float)
            for sort in SORTS
        }
        for zero_safe in (False, True)
    )
    totals = {sort: reference.exact_sum(terms[sort]) for sort in SORTS}
    for sort in ("usual", "wide", "canceling", "subnormal"):
        assert np.isfinite(terms[sort]).all()
    if dtype != "float16":  # a sum of those is exact in float64
        assert np.sum(terms["wide"]) != totals["wide"].exact
    assert totals["canceling"].exact == 0
    sizes = np.abs(terms["canceling"][terms["canceling"] != 0])
    decades = {"float16": 8, "bfloat16": 73, "float32": 73, "float64": 598}[dtype]
    assert math.log10(sizes.max()) - math.log10(sizes.min()) > decades
    assert np.abs(terms["subnormal"]).max() < reference.finfo(dtype_of(dtype)).smallest_normal
    assert totals["subnormal"].exact != 0
    assert totals["infinite"].posinf > 0
    assert totals["infinite"].nan == 0
    assert 0 < totals["masked"].nan < totals["masked"].count
    assert np.isfinite(safe["masked"]).all()
    assert min(totals["special"][1:4]) > 0


@by_type
def test_every_chunking(dtype: str, log_target: bool) -> None:
    """Each chunking of each small shape, with one sort of data and of sum after the other."""
    kinds = list(itertools.product(SORTS, (False, True), REDUCED))
    rota = itertools.islice(itertools.cycle(kinds), TYPES.index((dtype, log_target)), None)
    lazy, wanted = [], []
    for shapes in SMALL:
        for chunks in all_chunkings(np.broadcast_shapes(*shapes)):
            sort, zero_safe, reduction = next(rota)
            options = {"log_target": log_target, "zero_safe": zero_safe}
            x, t, terms = known(sort, shapes, dtype, log_target, zero_safe)
            lazy.append(kl_div(*lazily(x, t, chunks), reduction=reduction, **options))
            result = expected(terms, x, dtype)[reduction]
            wanted.append((result, sort, options, reduction, shapes, chunks))
    computed = dask.compute(*lazy, scheduler="synchronous")
    for got, (result, *context) in zip(computed, wanted, strict=True):
        assert_same_bits(got, result, *context)


@pytest.mark.parametrize("shapes", [((4,), (4,)), ((2, 3), (2, 3)), ((3, 3), (3,))])
def test_every_pair_of_chunkings(shapes: tuple[Shape, Shape]) -> None:
    """Operands that are not chunked alike give the same bits, and a warning."""
    x, t = operands("wide", shapes, "float64", False)
    terms = terms_of(x, t)
    result = expected(terms, x, "float64")["sum"]
    for chunks in itertools.product(*map(all_chunkings, shapes)):
        pair = [da.from_array(a, chunks=c) for a, c in zip((x, t), chunks, strict=True)]
        if chunks[0][-t.ndim :] == chunks[1]:
            lazy = [kl_div(*pair, reduction=reduction) for reduction in ("sum", "none")]
        else:
            with pytest.warns(da.PerformanceWarning, match="is rechunked"):
                lazy = [kl_div(*pair, reduction=reduction) for reduction in ("sum", "none")]
        total, elementwise = dask.compute(*lazy, scheduler="synchronous")
        assert_same_bits(total, result, chunks)
        assert_same_bits(elementwise, terms, chunks)


@pytest.mark.parametrize("sort", SORTS)
@by_type
def test_large_arrays(dtype: str, log_target: bool, sort: str) -> None:
    """Arrays of many tiles, cut anywhere and merged in any tree."""
    rng = np.random.default_rng([SORTS.index(sort), TYPES.index((dtype, log_target))])
    for index, shapes in enumerate(LARGE):
        options = {"log_target": log_target, "zero_safe": index in (1, 2)}
        scheduler = ("synchronous", "threads")[index % 2]
        x, t = operands(sort, shapes, dtype, log_target)
        terms = terms_of(x, t, **options)
        wanted = expected(terms, x, dtype)
        chunks, split = cut(rng, terms.shape), split_every(rng)
        pair = lazily(x, t, chunks)
        lazy = [kl_div(*pair, reduction=r, split_every=split, **options) for r in REDUCED]
        lazy.append(kl_div(*pair, reduction="none", **options))
        *results, elementwise = dask.compute(*lazy, scheduler=scheduler)
        for reduction, got in zip(REDUCED, results, strict=True):
            assert_same_bits(got, wanted[reduction], reduction, chunks, split)
        assert_same_bits(elementwise, narrow(terms, dtype_of(dtype)), chunks)


@pytest.mark.parametrize("types", some_slow(SOME_TYPES, TYPES))
@pytest.mark.parametrize("sort", some_slow("wide", *(sort for sort in SORTS if sort != "wide")))
def test_cluster(client: Client, sort: str, types: list[tuple[str, bool]]) -> None:
    """Two worker processes, which compile for themselves and pass partials by pickle."""
    rng = np.random.default_rng(SORTS.index(sort))
    lazy, wanted = [], []
    for dtype, log_target in types:
        options = {"log_target": log_target, "zero_safe": bool(rng.integers(2))}
        x, t = operands(sort, LARGE[1], dtype, log_target)
        results = expected(terms_of(x, t, **options), x, dtype)
        pair = lazily(x, t, cut(rng, x.shape))
        for reduction in REDUCED:
            loss = KLDivLoss(reduction=reduction, split_every=split_every(rng), **options)
            lazy.append(loss(*pair))
            wanted.append(results[reduction])
        lazy += [*kl_div_summary(*pair, **options)][:3]
        wanted += [results[reduction] for reduction in REDUCED]
    for got, result in zip(dask.compute(*lazy, scheduler=client), wanted, strict=True):
        assert_same_bits(got, result)


@pytest.mark.parametrize("types", some_slow(SOME_TYPES, TYPES))
def test_summary(types: list[tuple[str, bool]]) -> None:
    """The summary's fields are `kl_div`'s reductions and the counts of the terms."""
    rng = np.random.default_rng(5)
    for (dtype, log_target), shapes, sort in itertools.product(types, SMALL[3:6], SORTS):
        x, t = operands(sort, shapes, dtype, log_target)
        terms = terms_of(x, t, log_target=log_target)
        total = reference.exact_sum(terms)
        wanted = [
            *expected(terms, x, dtype).values(),
            *map(np.int64, (total.count, x.shape[0], total.nan, total.posinf, total.neginf)),
        ]
        chunks = random_chunking(rng, terms.shape)
        summary = kl_div_summary(*lazily(x, t, chunks), log_target=log_target)
        got = summary.compute(scheduler="synchronous")
        for name, value, result in zip(got._fields, got, wanted, strict=True):
            assert_same_bits(value, result, name, sort, shapes, chunks)


# Layouts: functions from an array to an equal one.


def unaligned(array: Array) -> Array:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    view: Array = raw.view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def strided(array: Array) -> Array:
    spread = np.full((*array.shape[:-1], 3 * array.shape[-1]), np.nan, array.dtype)
    spread[..., 1::3] = array
    return spread[..., 1::3]


def read_only(array: Array) -> Array:
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided": strided,
    "reversed rows": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "reversed columns": lambda array: np.ascontiguousarray(array[:, ::-1])[:, ::-1],
    "both reversed, Fortran": lambda array: np.asfortranarray(array[::-1, ::-1])[::-1, ::-1],
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder()),
    "byte-swapped, Fortran": lambda array: np.asfortranarray(
        array.astype(array.dtype.newbyteorder())
    ),
    "unaligned": unaligned,
    "read-only": read_only,
}


class Source:
    """A source of chunks in a layout, which Dask hands on as they are."""

    def __init__(self, values: Array, layout: Callable[[Array], Array]) -> None:
        self.values, self.layout = values, layout
        self.shape, self.ndim = values.shape, values.ndim
        self.dtype = layout(values[:2, :2]).dtype

    def __getitem__(self, key: Any) -> Array:
        chunk = self.values[key]
        return self.layout(chunk) if chunk.size else chunk.astype(self.dtype)


@by_type
def test_layouts(dtype: str, log_target: bool) -> None:
    """Every layout of one operand with every layout of the other, in chunks of many tiles."""
    data = {sort: operands(sort, ((257, 83),) * 2, dtype, log_target) for sort in SORTS}
    terms = {sort: terms_of(*data[sort], log_target=log_target) for sort in SORTS}
    results = {sort: expected(terms[sort], data[sort][0], dtype)["sum"] for sort in SORTS}
    # A pickled bfloat16 of other byte order spoils the native one in NumPy when it is loaded.
    names = [name for name in LAYOUTS if dtype != "bfloat16" or "swapped" not in name]
    pairs = itertools.product(names, repeat=2)
    for (x_layout, t_layout), sort in zip(pairs, itertools.cycle(SORTS), strict=False):
        x, t = (
            da.from_array(Source(values, LAYOUTS[layout]), chunks=(220, 83))
            for values, layout in zip(data[sort], (x_layout, t_layout), strict=True)
        )
        lazy = [kl_div(x, t, reduction=r, log_target=log_target) for r in ("sum", "none")]
        total, elementwise = dask.compute(*lazy, scheduler="synchronous")
        assert_same_bits(total, results[sort], sort, x_layout, t_layout)
        assert_same_bits(
            elementwise, narrow(terms[sort], dtype_of(dtype)), sort, x_layout, t_layout
        )


@by_type
def test_broadcast_views(dtype: str, log_target: bool) -> None:
    """Strides of zero are as good as the copies they stand for, and as declared broadcasting."""
    for shapes in (((1, 83), (61, 83)), ((61, 1), (61, 83)), ((61, 83), (83,)), ((), (61, 83))):
        for flip in (1, -1):
            x, t = operands("wide", shapes[::flip], dtype, log_target)
            views = [np.broadcast_to(a, (61, 83)) for a in (x, t)]
            terms = terms_of(*(view.copy() for view in views), log_target=log_target)
            wanted = expected(terms, views[0], dtype)["sum"]
            for pair in (views, (x, t)):
                sources = (a if a.ndim < 2 else Source(a, lambda chunk: chunk) for a in pair)
                lazy = kl_div(*sources, reduction="sum", log_target=log_target)
                assert_same_bits(lazy.compute(scheduler="synchronous"), wanted, shapes, flip)
