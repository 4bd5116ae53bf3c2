"""What the text, the page and the charts of an evaluation have in common."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]

CLUSTERED, INDEPENDENT = "confidence_interval_clustered", "confidence_interval"

# The width that a text from the data is cut to where lines break by themselves.
MAX_WIDTH = 300


def display_width(line: str) -> int:
    """Count the columns of a terminal that a line takes; Chinese characters take two."""
    return sum(
        2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in line
    )


def clean(text: object, width: int = MAX_WIDTH) -> str:
    r"""Return `text` on one line, without control characters, its middle cut to fit a `width`.

    Examples
    --------
    >>> clean("two\nlines\x1b[31m", 40)
    'two lines�[31m'
    >>> clean("a/long/path/of/a/file.zarr", 13)
    'a/long…e.zarr'
    """
    line = "".join(c if c.isprintable() else "�" for c in " ".join(str(text).split()))
    fitting, characters_left = line, min(len(line), width)
    while display_width(fitting) > width:
        characters_left -= 1
        at_the_end = characters_left // 2
        fitting = line[: characters_left - at_the_end] + "…" + line[len(line) - at_the_end :]
    return fitting


def finite_mean(statistics: Report) -> float:
    """Return the mean over finite positions; of none, what the mean of all is."""
    mean = float(statistics["mean"])
    mean_of_finite = float(statistics.get("mean_of_finite", math.nan))
    return mean if math.isfinite(mean) or math.isnan(mean_of_finite) else mean_of_finite


def not_finite(statistics: Report) -> str:
    """Say how many positions are NaN and infinite; nothing if none is.

    Examples
    --------
    >>> not_finite({"nan": 1, "infinite": 20})
    '1 NaN, 20 infinite'
    """
    return ", ".join(f"{count:,} {name}" for count, name in _counts_not_finite(statistics))


def positions(statistics: Report) -> str:
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
    count, others = statistics["count"], _counts_not_finite(statistics)
    if not others:
        return _counted(count, "position")
    finite = count - sum(other for other, _ in others)
    counted = (
        _counted(finite, "finite position")
        if finite
        else f"{_counted(count, 'position')}, none of them finite"
    )
    clauses = [f"{other:,} {'is' if other == 1 else 'are'} {name}" for other, name in others]
    return f"{counted}; {', '.join(clauses)}"


def _counts_not_finite(statistics: Report) -> list[tuple[int, str]]:
    counts = (statistics.get("nan", 0), "NaN"), (statistics.get("infinite", 0), "infinite")
    return [(count, name) for count, name in counts if count]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def worst_first(groups: Iterable[Report]) -> list[Report]:
    """Sort groups by their mean, NaN and infinity first, and then by that of finite positions."""

    def rank(group: Report) -> tuple[float, ...]:
        keys = (-group["mean"], -finite_mean(group))
        return tuple(-math.inf if math.isnan(key) else key for key in keys)

    return sorted(groups, key=lambda group: (not math.isnan(group["mean"]), *rank(group)))


def interval_to_show(all_statistics: Iterable[Report]) -> str:
    """Name the interval to show: the clustered one, unless none of the statistics has it."""
    edges = (edge for statistics in all_statistics for edge in statistics.get(CLUSTERED, ()))
    return CLUSTERED if any(map(math.isfinite, edges)) else INDEPENDENT


def dimension_names(report: Report) -> list[str]:
    """Return the names of the axes of the positions, if they have any."""
    names = report["provenance"].get("dims")
    # Evaluations that were merged may differ in them.
    return [clean(name) for name in names] if isinstance(names, list) else []


def index_text(index: Iterable[Any], dimensions: Sequence[str]) -> str:
    """Write the index of a position, or of a region, with the names of dimensions that have any.

    Examples
    --------
    >>> index_text([3, 17], []), index_text(["0:8", "0:40"], ["text", "token"])
    ('[3, 17]', '[text=0:8, token=0:40]')
    """
    if dimensions:
        index = (f"{name}={number}" for name, number in zip(dimensions, index, strict=True))
    return f"[{', '.join(map(str, index))}]"


def region_text(region: Iterable[tuple[int, int]], dimensions: Sequence[str] = ()) -> str:
    """Write where a region starts and stops along each axis."""
    return index_text((f"{start}:{stop}" for start, stop in region), dimensions)
