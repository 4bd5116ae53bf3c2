"""`where`: what it excludes counts nowhere, and everything else keeps its bits."""

import itertools
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

from kldiv_dask import kl_div, kl_div_summary
from tests import reference
from tests.helpers.bits import (
    FLOATS,
    SOME_TYPES,
    SORTS,
    assert_same_bits,
    by_dtype,
    known,
    lazily,
    operands,
    terms_of,
)
from tests.helpers.cases import (
    REDUCTIONS,
    Array,
    Shape,
    all_chunkings,
    dtype_of,
    random_chunking,
    slow_unless,
)
from tests.test_bits import LAYOUTS, Source, cut
from tests.test_graph import Counting, random_pair, refuse, stages
from tests.test_operands import EXPRESSIONS, OPERANDS, filtered, without_expressions

# (type of both operands, log_target)
TYPES = [("float16", True), ("bfloat16", False), ("float32", False), ("float64", True)]
by_type = pytest.mark.parametrize(("dtype", "log_target"), slow_unless(SOME_TYPES, TYPES))
SHAPES: list[tuple[Shape, Shape]] = [
    ((), ()),
    ((5,), (5,)),
    ((4, 3), (4, 3)),
    ((4, 3), (1, 3)),
    ((1, 3), (4, 3)),
    ((3,), (4, 3)),
    ((2, 1, 3), (2, 2, 1)),
    ((2, 3), (2, 2, 3)),
    ((0, 3), (0, 3)),
    ((3, 0), (3, 0)),
    ((1, 0), (3, 1)),
]

pytestmark = pytest.mark.filterwarnings("ignore:reduction='mean' divides:UserWarning")


def mask_shapes(shape: Shape) -> list[Shape]:
    """Every shape that broadcasts to one without enlarging it."""
    every = itertools.product(*((length, 1) if length != 1 else (1,) for length in shape))
    return [own[missing:] for own in every for missing in range(len(own) + 1)
            if own[:missing] == (1,) * missing]  # fmt: skip


def masks(rng: np.random.Generator, shape: Shape) -> list[Array]:
    """All of it, nothing, and two thirds and a tenth of it."""
    drawn = [rng.random(shape) < share for share in (0.67, 0.1)]
    return [np.ones(shape, bool), np.zeros(shape, bool), *map(np.asarray, drawn)]


def axes_of(reduction: str, ndim: int) -> list[Any]:
    return [None, *range(ndim), ()] if reduction in ("sum", "mean") else [None]


def wanted(terms: Array, x: Array, dtype: str, reduction: str, **options: Any) -> Array:
    return reference.reduce_included(terms, x, reduction, dtype_of(dtype), **options)


def lazy_mask(rng: np.random.Generator, where: Array) -> Any:
    """A mask as it is, or as a Dask array with chunks of its own."""
    return where if rng.random() < 0.5 else da.from_array(where, random_chunking(rng, where.shape))


# Values


@pytest.mark.parametrize(
    ("shapes", "reduction"),
    slow_unless(
        zip(SHAPES, itertools.cycle(REDUCTIONS), strict=False),
        itertools.product(SHAPES, REDUCTIONS),
    ),
)
def test_masks_of_every_shape(shapes: tuple[Shape, Shape], reduction: str) -> None:
    """Sums and means, which differ in the divisor alone, have each half of what has an axis."""
    rng = np.random.default_rng(SHAPES.index(shapes))
    shape = np.broadcast_shapes(*shapes)
    lazy, results = [], []
    rota = itertools.cycle(itertools.product(TYPES, SORTS, (False, True)))
    axes = axes_of(reduction, len(shape))
    for i, own in enumerate(dict.fromkeys(mask_shapes(shape))):
        every = itertools.product(enumerate(masks(rng, own)), enumerate(axes))
        for (j, where), (k, axis) in every:
            if len(axes) > 1 and (i + j + k) % 2 != (reduction == "sum"):
                continue
            (dtype, log_target), sort, zero_safe = next(rota)
            options = {"log_target": log_target, "zero_safe": zero_safe}
            x, t, terms = known(sort, shapes, dtype, log_target, zero_safe)
            pair = lazily(x, t, random_chunking(rng, shape))
            along: dict[str, Any] = {"reduction": reduction, "axis": axis}
            mask = lazy_mask(rng, where)
            lazy.append(kl_div(*pair, where=mask, **along, **options))
            result = wanted(terms, x, dtype, where=where, **along)
            results.append((result, where, along, options, sort))
    computed = dask.compute(*lazy, scheduler="synchronous")
    for promised, got, (result, *context) in zip(lazy, computed, results, strict=True):
        assert_same_bits(got, result, *context)
        assert promised.shape == got.shape, context


