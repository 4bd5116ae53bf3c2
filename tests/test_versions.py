"""What goes together: layouts of results, revisions of bits, and versions of workers."""

import hashlib
import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

from kldiv_dask import Evaluation, KLDivergence, evaluate, kl_div, kl_div_with_logits, versions
from kldiv_dask.evaluation import EvaluationWarning, checkpoint
from kldiv_dask.kernels.checks import OPERANDS, PROBS
from kldiv_dask.statistics import state, tables
from kldiv_dask.versions import LAYOUT, REVISION
from tests.helpers.commands import call
from tests.helpers.evaluations import same_bits

FOLDER = Path(__file__).parent / "data" / "layouts"


@pytest.fixture
def stored():
    """What is known of this layout and revision."""
    return json.loads((FOLDER / "numbers.json").read_text())


# Layouts


def example(**more):
    """Evaluate some data that have a bit of everything."""
    r = np.random.default_rng(0)
    teacher = r.normal(size=(6, 4, 5))
    student = teacher + 0.3 * r.normal(size=teacher.shape)
    options = {
        "labels": r.integers(0, 5, (6, 4)),
        "groups": np.array(["a", "b"])[np.arange(6) % 2][:, None],
        "where": r.random((6, 4)) < 0.9,
    }
    options |= {"progress": False, "scheduler": "sync"}
    return evaluate(student, teacher, **options, **more)


def numbers(result):
    report = json.loads(result.to_json())
    del report["provenance"]
    return report


def layout_of(result):
    """Describe what a file holds, so that nothing of it can change unnoticed."""
    arrays = {
        name: [array.dtype.kind, list(array.shape[1:])]
        for name, array in checkpoint.packed(result.state).items()
    }
    return {
        "arrays": arrays,
        "checks": list(state.CHECKS),
        "sums": [*state.SUMS, *state.LABEL_SUMS],
        "keys": [tables.WIDTH, state.BIN_OFFSET, state.CELLS, state.COLUMNS],
        "options": sorted(result.options),
        "attributes": sorted(set(vars(result)) - {"overall", "groups", "checks"}),
        "progress": [*checkpoint.Progress._fields, *checkpoint.Sample._fields],
        "report": sorted(result.to_dict()),
    }


def test_the_layout_is_that_of_its_number(stored):
    """If this fails, raise `versions.LAYOUT`, and make the files of it anew (see tests/data)."""
    assert stored["layout"] == {"number": LAYOUT, "fields": layout_of(example())}


def test_results_of_this_layout_are_read():
    stored = Evaluation.load(FOLDER / f"result-{LAYOUT}.kldiv")
    same_bits(stored.state, example().state)
    assert numbers(stored) == numbers(example())
    assert checkpoint.loads((FOLDER / f"checkpoint-{LAYOUT}.ckpt").read_bytes(), "stored")


@pytest.mark.parametrize("layout", range(1, LAYOUT))
def test_results_of_other_layouts_are_refused_in_words(layout, tmp_path):
    message = f"has layout {layout}, which another version of kldiv-dask writes; this one reads"
    with pytest.raises(ValueError, match=message):
        Evaluation.load(FOLDER / f"result-{layout}.kldiv")
    path = tmp_path / "run.ckpt"
    path.write_bytes((FOLDER / f"checkpoint-{layout}.ckpt").read_bytes())
    with pytest.raises(ValueError, match=message):
        evaluate(np.zeros((2, 3)), np.ones((2, 3)), checkpoint=path, progress=False)


def test_every_layout_has_its_files():
    names = {f"{kind}-{n}" for n in range(1, LAYOUT + 1) for kind in ("result", "checkpoint")}
    assert {path.stem for path in FOLDER.glob("*-*.*")} == names


# Revisions of bits


