"""The evaluation of data that follow each other along the first axis, from two evaluations."""

import math
from typing import TYPE_CHECKING, Any

from kldiv_dask.statistics import state as states
from kldiv_dask.statistics.state import EvaluationState

if TYPE_CHECKING:
    from kldiv_dask.evaluation.result import Evaluation

# Options that must be equal.
_EQUAL = ("kind", "generalized", "temperature", "cluster_axis", "classes", "revision")


def merge_fields(first: "Evaluation", second: "Evaluation") -> dict[str, Any]:
    """Return the fields of the evaluation of the data of two, by name.

    Raises
    ------
    ValueError
        The options or the shapes differ.
    """
    _check_mergeable(first, second)
    following, each = _offset(first, second)
    rows = first.shape[0]
    return {
        "state": states.merge([first.state, following]),
        "options": _merge_options(first, second, each),
        "provenance": _merge_provenance(first.provenance, second.provenance),
        "skipped": first.skipped + [_offset_region(skipped, rows) for skipped in second.skipped],
        "missing": first.missing + second.missing,
    }


def _check_mergeable(first: "Evaluation", second: "Evaluation") -> None:
    """Refuse evaluations with other options or shapes."""
    if not first.shape or first.shape[1:] != second.shape[1:]:
        raise ValueError(
            f"positions of shape {first.shape} and {second.shape} do not follow each other along "
            "the first axis"
        )
    for name in _EQUAL:
        left, right = first.options[name], second.options[name]
        if left != right:
            raise ValueError(f"the evaluations differ in {name}: {left!r} and {right!r}")
    for name in ("groups", "labels"):
        if first.options[name] != second.options[name]:
            raise ValueError(f"one of the evaluations has {name} and the other has none")


def _offset(first: "Evaluation", second: "Evaluation") -> tuple[EvaluationState, int | None]:
    """Renumber the positions and clusters of the second to follow those of the first.

    Returns
    -------
    EvaluationState
        The state of the second.
    int or None
        How many sequences each cluster has; None if clusters have different lengths.
    """
    rows = first.shape[0]
    following = states.offset_positions(second.state, rows * math.prod(first.shape[1:]))
    each = first.options["each"] if first.options["each"] == second.options["each"] else None
    if first.options["cluster_axis"] == 0:
        cells = None if each is None or rows % each else rows // each
        following, is_regular = states.offset_clusters(following, first.state, cells)
        each = each if is_regular else None
    return following, each


def _offset_region(skipped: dict[str, Any], rows: int) -> dict[str, Any]:
    """Add a number of rows to the indices of a region along the first axis."""
    first_axis, *other_axes = skipped["region"]
    return skipped | {"region": [[end + rows for end in first_axis], *other_axes]}


def _merge_options(first: "Evaluation", second: "Evaluation", each: int | None) -> dict[str, Any]:
    """Return the options of both, as a pair where they differ."""
    options = {
        name: value if value == second.options[name] else [value, second.options[name]]
        for name, value in first.options.items()
    }
    return options | {
        "shape": [first.shape[0] + second.shape[0], *first.shape[1:]],
        "each": each,
        "where": first.options["where"] or second.options["where"],
    }


def _merge_provenance(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of both, joined by a comma where they differ, and the total time."""
    merged: dict[str, Any] = {}
    for name in first | second:
        values = [part[name] for part in (first, second) if name in part]
        is_same = len(values) == 1 or values[0] == values[1]
        merged[name] = values[0] if is_same else ", ".join(map(str, values))
    return merged | {"seconds": first["seconds"] + second["seconds"]}
