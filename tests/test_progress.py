"""One rule of who hears of the progress of evaluations and summaries."""

import io
import re

import numpy as np
import pytest

from kldiv_dask import ProgressUpdate, evaluate, kl_div_summary

X = np.log(np.random.default_rng(0).dirichlet(np.ones(5), (6, 4)))


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Notebook(io.StringIO):
    pass


Notebook.__module__ = "ipykernel.iostream"


def run_evaluation(**options):
    return evaluate(X, X[::-1], kind="log_probs", scheduler="sync", **options)


def run_summary(**options):
    return kl_div_summary(X, X[::-1], log_target=True).compute(scheduler="sync", **options)


LAST_LINES = {
    run_evaluation: r"\r100%, \S+ positions/s, mean \S+ ± \S+ nats *\n",
    run_summary: r"\r100%, \S+ pairs of chunks/s *\n",
}

both = pytest.mark.parametrize("compute", LAST_LINES, ids=["evaluation", "summary"])


@both
@pytest.mark.parametrize("file", [io.StringIO, Terminal, Notebook, lambda: None])
@pytest.mark.parametrize("options", [{}, {"progress": None}, {"progress": True}])
def test_a_line_is_shown_where_it_can_be_or_must_be(compute, file, options, monkeypatch):
    stderr = file()
    if stderr is None and options.get("progress"):
        pytest.skip("there is nothing to write to")
    monkeypatch.setattr("sys.stderr", stderr)
    compute(**options)
    if isinstance(stderr, Terminal | Notebook) or options.get("progress"):
        assert re.search(LAST_LINES[compute] + "$", stderr.getvalue())
    elif stderr is not None:
        assert stderr.getvalue() == ""


@both
@pytest.mark.parametrize("file", [io.StringIO, Terminal, Notebook])
def test_false_shows_nothing(compute, file, monkeypatch):
    stderr = file()
    monkeypatch.setattr("sys.stderr", stderr)
    compute(progress=False)
    assert stderr.getvalue() == ""


@both
def test_a_callable_hears_of_each_slab_and_nothing_is_shown(compute, monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    updates = []
    compute(progress=updates.append)
    assert stderr.getvalue() == ""
    assert all(type(update) is ProgressUpdate for update in updates)
    done = [update.done for update in updates]
    assert done == sorted(done)
    last = updates[-1]
    assert last.done == last.total
    assert (last.total, last.unit) == (
        (24, "positions") if compute is run_evaluation else (1, "pairs of chunks")
    )
    assert re.fullmatch(LAST_LINES[compute].strip("\\rn"), last.text)


def test_the_first_update_of_an_evaluation_says_what_there_is_to_read():
    updates = []
    run_evaluation(progress=updates.append)
    assert updates[0] == (0, 24, "positions", "  0%, 1 pair of chunks, 1.88 kiB to read")


@both
@pytest.mark.parametrize("progress", ["yes", 1, 0])
def test_anything_else_is_refused(compute, progress):
    message = f"progress must be None, True, False or a callable, got {progress!r}"
    with pytest.raises(TypeError, match=message):
        compute(progress=progress)
