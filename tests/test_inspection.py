"""The look of `kldiv-dask compute` at its arrays, and what its messages and output say."""

import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from kldiv_dask import EvaluationError, open_array, open_pair
from kldiv_dask.evaluation import inspection
from kldiv_dask.evaluation.inspection import Inspection
from kldiv_dask.statistics.doubts import WAYS
from tests.helpers.commands import call

LLAMA = Path(__file__).parent / "data" / "llama"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def log_softmax(x, axis):
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def looked_at(recwarn, input, target, kind="log_probs_and_probs"):
    np.save("x.npy", input)
    np.save("t.npy", target)
    Inspection(*open_pair("x.npy", "t.npy"), None, kind, -1).warn(WAYS, "sync")
    return [str(one.message) for one in recwarn]


def test_classes_along_another_axis(recwarn):
    """As torch has them in segmentation, where rows along the last axis are no distributions."""
    x = log_softmax(np.random.default_rng(0).normal(size=(8, 4, 16, 16)), 1)
    labels = np.zeros((8, 16, 16), int)
    labels[:, 4:8, 4:8] = 2
    target = (np.arange(4)[:, None, None] == labels[:, None]).astype("f4")
    assert looked_at(recwarn, x, target) == []


def test_classes_along_the_last_axis(recwarn):
    x = log_softmax(np.random.default_rng(0).normal(size=(20, 4)), 1)
    target = np.exp(x)
    target[10:] = 0
    (message,) = looked_at(recwarn, x, target)
    assert message.startswith("of 20 rows that were looked at: 10 rows of target are constant")


def test_rows_too_wide_to_be_looked_at(recwarn, monkeypatch):
    x = log_softmax(np.random.default_rng(0).normal(size=(20, 1000)), 1)
    target = 0 * x
    monkeypatch.setattr(inspection, "MAX_BYTES", 3 * 2 * 8000 * 2)
    (message,) = looked_at(recwarn, x, target)
    assert message.startswith("of 6 rows that were looked at")
    monkeypatch.setattr(inspection, "MAX_BYTES", 3 * 2 * 8000 - 1)
    recwarn.clear()
    assert looked_at(recwarn, x, target) == []


def test_memory_of_the_look(recwarn):
    """A row of 240 MB is left alone."""
    np.save("x.npy", np.zeros(60_000_000, "f4"))
    pair = open_pair("x.npy", "x.npy", chunks="1 MiB")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Inspection(*pair, None, "log_probs_and_probs", -1).warn(WAYS, "sync")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert len(recwarn) == 1  # that they are one array


def test_base_files_hold_log_probabilities(capsys, client):
    pair = [str(LLAMA / f"tiny128.{name}") for name in ("q8_0", "base")]
    on = "--scheduler", client.scheduler.address
    code, out, (line,) = call(capsys, *pair, *on)
    assert (code, out) == (2, "")
    assert line.endswith(
        "is a base file of llama.cpp and holds log-probabilities: pass --kind log_probs"
    )
    assert call(capsys, *pair, "--kind", "log_probs", "--reduction", "sum", *on)[0] == 0


def test_what_was_used_is_in_the_output(capsys, client):
    np.save("x.npy", np.random.default_rng(0).normal(size=(4, 5)))
    np.save("t.npy", np.random.default_rng(1).normal(size=(4, 5)))
    on = "--scheduler", client.scheduler.address
    _, out, _ = call(capsys, "x.npy", "t.npy", "--kind", "logits", "--json", *on)
    found = json.loads(out)
    assert (found["axis"], found["temperature"]) == (-1, 1.0)


def test_the_report_speaks_of_options(capsys, client):
    p = np.exp(log_softmax(np.random.default_rng(0).normal(size=(4, 5)), -1))
    np.save("x.npy", p)
    np.save("t.npy", p[::-1])
    on = "--scheduler", client.scheduler.address
    _, out, _ = call(capsys, "x.npy", "t.npy", *on, command="evaluate")
    assert "--kind probs" in out
    assert "kind='" not in out


def test_an_empty_mask(capsys, client):
    np.save("x.npy", np.zeros((4, 5)))
    np.save("t.npy", np.ones((4, 5)) * np.arange(5))
    np.save("w.npy", np.zeros(4, bool))
    on = "--scheduler", client.scheduler.address
    arguments = "x.npy", "t.npy", "--where", "w.npy", *on
    _, out, (line,) = call(capsys, *arguments, command="evaluate")
    assert line == "warning: no position is included"
    assert "! no position is included" in out
    assert "nothing found" not in out


def test_a_mask_that_is_changed():
    np.save("x.npy", np.zeros((4, 5)))
    np.save("t.npy", np.ones((4, 5)))
    np.save("w.npy", np.ones(4, bool))
    look = Inspection(*open_pair("x.npy", "t.npy"), open_array("w.npy"), "logits", -1)
    os.utime("w.npy", ns=(0, 10**18))
    with pytest.raises(EvaluationError, match="where was changed while it was read"):
        look.check_unchanged()
