"""Evaluations to compare with the slow reference, field by field, and bit by bit."""

from dataclasses import asdict
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kldiv_dask import evaluate
from kldiv_dask.evaluation.checkpoint import packed
from kldiv_dask.statistics.distribution import PROBABILITIES
from tests import reference_evaluation as reference

DTYPES = {"float16": "f2", "bfloat16": ml_dtypes.bfloat16, "float32": "f4", "float64": "f8"}

SHAPES = [(60,), (12, 7), (3, 6, 5)]

KINDS = ["logits", "log_probs", "probs", "log_probs_and_probs"]


def rng(*seed: Any) -> Any:
    return np.random.default_rng(seed)


def run(*args: Any, **options: Any) -> Any:
    return evaluate(*args, progress=False, **{"scheduler": "sync"} | options)


def softmax(logits: Any) -> Any:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def pair(kind: Any, dtype: Any, shape: Any, classes: int = 9, seed: int = 0) -> Any:
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


def extras(shape: Any, classes: int = 9, seed: int = 1) -> Any:
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


def same_bits(left: Any, right: Any) -> None:
    """Assert that two states are equal in every field and every bit."""
    first, second = packed(left), packed(right)
    assert first.keys() == second.keys()
    for name, array in first.items():
        other = second[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert array.tobytes() == other.tobytes(), name


def near(found: Any, expected: Any, relative: float = 1e-6, absolute: float = 0.0) -> None:
    assert found == pytest.approx(expected, rel=relative, abs=absolute, nan_ok=True)


def check(found: Any, expected: Any, relative: float = 1e-6) -> None:
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


def check_finite(found: Any, expected: Any, relative: Any, absolute: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, one in found.items():
        numbers = asdict(one)
        near(numbers.pop("value"), expected[name].pop("value"), relative, absolute)
        assert numbers == expected[name], name


def sequences_of(shape: Any, axis: Any) -> Any:
    return np.broadcast_to(np.indices(shape)[axis], shape)


def expected_of(
    input: Any,
    target: Any,
    shape: Any,
    *,
    where: Any = None,
    labels: Any = None,
    cluster_axis: int = 0,
    **options: Any,
) -> Any:
    measured = reference.measure(input, target, labels=labels, **options)
    taken = np.ones(shape, bool) if where is None else where
    labeled = None if labels is None else labels != -100
    sequences = sequences_of(shape, cluster_axis)

    def of(chosen: Any) -> Any:
        return reference.statistics(measured, chosen, sequences, labeled, PROBABILITIES)

    return of, taken, measured


def check_by_position(found: Any, kl: Any, taken: Any, relative: Any, step: int = 1) -> None:
    """Compare means along the last axis, in runs of so many places, with NumPy's."""
    expected: Any = []
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
