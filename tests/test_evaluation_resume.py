"""Evaluations that are interrupted, whenever that is, end as if they had not been."""

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest

from kldiv_dask import Evaluation, EvaluationError, EvaluationWarning, evaluate
from kldiv_dask.evaluation import checkpoint
from kldiv_dask.evaluation.errors import CheckpointError
from tests.helpers.stores import chunk_files, write
from tests.test_evaluation import same_bits

SHAPE = (24, 3, 5)
VALUES = np.random.default_rng(0).normal(size=(2, *SHAPE))
LABELS = np.random.default_rng(1).integers(0, 5, SHAPE[:2])
GROUPS = np.arange(24)[:, None] // 5

SEED = 20_260_101


class Rows:
    """A stored array whose reads may fail."""

    def __init__(self, values, before=lambda: None):
        self.values, self.before = values, before
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __getitem__(self, index):
        self.before()
        return self.values[index]


def go(path=None, *, before=lambda: None, chunks=1, **options):
    """Evaluate row by row, in slabs that are as small as can be."""
    rows = [Rows(VALUES[0], before), Rows(VALUES[1])]
    pair = [
        da.from_array(one, chunks=(chunks, 3, 5), name=name)
        for one, name in zip(rows, ("student", "teacher"), strict=True)
    ]
    given = {"labels": LABELS, "groups": GROUPS, "scheduler": "sync", "progress": False}
    return evaluate(*pair, checkpoint=path, **given | {"checkpoint_interval": 0} | options)


def load(path):
    """Read a checkpoint, whatever run it is of; ValueError if it is damaged."""
    return checkpoint.loads(path.read_bytes(), str(path))


def positions_of(header):
    """Count the positions that a checkpoint has done."""
    return sum(math.prod(stop - start for start, stop in box) for box in header["done"])


@pytest.fixture(autouse=True)
def small_slabs():
    with dask.config.set({"kldiv.evaluate.slab-time": 0}):
        yield


@pytest.fixture(scope="module")
def undisturbed():
    return go().state


# Exceptions


class Countdown:
    """Raises an error at one of the next calls."""

    def __init__(self, calls, error):
        self.left, self.error = calls, error

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            raise self.error


class Screen:
    """A stderr that cannot always be written to."""

    def __init__(self, before):
        self.write, self.flush = before, lambda: None


def interrupted(path, where, calls, interval, monkeypatch):
    """Run until an error is met; return whether one was, and the result if not."""
    options = {"checkpoint_interval": interval}
    with monkeypatch.context() as patch:
        error = KeyboardInterrupt() if where in ("progress", "key") else OSError("faulty")
        fail = Countdown(calls, error)
        if where in ("read", "key"):
            options["before"] = fail
        elif where == "write":
            patch.setattr(os, "replace", lambda *names: (fail(), os.rename(*names)))
        else:
            patch.setattr(sys, "stderr", Screen(fail))
            options["progress"] = True
        try:
            with warnings.catch_warnings():
                # A checkpoint that can't be written ends no run.
                warnings.filterwarnings("ignore", "checkpoint .* could not be written: faulty; ")
                return False, go(path, **options)
        # What is met must be what was raised; else the caller finds that there is no result.
        except (EvaluationError, KeyboardInterrupt, OSError) as met:
            return error in (met, met.__cause__), None


def endure(folder, undisturbed, interruptions, monkeypatch):
    """Interrupt runs at random moments and resume them, until there were enough."""
    r = np.random.default_rng(SEED)
    met = finished = again = 0
    while met < interruptions:
        path = folder / f"run{finished}"
        times, done = 0, 0
        while True:
            # What can't be written interrupts nothing.
            where = r.choice(["read", "key", "progress", "write"], p=[0.3, 0.3, 0.3, 0.1])
            calls = int(r.integers(1, 16))
            interval = r.choice([0.0, 1e9])
            failed, result = interrupted(path, where, calls, interval, monkeypatch)
            left = [name for name in os.listdir(folder) if not name.startswith("run")]
            assert left == []
            if not failed:
                break
            times += 1
            if path.exists():
                header, state = load(path)
                now = positions_of(header)
                assert now >= done
                assert (state is None) == (now == 0)
                done = now
        same_bits(result.state, undisturbed)
        met += times
        again += times > 1
        finished += 1
    assert again > finished / 2


def test_exceptions(tmp_path, undisturbed, monkeypatch):
    endure(tmp_path, undisturbed, 100, monkeypatch)


@pytest.mark.slow
def test_many_exceptions(tmp_path, undisturbed, monkeypatch):
    endure(tmp_path, undisturbed, 950, monkeypatch)


# Killed processes

LONG = np.random.default_rng(2).normal(size=(2, 40, 3, 5))