def digest():
    """Digest the bits of results of all functions, kinds and some types.

    Data are made of integers: the exponentials of NumPy differ from processor to processor.
    """
    found = hashlib.sha256()
    r = np.random.default_rng(0)

    def integers(shape):
        return r.integers(-(2**11), 2**11, shape) / 256

    for dtype in ("f2", "f4", "f8"):
        t = integers((7, 1500)).astype(dtype)
        x = (t + integers(t.shape) / 4).astype(dtype)
        for temperature in (1.0, 2.5):
            kl = kl_div_with_logits(x, t, reduction="none", temperature=temperature)
            found.update(kl.compute().tobytes())
        for options in ({"log_target": False}, {"log_target": True}):
            target = t if options["log_target"] else np.abs(t)
            found.update(kl_div(x, target, reduction="none", **options).compute().tobytes())
    for kind, holds in OPERANDS.items():
        x, t = (
            np.abs(integers((6, 5, 1100))) / 4000 if one == PROBS else integers((6, 5, 1100)) - 9
            for one in holds
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvaluationWarning)  # they do not sum to 1
            result = evaluate(x, t, kind=kind, labels=3, progress=False, scheduler="sync")
        found.update(checkpoint.digest(result.state).encode())
    return found.hexdigest()


def test_the_bits_are_those_of_the_revision(stored):
    """If this fails, raise `versions.REVISION`, and store the new digest (see tests/data)."""
    assert stored["bits"] == {"revision": REVISION, "digest": digest()}


def test_other_revisions_do_not_go_together(monkeypatch, tmp_path):
    result = example()
    options = {"progress": False, "scheduler": "sync", "checkpoint": tmp_path / "run"}
    x, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    evaluate(x, t, **options)
    running = KLDivergence("logits")
    running.update(x, t)
    stored = running.state_dict()
    for module in ("evaluation.request", "functional.accumulator"):
        monkeypatch.setattr(sys.modules[f"kldiv_dask.{module}"], "REVISION", REVISION + 1)
    assert result.options["revision"] == result.provenance["revision"] == REVISION
    with pytest.raises(ValueError, match=f"of another run: revision was {REVISION}, now it is"):
        evaluate(x, t, **options)
    with pytest.raises(ValueError, match="the evaluations differ in revision"):
        result.merge(example())
    with pytest.raises(ValueError, match=f"the state must be of revision {REVISION + 1}, got"):
        running.load_state_dict(stored)


# Workers


# A package beside NumPy and Numba that has another version, as seen by the worker.
SITE = """
import importlib.metadata as metadata
known = metadata.version
metadata.version = lambda name: {changes!r}.get(name) or known(name)
import kldiv_dask.versions as versions
versions.__dict__.update({constants!r})
"""


@pytest.mark.parametrize(
    ("changes", "constants", "message"),
    [
        ({"numpy": "1.26.4"}, {}, r"must have numpy with numpy \d, got 1; install the same numpy"),
        ({"numba": "0.1.0"}, {}, r"must have numba with numba 0\.\d+, got 0\.1; install the same"),
        ({}, {"REVISION": 99}, r"must have kldiv_dask with bits revision \d+, got revision 99"),
        ({}, {"LAYOUT": 99}, r"must have kldiv_dask with states layout \d+, got layout 99"),
        ({}, {"installed": None}, r"has another version of kldiv_dask than this process"),
    ],
    ids=["numpy", "numba", "bits", "states", "older"],
)
@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
def test_workers_of_another_version(changes, constants, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "sitecustomize.py").write_text(SITE.format(changes=changes, constants=constants))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    x, t = np.random.default_rng(0).normal(size=(2, 4, 3))
    np.save("x.npy", x)
    np.save("t.npy", t)
    with (
        LocalCluster(n_workers=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        with pytest.raises(ImportError, match=f"worker tcp://.* {message}"):
            evaluate(x, t, progress=False, scheduler=client)
        code, _, (line,) = call(capsys, "x.npy", "t.npy", "--scheduler", cluster.scheduler_address)
        assert code == 2
        assert re.match(r"Error: --scheduler tcp://\S+: worker tcp://", line)


def test_workers_of_this_version(client):
    versions.check_workers(client)