@by_type
def test_every_chunking(dtype: str, log_target: bool) -> None:
    """With the other arguments taking turns."""
    rng = np.random.default_rng(TYPES.index((dtype, log_target)))
    lazy, results = [], []
    rota = itertools.cycle(itertools.product(SORTS, (False, True), (False, True), REDUCTIONS))
    for shapes in [((5,), (5,)), ((4, 3), (4, 3)), ((2, 1, 3), (2, 2, 1))]:
        shape = np.broadcast_shapes(*shapes)
        for chunks in all_chunkings(shape):
            sort, zero_safe, keepdims, reduction = next(rota)
            keepdims &= reduction != "none"
            x, t, terms = known(sort, shapes, dtype, log_target, zero_safe)
            options = {"log_target": log_target, "zero_safe": zero_safe}
            where = rng.random(shape) < 0.6
            along: dict[str, Any] = {"reduction": reduction, "keepdims": keepdims}
            mask = lazy_mask(rng, where)
            lazy.append(kl_div(*lazily(x, t, chunks), where=mask, **along, **options))
            results.append((wanted(terms, x, dtype, where=where, **along), along, sort, chunks))
    for got, (result, *context) in zip(dask.compute(*lazy), results, strict=True):
        assert_same_bits(got, result, *context)


@by_type
def test_masks_of_many_tiles(dtype: str, log_target: bool) -> None:
    """Of every layout and density."""
    rng = np.random.default_rng(3)
    shape = (61, 419)
    x, t = operands("special", (shape, shape), dtype, log_target)
    x[::2], t[::2] = (a[::2] for a in operands("wide", (shape, shape), dtype, log_target))
    terms = terms_of(x, t, log_target=log_target)
    pair = [da.from_array(a, chunks=(40, 419)) for a in (x, t)]
    names = [name for name in LAYOUTS if name != "unaligned" and "swapped" not in name]
    for name, share in zip(names, itertools.cycle((0.5, 0.999, 0.01)), strict=False):
        where = rng.random(shape) < share
        mask = da.from_array(Source(where, LAYOUTS[name]), chunks=(40, 419))
        cases = [("sum", None), ("none", None), ("mean", 0), ("mean", 1), ("batchmean", None)]
        lazy = [kl_div(*pair, None, None, r, log_target, axis=a, where=mask) for r, a in cases]
        for (reduction, axis), got in zip(cases, dask.compute(*lazy), strict=True):
            result = wanted(terms, x, dtype, reduction, axis=axis, where=where)
            assert_same_bits(got, result, name, reduction, axis)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("log_target", [False, True])
def test_what_is_excluded_does_no_harm(log_target: bool, reduction: str) -> None:
    """Results are those of any other values there."""
    rng = np.random.default_rng(1)
    x, t = operands("usual", ((90, 70),) * 2, "float32", log_target)
    where = rng.random(x.shape) < 0.5
    odd_x, odd_t = x.copy(), t.copy()
    odd_x[~where] = rng.choice([np.nan, np.inf, -np.inf, 1e38], (~where).sum())
    odd_t[~where] = rng.choice([np.nan, np.inf, -np.inf, 0, -1], (~where).sum())
    plain = kl_div(x, t, None, None, reduction, log_target, where=where).compute()
    assert np.isfinite(plain).all()
    assert (plain != 0).any()
    for x_, t_ in ((odd_x, t), (x, odd_t), (odd_x, odd_t)):
        pair = [da.from_array(a, chunks=(40, 30)) for a in (x_, t_)]
        got = kl_div(*pair, None, None, reduction, log_target, where=where)
        assert_same_bits(got.compute(), plain)


def test_it_is_the_sum_of_what_it_selects() -> None:
    """As boolean indexing says it."""
    x, t = operands("wide", ((9, 50),) * 2, "float64", False)
    where = np.random.default_rng(0).random(x.shape) < 0.3
    for reduction in ("sum", "mean"):
        selected = kl_div(x[where], t[where], reduction=reduction).compute()
        assert_same_bits(kl_div(x, t, reduction=reduction, where=where).compute(), selected)
        along = kl_div(x, t, reduction=reduction, axis=1, where=where).compute()
        rows = [
            kl_div(x[i][where[i]], t[i][where[i]], reduction=reduction).compute() for i in range(9)
        ]
        assert_same_bits(along, np.array(rows))


