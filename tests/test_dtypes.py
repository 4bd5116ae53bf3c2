"""The table of data types, and the float8 of it: stored, and computed as float32."""

import itertools
import sys
import warnings
from functools import partial

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest

from kldiv_dask import (
    KLDivergence,
    evaluate,
    kl_div,
    kl_div_summary,
    kl_div_with_logits,
    open_array,
    open_pair,
)
from kldiv_dask.dtypes import OPERANDS, RESULTS, TABLE, dtype_called, named_dtype
from kldiv_dask.evaluation.operands import MOST_TOLERANCE, tolerance
from tests.helpers.cases import slow_unless, some_slow
from tests.test_safetensors import save

FLOAT8 = [name for name, row in TABLE.items() if row.bits == 8]
each_float8 = pytest.mark.parametrize("name", FLOAT8)
one_float8 = pytest.mark.parametrize("name", some_slow(*FLOAT8))


def every(name):
    """Each number of a type."""
    return np.arange(256, dtype=np.uint8).view(dtype_called(name))


def every_pair(name):
    """Each with each: two arrays."""
    return [np.ascontiguousarray(a) for a in np.broadcast_arrays(every(name)[:, None], every(name))]


def wide(*arrays):
    return [a.astype(np.float32) for a in arrays]


def numbers(name, seed=0, shape=(6, 8, 40), kind="logits"):
    """Two arrays of a type."""
    rng = np.random.default_rng(seed)
    pair = rng.normal(scale=2, size=(2, *shape))
    if kind != "logits":
        pair -= np.log(np.exp(pair).sum(-1, keepdims=True))
    if kind == "probs":
        pair = np.exp(pair)
    return list(pair.astype(dtype_called(name)))


def equal(found, wanted):
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found.astype(float), wanted.astype(float))  # NaN is equal too


# The table


@pytest.mark.parametrize("name", TABLE)
def test_rows_say_what_the_types_are(name):
    row, dtype = TABLE[name], dtype_called(name)
    info = ml_dtypes.finfo(dtype)
    assert (dtype.name, dtype.itemsize * 8) == (name, row.bits)
    assert row.precision == info.nmant + 1
    assert float(info.smallest_subnormal) == 2.0**row.lowest
    assert (dtype.type.__module__ == "numpy") == row.in_numpy
    assert not row.pattern or np.dtype(row.pattern).itemsize == dtype.itemsize
    assert named_dtype(name) == dtype


def test_patterns_and_names_differ():
    for field in ("pattern", "safetensors"):
        found = [value for row in TABLE.values() if (value := getattr(row, field))]
        assert len(set(found)) == len(found)


def test_names_that_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for name, row in TABLE.items():
        if row.in_numpy:
            assert named_dtype(name).name == name
            continue
        message = f'^dtype {name} needs the package ml_dtypes: pip install "kldiv-dask.bfloat16."$'
        with pytest.raises(ImportError, match=message):
            named_dtype(name)


def test_results_have_other_types_than_operands():
    assert set(OPERANDS) - set(RESULTS) == {"float8_e4m3fn", "float8_e5m2"}
    x = np.zeros((2, 3), dtype_called("float8_e5m2"))
    for function in (kl_div, kl_div_with_logits):
        with pytest.raises(TypeError, match=f"^dtype must be one of {', '.join(RESULTS)}, got flo"):
            function(x, x, reduction="sum", dtype="float8_e5m2")
        with pytest.raises(TypeError, match=f"input must be one of {', '.join(OPERANDS)}, got int"):
            function(x.view("i1"), x, reduction="sum")
    with pytest.raises(TypeError, match=f"^dtype must be one of {', '.join(RESULTS)}, got float8"):
        KLDivergence(reduction="sum", dtype="float8_e4m3fn")


# Every number


# All types and options, of which the slow tests have most: each takes kernels of its own.
CASES = list(itertools.product(FLOAT8, [False, True], [False, True]))


@pytest.mark.parametrize(
    ("name", "log_target", "zero_safe"),
    slow_unless(CASES[:1], CASES),
)
def test_every_pair_of_numbers(name, log_target, zero_safe):
    pair = every_pair(name)
    options = {"log_target": log_target, "zero_safe": zero_safe}
    equal(
        kl_div(*pair, reduction="none", **options).compute(),
        kl_div(*wide(*pair), reduction="none", **options).compute(),
    )
    for dtype in RESULTS:
        equal(
            kl_div(*pair, reduction="none", dtype=dtype, **options).compute(),
            kl_div(*wide(*pair), reduction="none", dtype=named_dtype(dtype), **options).compute(),
        )
    for axis in (None, 0, 1):  # sums, among which some are NaN and some are finite
        equal(
            kl_div(*pair, reduction="sum", axis=axis, **options).compute(),
            kl_div(*wide(*pair), reduction="sum", axis=axis, **options).compute(),
        )


