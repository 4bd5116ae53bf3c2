"""Evaluations against their slow reference, and which are refused."""

import itertools
import json
import math
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from kldiv_dask import EvaluationError, EvaluationWarning
from kldiv_dask.statistics.sketch import RELATIVE_ERROR
from tests import reference_evaluation as reference
from tests.helpers.cases import slow_unless, some_slow
from tests.helpers.evaluations import (
    DTYPES,
    KINDS,
    SHAPES,
    check,
    check_by_position,
    expected_of,
    extras,
    near,
    pair,
    rng,
    run,
)

OCR = Path(__file__).parent / "data" / "ocr"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
# A kernel for each kind and type takes seconds to compile.
@pytest.mark.parametrize(
    ("kind", "dtype"),
    slow_unless(
        [("logits", "float32"), ("log_probs_and_probs", "float64")],
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


@pytest.mark.parametrize("dtype", some_slow("float32", "float64"))
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


@pytest.mark.parametrize("dtype", some_slow("float32", "float16", "bfloat16", "float64"))
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


REAL = [(None, 1e-6), ("float64", 1e-12)]


@pytest.mark.parametrize(("dtype", "tolerance"), slow_unless(REAL[:1], REAL))
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
