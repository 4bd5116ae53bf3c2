"""Evaluations as people see them: text, HTML and charts, also of data that want to break them."""

import contextlib
import copy
import io
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from kldiv_dask import Evaluation, evaluate
from kldiv_dask.report import plots, render
from kldiv_dask.report.headline import headline
from kldiv_dask.report.numbers import half_width, number, plus_minus
from kldiv_dask.report.remarks import remarks
from kldiv_dask.report.tables import tables
from kldiv_dask.report.wording import CLUSTERED

NAN = math.nan
PROBABILITIES = (0.001, 0.01, 0.25, 0.5, 0.75, 0.99, 0.999)
HOSTILE = [
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "$\\frac{$ and ${headline} $headline",
    "汉字文本识别" * 20,
    "\x1b[31mred\x07\ntwo lines\u202e",
    "a" * 5000,
    '#010203 id="chart',
    7,
    "",
]


def statistics(scale: float = 1.0, **changes: Any) -> dict[str, Any]:
    values = scale * np.geomspace(1e-4, 2.0, 640)
    mean, edges = float(values.mean()), scale * np.geomspace(0.9e-4, 2.1, 21)
    return {
        "count": 640,
        "sum": float(values.sum()),
        "mean": mean,
        "mean_of_finite": mean,
        "standard_error": mean / 20,
        "confidence_interval": [mean * 0.9, mean * 1.1],
        "standard_error_clustered": mean / 10,
        "confidence_interval_clustered": [mean * 0.8, mean * 1.2],
        "clusters": 16,
        "min": float(values[0]),
        "max": float(values[-1]),
        "quantiles": [[p, float(np.quantile(values, p))] for p in PROBABILITIES],
        "histogram": {
            "edges": edges.tolist(),
            "counts": np.histogram(values, edges)[0].tolist(),
        },
        "worst": [{"index": [i, 24], "kl": float(values[-1 - i])} for i in range(20)],
        "top1_agreement": 0.9578,
        "top1_agreement_standard_error": 0.0079,
        "reverse_kl": 0.03125,
        "jensen_shannon": 0.0078125,
        "by_position": [
            {"start": i, "stop": i + 1, "count": 16, "mean": 1 / (i + 3)} for i in range(40)
        ],
        "labels": None,
        **changes,
    }


def evaluation(names: Any = ("news", "code", "prose"), **changes: Any) -> dict[str, Any]:
    checks = ("nan", "infinite", "input_excludes_classes", "target_excludes_classes")
    return {
        "schema": 1,
        "kind": "logits",
        "unit": "nats",
        "shape": [16, 40],
        "overall": statistics(),
        "groups": [{"group": name, **statistics(1 + i)} for i, name in enumerate(names)],
        "checks": {name: {"count": 0, "first": []} for name in checks},
        "skipped": [],
        "provenance": {"input": "model.zarr", "classes": 6625, "seconds": 12.3456},
        **changes,
    }


def labels() -> dict[str, Any]:
    return {
        "count": 600,
        "nll_input": 1.25,
        "nll_target": 1.2,
        "perplexity_input": math.exp(1.25),
        "perplexity_target": math.exp(1.2),
        "perplexity_ratio": math.exp(0.05),
        "log_perplexity_ratio_standard_error": 0.004,
        "p_change_mean": -0.00234,
        "p_change_rms": 0.0345,
        "p_change_quantiles": [[0.01, -0.125], [0.5, -1e-5], [0.99, 0.0625]],
    }


def all_nan() -> dict[str, Any]:
    whole = evaluation()
    for one in (whole["overall"], *whole["groups"]):
        for name, value in one.items():
            if isinstance(value, float):
                one[name] = NAN
        one["confidence_interval"] = one["confidence_interval_clustered"] = [NAN, NAN]
        one["quantiles"] = [[p, NAN] for p in PROBABILITIES]
        one |= {"histogram": {"edges": [], "counts": []}, "worst": []}
        for run in one["by_position"]:
            run["mean"] = NAN
    whole["checks"]["nan"] = {"count": 640, "first": [[0, 0], [0, 1]]}
    return whole