@pytest.mark.slow
@each_float8
@pytest.mark.parametrize("options", [{}, {"temperature": 1.7}, {"dtype": "float64"}])
def test_every_pair_of_logits(name, options):
    """As two classes, beside one of 0: 2**16 positions."""
    pair = [a.reshape(-1) for a in every_pair(name)]
    x = np.stack([pair[0], np.zeros_like(pair[0]), pair[1]], axis=-1)
    t = np.stack([pair[1], pair[0], np.zeros_like(pair[0])], axis=-1)
    found = kl_div_with_logits(x, t, reduction="none", **options).compute()
    assert 0 < np.isfinite(found).sum() < found.size
    equal(found, kl_div_with_logits(*wide(x, t), reduction="none", **options).compute())


@pytest.mark.slow
@each_float8
@pytest.mark.filterwarnings("ignore::kldiv_dask.EvaluationWarning")
def test_every_pair_is_evaluated(name):
    pair = [a.reshape(-1) for a in every_pair(name)]
    x, t = (np.stack([a, b, np.zeros_like(a)], axis=-1) for a, b in (pair, pair[::-1]))
    labels = np.arange(len(x)) % 3
    found, wanted = (
        evaluate(*arrays, labels=labels, progress=False, scheduler="sync")
        for arrays in ((x, t), wide(x, t))
    )
    assert found.count == wanted.count
    equal(found.mean, wanted.mean)
    assert 0 < found.checks["nan"]["count"] < len(x)
    for check in ("nan", "infinite", "input_excludes_classes", "target_excludes_classes"):
        assert found.checks[check] == wanted.checks[check]


# What is computed


@pytest.mark.slow
@pytest.mark.parametrize("others", [*itertools.product(FLOAT8, OPERANDS)])
def test_types_of_results(others):
    x, t = numbers(others[0])[0], numbers(others[1])[1]
    wide_first = others[0] == "float8_e5m2" and others[1] != "float64"
    wanted = "float32" if wide_first or others[1] in FLOAT8 else others[1]
    alone = "float32" if others[1] in FLOAT8 else others[1]
    for pair in ((x, t), (t, x)):
        found = kl_div(*pair, reduction="sum", log_target=True)
        assert found.dtype.name == wanted
        widened = [a.astype(np.float32) if a.dtype.itemsize == 1 else a for a in pair]
        equal(
            found.compute(),
            kl_div(*widened, reduction="sum", log_target=True, dtype=found.dtype).compute(),
        )
    # An operand without axes does not widen the other.
    one = x[0, 0, 0]
    assert kl_div(t, one, reduction="sum").dtype.name == alone
    assert kl_div(one, t, reduction="sum").dtype.name == alone
    assert kl_div(x, t[0, 0, 0], reduction="sum").dtype.name == "float32"


@one_float8
def test_chunks_do_not_matter(name):
    x, t = numbers(name)
    where = np.arange(48).reshape(6, 8) % 3 > 0
    plain = kl_div(*wide(x, t), log_target=True, reduction="sum").compute()
    logits = kl_div_with_logits(*wide(x, t), where=where, reduction="sum").compute()
    for chunks in ((6, 8, 40), (2, 3, 40), (1, 8, 7), ((1, 5), (4, 4), (33, 7))):
        a, b = (da.from_array(movable(array), chunks=chunks) for array in (x, t))
        equal(kl_div(a, b, log_target=True, reduction="sum").compute(), plain)
        found = kl_div_with_logits(a, b, where=where, reduction="sum").compute()
        np.testing.assert_allclose(found, logits, rtol=1e-6)
    for change in (lambda a: a[::-1, :, ::-1], lambda a: a.T, lambda a: a[1::2]):
        equal(
            kl_div(change(x), change(t), reduction="none").compute(),
            kl_div(*wide(change(x), change(t)), reduction="none").compute(),
        )


@one_float8
def test_accumulators_and_summaries(name):
    x, t = numbers(name)
    found, wanted = KLDivergence("logits"), KLDivergence("logits")
    for i in range(2):
        found.update(x[i::2], t[i::2])
        wanted.update(*wide(x[i::2], t[i::2]))
    equal(found.compute(), wanted.compute())
    restored = KLDivergence("logits")
    restored.load_state_dict(found.state_dict())
    equal(restored.compute(), wanted.compute())
    pair = [kl_div_summary(*a, log_target=True).compute() for a in ((x, t), wide(x, t))]
    assert pair[0] == pair[1]


