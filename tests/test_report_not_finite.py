"""Reports of evaluations with positions that are NaN or infinite."""

import contextlib
import io
import math
import re
from typing import Any

import numpy as np
import pytest

from kldiv_dask import Evaluation, evaluate
from kldiv_dask.report import plots, render
from kldiv_dask.report.headline import headline
from kldiv_dask.report.numbers import half_width, number, plus_minus
from kldiv_dask.report.tables import tables
from kldiv_dask.report.wording import CLUSTERED
from tests.helpers.reports import Tags, columns, evaluation, statistics

# Positions that are NaN or infinite


def models() -> tuple[Any, Any, Any]:
    """Draw a student, a teacher and labels; of 6,144 positions 1 is NaN and 20 are infinite."""
    r = np.random.default_rng(0)
    teacher = r.normal(size=(96, 64, 5))
    student = teacher + 0.3 * r.normal(size=teacher.shape)
    student[5, 7] = np.nan
    student[11:30, 3, 2] = student[40, 9, 1] = -np.inf
    return student, teacher, r.integers(0, 5, (96, 64))


@pytest.fixture(scope="module")
def spoilt() -> Evaluation:
    student, teacher, labels = models()
    names = np.tile(np.array(["code", "law", "prose"])[np.arange(96) % 3][:, None], 64)
    names[5, 7], names[40, 9] = "NaN", "∞"  # have no finite position
    return evaluate(student, teacher, groups=names, labels=labels, progress=False)


@pytest.fixture(scope="module")
def sound() -> Evaluation:
    """Evaluate the finite positions alone."""
    student, teacher, labels = models()
    where = np.ones((96, 64), bool)
    where[5, 7] = where[11:30, 3] = where[40, 9] = False
    return evaluate(student, teacher, where=where, labels=labels, progress=False)


OTHERS = "6,123 finite positions; 1 is NaN, 20 are infinite"


def test_what_is_not_finite_blanks_nothing(spoilt: Evaluation, sound: Evaluation) -> None:
    """All is as if it had been left out, and said to be of the other positions."""
    mean = plus_minus(sound.mean, half_width(vars(sound.overall), CLUSTERED))
    expected = f"mean KL {mean} nats (95 % confidence, clustered by 96 sequences) over {OTHERS}"
    assert headline(spoilt.to_dict()) == expected
    assert " ".join(str(spoilt).split()).startswith(expected)
    assert f"<strong>{expected}</strong>" in spoilt._repr_html_()
    assert repr(spoilt) == f"<Evaluation: mean {sound.mean:.6g} nats over {OTHERS}>"
    left, right = str(spoilt), str(sound)
    for name in ("standard error, clustered", "smallest", "sum", "largest"):
        (value,) = re.findall(rf"^  {name} +(\S+)$", right, re.M)
        shown = rf"^  {name} +{re.escape(value)}( over 6,123 finite \(others NaN or ∞\))?$"
        assert re.search(shown, left, re.M), name
    assert re.search(r"^  positions that are not finite +1 NaN, 20 infinite$", left, re.M)
    assert re.search(
        r"^  perplexity, input +\d+\.\d+ over 6,\d+ finite \(others NaN or ∞\)$", left, re.M
    )
    assert "(over the 6,143 positions that are not NaN; infinite ones are the largest)" in left


def test_text_of_what_is_not_finite_fits_a_terminal(spoilt: Evaluation) -> None:
    text = str(spoilt)
    assert max(map(columns, text.split("\n"))) <= 100
    assert re.search(
        r"± standard error +1\.\d+ ± \S+ over 6,\d+ finite \(others NaN or ∞\)$", text, re.M
    )


def test_worst_positions_have_all_kinds(spoilt: Evaluation, sound: Evaluation) -> None:
    (worst,) = (t for t in tables(spoilt.to_dict(), 5, 20) if t.title == "Worst positions")
    finite = [(str(one["index"]), number(one["kl"])) for one in sound.worst[:5]]
    infinite = [(f"[{row}, 3]", "∞") for row in range(11, 16)]
    assert worst.rows == [("[5, 7]", "NaN"), *infinite, *finite]
    assert worst.note == "the first of 1 NaN, 20 infinite, then the largest finite ones"


def test_groups_that_are_not_finite_are_shown_first(spoilt: Evaluation) -> None:
    (groups,) = (t for t in tables(spoilt.to_dict(), 5, 20) if t.title == "Groups")
    assert groups.head[2] == "not finite"
    rows = {row[0]: row[1:4] for row in groups.rows}
    assert list(rows)[:2] == ["NaN", "∞"]
    assert rows["NaN"] == ("1", "1 NaN", "NaN")
    assert rows["∞"] == ("1", "1 infinite", "∞")
    assert sorted(rows[name][1] for name in ("code", "law", "prose")) == ["6 infinite"] * 2 + [
        "7 infinite"
    ]
    assert all("±" in rows[name][2] for name in ("code", "law", "prose"))


def test_charts_mark_what_is_not_finite(spoilt: Evaluation) -> None:
    from matplotlib.figure import Figure

    whole = spoilt.to_dict()
    axes = [Figure().add_subplot() for _ in range(3)]
    plots.distribution(whole, axes[0])
    assert "; 21 not on this axis (1 NaN, 20 infinite)" in axes[0].get_xlabel()
    assert "mean" in [text.get_text() for text in axes[0].get_legend().get_texts()]
    plots.by_position(whole, axes[1])
    line, odd, *_ = axes[1].get_lines()
    assert np.isfinite(line.get_ydata()).all()
    assert odd.get_xdata().tolist() == [3, 7, 9]
    plots.groups(whole, axes[2])
    names = [label.get_text() for label in axes[2].get_yticklabels()]
    assert names[:2] == ["NaN", "∞"]
    assert len(names) == 5
    notes = [text.get_text() for text in axes[2].texts]
    assert notes == ["none finite: 1 NaN", "none finite: 1 infinite"]
    for panel in axes[1:]:
        legend = [text.get_text() for text in panel.get_legend().get_texts()]
        assert legend == ["has NaN or infinite positions", "overall mean of finite positions"]


def test_quantiles_that_are_infinite_are_named_below_the_chart() -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    quantiles = [[0.5, 0.01], [0.99, math.inf]]
    whole = evaluation(overall=statistics(count=660, infinite=20, quantiles=quantiles))
    plots.distribution(whole, axes)
    assert axes.get_xlabel().endswith("; 20 not on this axis (20 infinite); 99 % is ∞")


def test_pages_say_the_same(spoilt: Evaluation) -> None:
    page = render.page(spoilt.to_dict())
    text = Tags(page).text
    assert f"<title>{headline(spoilt.to_dict())}</title>" in page
    assert "means are over the finite positions" in text
    assert "none finite: 1 NaN" in text
    assert "has NaN or infinite positions" in text


@pytest.mark.filterwarnings("ignore:input and target are equal", "ignore:the divergence is NaN")
def test_the_progress_line_counts_what_is_not_finite() -> None:
    file = io.StringIO()
    with contextlib.redirect_stderr(file):
        evaluate(*np.full((2, 3, 4, 5), np.nan), progress=True)
    assert re.search(r"positions/s, 12 NaN *\n$", file.getvalue())
    x, t = np.random.default_rng(0).normal(size=(2, 20, 4, 5))
    x[3, 1], x[5, :2, 0] = np.nan, -np.inf
    file = io.StringIO()
    with contextlib.redirect_stderr(file):
        evaluate(x, t, progress=True)
    assert re.search(r"mean \d\.\d+ ± \S+ nats, 1 NaN, 2 infinite *\n$", file.getvalue())
