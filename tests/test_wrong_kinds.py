"""Data of another kind than was named: what is said of them, and that it is said."""

import re

import dask
import dask.array as da
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from kldiv_dask import (
    EvaluationError,
    EvaluationWarning,
    evaluate,
)
from kldiv_dask.evaluation.operands import tolerance
from tests.helpers.cases import slow_unless, some_slow
from tests.helpers.commands import call
from tests.helpers.doubtful import MEAN, S, T, said


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# The wrong kind

PROBS = [softmax(a.astype("f8"), axis=-1) for a in (S, T)]
LOG_PROBS = [log_softmax(a.astype("f8"), axis=-1) for a in (S, T)]
LOGITS = [a.astype("f8") for a in (S, T)]
ALL = {"logits": LOGITS, "log-probabilities": LOG_PROBS, "probabilities": PROBS}
HELD = {
    "logits": ("logits", "logits"),
    "log_probs": ("log-probabilities", "log-probabilities"),
    "probs": ("probabilities", "probabilities"),
    "log_probs_and_probs": ("log-probabilities", "probabilities"),
}

# For each kind, what the operands hold, and what to do.
WRONG = [
    ("logits", "probabilities", "probabilities", "pass kind='probs'"),
    ("logits", "probabilities", "logits", "take the logarithm of input, and pass kind='logits'"),
    ("logits", "logits", "probabilities", "take the logarithm of target, and pass kind='logits'"),
    ("log_probs", "logits", "logits", "pass kind='logits'"),
    ("log_probs", "probabilities", "probabilities", "pass kind='probs'"),
    ("log_probs", "log-probabilities", "probabilities", "pass kind='log_probs_and_probs'"),
    ("log_probs", "log-probabilities", "logits", "pass kind='logits'"),
    ("probs", "logits", "logits", "pass kind='logits'"),
    ("probs", "log-probabilities", "log-probabilities", "pass kind='log_probs'"),
    ("probs", "log-probabilities", "probabilities", "pass kind='log_probs_and_probs'"),
    ("probs", "probabilities", "log-probabilities",
     "take the logarithm of input, and pass kind='log_probs'"),
    ("log_probs_and_probs", "probabilities", "probabilities", "pass kind='probs'"),
    ("log_probs_and_probs", "log-probabilities", "log-probabilities", "pass kind='log_probs'"),
    ("log_probs_and_probs", "probabilities", "log-probabilities",
     "swap them, or take the logarithm of input, and pass kind='log_probs'"),
    ("log_probs_and_probs", "logits", "logits", "pass kind='logits'"),
    ("log_probs_and_probs", "logits", "probabilities",
     "take the logarithm of target, and pass kind='logits'"),
]  # fmt: skip


def wrong(held, meant):
    if len({*held}) == len({*meant}) == 1:
        return f"input and target look like {held[0]}, not {meant[0]}"
    parts = [
        f"{operand} looks like {found}, not {wanted}"
        for operand, found, wanted in zip(("input", "target"), held, meant, strict=True)
        if found != wanted
    ]
    return " and ".join(parts)


@pytest.mark.parametrize("dtype", some_slow("f4", "f8", "f2"))
@pytest.mark.parametrize(("kind", "input", "target", "remedy"), slow_unless(WRONG[::3], WRONG))
def test_wrong_kinds(kind, input, target, remedy, dtype):
    pair = [ALL[input][0].astype(dtype), ALL[target][1].astype(dtype)]
    result, (message, *others) = said(
        *(da.from_array(a, chunks=(2, 16, 40)) for a in pair), kind=kind
    )
    assert message == f"{wrong((input, target), HELD[kind])}: if so, {remedy}"
    assert not any("look" in one for one in others)
    # That is the first thing that is said, and it stays in the result.
    assert f"! {message}" in re.sub(r"\n  ", " ", str(result))
    if remedy.startswith("pass"):
        right = re.search("'(.*)'", remedy)[1]
        assert said(*pair, kind=right)[1] == []


@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize("dtype", some_slow("f4", "f8", "f2"))
def test_right_kinds(kind, dtype):
    pair = [ALL[held][i].astype(dtype) for i, held in enumerate(HELD[kind])]
    result, messages = said(*pair, kind=kind)
    assert messages == []
    assert result.mean == pytest.approx(MEAN, rel=2e-2 if dtype == "f2" else 1e-5)
    assert all(one["count"] == 0 for one in result.checks.values())


