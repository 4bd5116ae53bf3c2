"""An evaluation for people to read: in a terminal, in a notebook, on a page of its own.

All three say the same, in tables that are made once from the dictionary of `Evaluation.to_dict`.
"""

import functools
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kldiv_dask.report import plots
from kldiv_dask.report.headline import headline
from kldiv_dask.report.remarks import remarks
from kldiv_dask.report.tables import ReportTable, tables
from kldiv_dask.report.wording import Report, clean, display_width

if TYPE_CHECKING:
    from jinja2 import Environment

# In columns: a terminal, one cell of a table, and a value beside its name.
TERMINAL_WIDTH, CELL_WIDTH, VALUE_WIDTH = 100, 50, 56


def text(report: Report) -> str:
    """Write an evaluation for a terminal, in at most 100 columns.

    Parameters
    ----------
    report : dict
        What `Evaluation.to_dict` returns. Statistics that are None or missing are left out.

    Returns
    -------
    str
        Lines of text, without one at the end. Names from the data are free of control characters.

    Examples
    --------
    >>> overall = {"count": 2, "sum": 1.0, "mean": 0.5, "min": 0.25, "max": 0.75}
    >>> report = {"unit": "nats", "shape": [2], "overall": overall, "groups": [],
    ...           "checks": {}, "skipped": [], "provenance": {}}
    >>> print(text(report))
    mean KL 0.5000 nats
    <BLANKLINE>
    Summary
      positions  2
      sum        1.000
      smallest   0.2500
      largest    0.7500
    """
    lines = textwrap.wrap(headline(report), TERMINAL_WIDTH)
    for is_warning, sentence in remarks(report):
        width = TERMINAL_WIDTH - 2
        first, *others = textwrap.wrap(sentence, width, break_on_hyphens=False)
        lines.append(("! " if is_warning else "  ") + clean(first, width))
        lines += ["  " + clean(line, width) for line in others]
    for table in tables(report, max_worst=5, max_groups=20):
        lines += ["", table.title, *_aligned(table)]
    return "\n".join(lines)


def fragment(report: Report) -> str:
    """Return an evaluation as HTML for a notebook: tables in the notebook's own colors.

    Parameters
    ----------
    report : dict
        What `Evaluation.to_dict` returns.

    Returns
    -------
    str
        One ``<div>``, without scripts, colors or anything to load.
    """
    template = _templates().get_template("fragment.html.j2")
    return template.render(
        headline=headline(report),
        remarks=remarks(report),
        tables=tables(report, max_worst=5, max_groups=20),
    )


def page(report: Report) -> str:
    """Return an evaluation as one HTML page with charts, which loads nothing from elsewhere.

    Parameters
    ----------
    report : dict
        What `Evaluation.to_dict` returns.

    Returns
    -------
    str
        The page, the same for the same report and version of Matplotlib. It is light or dark as
        the reader's system is.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    """
    plots.require_matplotlib()
    page_tables = list(tables(report, 20, plots.MAX_GROUPS, for_page=True))
    template = _templates().get_template("page.html.j2")
    return template.render(
        headline=headline(report),
        remarks=remarks(report),
        tables=page_tables,
        charts=_charts(report, page_tables),
    )


def _charts(report: Report, page_tables: list[ReportTable]) -> dict[str, str]:
    """Draw the charts that tables have, as SVG, by their names."""
    drawable = plots.chart_heights(report)
    return {
        table.chart: plots.svg(
            report, table.chart, f"Chart of {table.title.lower()}: {headline(report)}"
        )
        for table in page_tables
        if table.chart in drawable
    }


@functools.cache
def _templates() -> "Environment":
    """Return what makes HTML of the templates; names from the data are escaped in it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kldiv_dask.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clean"] = clean
    return environment


def _aligned(table: ReportTable) -> Iterator[str]:
    """Yield the lines of a table for a terminal, and its note."""
    max_widths = [CELL_WIDTH, *[CELL_WIDTH if table.head else VALUE_WIDTH] * len(table.rows[0])]
    rows = [tuple(map(clean, row, max_widths)) for row in (table.head, *table.rows) if row]
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], TERMINAL_WIDTH - sum(widths[1:]) - 2 * len(widths))
    for row in rows:
        line = ""
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cell = clean(cell, width)
            space = " " * (width - display_width(cell))
            line += "  " + (space + cell if column and table.head else cell + space)
        yield line.rstrip()
    if table.note:
        yield from textwrap.wrap(
            f"({table.note})", TERMINAL_WIDTH, initial_indent="  ", subsequent_indent="  "
        )
