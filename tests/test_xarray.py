"""DataArrays: paired by the names of their dimensions, with the bits of plain arrays."""

import functools
import itertools
import re
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

from kldiv_dask import (
    Evaluation,
    KLDivergence,
    KLDivLoss,
    evaluate,
    kl_div,
    kl_div_summary,
    kl_div_with_logits,
    kl_div_with_logits_summary,
)
from tests.helpers.bits import assert_same_bits
from tests.helpers.cases import log_probabilities, probabilities, some_slow

xr = pytest.importorskip("xarray")

pytestmark = pytest.mark.filterwarnings("ignore:reduction='mean' divides:UserWarning")

without_expressions = pytest.mark.skipif(
    bool(dask.config.get("array.query-planning", None)), reason="not in Dask's array expressions"
)

rng = np.random.default_rng(11)
SHAPE = {"doc": 4, "token": 3, "class": 5}
DIMS = tuple(SHAPE)
evaluated = functools.partial(evaluate, kind="log_probs_and_probs")

X = log_probabilities(rng, tuple(SHAPE.values()), np.float64)
T = probabilities(rng, tuple(SHAPE.values()), np.float64)
MASK = rng.random((4, 3)) < 0.7
LANGUAGES = np.array(["en", "de", "en", "fr"])
CHUNKS = [(4, 3, 5), (2, 3, 5), (1, 2, 5), (3, 1, 2)]
ORDERS = list(itertools.permutations(DIMS))


def named(values, dims=DIMS, chunks=None, order=None, **attrs):
    """Label an array, its axes in another order if one is given."""
    data = values if chunks is None else da.from_array(values, chunks=chunks)
    coords = {
        "doc": list("abcd"),
        "token": [10, 20, 30],
        "language": ("doc", LANGUAGES),
        "class_name": ("class", list("vwxyz")),
        "run": 7,
    }
    kept = {n: c for n, c in coords.items() if (c[0] if isinstance(c, tuple) else n) in dims}
    array = xr.DataArray(data, dims=dims, coords=kept | {"run": 7}, name="logits", attrs=attrs)
    return array.transpose(*order) if order else array


def never(*_args, **_options):
    raise AssertionError("computed while building")


def computed(lazy):
    lazy = lazy.data if isinstance(lazy, xr.DataArray) else lazy
    return np.asarray(lazy.compute(scheduler="sync"))


def same_bits(found, expected):
    assert_same_bits(computed(found), computed(expected))


def plain(values, dims, order):
    return values.transpose([dims.index(dim) for dim in order])


# Results: bits, and what they are labeled with


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_kl_div_has_the_bits_of_plain_arrays(chunks, order):
    x, t = named(X, chunks=chunks), named(T, chunks=chunks, order=order)
    for reduction in ("sum", "mean", "batchmean", "none"):
        found = kl_div(x, t, reduction=reduction)
        assert found.dims == (DIMS if reduction == "none" else ())
        same_bits(found, kl_div(X, T, reduction=reduction))
    # what comes first decides the order, and what a batch is
    found = kl_div(t, x, reduction="none")
    assert found.dims == order
    swapped = [plain(a, DIMS, order) for a in (T, X)]
    for reduction in ("batchmean", "none"):
        same_bits(kl_div(t, x, reduction=reduction), kl_div(*swapped, reduction=reduction))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("dim", ["class", "doc", ("class", "token"), ["token", "doc", "class"]])
def test_reduced_dimensions(dim, keepdims):
    x, t = named(X, chunks=(2, 3, 5)), named(T, chunks=(2, 3, 5), order=("class", "doc", "token"))
    where = xr.DataArray(MASK.T, dims=("token", "doc"), coords={"doc": list("abcd")})
    reduced = (dim,) if isinstance(dim, str) else dim
    axis = tuple(DIMS.index(d) for d in reduced)
    for reduction in ("sum", "mean"):
        options = {"reduction": reduction, "keepdims": keepdims}
        found = kl_div(x, t, dim=dim, where=where, **options)
        expected = kl_div(X, T, axis=axis, where=MASK[..., None], **options)
        same_bits(found, expected)
    assert found.dims == tuple(d for d in DIMS if keepdims or d not in reduced)
    assert set(found.coords) == {"run"} | {
        name for name, own in x.coords.items() if own.dims and own.dims[0] not in reduced
    }
    # numbers mean what they mean of the dimensions
    assert kl_div(x, x, axis=axis, **options).dims == found.dims


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_logits_have_the_bits_of_plain_arrays(chunks, order):
    x, t = named(X, chunks=chunks, order=order), named(T, chunks=chunks)
    places = [dim for dim in order if dim != "class"]
    x_plain, t_plain = (
        da.from_array(a, chunks=chunks).transpose([DIMS.index(d) for d in (*places, "class")])
        for a in (X, T)
    )
    where = xr.DataArray(MASK, dims=("doc", "token"))
    w_plain = plain(MASK, ("doc", "token"), places)
    for reduction in ("sum", "mean", "batchmean", "none"):
        found = kl_div_with_logits(x, t, dim="class", where=where, reduction=reduction)
        assert found.dims == (tuple(places) if reduction == "none" else ())
        expected = kl_div_with_logits(x_plain, t_plain, where=w_plain, reduction=reduction)
        same_bits(found, expected)
    assert set(found.coords) == {"run"} if found.ndim == 0 else {"run", "doc", "token", "language"}


