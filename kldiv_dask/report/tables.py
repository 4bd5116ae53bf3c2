"""What of an evaluation is shown, in which words: tables of text, and the headline."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from kldiv_dask.report.wording import (
    CLUSTERED,
    Report,
    basis,
    clean,
    finite_mean,
    names_of,
    not_finite,
    positions,
    worst_first,
)

# What a name from the data is cut to where lines break by themselves.
LONGEST = 300

_MOST_RUNS = 1000

Rows = Sequence[tuple[str, ...]]
Dims = list[str]


class Table(NamedTuple):
    """Rows of text under a title; without a `head`, rows are pairs of a name and a value."""

    title: str
    head: tuple[str, ...]
    rows: Rows
    note: str = ""
    chart: str = ""  # of figures.heights


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
_NOT_FINITE = ("not finite",)

# What each check counts, after "is" or "are", and whether it casts doubt on the figures.
_CHECKS = {
    "nan": ("NaN", True),
    "infinite": ("infinite", True),
    "input_not_normalized": ("not normalized in the input", True),
    "target_not_normalized": ("not normalized in the target", True),
    "input_excludes_classes": ("without some class in the input (probability 0)", False),
    "target_excludes_classes": ("without some class in the target (probability 0)", False),
    "input_constant": ("constant in the input", True),
    "target_constant": ("constant in the target", True),
    "input_resembles_probs": ("like probabilities in the input", True),
    "target_resembles_probs": ("like probabilities in the target", True),
    "input_resembles_log_probs": ("like log-probabilities in the input", True),
    "target_resembles_log_probs": ("like log-probabilities in the target", True),
    "input_out_of_range": ("out of range in the input", True),
    "target_out_of_range": ("out of range in the target", True),
    "input_label_at_floor": (
        "with the label at the floor of the input, whose probability is not known",
        True,
    ),
    "target_label_at_floor": (
        "with the label at the floor of the target, whose probability is not known",
        True,
    ),
}

# What `doubts` says in sentences.
_DOUBTED = ("constant", "resembles_probs", "resembles_log_probs", "out_of_range")


def number(value: Any) -> str:
    """Write a number with four significant digits, whole ones in full.

    Examples
    --------
    >>> [number(value) for value in (640, 0.5, 12345.6, 1.5e-7, float("inf"), None)]
    ['640', '0.5000', '12,346', '1.500e-07', '∞', '-']
    """
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(float(f"{value:.4g}"))
    if size == 0:
        return "0"
    if 1e-4 <= size < 1e7:
        return f"{value:,.0f}" if size >= 1e3 else f"{value:#.4g}"
    return f"{value:.3e}"


def plus_minus(value: float, half: float) -> str:
    """Write a number and its uncertainty with the same decimals.

    Examples
    --------
    >>> plus_minus(0.026821, 0.0056712), plus_minus(1.5e-7, 2.5e-9)
    ('0.02682 ± 0.00567', '(1.500 ± 0.025)e-07')
    """
    if not (math.isfinite(value) and math.isfinite(half) and half > 0):
        return number(value)
    power = math.floor(math.log10(max(abs(value), half)))
    digits = min(max(3, 1 + power - math.floor(math.log10(half))), 9)
    if -4 <= power < 4:
        return f"{value:.{max(digits - power, 0)}f} ± {half:.{max(digits - power, 0)}f}"
    return f"({value / 10.0**power:.{digits}f} ± {half / 10.0**power:.{digits}f})e{power:+03d}"


def headline(report: Report) -> str:
    """Say the mean and how sure it is, and of which positions it is if not of all."""
    overall = report["overall"]
    interval = basis([overall])
    mean, half = finite_mean(overall), _half(overall, interval)
    line = f"mean KL {plus_minus(mean, half)} {report['unit']}"
    if math.isfinite(mean) and math.isfinite(half):
        line += f" (95 % confidence, {_how(report, interval)})"
    return f"{line} over {positions(overall)}" if not_finite(overall) else line


def _how(report: Report, interval: str) -> str:
    """Say what an interval takes as independent."""
    clustering = report.get("clustering") or {"of": "sequences", "each": 1}
    of, each, clusters = clustering["of"], clustering["each"], report["overall"].get("clusters", 0)
    if interval != CLUSTERED or (of == "positions" and each == 1):
        return "if positions are independent, which neighbors seldom are"
    if each == 1:
        return f"clustered by {clusters:,} {of}"
    length = "" if each is None else f"{each:,} "
    return f"clustered by {clusters:,} runs of {length}neighboring {of}"


def missing_chunks(one: Report) -> str:
    """Say how much of a stored array is not there."""
    region = _index((f"{start}:{stop}" for start, stop in one["first"]), [])
    count = one["chunks"]
    chunks = f"{count:,} stored chunks are" if count != 1 else "1 stored chunk is"
    made = (
        ""
        if one.get("whole", True)
        else "; it is not known how much of that counts in what is made of it"
    )
    return (
        f"{one['operand']}: {chunks} not there: never written, or all equal to the fill value "
        f"{number(one['fill'])}, first at {region} of {clean(one['array'], LONGEST)}{made}"
    )


def remarks(report: Report) -> Iterator[tuple[bool, str]]:
    """Yield what the reader must know of the data and of what was skipped, and if it is serious."""
    found = [(name, check) for name, check in report["checks"].items() if check["count"]]
    dims = names_of(report)
    missing = report.get("missing", ())
    doubts = [missing_chunks(one) for one in missing if one["operand"] != "where"]
    doubts += report.get("doubts", ())
    for sentence in doubts:
        yield True, sentence
    # Masks that are False in whole chunks are nothing unusual.
    for one in missing:
        if one["operand"] == "where":
            yield False, missing_chunks(one)
    for name, check in found:
        if name.endswith(_DOUBTED):
            continue
        what, loud = _CHECKS[name]
        one = check["count"] == 1
        line = f"{check['count']:,} {'position is' if one else 'positions are'} {what}"
        if check.get("largest_deviation") is not None:
            line += f" (by up to {number(check['largest_deviation'])})"
        place = _index(check["first"][0], dims) if check["first"] else ""
        yield loud, f"{line}, first at {place}" if place else line
    skipped = report["skipped"]
    if report["checks"] and not found and not skipped and not doubts:
        yield False, "data checks: nothing found"
    for name, what in (("repeated", "repeated"), ("taken_over", "from the checkpoint")):
        if name in report["provenance"]:
            yield False, f"{what}: {report['provenance'][name]}"
    clustering = report.get("clustering")
    if clustering and clustering["of"] == "positions" and (clustering["each"] or 2) > 1:
        yield (
            False,
            "the positions have one axis, so the interval is too narrow if texts are longer than "
            "a run: give positions the axes (text, token)",
        )
    for one in skipped[:10]:
        region = _index((f"{start}:{stop}" for start, stop in one["region"]), dims)
        count = f"{one['positions']:,} positions"
        yield True, f"skipped {region}, {count}: {clean(one['error'], LONGEST)}"
    if skipped[10:]:
        count = sum(one["positions"] for one in skipped[10:])
        yield True, f"skipped {len(skipped) - 10:,} more regions, {count:,} positions"


def tables(report: Report, worst: int, groups: int, everything: bool = False) -> Iterator[Table]:
    """Yield the tables of a report that have rows; pages have `everything`."""
    overall, dims = report["overall"], names_of(report)
    found = [
        Table("Summary", (), _summary(report)),
        _quantiles(overall),
        _by_position(overall.get("by_position", []) if everything else [], dims),
        _groups(report["groups"], groups),
        _worst(report, worst),
        _checks(report["checks"] if everything else {}, dims),
        _labels(overall.get("labels")),
        Table(
            "Provenance",
            (),
            [(k.replace("_", " "), _listed(v)) for k, v in report["provenance"].items()],
        ),
    ]
    return (table for table in found if table.rows)


def _summary(report: Report) -> Rows:
    overall, shape = report["overall"], " by ".join(f"{size:,}" for size in report["shape"])
    names = names_of(report)
    of = f" of {shape}" if len(report["shape"]) > 1 else ""
    of += f" ({', '.join(names)})" if names else ""
    rows = [("positions", f"{overall['count']:,}{of}")]
    others = not_finite(overall)
    rows += [("positions that are not finite", others)] if others else []
    rows += [
        (name, _shown(overall, key) + _CAUTIONS.get(key, ""))
        for key, name in _SUMMARY.items()
        if overall.get(key) is not None
    ]
    agreement, error = overall.get("top1_agreement"), overall.get("top1_agreement_standard_error")
    if agreement is not None:
        shown = plus_minus(agreement, math.nan if error is None else error)
        rows.append(("top-1 agreement, ± standard error", shown))
    return rows


def _shown(statistics: Report, name: str, half: float = math.nan) -> str:
    """Write a number, of the finite positions if others make it NaN or infinite."""
    finite = (statistics.get("finite") or {}).get(name)
    if not finite or not not_finite(finite):
        return plus_minus(statistics[name], half)
    if not finite["count"]:
        return f"{number(statistics[name])} (none is finite)"
    others = " or ".join(["NaN"] * bool(finite["nan"]) + ["∞"] * bool(finite["infinite"]))
    return f"{plus_minus(finite['value'], half)} over {finite['count']:,} finite (others {others})"


def _quantiles(overall: Report) -> Table:
    rows = [(f"{p * 100:.6g} %", number(value)) for p, value in overall.get("quantiles", ())]
    nan, infinite = overall.get("nan", 0), overall.get("infinite", 0)
    notes = [f"over the {overall['count'] - nan:,} positions that are not NaN"] * bool(nan)
    notes += ["infinite ones are the largest"] * bool(infinite)
    return Table("Distribution", ("quantile", "KL"), rows, "; ".join(notes), "distribution")


def _by_position(runs: list[Report], dims: Dims) -> Table:
    others = any(map(not_finite, runs))
    rows = [
        (
            f"{run['start']}:{run['stop']}",
            number(run["count"]),
            *([not_finite(run) or "0"] if others else []),
            number(finite_mean(run)),
        )
        for run in runs[:_MOST_RUNS]
    ]
    along = f"along {dims[-1]}" if dims else "along the last axis"
    note = "means are over the finite positions" if others else ""
    note += _more(len(runs) - _MOST_RUNS, ", " if note else "")
    head = (along, "positions", *_NOT_FINITE[:others], "mean KL")
    return Table("KL by position", head, rows, note, "by_position")


def _groups(groups: list[Report], most: int) -> Table:
    shown, interval = worst_first(groups)[:most], basis(groups)
    others = any(map(not_finite, groups))
    rows = [
        (
            str(group["group"]),
            number(group["count"]),
            *([not_finite(group) or "0"] if others else []),
            plus_minus(finite_mean(group), _half(group, interval)),
            number(_largest(group)),
            number(group.get("top1_agreement")),
        )
        for group in shown
    ]
    how = "clustered" if interval == CLUSTERED else "if positions are independent"
    first = "those with NaN, then infinite positions first, then the worst" if others else ""
    note = f"± half a 95 % interval, {how}; {first or 'the worst first'}"
    note += _more(len(groups) - most, ", ")
    note += "; means and the largest are over the finite positions" if others else ""
    head = ("group", "positions", *_NOT_FINITE[:others], "mean KL", "largest", "top-1 agreement")
    return Table("Groups", head, rows, note, "groups")


def _largest(group: Report) -> Any:
    """Return the largest finite divergence; of none, what the largest is."""
    largest = (group.get("finite") or {}).get("max") or {"count": 0}
    return largest["value"] if largest["count"] else group.get("max")


def _worst(report: Report, most: int) -> Table:
    """List positions that are NaN, infinite ones, and the worst of the finite ones."""
    overall, dims = report["overall"], names_of(report)
    check = report["checks"].get("nan") or {"first": []}
    infinite = [one for one in overall.get("worst", ()) if math.isinf(one["kl"])]
    finite = overall.get("worst_finite", overall.get("worst", ()))
    found = [{"index": index, "kl": math.nan} for index in check["first"][:most]]
    rows = [
        (_index(one["index"], dims), number(one["kl"]))
        for one in (*found, *infinite[:most], *finite[:most])
    ]
    others = not_finite(overall)
    note = f"the first of {others}, then the largest finite ones" if others else ""
    return Table("Worst positions", ("position", "KL"), rows, note)


def _checks(checks: Report, dims: Dims) -> Table:
    rows = [
        (
            _CHECKS[name][0],
            number(check["count"]),
            ", ".join(_index(index, dims) for index in check["first"][:3]) or "-",
            number(check.get("largest_deviation")),
        )
        for name, check in checks.items()
    ]
    return Table("Data checks", ("check", "found", "first at", "largest deviation"), rows)


def _labels(labels: Report | None) -> Table:
    if not labels:
        return Table("Labels", (), [])
    finite = labels.get("finite") or {}
    ratio = (finite.get("perplexity_ratio") or {"value": labels["perplexity_ratio"]})["value"]
    halves = {"perplexity_ratio": ratio * labels["log_perplexity_ratio_standard_error"]}
    rows = [(name, _shown(labels, key, halves.get(key, math.nan))) for key, name in _LABELS.items()]
    changes = labels.get("p_change_quantiles", ())
    name = "change of the label's probability, quantile"
    rows += [(f"{name} {p * 100:.6g} %", number(value)) for p, value in changes]
    nan = (finite.get("p_change_mean") or {"nan": 0})["nan"]
    note = f"quantiles are over the {labels['count'] - nan:,} positions that are not NaN"
    return Table("Labels", (), rows, note if nan else "")


def _half(statistics: Report, interval: str) -> float:
    low, high = statistics.get(interval) or (math.nan, math.nan)
    return float(high - low) / 2


def _index(index: Iterable[Any], dims: Dims) -> str:
    parts = [f"{dim}={place}" for dim, place in zip(dims, index, strict=True)] if dims else index
    return f"[{', '.join(map(str, parts))}]"


def _listed(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else number(value)


def _more(count: int, before: str = "") -> str:
    return f"{before}and {count:,} more" if count > 0 else ""