def go_on(path=None, chunks=(1, 3), scheduler="sync"):
    """Evaluate 40 rows, or what is left of them, in some chunks."""
    pair = [
        da.from_array(Rows(values), chunks=(*chunks, 5), name=name)
        for values, name in zip(LONG, ("student-long", "teacher-long"), strict=True)
    ]
    options = {"checkpoint_interval": 0, "progress": False, "scheduler": scheduler}
    return evaluate(*pair, groups=np.arange(40)[:, None] // 9, checkpoint=path, **options)


# Imports and compiles once, and forks a process for each run.
SERVER = """
import json, os, sys
import dask
from tests.test_evaluation_resume import go_on

dask.config.set({"kldiv.evaluate.slab-time": 0})
go_on()
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        path, *options = json.loads(line)
        go_on(path, *options).save(path + ".result")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(status, flush=True)
"""


@contextlib.contextmanager
def server():
    command = [sys.executable, "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, cwd=root, text=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"

        def run(path, *options, seconds=None):
            """Run, kill the run after so many seconds, and return how it ended."""
            process.stdin.write(json.dumps([str(path), *options]) + "\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            if seconds is not None:
                time.sleep(seconds)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


def kill_often(folder, kills):
    """Kill runs of 40 slabs, which others go on with in other chunks, threads or processes."""
    undisturbed = go_on().state
    r = np.random.default_rng(SEED)
    killed = runs = resumed = 0
    with server() as start:
        before = time.monotonic()
        assert start(folder / "whole") == 0
        length = time.monotonic() - before
        while killed < kills:
            path = folder / f"run{runs}"
            runs += 1
            options = (1, 3), "sync"
            while status := start(path, *options, seconds=r.uniform(0, length)):
                assert os.WTERMSIG(status) == signal.SIGKILL
                killed += 1
                chunks = r.integers(1, [4, 4]).tolist()
                options = chunks, str(r.choice(["sync", "threads"]))
                # Its lock, and the checkpoint being written, at most; the next run removes both.
                names = [file.name for file in folder.glob(f".{path.name}.*")]
                left = sorted(Path(name).suffix for name in names if ".result." not in name)
                assert left in ([], [".lock"], [".lock", ".part"])
                if path.exists():
                    resumed += positions_of(load(path)[0]) > 0
            same_bits(Evaluation.load(f"{path}.result").state, undisturbed)
            assert not list(folder.glob(f".{path.name}.*.lock"))
    assert resumed > kills / 4


def test_killed_processes(tmp_path):
    kill_often(tmp_path, 5)


@pytest.mark.slow
def test_many_killed_processes(tmp_path):
    kill_often(tmp_path, 200)


CUTS = [(1, 3), (2, 2), (3, 1), (40, 3), (7, 2)]


def test_going_on_in_other_chunks(tmp_path, client):
    """On threads, and on a cluster, which gets what it is given; boxes that are done stay so."""
    whole = go_on().state
    for number, chunks in enumerate(CUTS):
        path, done = tmp_path / f"run{number}", 0
        for other in CUTS:
            fail = Countdown(5, OSError("gone"))
            pair = [
                da.from_array(Rows(LONG[i], before), chunks=(*other, 5), name=f"{name}-long")
                for i, (name, before) in enumerate((("student", fail), ("teacher", lambda: None)))
            ]
            groups = np.arange(40)[:, None] // 9
            options = {"checkpoint": path, "progress": False, "scheduler": "sync"}
            with contextlib.suppress(EvaluationError):
                evaluate(*pair, groups=groups, **options)
            now = positions_of(load(path)[0])
            assert now >= done
            done = now
        result = go_on(path, chunks, ["sync", "threads", client][number % 3])
        same_bits(result.state, whole)
        assert load(path)[0]["done"] == [[[0, 40], [0, 3]]]


# Checkpoints that don't fit


def flip(content):
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


DAMAGES = {
    "truncated": (lambda content: content[:-1], "is damaged: its content does not have the digest"),
    "flipped": (flip, "is damaged: its content does not have the digest"),
    "longer": (lambda content: content + b"\0", "is damaged: its content does not have the digest"),
    "foreign": (lambda content: b"\x93NUMPY\1\0" + content, "is no checkpoint of kldiv-dask"),
    "empty": (lambda content: b"", "is no checkpoint of kldiv-dask"),
    "newer": (
        lambda content: re.sub(rb"point \d+ ", b"point 9 ", content, count=1),
        "has layout 9, which anoth",
    ),
}


@pytest.fixture
def half(tmp_path):
    """The checkpoint of a run that failed half way."""
    with pytest.raises(EvaluationError):
        go(tmp_path / "half", before=Countdown(13, OSError("no such row")))
    assert 0 < positions_of(load(tmp_path / "half")[0]) < 24 * 3
    return tmp_path / "half"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(half, undisturbed, damage):
    change, message = DAMAGES[damage]
    content = change(half.read_bytes())
    half.write_bytes(content)
    with pytest.raises(ValueError, match=f"checkpoint {half} {message}"):
        go(half)
    assert half.read_bytes() == content
    same_bits(go(half, resume=False).state, undisturbed)


def test_every_flipped_bit_of_the_first_line(half):
    content = half.read_bytes()
    for place in range(content.index(b"\n") + 1):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(ValueError, match=r"^half (is no checkpoint|is damaged|has layout)"):
                checkpoint.loads(bytes(damaged), "half")


CHANGES = {
    "labels": {"labels": LABELS.T.copy().T[::-1]},
    "groups": {"groups": None},
    "where": {"where": np.ones(3, bool)},
    "temperature": {"temperature": 2.0},
    "kind": {"kind": "log_probs"},
    "cluster_axis": {"cluster_axis": 1},
    "computed_in": {},
    "input": {},
    "target": {},
}


WAS = " was .*, now it is"
OTHER = (
    " is another ndarray of .*, or has other contents; if the data were only moved, .*resume='ad"
)
CHANGED = {
    "labels": OTHER,
    "input": OTHER,
    "target": OTHER,
    "groups": ": there is none now",
    "where": ": there was none, now there is",
}


@pytest.mark.parametrize("name", CHANGES)
def test_checkpoints_of_other_runs(tmp_path, name):
    path = tmp_path / "run"
    given = {"scheduler": "sync", "progress": False, "checkpoint": path}
    if name in ("input", "target", "computed_in"):
        pair = {"input": VALUES[0].astype("f4"), "target": VALUES[1].astype("f4")}
        evaluate(**pair, **given)
        options = {"dtype": "float64"} if name == "computed_in" else {name: pair[name] + 1}

        def other():
            evaluate(**pair | options, **given)

    else:
        go(path)

        def other():
            go(path, **CHANGES[name])

    content = path.read_bytes()
    with pytest.raises(
        ValueError, match=f"{path} is of another run: {name}{CHANGED.get(name, WAS)}"
    ):
        other()
    assert path.read_bytes() == content


def test_results_are_no_checkpoints(tmp_path):
    go().save(tmp_path / "result")
    with pytest.raises(ValueError, match="result is the result of a run, not its checkpoint"):
        go(tmp_path / "result")


def test_finished_runs_read_nothing(tmp_path, undisturbed):
    go(tmp_path / "run")
    again = go(tmp_path / "run", before=Countdown(1, AssertionError("read")))
    same_bits(again.state, undisturbed)


# What can't be read

BROKEN = "c/2/0/0"
CHUNKS = (4, 3, 5)


@pytest.fixture
def stored(tmp_path):
    """A pair of Zarr arrays in 6 chunks, and a file of one of them."""
    paths = [
        write(tmp_path, "zarr3", values, chunks=CHUNKS, name=name)[0]
        for values, name in zip(VALUES, ("student", "teacher"), strict=True)
    ]
    (file,) = (file for file in chunk_files(paths[0]) if str(file).endswith(BROKEN))
    return paths, file


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_chunks_that_are_left_out(stored, tmp_path, scheduler):
    paths, file = stored
    file.write_bytes(b"garbage")
    options = {"progress": False, "scheduler": scheduler, "labels": LABELS, "groups": GROUPS}
    options["chunks"] = CHUNKS
    message = r"positions \[8:12, 0:3\] are left out: .*student\.zarr \[8:12, 0:3, 0:5\] could not"
    with pytest.warns(EvaluationWarning, match=message):
        found = evaluate(*paths, on_error="skip", checkpoint=tmp_path / "run", **options)
    masked = evaluate(*VALUES, where=(np.arange(24) // 4 != 2)[:, None], **options)
    assert found.count == masked.count == 60
    same_bits(found.state._replace(groups=masked.state.groups), masked.state)
    (skipped,) = found.skipped
    assert (skipped["region"], skipped["positions"]) == ([[8, 12], [0, 3]], 12)
    assert "student.zarr [8:12, 0:3, 0:5] could not be read" in skipped["error"]
    again = evaluate(*paths, on_error="skip", checkpoint=tmp_path / "run", **options)
    assert again.skipped == found.skipped
    same_bits(again.state, found.state)


def test_chunks_that_fail(stored, tmp_path):
    paths, file = stored
    content = file.read_bytes()
    file.write_bytes(b"garbage")
    options = {"progress": False, "scheduler": "sync", "checkpoint": tmp_path / "run"}
    options["chunks"] = CHUNKS
    for _ in range(2):
        with pytest.raises(
            EvaluationError, match=r"positions \[8:.*, 0:3\] failed: .*student\.zarr"
        ):
            evaluate(*paths, **options)
        header, _ = load(tmp_path / "run")
        assert positions_of(header) <= 24
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"input: .*student\.zarr has changed: .*c/2/0/0"):
        evaluate(*paths, **options)
    whole = evaluate(*VALUES, progress=False, scheduler="sync")
    same_bits(evaluate(*paths, resume="adopt", **options).state, whole.state)


def test_nothing_can_be_read(stored):
    paths, _ = stored
    for file in chunk_files(paths[0]):
        file.write_bytes(b"garbage")
    with (
        pytest.warns(EvaluationWarning, match="are left out"),
        pytest.raises(EvaluationError, match="no position could be evaluated"),
    ):
        evaluate(*paths, progress=False, scheduler="sync", on_error="skip", chunks=CHUNKS)
