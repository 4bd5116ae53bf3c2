"""An evaluation as dicts and lists, and as JSON."""

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kldiv_dask.statistics.results import Statistics

if TYPE_CHECKING:
    from kldiv_dask.evaluation.result import Evaluation

# Of `Evaluation.to_dict`. 2: "clustering", "missing" and "fingerprints", and more checks. 3: "nan",
# "infinite", "finite" and "worst_finite" of statistics; their errors are those of finite positions.
# 4: names of checks in American spelling.
SCHEMA = 4


def to_dict(result: "Evaluation") -> dict[str, Any]:
    """Return all numbers of an evaluation as dicts and lists."""
    return {
        "schema": SCHEMA,
        "unit": "nats",
        "kind": result.options["kind"],
        "shape": list(result.shape),
        "overall": _statistics_to_dict(result.overall),
        "groups": [
            {"group": name, **_statistics_to_dict(statistics)}
            for name, statistics in result.groups.items()
        ],
        "clustering": result.clustering,
        "checks": result.checks,
        "doubts": result.doubts(),
        "missing": result.missing,
        "skipped": result.skipped,
        "fingerprints": result.fingerprints,
        "provenance": result.provenance,
    }


def to_json(numbers: dict[str, Any], indent: int) -> str:
    """Return dicts and lists as JSON, with strings for numbers that are not finite.

    Examples
    --------
    >>> print(to_json({"mean": float("nan")}, 1))
    {
     "mean": "nan"
    }
    """
    return json.dumps(_without_nonfinite(numbers), indent=indent, allow_nan=False)


def _statistics_to_dict(statistics: Statistics) -> dict[str, Any]:
    """Return statistics as a dict, with quantiles as pairs: keys of JSON are strings."""
    fields = asdict(statistics)
    fields["quantiles"] = _pairs(statistics.quantiles)
    if statistics.labels is not None:
        fields["labels"]["p_change_quantiles"] = _pairs(statistics.labels.p_change_quantiles)
    return fields


def _pairs(quantiles: dict[float, float]) -> list[list[float]]:
    return [list(pair) for pair in quantiles.items()]


def _without_nonfinite(value: Any) -> Any:
    """Replace each NaN and infinity by its name."""
    if isinstance(value, dict):
        return {name: _without_nonfinite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nonfinite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
