"""Evaluations against their slow reference, and that their bits depend on the data alone."""

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path

import dask.array as da
import ml_dtypes
import numpy as np
import pytest

from kldiv_dask import EvaluationError, EvaluationWarning, evaluate, kl_div_with_logits
from kldiv_dask.evaluation.checkpoint import packed
from kldiv_dask.statistics.chunks import EvaluationSpec, evaluate_chunks
from kldiv_dask.statistics.distribution import PROBABILITIES
from kldiv_dask.statistics.sketch import RELATIVE_ERROR
from kldiv_dask.statistics.state import merge
from tests import reference_evaluation as reference
from tests.helpers.cases import slow_unless

OCR = Path(__file__).parent / "data" / "ocr"

DTYPES = {"float16": "f2", "bfloat16": ml_dtypes.bfloat16, "float32": "f4", "float64": "f8"}

SHAPES = [(60,), (12, 7), (3, 6, 5)]

KINDS = ["logits", "log_probs", "probs", "log_probs_and_probs"]


def rng(*seed):
    return np.random.default_rng(seed)


def run(*args, **options):
    return evaluate(*args, progress=False, **{"scheduler": "sync"} | options)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def pair(kind, dtype, shape, classes=9, seed=0):
    """Draw what two models might give at some positions."""
    r = rng(seed, len(shape))
    target = 3 * r.normal(size=(*shape, classes))
    input = target + r.normal(size=target.shape)
    if kind != "logits":
        # In float16 the least would be 0, and some divergences infinite.
        least = 2.0**-14 if (kind, dtype) == ("probs", "float16") else 0.0
        input, target = (np.maximum(softmax(a), least) for a in (input, target))
        input = input if kind == "probs" else np.log(input)
        target = np.log(target) if kind == "log_probs" else target
    return input.astype(DTYPES[dtype]), target.astype(DTYPES[dtype])


def extras(shape, classes=9, seed=1):
    """Draw a mask, two kinds of groups, and labels of which some are missing."""
    r = rng(seed, len(shape))
    labels = r.integers(0, classes, shape)
    labels[r.random(shape) < 0.3] = -100
    names = r.integers(0, 3, shape)
    return {
        "where": r.random(shape) < 0.8,
        "labels": labels,
        "groups": names - 1,
        "strings": np.array(["code", "law", "prose"])[names],
    }


