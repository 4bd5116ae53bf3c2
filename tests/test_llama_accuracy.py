"""Base files of llama.cpp: how near divergences are to the truth, and to what llama.cpp prints."""

import re

import numpy as np
import pytest

from kldiv_dask import EvaluationWarning
from kldiv_dask.storage import llama, open_array, open_pair
from tests.helpers import llama_base
from tests.helpers.llama_files import REAL, RNG, kl, run

# How near the truth


def truth(logits):
    logits = logits.astype(float)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def known(folder, kind, error, nats=16, rows=8):
    """Write rows that are known; return their mean divergence, and the evaluation."""
    rng = np.random.default_rng(11)
    p = np.array([llama_base.teacher(rng, kind, 32_000) for _ in range(rows)])
    q = np.array([llama_base.student(rng, row, error) for row in p])
    for name, logits in (("q", q), ("p", p)):
        llama_base.write(folder / name, logits[None], np.zeros((1, 2 * rows + 1)), nats)
    return kl(truth(q), truth(p)).mean(), run(folder / "q", folder / "p")


ERRORS = 0.003, 0.02, 0.1, 0.4


# Each takes long; one is enough where slow tests do not run.
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "bulk")) for k in llama_base.KINDS]
)
def test_near_the_truth(tmp_path, kind):
    """Nearly all that differs in peaked rows is below the floor; see `llama.LogProbsSource`."""
    bound = 0.06 if kind == "peaked" else 0.01
    for error in ERRORS:
        true, found = known(tmp_path, kind, error)
        assert found.overall.min > 0
        assert abs(found.mean - true) < bound * true
        assert found.provenance["generalized"].startswith("sum p log(p / q) - p + q")
        # Rows of such files are not called wrong for what the format does to them.
        for operand, name in (("input", "q"), ("target", "p")):
            check = found.checks[f"{operand}_not_normalized"]
            assert check["count"] == 0
            tolerance = llama.open_source(str(tmp_path / name), None).tolerance
            # Of 32,000 classes no more can be raised than has been in half of the kinds.
            least = 1e-4 if kind in ("heavy", "two", "zipf") else 0.0035
            assert least < check["largest_deviation"] < tolerance < 0.0039


@pytest.mark.parametrize("kind", llama_base.KINDS)
def test_perplexities_are_nearly_right(tmp_path, kind):
    """What is expected of labels, were they drawn from the true rows."""
    logits = np.array([llama_base.teacher(RNG, kind, 32_000) for _ in range(8)])
    llama_base.write(tmp_path / "p", logits[None], np.zeros((1, 17)))
    true, found = truth(logits), open_array(tmp_path / "p").compute()[0]
    assert abs((np.exp(true) * (true - found)).sum(-1).mean()) < 5e-4


@pytest.mark.slow
def test_nearer_than_without_the_excess(tmp_path):
    """Of students that are nearly the same, sum p log(p / q) of such rows is below zero."""
    for kind in llama_base.KINDS:
        true, found = known(tmp_path, kind, 0.003)
        x, t = (open_array(tmp_path / name).compute()[0] for name in "qp")
        plain = kl(x, t)
        assert abs(found.mean - true) < 0.2 * abs(plain.mean() - true) + 1e-8
        x, t = (truth(values) for values in (x, t))
        assert run(tmp_path / "q", tmp_path / "p", kind="logits").mean == pytest.approx(
            kl(x, t).mean(), rel=1e-4
        )


@pytest.mark.parametrize("kind", llama_base.KINDS)
def test_a_floor_of_24_nats_is_better(tmp_path, kind):
    for error in ERRORS:
        true, found = known(tmp_path, kind, error, nats=24)
        assert found.overall.min > 0
        assert abs(found.mean - true) < 0.001 * true + 2e-7
        for operand in "input", "target":
            assert found.checks[f"{operand}_not_normalized"]["count"] == 0


def test_labels_at_the_floor_are_counted(tmp_path):
    """Their probabilities are not known, and perplexity is of the floor instead."""
    logits = RNG.standard_normal((1, 4, 500)) * 8
    far = logits < logits.max(-1, keepdims=True) - 16.5
    for name in "qp":
        llama_base.write(tmp_path / name, logits, np.zeros((1, 9)))
    labels = np.array([[np.flatnonzero(far[0, i])[0] for i in range(4)]])
    labels[0, 2:] = logits[0, 2:].argmax(-1)
    with pytest.warns(EvaluationWarning, match="input and target are equal"):
        found = run(tmp_path / "q", tmp_path / "p", labels=labels)
    for side in "input", "target":
        assert found.checks[f"{side}_label_at_floor"] == {"count": 2, "first": [[0, 0], [0, 1]]}
    assert "2 positions are with the label at the floor of the input" in str(found)


# What llama.cpp itself writes and prints

PAIRS = {  # the student, the teacher, what was printed, bound of the error of its mean
    "q4_0": ("tiny128.q", "tiny128.base", "tiny128.llama.txt", 3e-6),
    "q8_0": ("tiny128.q8_0", "tiny128.base", "tiny128.q8_0.llama.txt", 1e-6),
    "odd": ("even33.q", "even33.base", "even33.llama.txt", 3e-6),
}


def printed(file, name):
    text = (REAL / file).read_text()
    return float(re.search(rf"^{re.escape(name)} *: *(-?[\d.]+)", text, re.MULTILINE)[1])


@pytest.mark.parametrize("pair", PAIRS)
def test_as_llama_prints_it(pair):
    student, teacher, file, bound = PAIRS[pair]
    labels = open_array(REAL / teacher, key="labels")
    found = run(REAL / student, REAL / teacher, labels=labels)
    assert abs(found.mean - printed(file, "Mean    KLD")) < bound
    assert abs(found.overall.max - printed(file, "Maximum KLD")) < 2e-5
    assert round(100 * found.overall.top1_agreement, 3) == printed(file, "Same top p")
    for name, value in (
        ("PPL(Q)", found.labels.perplexity_input),
        ("PPL(base)", found.labels.perplexity_target),
    ):
        assert value == pytest.approx(printed(file, f"Mean {name}"), rel=5e-6)
    assert abs(100 * found.labels.p_change_mean - printed(file, "Mean    Δp")) < 1e-3
    assert abs(100 * found.labels.p_change_rms - printed(file, "RMS Δp   ")) < 1e-3
    assert found.options["kind"] == "log_probs"


def test_a_student_that_is_nearly_the_same_is_not_below_zero():
    files = REAL / "tiny128.q8_0", REAL / "tiny128.base"
    assert kl(*(open_array(file).compute() for file in files)).min() < -2e-5
    assert printed("tiny128.q8_0.llama.txt", "Minimum KLD") < 0
    found = run(*files)
    assert found.overall.min > 2e-6
    assert found.mean == pytest.approx(3.64e-5, rel=0.005)


def test_opened_files_are_known_as_such():
    """`evaluate` sees where an array is from, whether it is given the path or the array."""
    files = REAL / "tiny128.q", REAL / "tiny128.base"
    wanted = run(*files)
    assert run(*open_pair(*files)).mean == wanted.mean
    plain = run(*(open_array(file).compute() for file in files), kind="log_probs")
    assert plain.mean != wanted.mean
