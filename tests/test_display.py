"""What is seen of a computation before, while and after it runs."""

import ast
import io
import re
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from dask.diagnostics import ProgressBar
from dask.utils import key_split
from distributed import performance_report, progress

import kldiv_dask
from kldiv_dask import (
    KLDivSummary,
    evaluate,
    kl_div,
    kl_div_summary,
    kl_div_with_logits,
    kl_div_with_logits_summary,
    open_pair,
)
from tests.test_operands import EXPRESSIONS, filtered, without_expressions

SHAPE = (16, 6)
VALUES = np.random.default_rng(0).random((2, *SHAPE)) * [[[-1]], [[1]]]

# Summaries

FIELDS = "sum, mean, batchmean, numel, batch_size, nan_count, posinf_count, neginf_count"


def in_memory(chunks=(2, 6), dtypes=("f8", "f8")):
    return [da.from_array(v.astype(d), chunks=chunks) for v, d in zip(VALUES, dtypes, strict=True)]


@pytest.mark.parametrize("summary", [kl_div_summary, kl_div_with_logits_summary])
@pytest.mark.parametrize(
    ("chunks", "dtypes", "wanted"),
    [
        ((2, 6), ("f8", "f8"), "of float64, lazy: 8 pairs of chunks, 1.50 kiB to read"),
        ((4, 6), ("f4", "f4"), "of float32, lazy: 4 pairs of chunks, 768 B to read"),
        ((16, 6), ("f2", "f8"), "of float64, lazy: 1 pair of chunks, 0.94 kiB to read"),
    ],
)
def test_lazy_summaries_say_what_they_cost(summary, chunks, dtypes, wanted):
    lazy = summary(*in_memory(chunks, dtypes))
    assert repr(lazy) == str(lazy) == f"KLDivSummary {wanted}; compute() gives {FIELDS}"
    assert lazy._repr_html_() == f"<p>{lazy!r}</p>"


def test_the_cost_of_large_arrays():
    x, t = (da.zeros((2**20, 2**13), chunks=(2**10, 2**13), dtype="f4") for _ in range(2))
    assert "1,024 pairs of chunks, 64.00 GiB to read" in repr(kl_div_summary(x, t))
    # what is computed in a narrower type is still read in its own
    assert "96.00 GiB" in repr(kl_div_summary(x, t.astype("f8"), dtype="float32"))


@without_expressions
def test_unknown_costs():
    x, t = VALUES
    lazy = kl_div_summary(*(filtered(array, [0, 2, 5]) for array in (x, t)))
    assert "an unknown amount to read" in repr(lazy)


def test_computed_summaries():
    x, t = (np.repeat(array, 100, axis=0) for array in VALUES)
    x[0] = np.nan
    found = kl_div_summary(x, t).compute()
    rows = re.findall(r"<tr><th scope='row'>(\w+)</th><td>(.*?)</td></tr>", found._repr_html_())
    assert [name for name, _ in rows] == FIELDS.split(", ")
    shown = dict(rows)
    assert (shown["sum"], shown["numel"], shown["nan_count"]) == ("nan", "9,600", "6")
    assert repr(found).startswith("KLDivSummary(sum=np.float64(nan), ")
    assert eval(repr(found._replace(sum=0, mean=0, batchmean=0))).numel == 9600  # noqa: S307


def test_markup_is_escaped():
    assert "<td>&lt;b&gt;</td>" in KLDivSummary("<b>", *range(7))._repr_html_()


# The names of tasks