def same_bits(left, right):
    """Assert that two states are equal in every field and every bit."""
    first, second = packed(left), packed(right)
    assert first.keys() == second.keys()
    for name, array in first.items():
        other = second[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert array.tobytes() == other.tobytes(), name


def near(found, expected, relative=1e-6, absolute=0.0):
    assert found == pytest.approx(expected, rel=relative, abs=absolute, nan_ok=True)


def check(found, expected, relative=1e-6):
    """Compare statistics with those of the reference, field by field."""
    labels = expected.pop("labels", None)
    exact = {"count", "clusters", "worst", "quantiles", "labels", "histogram"}
    exact |= {"by_position", "checks", "worst_finite", "finite"}
    assert (found.count, found.clusters) == (expected["count"], expected["clusters"])
    assert [one["index"] for one in found.worst] == expected["worst"]
    assert [one["index"] for one in found.worst_finite] == expected["worst_finite"]
    check_finite(found.finite, expected["finite"], relative)
    near(list(found.quantiles.values()), expected["quantiles"], 2**-8 + relative)
    for name in found.__dataclass_fields__.keys() - exact:
        near(getattr(found, name), expected[name], relative)
    assert (found.labels is None) == (labels is None)
    if labels is not None:
        changes = list(found.labels.p_change_quantiles.values())
        near(changes, labels.pop("p_change_quantiles"), 2**-7, 1e-3)
        check_finite(found.labels.finite, labels.pop("finite"), relative, 1e-7)
        for name, value in labels.items():
            near(getattr(found.labels, name), value, relative, 1e-7)


def check_finite(found, expected, relative, absolute=0.0):
    assert found.keys() == expected.keys()
    for name, one in found.items():
        numbers = asdict(one)
        near(numbers.pop("value"), expected[name].pop("value"), relative, absolute)
        assert numbers == expected[name], name


def sequences_of(shape, axis):
    return np.broadcast_to(np.indices(shape)[axis], shape)


def expected_of(input, target, shape, *, where=None, labels=None, cluster_axis=0, **options):
    measured = reference.measure(input, target, labels=labels, **options)
    taken = np.ones(shape, bool) if where is None else where
    labeled = None if labels is None else labels != -100
    sequences = sequences_of(shape, cluster_axis)

    def of(chosen):
        return reference.statistics(measured, chosen, sequences, labeled, PROBABILITIES)

    return of, taken, measured


@pytest.mark.parametrize("shape", SHAPES, ids=str)
# A kernel for each kind and type takes seconds to compile.
@pytest.mark.parametrize(
    ("kind", "dtype"),
    slow_unless(
        [("logits", "float16"), ("logits", "float64"), ("log_probs", "float32"),
         ("log_probs_and_probs", "float64"), ("probs", "float32")],
        itertools.product(KINDS, DTYPES),
    ),
)  # fmt: skip
def test_twin(kind, dtype, shape):
    input, target = pair(kind, dtype, shape)
    more = extras(shape)
    where, labels, groups = more["where"], more["labels"], more["groups"]
    found = run(input, target, kind=kind, where=where, labels=labels, groups=groups)
    of, taken, measured = expected_of(input, target, shape, kind=kind, where=where, labels=labels)
    relative = 1e-6 if kind == "logits" and dtype != "float64" else 1e-11
    check(found.overall, of(taken), relative)
    assert list(found.groups) == [-1, 0, 1]
    for name, one in found.groups.items():
        check(one, of(taken & (groups == name)), relative)
    assert found.by_position == found.overall.by_position
    check_by_position(found.overall, measured.kl, where, relative)
    for name, one in found.groups.items():
        check_by_position(one, measured.kl, where & (groups == name), relative)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_positions(dtype):
    """One NaN and some infinities leave all that is of finite positions known, and said of which.

    Labels are impossible in the input, the target or both; a group has nothing finite, and another
    some of everything.
    """
    shape = (40, 7)
    input, target = pair("logits", dtype, shape)
    more = extras(shape)
    labels, names = more["labels"], more["strings"].copy()
    input[3, 2] = np.nan
    for places, sides in (
        (np.s_[5:30:2, 1], [input]),
        (np.s_[6:12, 3], [target]),
        (np.s_[14:17, 4], [input, target]),
    ):
        for side in sides:
            chosen = np.maximum(labels[places], 0)[..., None]
            np.put_along_axis(side[places], chosen, -np.inf, -1)
    names[5:30:2, 1] = "no"
    options = {"where": more["where"], "labels": labels}
    found = run(input, target, groups=names, **options)
    of, taken, measured = expected_of(input, target, shape, **options)
    relative = 1e-6 if dtype == "float32" else 1e-11
    check(found.overall, of(taken), relative)
    for name, one in found.groups.items():
        check(one, of(taken & (names == name)), relative)
    assert {name: one.finite["max"].count > 0 for name, one in found.groups.items()} == {
        "code": True, "law": True, "no": False, "prose": True,
    }  # fmt: skip
    assert [len(one.worst_finite) for one in (found.overall, found.groups["no"])] == [20, 0]
    assert found.overall.labels.finite["perplexity_ratio"].count < found.labels.count - 5
    check_by_position(found.overall, measured.kl, more["where"], relative)


def check_by_position(found, kl, taken, relative, step=1):
    """Compare means along the last axis, in runs of so many places, with NumPy's."""
    expected = []
    for start in range(0, kl.shape[-1], step) if kl.ndim > 1 else ():
        run = (..., slice(start, start + step))
        chosen = kl[run][taken[run]]
        if chosen.size:
            kept = reference.finite_mean(chosen)
            expected.append(
                {"start": start, "stop": min(start + step, kl.shape[-1]), "count": chosen.size}
                | {"nan": kept["nan"], "infinite": kept["infinite"]}
                | {"mean": float(chosen.mean()), "mean_of_finite": kept["value"]}
            )
    means = ("mean", "mean_of_finite")
    for rows in found.by_position, expected:
        assert all(list(row)[-2:] == list(means) for row in rows)
    found, expected = (
        ([list(row.values())[:5] for row in rows], [row[name] for row in rows for name in means])
        for rows in (found.by_position, expected)
    )
    assert found[0] == expected[0]
    near(found[1], expected[1], relative)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("cluster_axis", [0, 1, -1])
def test_axes(axis, cluster_axis):
    input, target = pair("logits", "float64", (12, 7))
    more = extras((12, 7))
    moved = [np.moveaxis(a, -1, axis) for a in (input, target)]
    options = {"cluster_axis": cluster_axis, "temperature": 2.5}
    found = run(*moved, axis=axis, groups=more["strings"], **options)
    of, taken, _ = expected_of(input, target, (12, 7), **options)
    check(found.overall, of(taken), 1e-11)
    assert list(found.groups) == ["code", "law", "prose"]
    for name, one in found.groups.items():
        check(one, of(more["strings"] == name), 1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcasting(dtype):
    input, target = pair("logits", dtype, (12, 7))
    where, labels = np.arange(7) != 2, np.arange(12)[:, None] % 9
    found = run(input, target[:1], where=where, labels=labels, groups=np.arange(12)[:, None] // 6)
    whole = np.broadcast_to(target[:1], target.shape)
    full = np.broadcast_to(where, (12, 7)), np.broadcast_to(labels, (12, 7))
    of, taken, _ = expected_of(input, whole, (12, 7), where=full[0], labels=full[1])
    check(found.overall, of(taken))
    check(found.groups[1], of(taken & (np.arange(12)[:, None] >= 6)))


@pytest.mark.parametrize("kind", KINDS)
def test_excluded_classes(kind):
    """The target alone, then both, then the input exclude classes; and a row is NaN."""
    input, target = pair(kind, "float64", (8,))
    none = -np.inf if kind in ("logits", "log_probs") else 0.0
    no_input = 0.0 if kind == "probs" else -np.inf
    target[1, 3:5] = none
    input[2, 4], target[2, 4] = no_input, none
    found = run(input, target, kind=kind)
    of, taken, measured = expected_of(input, target, (8,), kind=kind)
    assert found.overall.reverse_kl == np.inf == measured.reverse_kl[1]
    check(found.overall, of(taken), 1e-11)
    input[3, 0] = no_input
    found = run(input, target, kind=kind)
    of, taken, measured = expected_of(input, target, (8,), kind=kind)
    assert found.mean == found.overall.max == np.inf == measured.kl[3]
    check(found.overall, of(taken), 1e-11)
    input[6] = np.nan
    found = run(input, target, kind=kind)
    of, taken, _ = expected_of(input, target, (8,), kind=kind)
    assert (found.count, found.overall.nan, found.overall.infinite) == (8, 1, 1)
    assert math.isnan(found.mean)
    check(found.overall, of(taken), 1e-11)
    places = {name: one["first"] for name, one in found.checks.items()}
    assert places["nan"] == [[6]]
    assert places["infinite"] == [[3]]
    assert places["input_excludes_classes"] == [[2], [3]]
    assert places["target_excludes_classes"] == [[1], [2]]


def test_masses_are_checked():
    input, target = pair("log_probs_and_probs", "float64", (30,))
    target[[4, 11]] *= 1.01
    input[7] -= 0.25
    found = run(input, target, kind="log_probs_and_probs", groups=np.arange(30) // 10)
    of, taken, _ = expected_of(input, target, (30,), kind="log_probs_and_probs")
    check(found.overall, of(taken), 1e-11)
    counts = [one.checks["target_not_normalized"] for one in found.groups.values()]
    assert counts == [1, 1, 0]
    ours, theirs = (found.checks[f"{name}_not_normalized"] for name in ("input", "target"))
    assert (ours["count"], ours["first"]) == (1, [[7]])
    assert (theirs["count"], theirs["first"]) == (2, [[4], [11]])
    near(ours["largest_deviation"], -math.expm1(-0.25), 1e-9)
    near(theirs["largest_deviation"], 0.01, 1e-9)


@pytest.mark.parametrize("shape", [(12, 7), (60,)])
def test_no_position(shape):
    input, target = pair("logits", "float32", shape)
    with pytest.warns(EvaluationWarning, match="no position is included"):
        found = run(input, target, where=np.zeros(shape, bool), labels=np.zeros(shape, int))
    assert (found.count, found.overall.sum, found.worst) == (0, 0.0, [])
    assert (found.overall.clusters, found.labels.count, found.by_position) == (0, 0, [])
    numbers = [found.mean, found.overall.standard_error, found.overall.max, found.labels.nll_input]
    assert all(map(math.isnan, [*numbers, *found.quantiles.values()]))


@pytest.mark.parametrize("cut", ["none", "some"])
def test_one_position(cut):
    input, target = (a[0] for a in pair("logits", "float64", (1,)))
    chunks = -1 if cut == "none" else 4
    found = run(*(da.from_array(a, chunks=chunks) for a in (input, target)), labels=2)
    measured = reference.measure(input, target, labels=np.array(2))
    assert (found.count, found.overall.clusters, found.worst[0]["index"]) == (1, 1, [])
    near(found.mean, float(measured.kl), 1e-11)
    near(found.labels.nll_input, float(measured.nll_input), 1e-11)
    assert math.isnan(found.overall.standard_error)


# Real data: what a text recognizer and its quantized reference say


@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 1e-6), ("float64", 1e-12)])
def test_real_logits(dtype, tolerance):
    expected = json.loads((OCR / "expected.json").read_text())["whole_logits"]
    keys = {"input_key": "student", "target_key": "teacher"}
    found = run(OCR / "logits.zarr", OCR / "logits.zarr", **keys, dtype=dtype)
    near(found.mean, expected["mean"], tolerance)
    assert found.worst[0]["index"] == expected["worst_position"]
    near(found.worst[0]["kl"], expected["worst"], tolerance)
    assert found.overall.top1_agreement == expected["top1_agreement"]
    for probability, quantile in expected["quantiles"].items():
        near(found.quantiles[float(probability)], quantile, RELATIVE_ERROR + tolerance)


def test_real_log_probs():
    expected = json.loads((OCR / "expected.json").read_text())["log_probs"]
    paths = [OCR / f"{who}_log_probs.npy" for who in ("student", "teacher")]
    found = run(*paths, kind="log_probs")
    near(found.overall.sum, expected["sum"], 1e-9)
    near(found.mean, expected["sum"] / 40, 1e-9)
    measured = reference.measure(*map(np.load, paths), kind="log_probs")
    near(found.overall.jensen_shannon, float(measured.jensen_shannon.mean()), 1e-7)
    near(found.overall.reverse_kl, float(measured.reverse_kl.mean()), 1e-9)
    assert found.checks["target_not_normalized"]["count"] == 0


# Bits


# Each type, and each way to come to compute in float64.
@pytest.mark.parametrize(
    ("dtype", "temperature", "computed"),
    slow_unless(
        [("float32", 2.0, None), ("float64", 1.0, None)],
        [
            ("float16", 3.0, None),
            ("bfloat16", 1.0, None),
            ("float32", 2.0, None),
            ("float32", 1.0, "float64"),
            ("float64", 1.0, None),
        ],
    ),
)
def test_bits_of_the_divergence(dtype, temperature, computed):
    """They are those of `kl_div_with_logits`, whose float32 results are rounded once more."""
    shape = (12, 7)
    input, target = pair("logits", dtype, shape, classes=300)
    options = {"temperature": temperature, "dtype": computed}
    found = run(input, target, groups=np.arange(84).reshape(shape), **options)
    alone = kl_div_with_logits(input, target, reduction="none", **options).compute()
    ours = np.array([one.sum for one in found.groups.values()]).reshape(shape)
    assert (ours.astype(alone.dtype) == alone).all()
    for reduction, number in {"sum": found.overall.sum, "mean": found.mean}.items():
        other = kl_div_with_logits(input, target, reduction=reduction, **options).compute()
        assert other.dtype.type(number) == other


def chunkings(shape):
    """Cut positions at random, three times; the classes too, which are joined again."""
    r = rng(7)
    for number in range(3):
        cuts = [
            np.sort(r.choice(np.arange(1, length), r.integers(1, min(length, 6)), replace=False))
            for length in shape
        ]
        pieces = [
            np.diff([0, *cut, length]).tolist() for cut, length in zip(cuts, shape, strict=True)
        ]
        yield tuple(map(tuple, pieces)), (9,) if number else (4, 5)


@pytest.fixture(
    scope="module", params=[("logits", "float32"), ("log_probs_and_probs", "float64")], ids=str
)
def whole(request):
    """A pair with all that is odd, its options, and the state of it in one chunk."""
    kind, dtype = request.param
    shape = (30, 11)
    input, target = pair(kind, dtype, shape)
    target[3, 4, 2:5] = -np.inf if kind == "logits" else 0.0
    input[9, 1, 6] = -np.inf
    input[20, 10] = np.nan
    input[21:24], target[21:24] = input[:3], target[:3]  # ties
    more = extras(shape)
    options = {name: more[name] for name in ("where", "labels")}
    options |= {"groups": more["strings"], "kind": kind}
    return input, target, options, run(input, target, **options).state


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("scheduler", ["sync", "threads", "cluster"])
def test_bits_of_chunkings(whole, scheduler, number, request):
    input, target, options, state = whole
    positions, classes = list(chunkings((30, 11)))[number]
    pair = [da.from_array(a, chunks=(*positions, classes)) for a in (input, target)]
    if scheduler == "cluster":
        scheduler = request.getfixturevalue("client")
    same_bits(run(*pair, **options, scheduler=scheduler).state, state)


@pytest.mark.parametrize("layout", ["F", "strided", "swapped"])
def test_bits_of_layouts(whole, layout):
    input, target, options, state = whole
    if layout == "F":
        pair = [np.asfortranarray(a) for a in (input, target)]
    elif layout == "strided":
        pair = [np.repeat(a, 2, axis=1)[:, ::2] for a in (input, target)]
    else:
        pair = [a.astype(a.dtype.newbyteorder()) for a in (input, target)]
    same_bits(run(*pair, **options).state, state)


@pytest.mark.parametrize("seed", range(5))
def test_bits_of_merges(whole, seed):
    """States of pieces, merged in a random order in random numbers."""
    input, target, options, state = whole
    kind = options["kind"]
    dtype = np.dtype(np.float32 if kind == "logits" else np.float64)
    spec = EvaluationSpec((30, 11), 0, kind, 1.0, dtype, (1e-5, 1e-5))
    small = [options[name] for name in ("where", "groups", "labels")]
    r = rng(seed)
    states = []
    for rows in np.split(np.arange(30), np.unique(r.integers(1, 30, 8))):
        for columns in np.split(np.arange(11), np.unique(r.integers(1, 11, 2))):
            part = np.ix_(rows, columns)
            start = int(rows[0]), int(columns[0])
            arrays = [a[part] for a in (input, target)]
            states.append(evaluate_chunks(*arrays, start, *(a[part] for a in small), spec))
    while len(states) > 1:
        r.shuffle(order := list(range(len(states))))
        size = int(r.integers(1, 5))
        some, others = order[:size], order[size:]
        states = [states[i] for i in others] + [merge([states[i] for i in some])]
    same_bits(states[0], state)


# What is refused

REFUSED = {
    "kind": ({"kind": "odds"}, ValueError, "kind must be one of 'logits', .*, got 'odds'"),
    "on_error": (
        {"on_error": "ignore"},
        ValueError,
        "on_error must be 'raise' or 'skip', got 'ignore'",
    ),
    "cluster_axis": ({"cluster_axis": 2}, ValueError, "cluster_axis is 2; the positions have 2"),
    "cluster_axis-type": (
        {"cluster_axis": "a"},
        TypeError,
        "cluster_axis must be an integer, got 'a'",
    ),
    "temperature": (
        {"temperature": 2.0, "kind": "log_probs"},
        ValueError,
        "temperature is 2.0 with kind='log_probs'; it is for logits",
    ),
    "temperature-0": (
        {"temperature": 0},
        ValueError,
        "temperature must be a positive finite number, got 0",
    ),
    "axis": ({"axis": 3}, np.exceptions.AxisError, "axis 3 is out of bounds"),
    "where-type": (
        {"where": np.ones((4, 3))},
        TypeError,
        "where must be booleans, .*, got dtype float64",
    ),
    "where": ({"where": np.ones((4, 2), bool)}, ValueError, r"where of shape \(4, 2\) .*\(4, 3\)"),
    "groups-type": (
        {"groups": np.ones(3)},
        TypeError,
        "groups must be .*strings, got dtype float64",
    ),
    "labels-type": (
        {"labels": np.ones(3)},
        TypeError,
        "labels must be integers, got dtype float64",
    ),
    "labels": ({"labels": np.zeros(2, int)}, ValueError, r"labels of shape \(2,\) .*\(4, 3\)"),
    "checkpoint": (
        {"checkpoint": "s3://bucket/x"},
        ValueError,
        "checkpoint must be a file .*, got 's3://bucket/x'",
    ),
    "folder": (
        {"checkpoint": "no/such/x"},
        ValueError,
        "checkpoint must be a file .* exists, got 'no/such/x'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    options, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        run(np.zeros((4, 3, 9)), np.zeros((4, 3, 9)), **options)


@pytest.mark.parametrize("label", [9, -1, -101])
def test_labels_that_are_no_class(label):
    labels = np.zeros((40, 3), int)
    labels[31, 2] = label
    pair = [da.from_array(a, chunks=(10, 2, 9)) for a in rng(1).normal(size=(2, 40, 3, 9))]
    message = rf"labels must be classes from 0 to 8, and -100 .*, got {label} at \(31, 2\)"
    with pytest.raises(EvaluationError, match=message):
        run(*pair, labels=labels)