@pytest.mark.parametrize("where", [True, [True], [[True], [False], [True]], np.bool_(False)])
def test_what_may_stand_for_a_mask(where: Any) -> None:
    x, t = operands("usual", ((3, 4),) * 2, "float64", False)
    got = kl_div(x, t, reduction="batchmean", where=where)
    result = wanted(terms_of(x, t), x, "float64", "batchmean", where=where)
    assert_same_bits(got.compute(), result)


@pytest.mark.parametrize("name", OPERANDS)
def test_masks_of_any_library(name: str, tmp_path: Any) -> None:
    if EXPRESSIONS and name == "h5py":
        pytest.skip("has no deterministic token, which Dask's array expressions insist on")
    x, t = operands("usual", ((6, 4),) * 2, "float64", False)
    where = np.random.default_rng(0).random((6, 4)) < 0.5
    pair = [da.from_array(a, chunks=(4, 3)) for a in (x, t)]
    got = kl_div(*pair, reduction="sum", where=OPERANDS[name](where, tmp_path))
    assert_same_bits(got.compute(), wanted(terms_of(x, t), x, "float64", "sum", where=where))


@by_dtype
def test_summary(dtype: str) -> None:
    """Each type has a quarter of all combinations, with any two of the other axes in full."""
    rng = np.random.default_rng(2)
    axes = [((6, 4), (6, 4)), ((4,), (6, 4))], SORTS, [(6, 4), (6, 1), (4,)], range(4)
    for places in np.ndindex(*map(len, axes)):
        if sum(places) % len(FLOATS) != FLOATS.index(dtype):
            continue
        shapes, sort, own, density = (axis[place] for axis, place in zip(axes, places, strict=True))
        x, t, terms = known(sort, shapes, dtype, False)
        where = masks(rng, own)[density]
        pair = lazily(x, t, random_chunking(rng, terms.shape))
        got = kl_div_summary(*pair, where=lazy_mask(rng, where)).compute()
        mask = np.broadcast_to(where, terms.shape)
        total = reference.exact_sum(terms[mask])
        rows = reference.included_batch_rows(x, mask)
        assert list(got[3:]) == [total.count, rows, total.nan, total.posinf, total.neginf]
        for reduction in ("sum", "mean", "batchmean"):
            result = wanted(terms, x, dtype, reduction, where=where)
            assert_same_bits(getattr(got, reduction), result, reduction, sort, where)


def test_cluster(client: Client) -> None:
    rng = np.random.default_rng(5)
    x, t = operands("masked", ((61, 131),) * 2, "float32", False)
    terms = terms_of(x, t)
    pair = lazily(x, t, cut(rng, (61, 131)))
    where = (rng.random((61, 131)) < 0.5) & (np.arange(61) % 3 > 0)[:, None]
    cases = [("batchmean", None), ("mean", 0), ("sum", 1)]
    mask = da.from_array(where, chunks=50)
    lazy = [kl_div(*pair, reduction=r, axis=axis, where=mask) for r, axis in cases]
    for (reduction, axis), got in zip(cases, dask.compute(*lazy, scheduler=client), strict=True):
        assert_same_bits(got, wanted(terms, x, "float32", reduction, axis=axis, where=where))


# Errors


ERRORS: list[tuple[type[Exception], str, Any]] = [
    (TypeError, "where must be booleans, or integers of 0 and 1, got dtype float64", 1.0),
    (TypeError, "where must have chunks of numpy.ndarray, got MaskedArray; pass where.filled()",
     np.ma.masked_equal(np.ones((6, 4), bool), False)),
    *((ValueError, f"where of shape {shape} does not broadcast to the shape (6, 4) of the result",
       np.ones(shape, bool)) for shape in [(6, 5), (6,), (2, 6, 4), (1, 6, 4), (0, 4), (0,)]),
]  # fmt: skip


