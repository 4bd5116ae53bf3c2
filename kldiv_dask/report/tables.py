"""The tables of an evaluation, as text: which there are, and what is in them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kldiv_dask.report.numbers import half_width, number, plus_minus, value_where_finite
from kldiv_dask.report.remarks import CHECKS
from kldiv_dask.report.wording import (
    CLUSTERED,
    Report,
    dimension_names,
    finite_mean,
    index_text,
    interval_to_show,
    not_finite,
    worst_first,
)

_MAX_RUNS = 1000

Rows = Sequence[tuple[str, ...]]


class ReportTable(NamedTuple):
    """Rows of text under a title; without a `head`, rows are pairs of a name and a value."""

    title: str
    head: tuple[str, ...]
    rows: Rows
    note: str = ""
    chart: str = ""
    """The name of its chart in `plots.chart_heights`, if it can have one."""


_SUMMARY = {
    "sum": "sum",
    "standard_error_clustered": "standard error, clustered",
    "standard_error": "standard error if positions are independent",
    "min": "smallest",
    "max": "largest",
    "reverse_kl": "reverse KL",
    "jensen_shannon": "Jensen-Shannon divergence",
}

_CAUTIONS = {"standard_error": " (too small where neighbors are alike)"}

_LABELS = {
    "count": "labeled positions",
    "nll_input": "negative log-likelihood, input",
    "nll_target": "negative log-likelihood, target",
    "perplexity_input": "perplexity, input",
    "perplexity_target": "perplexity, target",
    "perplexity_ratio": "perplexity, input to target, ± standard error",
    "p_change_mean": "change of the label's probability, mean",
    "p_change_rms": "change of the label's probability, r.m.s.",
}

# The head of the column of how many positions are not finite.
_NOT_FINITE = "not finite"


def tables(
    report: Report, max_worst: int, max_groups: int, for_page: bool = False
) -> Iterator[ReportTable]:
    """Yield the tables of a report that have rows; a page has some that a terminal has not."""
    overall, dimensions = report["overall"], dimension_names(report)
    possible = [
        ReportTable("Summary", (), _summary(report)),
        _distribution(overall),
        _by_position(overall.get("by_position", []) if for_page else [], dimensions),
        _groups(report["groups"], max_groups),
        _worst(report, max_worst),
        _checks(report["checks"] if for_page else {}, dimensions),
        _labels(overall.get("labels")),
        _provenance(report["provenance"]),
    ]
    return (table for table in possible if table.rows)


def _summary(report: Report) -> Rows:
    overall, shape = report["overall"], report["shape"]
    dimensions, not_finite_counts = dimension_names(report), not_finite(overall)
    positions = f"{overall['count']:,}"
    if len(shape) > 1:
        positions += f" of {' by '.join(f'{size:,}' for size in shape)}"
    if dimensions:
        positions += f" ({', '.join(dimensions)})"
    rows = [("positions", positions)]
    if not_finite_counts:
        rows.append(("positions that are not finite", not_finite_counts))
    rows += [
        (label, value_where_finite(overall, name) + _CAUTIONS.get(name, ""))
        for name, label in _SUMMARY.items()
        if overall.get(name) is not None
    ]
    agreement, error = overall.get("top1_agreement"), overall.get("top1_agreement_standard_error")
    if agreement is not None:
        value = plus_minus(agreement, math.nan if error is None else error)
        rows.append(("top-1 agreement, ± standard error", value))
    return rows


def _distribution(overall: Report) -> ReportTable:
    rows = [(_percent(share), number(value)) for share, value in overall.get("quantiles", ())]
    notes = []
    if overall.get("nan"):
        notes.append(f"over the {overall['count'] - overall['nan']:,} positions that are not NaN")
    if overall.get("infinite"):
        notes.append("infinite ones are the largest")
    return ReportTable("Distribution", ("quantile", "KL"), rows, "; ".join(notes), "distribution")


def _by_position(runs: list[Report], dimensions: Sequence[str]) -> ReportTable:
    some_not_finite = any(map(not_finite, runs))
    rows = [
        (
            f"{run['start']}:{run['stop']}",
            number(run["count"]),
            *([not_finite(run) or "0"] if some_not_finite else []),
            number(finite_mean(run)),
        )
        for run in runs[:_MAX_RUNS]
    ]
    notes = ["means are over the finite positions"] if some_not_finite else []
    notes += _and_more(len(runs) - _MAX_RUNS)
    head = (
        f"along {dimensions[-1] if dimensions else 'the last axis'}",
        "positions",
        *([_NOT_FINITE] if some_not_finite else []),
        "mean KL",
    )
    return ReportTable("KL by position", head, rows, ", ".join(notes), "by_position")


def _groups(groups: list[Report], max_groups: int) -> ReportTable:
    interval, some_not_finite = interval_to_show(groups), any(map(not_finite, groups))
    rows = [
        (
            str(group["group"]),
            number(group["count"]),
            *([not_finite(group) or "0"] if some_not_finite else []),
            plus_minus(finite_mean(group), half_width(group, interval)),
            number(_largest(group)),
            number(group.get("top1_agreement")),
        )
        for group in worst_first(groups)[:max_groups]
    ]
    assumption = "clustered" if interval == CLUSTERED else "if positions are independent"
    order = (
        "those with NaN, then infinite positions first, then the worst"
        if some_not_finite
        else "the worst first"
    )
    note = ", ".join(
        [f"± half a 95 % interval, {assumption}; {order}", *_and_more(len(groups) - max_groups)]
    )
    note += "; means and the largest are over the finite positions" if some_not_finite else ""
    head = (
        "group",
        "positions",
        *([_NOT_FINITE] if some_not_finite else []),
        "mean KL",
        "largest",
        "top-1 agreement",
    )
    return ReportTable("Groups", head, rows, note, "groups")


def _largest(group: Report) -> Any:
    """Return the largest finite divergence; of none, what the largest is."""
    largest = (group.get("finite") or {}).get("max") or {"count": 0}
    return largest["value"] if largest["count"] else group.get("max")


def _worst(report: Report, max_worst: int) -> ReportTable:
    """List positions that are NaN, infinite ones, and the worst of the finite ones."""
    overall, dimensions = report["overall"], dimension_names(report)
    worst = overall.get("worst", ())
    nan = (report["checks"].get("nan") or {"first": []})["first"]
    infinite = [position for position in worst if math.isinf(position["kl"])]
    finite = overall.get("worst_finite", worst)
    rows = [(index_text(index, dimensions), "NaN") for index in nan[:max_worst]]
    rows += [
        (index_text(position["index"], dimensions), number(position["kl"]))
        for position in (*infinite[:max_worst], *finite[:max_worst])
    ]
    counts = not_finite(overall)
    note = f"the first of {counts}, then the largest finite ones" if counts else ""
    return ReportTable("Worst positions", ("position", "KL"), rows, note)


def _checks(checks: Report, dimensions: Sequence[str]) -> ReportTable:
    rows = [
        (
            CHECKS[name].finding,
            number(result["count"]),
            ", ".join(index_text(index, dimensions) for index in result["first"][:3]) or "-",
            number(result.get("largest_deviation")),
        )
        for name, result in checks.items()
    ]
    return ReportTable("Data checks", ("check", "found", "first at", "largest deviation"), rows)


def _labels(labels: Report | None) -> ReportTable:
    if not labels:
        return ReportTable("Labels", (), [])
    finite = labels.get("finite") or {}
    ratio = (finite.get("perplexity_ratio") or {"value": labels["perplexity_ratio"]})["value"]
    errors = {"perplexity_ratio": ratio * labels["log_perplexity_ratio_standard_error"]}
    rows = [
        (label, value_where_finite(labels, name, errors.get(name, math.nan)))
        for name, label in _LABELS.items()
    ]
    rows += [
        (f"change of the label's probability, quantile {_percent(share)}", number(value))
        for share, value in labels.get("p_change_quantiles", ())
    ]
    nan = (finite.get("p_change_mean") or {"nan": 0})["nan"]
    note = f"quantiles are over the {labels['count'] - nan:,} positions that are not NaN"
    return ReportTable("Labels", (), rows, note if nan else "")


def _provenance(provenance: Report) -> ReportTable:
    rows = [
        (
            name.replace("_", " "),
            ", ".join(map(str, value)) if isinstance(value, list) else number(value),
        )
        for name, value in provenance.items()
    ]
    return ReportTable("Provenance", (), rows)


def _percent(share: float) -> str:
    return f"{share * 100:.6g} %"


def _and_more(count: int) -> list[str]:
    return [f"and {count:,} more"] if count > 0 else []
