"""What the text, the page and the charts of an evaluation have in common."""

import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

Report = Mapping[str, Any]

CLUSTERED, INDEPENDENT = "confidence_interval_clustered", "confidence_interval"


def columns(line: str) -> int:
    """Count the columns of a terminal that a line takes; Chinese characters take two."""
    return sum(
        2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in line
    )


def clean(text: object, width: int) -> str:
    r"""Return `text` on one line, without control characters, its middle cut to fit a `width`.

    Examples
    --------
    >>> clean("two\nlines\x1b[31m", 40)
    'two lines�[31m'
    >>> clean("a/long/path/of/a/file.zarr", 13)
    'a/long…e.zarr'
    """
    line = "".join(c if c.isprintable() else "�" for c in " ".join(str(text).split()))
    short, kept = line, min(len(line), width)
    while columns(short) > width:
        kept -= 1
        short = line[: kept - kept // 2] + "…" + line[len(line) - kept // 2 :]
    return short


def finite_mean(one: Report) -> float:
    """Return the mean over finite positions; of none, what the mean of all is."""
    mean, finite = float(one["mean"]), float(one.get("mean_of_finite", math.nan))
    return mean if math.isfinite(mean) or math.isnan(finite) else finite


def not_finite(one: Report) -> str:
    """Say how many positions are NaN and infinite; nothing if none is.

    Examples
    --------
    >>> not_finite({"nan": 1, "infinite": 20})
    '1 NaN, 20 infinite'
    """
    counts = (one.get("nan", 0), "NaN"), (one.get("infinite", 0), "infinite")
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)


def positions(one: Report) -> str:
    """Say how many positions there are, finite and other.

    Examples
    --------
    >>> positions({"count": 6144, "nan": 1, "infinite": 20})
    '6,123 finite positions; 1 is NaN, 20 are infinite'
    >>> positions({"count": 2, "nan": 2})
    '2 positions, none of them finite; 2 are NaN'
    >>> positions({"count": 1})
    '1 position'
    """
    nan, infinite = one.get("nan", 0), one.get("infinite", 0)
    finite = one["count"] - nan - infinite
    if not nan and not infinite:
        return _counted(finite, "position")
    others = ((nan, "NaN"), (infinite, "infinite"))
    found = [f"{n:,} {'is' if n == 1 else 'are'} {what}" for n, what in others if n]
    none = f"{_counted(one['count'], 'position')}, none of them finite"
    return f"{_counted(finite, 'finite position') if finite else none}; {', '.join(found)}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def worst_first(groups: Iterable[Report]) -> list[Report]:
    """Sort groups by their mean, NaN and infinity first, and then by that of finite positions."""

    def rank(group: Report) -> tuple[float, ...]:
        keys = (-group["mean"], -finite_mean(group))
        return tuple(-math.inf if math.isnan(key) else key for key in keys)

    return sorted(groups, key=lambda group: (not math.isnan(group["mean"]), *rank(group)))


def basis(statistics: Iterable[Report]) -> str:
    """Name the interval to show: the clustered one, unless none of the statistics has it."""
    known = any(math.isfinite(edge) for one in statistics for edge in one.get(CLUSTERED, ()))
    return CLUSTERED if known else INDEPENDENT


def names_of(report: Report) -> list[str]:
    """Return the names of the axes of the positions, if they have any."""
    names = report["provenance"].get("dims")
    # Evaluations that were merged may differ in them.
    return names if isinstance(names, list) else []
