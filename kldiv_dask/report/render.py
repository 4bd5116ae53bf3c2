"""An evaluation for people to read: in a terminal, in a notebook, on a page of its own.

All three say the same, in tables that are made once from the dictionary of `Evaluation.to_dict`.
"""

import textwrap
from collections.abc import Iterator
from html import escape
from string import Template

from kldiv_dask.report import plots
from kldiv_dask.report.tables import LONGEST, Table, headline, remarks, tables
from kldiv_dask.report.wording import Report, clean, columns

# Columns, of a terminal, of one cell of a table, and of a value beside its name.
WIDTH, CELL, VALUE = 100, 50, 56


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
    lines = textwrap.wrap(headline(report), WIDTH)
    for loud, remark in remarks(report):
        pieces = textwrap.wrap(remark, WIDTH - 2, break_on_hyphens=False)
        first, *others = (clean(piece, WIDTH - 2) for piece in pieces)
        lines += [("! " if loud else "  ") + first, *("  " + other for other in others)]
    for table in tables(report, worst=5, groups=20):
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
    parts = [f"<p><strong>{escape(headline(report))}</strong></p>", _remarks_html(report)]
    for table in tables(report, worst=5, groups=20):
        shown = " open" if table.title == "Summary" else ""
        title = f"<summary>{escape(table.title)}</summary>"
        parts.append(f"<details{shown}>{title}{_table_html(table)}</details>")
    return '<div class="kldiv-report">' + "".join(parts) + "</div>"


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
    charts = plots.heights(report)
    sections = []
    for table in tables(report, worst=20, groups=plots.MOST_GROUPS, everything=True):
        body = _table_html(table)
        if table.chart:
            shown = " open" if table.chart == "distribution" else ""
            body = f"<details{shown}><summary>Table</summary>{body}</details>"
        if table.chart in charts:
            label = f"Chart of {table.title.lower()}: {headline(report)}"
            chart = plots.svg(report, table.chart, label)
            body = f"<figure>{chart}</figure>\n{body}"
        sections.append(f"<section><h2>{escape(table.title)}</h2>\n{body}</section>")
    return _PAGE.substitute(
        headline=escape(headline(report)),
        remarks=_remarks_html(report),
        sections="\n".join(sections),
    )


def _aligned(table: Table) -> Iterator[str]:
    widest = (CELL, *[CELL if table.head else VALUE] * len(table.rows[0]))
    rows = [tuple(map(clean, row, widest)) for row in (table.head, *table.rows) if row]
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], WIDTH - sum(widths[1:]) - 2 * len(widths))
    for row in rows:
        line = ""
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cell = clean(cell, width)
            space = " " * (width - columns(cell))
            line += "  " + (space + cell if place and table.head else cell + space)
        yield line.rstrip()
    if table.note:
        yield from textwrap.wrap(
            f"({table.note})", WIDTH, initial_indent="  ", subsequent_indent="  "
        )


def _table_html(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    lines = [f"<thead><tr>{head}</tr></thead>"] if head else []
    for name, *cells in table.rows:
        values = "".join(f"<td>{escape(clean(cell, LONGEST))}</td>" for cell in cells)
        name = f'<th scope="row" style="text-align: left">{escape(clean(name, LONGEST))}</th>'
        lines.append(f"<tr>{name}{values}</tr>")
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return "<table>" + "\n".join(lines) + f"</table>{note}"


def _remarks_html(report: Report) -> str:
    lines = [
        f'<p role="alert"><strong>! {escape(line)}</strong></p>'
        if loud
        else f"<p>{escape(line)}</p>"
        for loud, line in remarks(report)
    ]
    return "\n".join(lines)


_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$headline</title>
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #1c2024; --quiet: #59626b; --line: #d9dee3;
  --grid: #8886; --first: #2a6db0; --second: #c2570c; --alarm: #b3261e; --alarm-page: #fdecea; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #15181b; --ink: #e4e7ea;
  --quiet: #9aa4ad; --line: #343a40; --first: #7db4ec; --second: #f2a65a; --alarm: #ffb4ab;
  --alarm-page: #3b1a18; } }
body { margin: 0 auto; max-width: 54rem; padding: 1.5rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.2rem; line-height: 1.3; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p, summary { color: var(--quiet); font-size: .9rem; }
p[role=alert] { background: var(--alarm-page); border-left: .3rem solid var(--alarm);
  color: var(--alarm); margin: .5rem 0; padding: .5rem .8rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem 1.4rem .25rem 0; text-align: left;
  vertical-align: top; }
th { font-weight: 400; } thead th { color: var(--quiet); }
thead ~ tbody td, thead th + th { text-align: right; overflow-wrap: break-word; }
@media (max-width: 40rem) { table { display: block; overflow-x: auto; }
  th, td { padding-right: .5rem; } th:first-child { min-width: 5rem; } }
figure { margin: 0; } svg { height: auto; width: 100%; }
svg text { fill: currentColor; font-family: inherit !important; }
@media print { body { max-width: none; padding: 0; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } details::details-content { content-visibility: visible; } }
</style>
</head>
<body>
<main>
<h1>$headline</h1>
$remarks
$sections
</main>
</body>
</html>
""")
