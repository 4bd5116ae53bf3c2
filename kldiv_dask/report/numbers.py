"""How numbers and their uncertainties are written."""

import math
from typing import Any

from kldiv_dask.report.wording import Report, not_finite


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


def plus_minus(value: float, uncertainty: float) -> str:
    """Write a number and its uncertainty with the same decimals.

    Examples
    --------
    >>> plus_minus(0.026821, 0.0056712), plus_minus(1.5e-7, 2.5e-9)
    ('0.02682 ± 0.00567', '(1.500 ± 0.025)e-07')
    """
    if not (math.isfinite(value) and math.isfinite(uncertainty) and uncertainty > 0):
        return number(value)
    power = math.floor(math.log10(max(abs(value), uncertainty)))
    digits = min(max(3, 1 + power - math.floor(math.log10(uncertainty))), 9)
    if -4 <= power < 4:
        decimals = max(digits - power, 0)
        return f"{value:.{decimals}f} ± {uncertainty:.{decimals}f}"
    scale = 10.0**power
    return f"({value / scale:.{digits}f} ± {uncertainty / scale:.{digits}f})e{power:+03d}"


def half_width(statistics: Report, interval: str) -> float:
    """Return half the width of the interval with a given name; NaN if there is none."""
    low, high = statistics.get(interval) or (math.nan, math.nan)
    return float(high - low) / 2


def value_where_finite(statistics: Report, name: str, uncertainty: float = math.nan) -> str:
    """Write a statistic, of the finite positions if others make it NaN or infinite."""
    finite = (statistics.get("finite") or {}).get(name)
    if not finite or not not_finite(finite):
        return plus_minus(statistics[name], uncertainty)
    if not finite["count"]:
        return f"{number(statistics[name])} (none is finite)"
    others = " or ".join(["NaN"] * bool(finite["nan"]) + ["∞"] * bool(finite["infinite"]))
    value = plus_minus(finite["value"], uncertainty)
    return f"{value} over {finite['count']:,} finite (others {others})"