def stage_names():
    """The names of functions of `stage` and `pair_stage`, and of classes that name themselves."""
    for path in Path(kldiv_dask.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("stage", "of_pair"):
                if isinstance(node.args[0], ast.Constant):
                    yield f"kl-div-{node.args[0].value}"
            elif isinstance(node, ast.Constant) and str(node.value).startswith("kl-div-"):
                yield node.value.rstrip("-")


def test_no_name_is_taken_for_a_hash():
    names = set(stage_names())
    assert names > {"kl-div-block", "kl-div-merge", "kl-div-finalized", "kl-div-read"}
    for name in names - {"kl-div"}:
        assert key_split(f"{name}-{'0123456789abcdef' * 2}") == name


@pytest.fixture(scope="module", params=["memory", "stored"])
def operands(request, tmp_path_factory):
    """Gives a pair of the same values for any chunks."""
    folder = tmp_path_factory.mktemp("operands")
    paths = [folder / "x.npy", folder / "t.npy"]
    for path, values in zip(paths, VALUES, strict=True):
        np.save(path, values)
    stored = request.param == "stored"
    return lambda chunks: open_pair(*paths, chunks=chunks) if stored else in_memory(chunks)


JOBS = {
    "kl_div": lambda x, t: kl_div(x, t, reduction="batchmean", split_every=3),
    "terms": lambda x, t: kl_div(x, t, reduction="none"),
    "axis": lambda x, t: kl_div(x, t, reduction="sum", axis=-1),
    "where": lambda x, t: kl_div(x, t, reduction="batchmean", where=VALUES[0] < -0.5),
    "logits": lambda x, t: kl_div_with_logits(x, t),
    "logits-none": lambda x, t: kl_div_with_logits(x, t, reduction="none"),
    "summary": lambda x, t: kl_div_summary(x, t, split_every=3),
}

# What a task may be called: after the stages that are fused in it, and after what Dask adds.
STAGE = "(kl-div-(block|terms|read|rows(-partial|-aggregate)?|merge-(partial|aggregate)|finalized))"
NAME = re.compile(rf"{STAGE}(-{STAGE})*")
OF_DASK = {"array", "array-kl-div-block", "finalize-hlgfinalizecompute", "fromarray"}
# A graph of an evaluation takes a part of all pairs of chunks.
OF_DASK |= {"getitem-kl-div-block", "array-getitem-kl-div-block"}
OF_DASK |= {"rechunk-merge"} if EXPRESSIONS else set()

STAGES = {
    "kl_div": ["block", "merge", "finalized"],
    "terms": ["terms"],
    "axis": ["block", "finalized"],
    "where": ["block", "merge", "rows", "finalized"],
    "logits": ["block", "merge", "finalized"],
    "logits-none": ["block", "finalized"],
    "summary": ["block", "merge", "finalized"],
    "evaluate": ["block", "merge"],
}


def assert_readable(names, job):
    assert {name for name in names - OF_DASK if not NAME.fullmatch(name)} == set()
    for stage in STAGES[job]:
        assert [name for name in names if f"kl-div-{stage}" in name], stage


@pytest.mark.parametrize("chunks", [(2, 6), (2, 2)])
@pytest.mark.parametrize("job", JOBS)
def test_names_after_fusion(operands, job, chunks):
    found = JOBS[job](*operands(chunks))
    graphs = dask.optimize(*found) if isinstance(found, tuple) else dask.optimize(found)
    names = {key_split(key) for graph in graphs for key in dict(graph.__dask_graph__())}
    assert_readable(names, job)


def seen(dask_scheduler):
    return list(dask_scheduler.task_prefixes)


def forget(dask_scheduler):
    dask_scheduler.task_prefixes.clear()


@pytest.mark.parametrize("job", ["kl_div", "logits", "summary", "evaluate"])
def test_names_that_a_scheduler_shows(client, operands, job):
    pair = operands((2, 6))
    client.run_on_scheduler(forget)
    if job == "evaluate":
        evaluate(*pair, progress=False, scheduler=client)
    else:
        JOBS[job](*pair).compute(scheduler=client)
    assert_readable(set(client.run_on_scheduler(seen)), job)


def test_performance_reports(client, operands, tmp_path):
    pytest.importorskip("bokeh")
    with client.as_current(), performance_report(tmp_path / "report.html"):
        JOBS["kl_div"](*operands((2, 6))).compute(scheduler=client)
    text = (tmp_path / "report.html").read_text()
    assert_readable({found[0] for found in NAME.finditer(text)}, "kl_div")


# Progress


@pytest.mark.parametrize("job", JOBS)
def test_progress_bars_reach_their_end(operands, job):
    shown = io.StringIO()
    with ProgressBar(out=shown, dt=0.01):
        JOBS[job](*operands((2, 6))).compute(scheduler="threads")
    lines = shown.getvalue().strip().split("\r")
    assert re.match(r"\[#{40}\] \| 100% Completed", lines[-1])


def test_progress_of_persisted_results(client, operands, capsys):
    with client.as_current():
        (kept,) = dask.persist(JOBS["terms"](*operands((2, 6))), scheduler=client)
        progress(kept, notebook=False)
    shown = capsys.readouterr().out.strip().split("\r")
    assert re.match(r"\[#{40}\] \| 100% Completed", shown[-1])
    assert np.isfinite(kept.compute(scheduler=client)).all()