def test_labels_of_results():
    x = named(X, source="student", tokenizer="bpe", units="logit")
    t = named(T, source="teacher", tokenizer="bpe").assign_coords(run=8)
    found = kl_div_with_logits(x, t, reduction="none")
    assert found.name == "kl_divergence"
    assert found.attrs == {
        "tokenizer": "bpe",
        "units": "nats",
        "long_name": "KL divergence",
    }
    assert set(found.coords) == {"doc", "token", "language"}  # `run` differs
    assert found.sel(doc="b").language.values.item() == "de"
    assert (x.attrs["units"], x.name) == ("logit", "logits")
    xr.testing.assert_identical(found, kl_div_with_logits(x, t, dim="class", reduction="none"))


@pytest.mark.parametrize("labels", [True, False])
def test_a_label_of_one_is_not_that_of_all(labels):
    t = named(T).assign_coords(source=("doc", list("stuv"))).isel(doc=0)
    x = named(X).assign_coords(source=("doc", list("stuv")))
    x = x if labels else x.drop_vars(["doc", "source"])
    same_bits(kl_div(x, t, reduction="none"), kl_div(X, T[:1], reduction="none"))
    for a, b in ((x, t), (t, x)):
        found = kl_div(a, b, dim="doc", reduction="sum").compute(scheduler="sync")
        kept = {"token", "class_name", "run"}
        assert set(found.coords) == kept | ({"source", "language"} - set(x.coords))
        found = kl_div(a, b, reduction="none").compute(scheduler="sync")
        assert ("doc" in found.coords) == labels


@pytest.mark.parametrize("missing", ["doc", "token", ("doc", "token")])
@pytest.mark.parametrize("side", ["input", "target"])
def test_missing_dimensions_broadcast_by_name(side, missing):
    x, t = named(X, chunks=(2, 3, 5)), named(T, chunks=(2, 3, 5))
    gone = dict.fromkeys([missing] if isinstance(missing, str) else missing, 0)
    key = tuple(slice(0, 1) if dim in gone else slice(None) for dim in DIMS)
    if side == "input":
        x, x_plain, t_plain = x.isel(gone, drop=True), X[key], T
    else:
        t, x_plain, t_plain = t.isel(gone, drop=True), X, T[key]
    places = ("doc", "token")
    order = tuple(dict.fromkeys(d for a in (x, t) for d in a.dims if d != "class"))
    for call, options in ((kl_div, {}), (kl_div_with_logits, {"axis": -1})):
        found = call(x, t, reduction="none", **options)
        expected = call(x_plain, t_plain, reduction="none")
        dims = DIMS if call is kl_div else places
        same_bits(found.transpose(*dims), expected)
        total = call(x, t, reduction="sum", **options)
        same_bits(total, call(x_plain, t_plain, reduction="sum"))
    assert found.dims == order


def test_a_number_does_not_widen():
    x = named(X.astype("f4"), chunks=(2, 3, 5))
    for number in (0.25, np.float64(0.25), xr.DataArray(0.25)):
        found = kl_div(x, number, reduction="none")
        assert (found.dtype, found.dims) == (np.float32, DIMS)
        same_bits(found, kl_div(X.astype("f4"), 0.25, reduction="none"))


# Laziness