@each_float8
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["logits", "log_probs", "probs"])
def test_evaluations(name, kind):
    x, t = numbers(name, kind=kind, shape=(5, 8, 12))
    options = {"kind": kind, "progress": False, "scheduler": "sync"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        narrow, wider = evaluate(x, t, **options), evaluate(*wide(x, t), **options)
    assert narrow.mean == wider.mean
    assert narrow.provenance["dtype"] == (TABLE[name].read_as or name)
    if kind != "logits" and not TABLE[name].read_as:  # which sum to 1 as far as the type allows
        assert not narrow.checks["input_not_normalized"]["count"]
        assert wider.checks["input_not_normalized"]["count"]


def test_tolerances():
    """Of what is stored in 8 bits, sums say little, but are not let to say nothing."""
    for classes in (2, 2**17):
        found = {name: tolerance(np.zeros((1, classes), dtype_called(name))) for name in TABLE}
        assert 2**-4 < found["float8_e4m3fn"] <= found["float8_e5m2"] <= MOST_TOLERANCE
        assert max(found[name] for name in RESULTS) < 0.2


# Where they are stored


@one_float8
def test_safetensors(tmp_path, name):
    path = tmp_path / "x.safetensors"
    x, t = numbers(name)
    stored = {
        key: (TABLE[name].safetensors, list(a.shape), a.tobytes())
        for key, a in (("x", x), ("t", t))
    }
    save(path, {**stored, "every": (TABLE[name].safetensors, [256], bytes(range(256)))})
    found = open_array(path, key="every", chunks=100)
    assert found.dtype.name == (TABLE[name].read_as or name)
    equal(found.compute(), every(name).astype(found.dtype))
    pair = open_pair(path, path, input_key="x", target_key="t", chunks=(4, 3, 40))
    equal(
        kl_div_with_logits(*pair, reduction="none").compute(),
        kl_div_with_logits(*wide(x, t), reduction="none").compute(),
    )
    for scheduler in ("sync", "threads"):
        found = evaluate(
            path, path, input_key="x", target_key="t", progress=False, scheduler=scheduler
        )
        assert found.mean == evaluate(*wide(x, t), progress=False, scheduler="sync").mean


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float8_e4m3fn", r"x\.npy has dtype \|V1 \(float8_e4m3fn loses its name in this format: "),
        (
            "float8_e5m2",
            r"x\.npy is not a readable .*; float8_e5m2 must be saved as flo",
        ),
    ],
)
def test_npy_has_no_such_types(tmp_path, name, message):
    np.save(tmp_path / "x.npy", every(name))
    with pytest.raises((TypeError, ValueError), match=message):
        open_array(tmp_path / "x.npy")


def movable(array):
    """The same numbers in a type that Distributed can move."""
    return array.astype(np.float32) if array.dtype.name == "float8_e5m2" else array


@pytest.mark.parametrize(
    "compute",
    [
        partial(kl_div, reduction="sum"),
        kl_div_summary,
        kl_div_with_logits,
        evaluate,
        KLDivergence("logits").update,
    ],
)
def test_dask_arrays_that_distributed_cant_move_are_refused(compute):
    x = every("float8_e5m2").reshape(16, 16)
    message = "must not be a Dask array of float8_e5m2, .* make the Dask array of what array.astype"
    for name, pair in (("input", (da.from_array(x), x)), ("target", (x, da.from_array(x)))):
        with pytest.raises(TypeError, match=f"^{name} {message}"):
            compute(*pair)


@each_float8
def test_dask_arrays_on_a_cluster(client, name):
    """By the way out that the error names."""
    x, t = numbers(name)
    pair = [da.from_array(movable(a), chunks=(2, 3, 40)) for a in (x, t)]
    found = kl_div(*pair, log_target=True, reduction="sum")
    equal(
        client.compute(found).result(timeout=60),
        kl_div(*wide(x, t), log_target=True, reduction="sum").compute(),
    )


CHUNKS = [(3, 2, 20), (2, 3, 40)]


@pytest.mark.parametrize(
    ("name", "chunks"),
    slow_unless(
        zip(FLOAT8, CHUNKS, strict=True),
        itertools.product(FLOAT8, CHUNKS),
    ),
)
def test_on_a_cluster(tmp_path, client, name, chunks):
    """Distributed can't move float8_e5m2, which waits for ever."""
    path = tmp_path / "x.safetensors"
    x, t = numbers(name)
    label = TABLE[name].safetensors
    save(path, {key: (label, list(a.shape), a.tobytes()) for key, a in (("x", x), ("t", t))})
    a = open_array(path, key="x", chunks=(2, 3, 40))
    b = open_array(path, key="t", chunks=chunks)
    with warnings.catch_warnings(), dask.config.set(scheduler=client):
        warnings.simplefilter("ignore", da.PerformanceWarning)
        found = kl_div(a, b, log_target=True, reduction="sum").compute()
        logits = kl_div_with_logits(a, b, reduction="none").compute()
        result = evaluate(a, b, progress=False)
        given = kl_div(x, t, log_target=True, reduction="sum").compute()
    wanted = kl_div(*wide(x, t), log_target=True, reduction="sum").compute()
    equal(found, wanted)
    equal(given, wanted)
    wanted = kl_div_with_logits(*wide(x, t), reduction="none").compute()
    np.testing.assert_allclose(logits, wanted, rtol=1e-5)
    assert result.mean == evaluate(*wide(x, t), progress=False, scheduler="sync").mean