@pytest.mark.parametrize(("category", "text", "where"), ERRORS)
def test_errors(category: type[Exception], text: str, where: Any) -> None:
    x = np.zeros((6, 4))
    for call in (kl_div_summary, lambda *pair, where: kl_div(*pair, reduction="sum", where=where)):
        for given in (where, da.from_array(where, chunks=2) if np.ndim(where) else where):
            with pytest.raises(category) as caught:
                call(x, x, where=given)
            assert type(caught.value) is category
            assert str(caught.value) == text


def test_it_never_enlarges_the_result() -> None:
    with pytest.raises(ValueError, match=r"^where of shape \(5,\) does not broadcast to .* \(1,\)"):
        kl_div([-1.0], [0.5], reduction="sum", where=[True] * 5)


# Graphs


def test_nothing_is_computed_and_keys_are_the_same_again() -> None:
    x, t = random_pair((12, 6), (3, 2))
    where = np.arange(72).reshape(12, 6) % 5 > 0
    every = [where, where[:1], where[:, :1], ~where, da.from_array(where, chunks=4), None]

    def build() -> list[da.Array]:
        return [
            *(kl_div(x, t, reduction=r, where=mask) for r in REDUCTIONS for mask in every),
            *(kl_div(x, t, reduction="mean", axis=a, where=m) for a in (0, 1) for m in every),
            *(kl_div_summary(x, t, where=mask).batch_size for mask in every),
        ]

    with dask.config.set(scheduler=refuse):
        names = [lazy.name for lazy in build()]
        assert names == [lazy.name for lazy in build()]
    assert len(set(names)) == len(names)


def test_stages_are_named() -> None:
    x, t = random_pair((12, 6), (3, 2))
    mask = da.ones((12, 6), chunks=(3, 2), dtype=bool)
    names = stages(kl_div(x, t, reduction="batchmean", where=mask))
    names = names - stages(x) - stages(t) - stages(mask)
    assert {name for name in names if not name.startswith("kl-div-")} == set()


@pytest.mark.parametrize("own", [(12, 6), (1, 6)])
def test_the_summary_reads_each_chunk_once(own: Shape) -> None:
    """Of the operands; the mask may be read once more, for the rows."""
    sources = [Counting(-np.random.default_rng(seed).random((12, 6))) for seed in range(2)]
    mask = Counting(np.ones(own, bool))
    pair = [da.from_array(source, chunks=(3, 6)) for source in sources]
    kl_div_summary(*pair, where=mask).compute(scheduler="synchronous")
    for source in sources:
        assert (set(source.reads.values()), len(source.reads)) == ({1}, 4)
    assert set(mask.reads.values()) <= {1, 2, 4}


# Unknown chunk sizes


@without_expressions
@pytest.mark.parametrize("keep", [[0, 1, 2, 5], [3], []])
def test_unknown_chunk_sizes(keep: list[int]) -> None:
    x, t = operands("usual", ((6, 4),) * 2, "float32", False)
    where = np.random.default_rng(7).random((6, 4)) < 0.5
    terms = terms_of(x[keep], t[keep])
    pair = filtered(x, keep), filtered(t, keep)
    rows = filtered(where, keep), where[keep]
    columns = filtered(where[:, :1], keep), where[keep, :1]
    for (lazy, mask), reduction in itertools.product(
        [rows, columns, (where[0], where[0]), (True, True)], REDUCTIONS
    ):
        got = kl_div(*pair, reduction=reduction, where=lazy)
        result = wanted(terms, x[keep] if keep != [3] else x[:2], "float32", reduction, where=mask)
        assert_same_bits(got.compute(scheduler="synchronous"), result, reduction)


@without_expressions
def test_unknown_chunk_sizes_that_do_not_match() -> None:
    x, t = operands("usual", ((6, 4),) * 2, "float32", False)
    where = np.ones((6, 4), bool)
    pair = filtered(x, [0, 2, 3]), filtered(t, [0, 2, 3])
    for reduction, axis in (("none", None), ("sum", None), ("sum", 0), ("sum", 1)):
        lazy = kl_div(*pair, reduction=reduction, axis=axis, where=filtered(where, [0, 2, 4]))
        with pytest.raises(ValueError, match=r"where has a chunk of shape .* compute_chunk_sizes"):
            lazy.compute(scheduler="synchronous")
    for mask in (where[:3], filtered(where, [0, 2, 3], chunks=3)):
        with pytest.raises(ValueError, match=r"the result and where have unknown chunk sizes"):
            kl_div(*pair, reduction="sum", where=mask)
