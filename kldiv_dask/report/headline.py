"""The one line that says how far the input is from the target."""

import math

from kldiv_dask.report.numbers import half_width, plus_minus
from kldiv_dask.report.wording import (
    CLUSTERED,
    Report,
    finite_mean,
    interval_to_show,
    not_finite,
    positions,
)


def headline(report: Report) -> str:
    """Say the mean and how sure it is, and of which positions it is if not of all."""
    overall = report["overall"]
    interval = interval_to_show([overall])
    mean, uncertainty = finite_mean(overall), half_width(overall, interval)
    line = f"mean KL {plus_minus(mean, uncertainty)} {report['unit']}"
    if math.isfinite(mean) and math.isfinite(uncertainty):
        line += f" (95 % confidence, {_assumption(report, interval)})"
    return f"{line} over {positions(overall)}" if not_finite(overall) else line


def _assumption(report: Report, interval: str) -> str:
    """Say what an interval takes as independent."""
    clustering = report.get("clustering") or {"of": "sequences", "each": 1}
    unit, length = clustering["of"], clustering["each"]
    if interval != CLUSTERED or (unit == "positions" and length == 1):
        return "if positions are independent, which neighbors seldom are"
    clusters = report["overall"].get("clusters", 0)
    if length == 1:
        return f"clustered by {clusters:,} {unit}"
    number_of = "" if length is None else f"{length:,} "
    return f"clustered by {clusters:,} runs of {number_of}neighboring {unit}"