SKIPPED = [
    {"region": [[0, 8], [i, 40]], "positions": 320, "error": "<b>gone</b>\n" + "x" * 400}
    for i in range(13)
]

REPORTS = {
    "usual": evaluation(),
    "labels": evaluation(overall=statistics(labels=labels())),
    "no groups": evaluation(names=()),
    "many groups": evaluation(names=range(200)),
    "no positions": evaluation(overall=statistics(by_position=[])),
    "all NaN": all_nan(),
    "hostile": evaluation(names=HOSTILE, skipped=SKIPPED, provenance={"input": HOSTILE[0] * 50}),
    "tiny": evaluation(overall=statistics(1e-9), shape=[640]),
    "huge": evaluation(overall=statistics(1e12), names=[]),
}


@pytest.fixture(params=REPORTS)
def any_report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return copy.deepcopy(REPORTS[request.param])


class Tags(HTMLParser):
    """Tags that are closed as they were opened, and their attributes."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def columns(line: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (0.0, "0"),
        (-0.0, "0"),
        (6625, "6,625"),
        (True, "True"),
        (0.026819, "0.02682"),
        (0.5, "0.5000"),
        (999.96, "1,000"),
        (1234.5678, "1,235"),
        (0.0000999999, "0.0001000"),
        (9.87654e-5, "9.877e-05"),
        (-0.25, "-0.2500"),
        (12345678.0, "1.235e+07"),
        (NAN, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
        (None, "-"),
    ],
)
def test_number(value: Any, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (0.026821, 0.0056712, "0.02682 ± 0.00567"),
        (1.0352, 0.00000123, "1.0352000 ± 0.0000012"),
        (0.001, 0.5, "0.0010 ± 0.5000"),
        (0.0, 0.25, "0.0000 ± 0.2500"),
        (123.456, 7.0, "123.5 ± 7.0"),
        (2.5e-9, 1e-10, "(2.500 ± 0.100)e-09"),
        (0.5, NAN, "0.5000"),
        (0.5, 0.0, "0.5000"),
        (NAN, 0.1, "NaN"),
        (1.0, 1e-300, "1.000000000 ± 0.000000000"),
    ],
)
def test_plus_minus(value: float, half: float, expected: str) -> None:
    assert plus_minus(value, half) == expected


def test_headline_names_its_interval() -> None:
    one = statistics(mean=0.026821, confidence_interval_clustered=[0.021151, 0.032491])
    expected = "mean KL 0.02682 ± 0.00567 nats (95 % confidence, clustered by 16 sequences)"
    assert headline(evaluation(overall=one)) == expected
    one |= {"confidence_interval_clustered": [NAN, NAN], "confidence_interval": [0.02, 0.04]}
    expected = "mean KL 0.02682 ± 0.01000 nats (95 % confidence, if positions "
    expected += "are independent, which neighbors seldom are)"
    assert headline(evaluation(overall=one)) == expected
    one |= {"confidence_interval": [NAN, NAN]}
    assert headline(evaluation(overall=one)) == "mean KL 0.02682 nats"
    one |= {"mean": math.inf, "infinite": 3}
    expected = "mean KL 0.2032 nats over 637 finite positions; 3 are infinite"
    assert headline(evaluation(overall=one)) == expected
    one |= {"mean_of_finite": NAN, "infinite": 640}
    expected = "mean KL ∞ nats over 640 positions, none of them finite; 640 are infinite"
    assert headline(evaluation(overall=one)) == expected


def test_text_fits_a_terminal(any_report: dict[str, Any]) -> None:
    lines = render.text(any_report).split("\n")
    assert " ".join(lines).startswith(headline(any_report))
    assert max(map(columns, lines)) <= 100
    assert all(line.isprintable() and line == line.rstrip() for line in lines)


def test_columns_are_aligned_also_under_chinese_names() -> None:
    lines = render.text(evaluation(names=HOSTILE)).split("\n")
    start = lines.index("Groups") + 1
    table = lines[start : start + 1 + len(HOSTILE)]
    assert len({columns(line) for line in table}) == 1
    assert "�[31mred� two lines�" in "\n".join(table)


def test_groups_are_sorted_and_cut() -> None:
    whole = evaluation(names=[f"group{i}" for i in range(200)])
    whole["groups"][5]["mean"], whole["groups"][6]["mean"] = NAN, math.inf
    names = re.findall(r"^  (group\d+)", render.text(whole), re.M)
    assert names == ["group5", "group6", *(f"group{i}" for i in range(199, 181, -1))]
    assert "and 180 more" in render.text(whole)
    assert "and 160 more" in render.page(whole)


def test_groups_of_single_sequences_say_that_positions_are_taken_as_independent() -> None:
    whole = evaluation()
    assert "95 % interval, clustered" in render.text(whole)
    for group in whole["groups"][1:]:
        group["confidence_interval_clustered"] = [NAN, NAN]
    # Half of the groups with intervals that are too narrow would mislead.
    assert re.search(r"^  prose +640 +0\.\d+ +", render.text(whole), re.M)
    whole["groups"][0]["confidence_interval_clustered"] = [NAN, NAN]
    assert "95 % interval, if positions are independent" in render.text(whole)
    assert re.search(r"^  prose +640 +0\.\d+ ± ", render.text(whole), re.M)


def test_remarks_are_loud_where_figures_are_in_doubt() -> None:
    whole = evaluation()
    assert list(remarks(whole)) == [(False, "data checks: nothing found")]
    whole["checks"]["nan"] = {"count": 3, "first": [[0, 24], [1, 3]]}
    whole["checks"]["input_excludes_classes"] = {"count": 1200, "first": [[5, 6]]}
    found = {"count": 1, "first": [[9, 9]], "largest_deviation": 0.0123}
    whole["checks"]["target_not_normalized"] = found
    whole["skipped"] = SKIPPED
    lines = render.text(whole).split("\n")
    assert lines[1] == "! 3 positions are NaN, first at [0, 24]"
    assert lines[2].startswith("  1,200 positions are without some class in the input")
    expected = "! 1 position is not normalized in the target (by up to 0.01230), first at [9, 9]"
    assert lines[3] == expected
    assert lines[4].startswith("! skipped [0:8, 0:40], 320 positions: <b>gone</b> xxx")
    assert "! skipped 3 more regions, 960 positions" in lines
    assert "nothing found" not in render.text(whole)
    html = Tags(render.page(whole))
    assert len([tag for tag, attributes in html.seen if attributes.get("role") == "alert"]) == 13
    assert "b" not in dict(html.seen)


def test_labels_have_a_section_where_there_are_some() -> None:
    assert "Labels" not in render.text(REPORTS["usual"])
    shown = render.text(REPORTS["labels"])
    assert re.search(
        r"perplexity, input to target, ± standard error +1\.0513 ± 0\.0042$", shown, re.M
    )
    assert re.search(r"quantile 1 % +-0\.1250$", shown, re.M)


@pytest.mark.parametrize("write", [render.fragment, render.page])
def test_html_is_closed_and_loads_nothing(write: Any, any_report: dict[str, Any]) -> None:
    html = Tags(write(any_report))
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in html.seen)
    for _, attributes in html.seen:
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        links = [attributes[name] for name in attributes if name.endswith("href")]
        assert all(link is not None and link.startswith("#") for link in links)
    ids = [attributes["id"] for _, attributes in html.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert headline(any_report) in html.text
    charts = [attributes for tag, attributes in html.seen if tag == "svg"]
    assert len(charts) == (len(plots.chart_heights(any_report)) if write is render.page else 0)
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)


def test_hostile_names_are_shown_as_they_are() -> None:
    for write in (render.fragment, render.page):
        text = Tags(write(REPORTS["hostile"])).text
        for name in (*HOSTILE[:4], HOSTILE[6]):
            assert str(name) in text
    chart = plots.svg(evaluation(names=[HOSTILE[0], HOSTILE[6]]), "groups", '"<&')
    tree = ElementTree.fromstring(chart)  # noqa: S314
    assert {HOSTILE[0], HOSTILE[6]} <= {"".join(one.itertext()) for one in tree.iter()}
    assert tree.get("aria-label") == '"<&'


def test_page_is_the_same_every_time_whatever_the_style() -> None:
    import matplotlib

    first = render.page(REPORTS["usual"])
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "svg.hashsalt": None}):
        assert render.page(copy.deepcopy(REPORTS["usual"])) == first
    assert len(re.findall("<svg ", first)) == 3
    assert not re.search("#01020[3-6]", first)
    assert "<dc:date>" not in first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("usual", ["distribution", "by_position", "groups"]),
        ("no groups", ["distribution", "by_position"]),
        ("no positions", ["distribution", "groups"]),
        ("all NaN", []),
    ],
)
def test_figure_has_the_panels_that_apply(name: str, expected: list[str]) -> None:
    whole = REPORTS[name]
    assert list(plots.chart_heights(whole)) == expected
    assert len(plots.figure(whole).axes) == len(expected)


@pytest.mark.parametrize("name", ["distribution", "by_position", "groups"])
def test_panels_draw_any_report_on_given_axes(name: str, any_report: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    drawing = Figure()
    getattr(plots, name)(any_report, drawing.add_subplot())
    assert drawing.axes[0].get_xlabel()


def test_distribution_tells_what_it_leaves_out() -> None:
    from matplotlib.figure import Figure

    histogram = {"edges": [0.0, 1e-30, 1e-3, 1e-2, 1.0, math.inf], "counts": [5, 4, 3, 2, 1]}
    axes = Figure().add_subplot()
    whole = evaluation(overall=statistics(count=20, histogram=histogram))
    plots.distribution(whole, axes)
    # 5 + 4 are below the 12 decades and 1 above all numbers; 5 are in no bin.
    assert axes.get_xlabel() == "KL divergence in nats; 15 not on this axis"
    assert axes.patches[0].get_data().values.tolist() == [3, 2]


def test_groups_draws_the_worst_on_top_with_their_intervals() -> None:
    from matplotlib.figure import Figure

    whole = evaluation(names=range(50))
    whole["groups"][49]["confidence_interval_clustered"] = [NAN, NAN]
    axes = Figure().add_subplot()
    plots.groups(whole, axes)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["49", "48"]
    assert axes.yaxis_inverted()
    spans = [span.get_segments()[0][:, 0].tolist() for span in axes.collections]
    assert len(spans) == 39
    assert spans[0] == whole["groups"][48]["confidence_interval_clustered"]
    assert axes.get_xlabel() == "mean KL in nats; 10 groups not shown"


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
    assert re.search(r"left, 12 NaN *\n$", file.getvalue())
    x, t = np.random.default_rng(0).normal(size=(2, 20, 4, 5))
    x[3, 1], x[5, :2, 0] = np.nan, -np.inf
    file = io.StringIO()
    with contextlib.redirect_stderr(file):
        evaluate(x, t, progress=True)
    assert re.search(r"mean \d\.\d+ ± \S+ nats, 1 NaN, 2 infinite *\n$", file.getvalue())


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for write in (render.page, plots.figure):
        with pytest.raises(
            ImportError,
            match=r'^a chart needs the package matplotlib: pip install "kldiv-dask\[plot\]"',
        ):
            write(REPORTS["usual"])
    assert "mean KL" in render.text(REPORTS["usual"])
    assert "mean KL" in render.fragment(REPORTS["usual"])


# Each statistic is shown, or it is said why not

# Where statistics are in what `Evaluation.to_dict` returns: overall and in a group, in a run of
# positions, of labels, and in checks. The group and the run have positions that are not finite.
PLACES: list[tuple[Any, ...]] = [
    ("overall",),
    ("overall", "finite"),
    ("overall", "by_position", 7),
    ("overall", "labels"),
    ("overall", "labels", "finite"),
    ("groups", 1),
    ("checks",),
    ("checks", "nan"),
    ("checks", "input_not_normalized"),
]

NOT_IN_A_ROW = "a group is one row, of its size, mean, interval, largest and top-1 agreement"

HIDDEN = {
    ("overall", "confidence_interval"): "the clustered one is shown, where there is one",
    ("overall", "checks"): "`checks` beside it has the same counts, and where they are",
    ("groups", 1, "sum"): NOT_IN_A_ROW,
    ("groups", 1, "standard_error"): NOT_IN_A_ROW,
    ("groups", 1, "standard_error_clustered"): NOT_IN_A_ROW,
    ("groups", 1, "confidence_interval"): "the clustered one is shown, where there is one",
    ("groups", 1, "clusters"): NOT_IN_A_ROW,
    ("groups", 1, "min"): NOT_IN_A_ROW,
    ("groups", 1, "max"): "the largest finite one is shown, where there is one",
    ("groups", 1, "quantiles"): NOT_IN_A_ROW,
    ("groups", 1, "histogram"): NOT_IN_A_ROW,
    ("groups", 1, "worst"): "the worst positions are those of all groups",
    ("groups", 1, "worst_finite"): "the worst positions are those of all groups",
    ("groups", 1, "top1_agreement_standard_error"): NOT_IN_A_ROW,
    ("groups", 1, "reverse_kl"): NOT_IN_A_ROW,
    ("groups", 1, "jensen_shannon"): NOT_IN_A_ROW,
    ("groups", 1, "by_position"): NOT_IN_A_ROW,
    ("groups", 1, "checks"): "the checks are those of all groups",
    ("groups", 1, "labels"): NOT_IN_A_ROW,
}


@pytest.fixture(scope="module")
def evaluations() -> list[dict[str, Any]]:
    """Evaluate logits, logits that are not all finite, and probabilities that don't all sum to 1.

    All have groups, labels, a mask and two axes of positions.
    """
    r = np.random.default_rng(1)
    teacher = r.normal(size=(12, 9, 5))
    student = teacher + 0.3 * r.normal(size=teacher.shape)
    spoilt, where = student.copy(), r.random((12, 9)) < 0.9
    spoilt[5, 7], spoilt[6, 7, 1] = np.nan, -np.inf
    where[5:7] = True
    arguments = {
        "groups": np.repeat(np.arange(3), 36).reshape(12, 9),
        "labels": r.integers(0, 5, (12, 9)),
        "where": where,
        "progress": False,
    }
    probs, others = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (student, teacher))
    probs[5, 7] *= 1.01
    return [
        evaluate(student, teacher, **arguments).to_dict(),
        evaluate(spoilt, teacher, **arguments).to_dict(),
        evaluate(probs, others, kind="probs", **arguments).to_dict(),
    ]


def changed(value: Any) -> Any:
    """Return something of the same form with other numbers."""
    if isinstance(value, dict):
        return {name: changed(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [changed(item) for item in value]
    if isinstance(value, int):
        return value + 1
    assert isinstance(value, float)
    return 1.25 * value + 0.125 if math.isfinite(value) else 0.125


def with_changes(whole: dict[str, Any], *paths: tuple[Any, ...]) -> dict[str, Any]:
    """Return an evaluation in which other numbers are at some paths, where it has them."""
    whole = copy.deepcopy(whole)
    for *place, name in paths:
        holder = at(whole, place)
        if name in holder:
            holder[name] = changed(holder[name])
    return whole


def at(whole: dict[str, Any], place: Sequence[Any]) -> Any:
    for name in place:
        whole = whole.get(name, {}) if isinstance(whole, dict) else whole[name]
    return whole


def written(whole: dict[str, Any]) -> tuple[Any, ...]:
    """Return the words of the text and of the page, which take no time."""
    return render.text(whole), *tables(whole, 20, 40, for_page=True)


def test_each_statistic_is_shown_or_said_to_be_hidden(evaluations: list[dict[str, Any]]) -> None:
    paths = {(*place, name) for one in evaluations for place in PLACES for name in at(one, place)}
    assert len(paths) > 100
    assert sorted(set(HIDDEN) - paths) == [], "hidden statistics that are not there"
    pages = [render.page(one) for one in evaluations]
    words = [written(one) for one in evaluations]
    unseen = [
        path
        for path in paths - set(HIDDEN)
        if words == [written(with_changes(one, path)) for one in evaluations]
        and pages == [render.page(with_changes(one, path)) for one in evaluations]
    ]
    assert unseen == [], "shown nowhere, and not said to be hidden"
    seen = [
        path
        for path in HIDDEN
        if words != [written(with_changes(one, path)) for one in evaluations]
    ]
    assert seen == [], "said to be hidden, but shown"
    assert pages == [render.page(with_changes(one, *HIDDEN)) for one in evaluations]
