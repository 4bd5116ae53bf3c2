"""Evaluations that are interrupted, whenever that is, end as if they had not been."""

import contextlib
import json
import os
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

from kldiv_dask import Evaluation, EvaluationError, evaluate
from tests.helpers.evaluations import same_bits
from tests.helpers.resumable import Countdown, Rows, go, load, positions_of

SEED = 20_260_101


@pytest.fixture(autouse=True)
def small_slabs():
    with dask.config.set({"kldiv.evaluate.slab-time": 0}):
        yield


@pytest.fixture(scope="module")
def undisturbed():
    return go().state


# Exceptions


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


@pytest.mark.slow
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


@pytest.mark.slow
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