@pytest.mark.parametrize("reduction", ["sum", "batchmean", "none"])
def test_nothing_is_computed_while_building(reduction):
    lazy = da.from_array(LANGUAGES, chunks=2)
    x, t = (
        named(a, chunks=(2, 3, 5), order=order).assign_coords(language=("doc", lazy + suffix))
        for a, order, suffix in ((X, None, ""), (T, ("class", "doc", "token"), "!"))
    )
    mask = xr.DataArray(da.from_array(MASK, chunks=2), dims=("doc", "token"))
    with dask.config.set(scheduler=never):
        results = [kl_div(x, t, reduction=reduction, where=mask)]
        results += [kl_div_with_logits(x, t, dim="class", reduction=reduction, where=mask)]
        with pytest.raises(AssertionError, match="computed while building"):
            results[0].compute()
    for found in results:
        assert isinstance(found.data, da.Array)
    if reduction == "none":
        assert found.language.compute().values.tolist() == LANGUAGES.tolist()


class Stored(xr.backends.BackendArray):
    """An array of a file, which tells what is read of it."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.read = values, values.shape, values.dtype, []

    def __getitem__(self, key):
        part = self.values[getattr(key, "tuple", key)]
        self.read.append(part.shape)
        return part

    def __dask_tokenize__(self):
        return dask.base.normalize_token(self.values)


@pytest.mark.parametrize("lender", ["named", "plain"])
def test_arrays_of_files_are_read_by_chunks(lender):
    stored = Stored(X)
    x = xr.DataArray(
        xr.Variable(DIMS, xr.core.indexing.LazilyIndexedArray(stored)), coords={"doc": list("abcd")}
    )
    t = named(T, chunks=(2, 3, 5)) if lender == "named" else da.from_array(T, chunks=(2, 3, 5))
    found = kl_div(x, t, reduction="none")
    assert stored.read == []
    assert found.chunks == ((2, 2), (3,), (5,))
    same_bits(found, kl_div(X, T, reduction="none"))
    assert set(stored.read) == {(2, 3, 5)}


@pytest.mark.parametrize("with_names", [True, False])
def test_where_of_a_file_is_read_by_chunks(with_names):
    where = stored = Stored(MASK)
    if with_names:
        where = xr.DataArray(
            xr.Variable(("doc", "token"), xr.core.indexing.LazilyIndexedArray(stored))
        )
    x, t = named(X, chunks=(2, 3, 5)), named(T, chunks=(2, 3, 5))
    found = kl_div_with_logits(x, t, where=where, reduction="sum")
    assert set(stored.read) <= {(0, 0)}
    same_bits(found, kl_div_with_logits(X, T, where=MASK, reduction="sum"))
    assert set(stored.read) - {(0, 0)} == {(2, 3)}


# Plain arrays beside named ones


@pytest.mark.parametrize("lazy", [False, True])
def test_plain_arrays_are_the_last_dimensions(lazy):
    x = named(X, chunks=(2, 3, 5))
    for t in (T, T[0], T[:, :1], T[0, 0], T[:1, :1]):
        t = da.from_array(t, chunks=-1) if lazy else t
        with pytest.warns(da.PerformanceWarning) if lazy and len(t) == 4 else nothing():
            found = kl_div(x, t, reduction="none")
        assert found.dims == DIMS
        same_bits(found, kl_div(X, t, reduction="none"))
    moved = named(X, order=("class", "doc", "token"))
    found = kl_div_with_logits(
        T.transpose(2, 0, 1), moved, dim="class", where=MASK, reduction="none"
    )
    expected = kl_div_with_logits(T, X, where=MASK, reduction="none")
    same_bits(found, expected)
    # a list, and what has not all axes
    where = [[True, False, True]]
    found = kl_div_with_logits(x, moved, dim="class", where=where, reduction="sum")
    same_bits(found, kl_div_with_logits(X, X, where=where, reduction="sum"))


def nothing():
    return dask.config.set({})


# What gives plain results pairs by name too


def test_plain_results():
    x, t = named(X, chunks=(2, 3, 5)), named(T, order=("class", "doc", "token"))
    where = xr.DataArray(MASK.T, dims=("token", "doc"))
    found = kl_div_summary(x, t, where=where).compute(scheduler="sync")
    assert found == kl_div_summary(X, T, where=MASK[..., None]).compute(scheduler="sync")
    found = kl_div_with_logits_summary(x, t, dim="class", where=where).compute(scheduler="sync")
    assert found == kl_div_with_logits_summary(X, T, where=MASK).compute(scheduler="sync")
    loss = KLDivLoss(reduction="none")
    assert loss(x, t).dims == x.dims
    same_bits(loss(x, t).data, loss(X, T))
    for kind, mask in (("log_probs_and_probs", MASK[..., None]), ("logits", MASK)):
        by_name, by_position = KLDivergence(kind), KLDivergence(kind)
        by_name.update(x, t.transpose("token", "doc", "class"), where)
        by_position.update(X, T, mask)
        assert by_name.state_dict() == by_position.state_dict()


# Evaluations


def same(found, expected):
    left, right = found.to_dict(), expected.to_dict()
    dims = left.pop("provenance")["dims"]
    right.pop("provenance")
    assert left == right
    return dims


@pytest.mark.parametrize("order", some_slow(*ORDERS), ids="-".join)
def test_evaluations(order):
    labels = rng.integers(0, 5, (4, 3))
    t = named(T, order=order).assign_coords(
        label=(("token", "doc"), labels.T), mask=(("doc", "token"), MASK)
    )
    options = {"progress": False, "scheduler": "sync"}
    expected = evaluated(
        X, T, where=MASK, labels=labels, groups=LANGUAGES[:, None], cluster_axis=1, **options
    )
    for x in (named(X, chunks=(2, 3, 5)), named(X)):
        found = evaluated(
            x,
            t,
            dim="class",
            where="mask",
            labels="label",
            groups="language",
            cluster_axis="token",
            **options,
        )
        assert same(found, expected) == ["doc", "token"]
    groups = x.language.astype(object)
    objects = evaluated(
        x.assign_coords(tongue=groups),
        t,
        dim="class",
        where=t.mask,
        labels=t.label,
        groups="tongue",
        cluster_axis=1,
        **options,
    )
    assert same(objects, expected) == ["doc", "token"]


STRINGS = [np.dtype(object), np.dtypes.StringDType(), np.dtype("U2")]


@pytest.mark.parametrize("dtype", STRINGS, ids=str)
def test_groups_are_strings_of_any_kind(dtype):
    options = {"progress": False, "scheduler": "sync"}
    expected = evaluated(X, T, groups=np.array(list("abcd"))[:, None], **options)
    groups = np.array(list("abcd")).astype(dtype)
    x = named(X, chunks=(2, 3, 5)).assign_coords(letter=("doc", groups))
    for given in ("doc", "letter", x.letter, xr.DataArray(groups, dims="doc")):
        assert same(evaluated(x, T, groups=given, **options), expected) == ["doc", "token"]


def test_reports_have_the_names(tmp_path):
    found = evaluated(named(X), named(T), progress=False, scheduler="sync")
    worst = found.worst[0]["index"]
    text = str(found)
    assert f"  [doc={worst[0]}, token={worst[1]}]" in text
    assert re.search(r"^  dims +doc, token$", text, re.MULTILINE)
    found.save(tmp_path / "result")
    page = found.to_html()
    assert found.to_html(tmp_path / "page.html") == page
    assert (tmp_path / "page.html").read_text() == page
    assert "along token" in (tmp_path / "page.html").read_text()
    assert str(Evaluation.load(tmp_path / "result")) == text
    other = evaluated(named(X), T, progress=False, scheduler="sync")
    assert "[doc=" in str(found.merge(other))
    renamed = evaluated(named(X).rename(doc="page"), T, progress=False, scheduler="sync")
    assert f"  [{worst[0]}, {worst[1]}]" in str(found.merge(renamed))


# Stores and clusters


@without_expressions
def test_zarr_and_back(tmp_path: Path, client: Client):
    store = tmp_path / "both.zarr"
    both = xr.Dataset({"student": named(X), "teacher": named(T, order=("class", "token", "doc"))})
    both.chunk(doc=2, token=1).to_zarr(store, zarr_format=2)
    opened = xr.open_zarr(store)
    x, t = opened.student, opened.teacher
    found = kl_div(x, t, reduction="sum", dim="class")
    found.to_zarr(tmp_path / "divergence.zarr", zarr_format=2)
    back = xr.open_zarr(tmp_path / "divergence.zarr").kl_divergence
    expected = kl_div(X, T, reduction="sum", axis=2)
    same_bits(back, expected)
    assert (back.attrs["units"], back.sel(doc="d").language.values.item()) == ("nats", "fr")
    x, t = (a.chunk({"class": 2}) for a in (x, t))
    result = evaluated(x, t, dim="class", groups="language", progress=False, scheduler=client)
    plain = evaluated(X, T, groups=LANGUAGES[:, None], progress=False, scheduler="sync")
    assert same(result, plain) == ["doc", "token"]
    unread = xr.open_dataset(store, engine="zarr", chunks=None)
    found = kl_div(unread.student, unread.teacher, reduction="sum").compute(scheduler=client)
    assert_same_bits(found.values, computed(kl_div(X, T, reduction="sum")))