COMPUTED = "logits", "log_probs", "log_probs_and_probs"
OPTIONS = {
    **{f"pass kind={kind!r}": f"pass --kind {kind}" for kind in COMPUTED},
    "pass kind='probs'": "use `kldiv-dask evaluate --kind probs`",
}


IN_COMMANDS = [case for case in WRONG if case[0] in COMPUTED]


@pytest.mark.parametrize(
    ("kind", "input", "target", "remedy"), slow_unless(IN_COMMANDS[:4], IN_COMMANDS)
)
def test_wrong_kinds_in_commands(kind, input, target, remedy, capsys, client):
    np.save("x.npy", ALL[input][0])
    np.save("t.npy", ALL[target][1])
    on = "--scheduler", client.scheduler.address
    start = wrong((input, target), HELD[kind])
    _, _, err = call(capsys, "x.npy", "t.npy", "--kind", kind, "--reduction", "sum", *on)
    for old, new in OPTIONS.items():
        remedy = remedy.replace(old, new)
    assert err[0].startswith("warning: of 16 rows that were looked at: ")
    assert err[0].endswith(f"{start}: if so, {remedy}")
    _, _, err = call(capsys, "x.npy", "t.npy", "--kind", kind, *on, command="evaluate")
    assert err[0].startswith(f"warning: {start}: if so, ")
    assert "kind=" not in err[0]


def test_some_rows_of_another_kind():
    target = T.astype("f8")
    target[3, 4:6] = PROBS[1][3, 4:6]
    result, (message,) = said(S.astype("f8"), target)
    assert message == "2 rows of target are probably no logits, but probabilities"
    assert result.checks["target_resembles_probs"] == {"count": 2, "first": [[3, 4], [3, 5]]}


def test_said_after_the_first_slab():
    """Long before the end, which a failure makes sure of."""

    def fail(block, block_id):
        if block_id[0] == 7:
            raise OSError("gone")
        return block

    pair = [da.from_array(a, chunks=(1, 16, 40)) for a in PROBS]
    pair[0] = pair[0].map_blocks(fail, meta=np.empty((0, 0, 0)))
    with (
        dask.config.set({"kldiv.slab-size": 1}),
        pytest.warns(EvaluationWarning, match="input and target look like probabilities"),
        pytest.raises(EvaluationError, match="gone"),
    ):
        evaluate(*pair, progress=False, scheduler="sync")


def test_a_negative_mean():
    # Rows as a 16-bit format rounds them, of nearly the same model.
    p = PROBS[1].astype("f2").astype("f8")
    q = np.log(p * (1 + 1e-3))
    result, messages = said(q, p, kind="log_probs_and_probs")
    assert result.mean < 0
    assert any(
        re.match(r"the mean divergence is -0\.00\d+, .* never negative: rows whose probab", one)
        for one in messages
    )
    result, messages = said(LOG_PROBS[0] + 0.5, PROBS[1], kind="log_probs_and_probs")
    assert any("input or target is probably of another kind" in one for one in messages)


def test_a_negative_sum_in_the_command(capsys, client):
    np.save("x.npy", LOG_PROBS[0] + 1)
    np.save("t.npy", PROBS[1])
    arguments = "x.npy", "t.npy", "--reduction", "sum", "--scheduler", client.scheduler.address
    _, out, err = call(capsys, *arguments)
    assert float(out) < 0
    assert any("that of divergences of distributions is never negative" in line for line in err)


@pytest.mark.parametrize("classes", [2, 1000, 128_000])
@pytest.mark.parametrize("dtype", ["f2", "bf16", "f4", "f8"])
def test_tolerance_of_sums(dtype, classes):
    """Rounded probabilities of honest rows sum to 1 within it, and it is not much more."""
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == "bf16" else np.dtype(dtype)
    r = np.random.default_rng(classes)
    rows = 3 * r.normal(size=(8, classes))
    allowed = tolerance(np.empty((1, classes), dtype))
    for values in (
        softmax(rows, -1).astype(dtype),
        np.exp(log_softmax(rows, -1).astype(dtype).astype("f8")),
    ):
        assert np.abs(values.astype("f8").sum(-1) - 1).max() < allowed < 0.12
