"""Evaluations as people see them: text, HTML and charts, also of data that want to break them."""

import copy
import math
import re
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from kldiv_dask.report import plots, render
from kldiv_dask.report.headline import headline
from kldiv_dask.report.numbers import number, plus_minus
from kldiv_dask.report.remarks import remarks
from tests.helpers.cases import some_slow
from tests.helpers.reports import (
    HOSTILE,
    NAN,
    REPORTS,
    SKIPPED,
    Tags,
    columns,
    evaluation,
    statistics,
)


@pytest.fixture(params=REPORTS)
def any_report(request: pytest.FixtureRequest) -> dict[str, Any]:
    return copy.deepcopy(REPORTS[request.param])


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


@pytest.mark.parametrize("write", some_slow(render.page, render.fragment))
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
