"""Each statistic is shown in reports, or it is said why not."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kldiv_dask import evaluate
from kldiv_dask.report import render
from kldiv_dask.report.tables import tables

# Each statistic is shown, or it is said why not

# Where statistics are in what `Evaluation.to_dict` returns: overall and in a group, in a run of
# positions, of labels, and in checks. The group and the run have positions that are not finite.
PLACES: list[tuple[Any, ...]] = [
    ("overall",),
    ("overall", "finite"),
    ("overall", "by_position", 7),
    ("overall", "labels"),
    ("overall", "labels", "finite"),
    ("groups", 1),
    ("checks",),
    ("checks", "nan"),
    ("checks", "input_not_normalized"),
]

NOT_IN_A_ROW = "a group is one row, of its size, mean, interval, largest and top-1 agreement"

HIDDEN = {
    ("overall", "confidence_interval"): "the clustered one is shown, where there is one",
    ("overall", "checks"): "`checks` beside it has the same counts, and where they are",
    ("groups", 1, "sum"): NOT_IN_A_ROW,
    ("groups", 1, "standard_error"): NOT_IN_A_ROW,
    ("groups", 1, "standard_error_clustered"): NOT_IN_A_ROW,
    ("groups", 1, "confidence_interval"): "the clustered one is shown, where there is one",
    ("groups", 1, "clusters"): NOT_IN_A_ROW,
    ("groups", 1, "min"): NOT_IN_A_ROW,
    ("groups", 1, "max"): "the largest finite one is shown, where there is one",
    ("groups", 1, "quantiles"): NOT_IN_A_ROW,
    ("groups", 1, "histogram"): NOT_IN_A_ROW,
    ("groups", 1, "worst"): "the worst positions are those of all groups",
    ("groups", 1, "worst_finite"): "the worst positions are those of all groups",
    ("groups", 1, "top1_agreement_standard_error"): NOT_IN_A_ROW,
    ("groups", 1, "reverse_kl"): NOT_IN_A_ROW,
    ("groups", 1, "jensen_shannon"): NOT_IN_A_ROW,
    ("groups", 1, "by_position"): NOT_IN_A_ROW,
    ("groups", 1, "checks"): "the checks are those of all groups",
    ("groups", 1, "labels"): NOT_IN_A_ROW,
}


@pytest.fixture(scope="module")
def evaluations() -> list[dict[str, Any]]:
    """Evaluate logits, logits that are not all finite, and probabilities that don't all sum to 1.

    All have groups, labels, a mask and two axes of positions.
    """
    r = np.random.default_rng(1)
    teacher = r.normal(size=(12, 9, 5))
    student = teacher + 0.3 * r.normal(size=teacher.shape)
    spoilt, where = student.copy(), r.random((12, 9)) < 0.9
    spoilt[5, 7], spoilt[6, 7, 1] = np.nan, -np.inf
    where[5:7] = True
    arguments = {
        "groups": np.repeat(np.arange(3), 36).reshape(12, 9),
        "labels": r.integers(0, 5, (12, 9)),
        "where": where,
        "progress": False,
    }
    probs, others = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (student, teacher))
    probs[5, 7] *= 1.01
    return [
        evaluate(student, teacher, **arguments).to_dict(),
        evaluate(spoilt, teacher, **arguments).to_dict(),
        evaluate(probs, others, kind="probs", **arguments).to_dict(),
    ]


def changed(value: Any) -> Any:
    """Return something of the same form with other numbers."""
    if isinstance(value, dict):
        return {name: changed(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [changed(item) for item in value]
    if isinstance(value, int):
        return value + 1
    assert isinstance(value, float)
    return 1.25 * value + 0.125 if math.isfinite(value) else 0.125


def with_changes(whole: dict[str, Any], *paths: tuple[Any, ...]) -> dict[str, Any]:
    """Return an evaluation in which other numbers are at some paths, where it has them."""
    whole = copy.deepcopy(whole)
    for *place, name in paths:
        holder = at(whole, place)
        if name in holder:
            holder[name] = changed(holder[name])
    return whole


def at(whole: dict[str, Any], place: Sequence[Any]) -> Any:
    for name in place:
        whole = whole.get(name, {}) if isinstance(whole, dict) else whole[name]
    return whole


def written(whole: dict[str, Any]) -> tuple[Any, ...]:
    """Return the words of the text and of the page, which take no time."""
    return render.text(whole), *tables(whole, 20, 40, for_page=True)


def test_each_statistic_is_shown_or_said_to_be_hidden(evaluations: list[dict[str, Any]]) -> None:
    paths = {(*place, name) for one in evaluations for place in PLACES for name in at(one, place)}
    assert len(paths) > 100
    assert sorted(set(HIDDEN) - paths) == [], "hidden statistics that are not there"
    pages = [render.page(one) for one in evaluations]
    words = [written(one) for one in evaluations]
    unseen = [
        path
        for path in paths - set(HIDDEN)
        if words == [written(with_changes(one, path)) for one in evaluations]
        and pages == [render.page(with_changes(one, path)) for one in evaluations]
    ]
    assert unseen == [], "shown nowhere, and not said to be hidden"
    seen = [
        path
        for path in HIDDEN
        if words != [written(with_changes(one, path)) for one in evaluations]
    ]
    assert seen == [], "said to be hidden, but shown"
    assert pages == [render.page(with_changes(one, *HIDDEN)) for one in evaluations]
