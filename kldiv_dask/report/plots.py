"""Charts of an evaluation: its distribution, its course along the positions, its groups.

Charts take the dictionary of `Evaluation.to_dict` and draw on Matplotlib axes, in the colors that
are set there. The state of pyplot is neither read nor changed.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kldiv_dask.extras import require
from kldiv_dask.report.wording import (
    Report,
    clean,
    dimension_names,
    finite_mean,
    interval_to_show,
    not_finite,
    worst_first,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_GROUPS = 40

# The decades that the distribution shows: what is smaller than rounding errors isn't worth paper.
_DECADES = 12

# Placeholders, which nobody sees, and what a page has in their stead to be light or dark.
_COLORS = {
    "#010203": "currentColor",
    "#010204": "var(--grid, #8884)",
    "#010205": "var(--first, #2a6db0)",
    "#010206": "var(--second, #c2570c)",
}
_INK, _GRID, _FIRST, _SECOND = _COLORS

_STYLE = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": _GRID,
    "svg.fonttype": "none",
    "svg.hashsalt": "kldiv-dask",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def _bins(report: Report) -> list[tuple[float, float, int]]:
    histogram = report["overall"].get("histogram") or {"edges": [], "counts": []}
    edges = histogram["edges"]
    bins = zip(edges, edges[1:], histogram["counts"], strict=False)
    positive = [(low, high, count) for low, high, count in bins if low > 0 and high < math.inf]
    top = max((high for _, high, count in positive if count), default=0.0)
    return [bar for bar in positive if top / 10**_DECADES <= bar[0] < top]


def distribution(report: Report, axes: "Axes") -> None:
    """Draw how many positions have which divergence, on a logarithmic axis.

    Parameters
    ----------
    report : dict
        What `Evaluation.to_dict` returns.
    axes : matplotlib.axes.Axes
        Where to draw. The x axis is in nats and has at most 12 decades; it says how many positions
        are not on it, as zero, negative, infinite ones and NaN never are, and which mark is not.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> histogram = {"edges": [0.01, 0.1, 1.0], "counts": [3, 1]}
    >>> axes = Figure().add_subplot()
    >>> distribution({"overall": {"count": 4, "mean": 0.2, "histogram": histogram}}, axes)
    >>> axes.get_xscale()
    'log'
    """
    overall, bins = report["overall"], _bins(report)
    counts = [count for _, _, count in bins]
    axes.set_xscale("log")
    if bins:
        axes.stairs(counts, [bins[0][0], *(high for _, high, _ in bins)], fill=True, alpha=0.55)
    marks = {
        "median": (dict(overall.get("quantiles", ())).get(0.5), ":"),
        "mean": (finite_mean(overall), "-"),
        "99 %": (dict(overall.get("quantiles", ())).get(0.99), "--"),
    }
    for name, (value, dashes) in marks.items():
        if bins and value is not None and bins[0][0] <= value <= bins[-1][1]:
            axes.axvline(value, color="C1", linestyle=dashes, linewidth=1.4, label=name)
    _legend(axes)
    missing, others = overall["count"] - sum(counts), not_finite(overall)
    note = f"; {missing:,} not on this axis" if missing > 0 else ""
    note += f" ({others})" if others else ""
    note += "".join(f"; {name} is ∞" for name, (value, _) in marks.items() if value == math.inf)
    axes.set(xlabel=f"KL divergence in nats{note}", ylabel="positions")
    axes.grid(axis="y", alpha=0.4)
    axes.set_axisbelow(True)


def by_position(report: Report, axes: "Axes") -> None:
    """Draw the mean divergence along the last axis of the positions.

    Parameters
    ----------
    report : dict
        What `Evaluation.to_dict` returns.
    axes : matplotlib.axes.Axes
        Where to draw. A run of positions is a point at its middle, the mean over its finite ones;
        runs with others are marked at the foot, and where none is finite, the line has a gap.
    """
    runs = report["overall"].get("by_position", [])
    means = [mean if math.isfinite(mean) else math.nan for mean in map(finite_mean, runs)]
    middles = [(run["start"] + run["stop"] - 1) / 2 for run in runs]
    axes.plot(middles, means, marker="o", markersize=3 if len(runs) <= 100 else 1, linewidth=1.2)
    marked = [middle for middle, run in zip(middles, runs, strict=True) if _some_not_finite(run)]
    if marked:
        foot, label = axes.get_xaxis_transform(), "has NaN or infinite positions"
        axes.plot(marked, [0.02] * len(marked), "x", color="C1", transform=foot, label=label)
    mean = finite_mean(report["overall"])
    if math.isfinite(mean):
        axes.axhline(mean, color="C1", linewidth=1.2, label=_mean_label(report))
    _legend(axes)
    along = clean((dimension_names(report) or ["position along the last axis"])[-1], 40)
    axes.set(xlabel=along, ylabel="mean KL in nats")
    if all(not run_mean < 0 for run_mean in means):
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.4)


def _some_not_finite(statistics: Report) -> bool:
    return bool(not_finite(statistics)) or not math.isfinite(statistics["mean"])


def _mean_label(report: Report) -> str:
    which = " of finite positions" if _some_not_finite(report["overall"]) else ""
    return f"overall mean{which}"


def _legend(axes: "Axes") -> None:
    columns = len(axes.get_legend_handles_labels()[0])
    if columns:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, frameon=False)


def groups(report: Report, axes: "Axes") -> None:
    """Draw the means of the groups, the worst on top, with their confidence intervals.

    Parameters
    ----------
    report : dict
        What `Evaluation.to_dict` returns.
    axes : matplotlib.axes.Axes
        Where to draw, at most 40 groups. Means are over finite positions; groups with others come
        first, as hollow points, and say so if no position is finite. Intervals are clustered where
        any group has such an interval.
    """
    drawn = worst_first(report["groups"])[:MAX_GROUPS]
    interval, means = interval_to_show(drawn), [finite_mean(group) for group in drawn]
    for row, group in enumerate(drawn):
        low, high = group.get(interval, (math.nan, math.nan))
        if math.isfinite(low) and math.isfinite(high):
            axes.hlines(row, low, high, color="C0", linewidth=1.6, alpha=0.6)
        if not math.isfinite(means[row]):
            left = axes.get_yaxis_transform()
            axes.text(0.01, row, f"none finite: {not_finite(group)}", transform=left, va="center")
    for hollow in (False, True):
        rows = [row for row, group in enumerate(drawn) if _some_not_finite(group) == hollow]
        points = [means[row] if math.isfinite(means[row]) else math.nan for row in rows]
        # A label with an underscore in front is not in the legend.
        label = "has NaN or infinite positions" if hollow and rows else "_"
        face = "none" if hollow else "C0"
        axes.plot(points, rows, "o", color="C0", markersize=5, mfc=face, label=label)
    mean = finite_mean(report["overall"])
    if math.isfinite(mean):
        axes.axvline(mean, color="C1", linewidth=1.2, label=_mean_label(report))
    _legend(axes)
    labels = [clean(group["group"], 28) for group in drawn]
    # A dollar sign in a name begins no formula.
    axes.set_yticks(range(len(drawn)), labels=labels, parse_math=False)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.4)
    left_out = len(report["groups"]) - len(drawn)
    note = f"; {left_out:,} groups not shown" if left_out else ""
    axes.set_xlabel(f"mean KL in nats{note}")


_DRAW = {"distribution": distribution, "by_position": by_position, "groups": groups}


def chart_heights(report: Report) -> dict[str, float]:
    """Return the charts that `report` has data for, and their heights in inches."""
    runs = report["overall"].get("by_position", [])
    heights = {
        "distribution": 2.9 * bool(_bins(report)),
        "by_position": 2.6 * any(math.isfinite(finite_mean(run)) for run in runs),
    }
    rows = min(len(report["groups"]), MAX_GROUPS)
    drawable = any(math.isfinite(finite_mean(group)) for group in report["groups"])
    heights["groups"] = (0.9 + 0.21 * rows) * drawable
    return {name: height for name, height in heights.items() if height}


def figure(report: Report) -> "Figure":
    """Draw all charts that a report has data for, one below the other.

    Parameters
    ----------
    report : dict
        What `Evaluation.to_dict` returns.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot, so that nothing has to be closed.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    """
    return _figure(report, chart_heights(report))


def svg(report: Report, name: str, label: str) -> str:
    """Return a chart of `chart_heights` as SVG for a page, the same bytes every time.

    Its text has the color of the page's, its other colors are the variables ``--first``,
    ``--second`` and ``--grid``. `label` describes it to those who can't see it.
    """
    require_matplotlib()
    from matplotlib import style

    file = io.StringIO()
    cycle = {"axes.prop_cycle": f"cycler('color', ['{_FIRST}', '{_SECOND}'])"}
    with style.context(["default", _STYLE, cycle]), warnings.catch_warnings():
        # The text is drawn by the browser, with fonts of its own.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        drawing = _figure(report, {name: chart_heights(report)[name]})
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.savefig(file, format="svg", transparent=True, metadata=metadata)
    text = file.getvalue()
    start = f'<svg role="img" aria-label="{html.escape(label)}" '
    body = text[text.index("<svg ") + len("<svg ") :]
    return start + re.sub("<[^>]*>", lambda tag: _for_page(tag[0], name), body)


def _for_page(tag: str, name: str) -> str:
    """Give a tag the colors of the page, and names that no other chart has."""
    for placeholder, color in _COLORS.items():
        tag = tag.replace(placeholder, color)
    return re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", tag)


def _figure(report: Report, charts: Mapping[str, float]) -> "Figure":
    require_matplotlib()
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, sum(charts.values()) or 1), layout="constrained")
    if not charts:
        drawing.text(0.5, 0.5, "There is no finite divergence to draw.", ha="center", va="center")
        return drawing
    rows = drawing.subplots(len(charts), squeeze=False, height_ratios=list(charts.values()))
    for name, axes in zip(charts, rows[:, 0], strict=True):
        _DRAW[name](report, axes)
    return drawing


def require_matplotlib() -> None:
    """Raise an ImportError that says what to install if Matplotlib is not there."""
    require("matplotlib", "plot", "a chart")
