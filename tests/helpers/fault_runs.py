"""Runs of the command that last long enough for a fault, on this machine or across hosts."""

import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import Popen
from typing import Any, ClassVar, Protocol

import numpy as np
import psutil
import zarr

from kldiv_dask import kl_div_summary, open_pair
from kldiv_dask.cli.compute import _plain
from tests.helpers import faulty_filesystem
from tests.helpers.commands import SCRIPTS, Terminal, at_terminal

ROOT = Path(__file__).parents[2]

# Seconds that no run may take: none hangs.
BOUND = 180

# Of the table: an outcome, and what to compare the times of faults with.
RIGHT, NONE = "right bits", "no fault"


class Data:
    """Two Zarr arrays of 120 chunks, and what their divergence is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults = folder, folder / "faults"
        rng = np.random.default_rng(0)
        scores = np.log(rng.dirichlet(np.ones(64), 120 * 16)).astype("f4")
        for name, values in {"x": scores, "t": np.exp(scores[::-1])}.items():
            zarr.create_array(f"{folder}/{name}.zarr", data=values, chunks=(16, 64))
        faulty_filesystem.install(folder / "plugin")
        self.faults.mkdir()
        self.environment = {
            "PYTHONPATH": f"{folder / 'plugin'}:{ROOT}",
            faulty_filesystem.FAULTS: str(self.faults),
            faulty_filesystem.SECONDS: "0.1",
        }
        summary = kl_div_summary(*open_pair(f"{folder}/x.zarr", f"{folder}/t.zarr"))
        self.expected = {
            name: _plain(value)
            for name, value in summary.compute(scheduler="sync")._asdict().items()
        }

    @property
    def pair(self) -> list[str]:
        return [f"faulty://{self.folder}/{name}.zarr" for name in ("x", "t")]

    def copied(self) -> tuple[str, Path]:
        """Copy an array into the current directory; return its URL and its chunk 110."""
        path = Path(shutil.copytree(self.folder / "x.zarr", "copy.zarr")).absolute()
        return f"faulty://{path}", path / "c/110/0"

    def chunk(self, number: int) -> Path:
        return self.folder / f"x.zarr/c/{number}/0"


class Place(Protocol):
    """Where the command runs."""

    @property
    def prefix(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> tuple[str, ...]: ...
    @property
    def environment(self) -> Mapping[str, str]: ...


class Local:
    """The command with a cluster of its own: two workers, each with a thread and 400 MB."""

    name = "local"
    prefix = (shutil.which("prlimit") or "", f"--rss={800 * 10**6}", str(SCRIPTS / "kldiv-dask"))
    options = ("--workers", "2", "--threads", "1")
    environment: ClassVar[Mapping[str, str]] = {faulty_filesystem.SECONDS: "0.03"}

    def workers(self, process: Popen[bytes]) -> list[psutil.Process]:
        children = psutil.Process(process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


class Run:
    """A run under way, and what is to be seen at its terminal."""

    def __init__(self, process: Popen[bytes], terminal: Terminal) -> None:
        self.process, self.terminal = process, terminal
        self.fault, self.seconds = time.monotonic(), 0.0
        self.reader = threading.Thread(target=terminal.read)
        self.reader.start()

    def wait(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.process.poll() is None, self.terminal.text
            time.sleep(0.02)

    def wait_for_some(self) -> None:
        """Wait until a tenth is done."""
        self.wait(lambda: re.search(r"[1-9]\d% Completed", self.terminal.text))

    def strike(self) -> None:
        """Note that a fault happens now."""
        self.fault = time.monotonic()

    def end(self) -> tuple[int, Any, list[str]]:
        """Wait for the end: exit code, JSON or nothing, and lines after the progress bar."""
        self.process.wait()
        self.seconds = time.monotonic() - self.fault
        self.reader.join()
        assert self.process.stdout
        out = self.process.stdout.read()
        after = re.split(r"\x1b\[2K|\x1b\[\?25h", self.terminal.text)[-1]
        lines = [line for line in after.splitlines() if line]
        return self.process.returncode, json.loads(out) if out else None, lines


@contextlib.contextmanager
def running(
    place: Place, data: Data, pair: list[str] | None = None, chunks: str = "16,-1"
) -> Iterator[Run]:
    """Start the command, and kill it when the time is up."""
    command = (*place.prefix, "compute", *(pair or data.pair), "--reduction", "sum", "--json")
    environment = {**data.environment, **place.environment}
    with at_terminal(*command, "--chunks", chunks, *place.options, **environment) as (
        process,
        terminal,
    ):
        timer = threading.Timer(BOUND, process.kill)
        timer.start()
        run = Run(process, terminal)
        try:
            yield run
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, 9)
            run.reader.join()


class Table:
    """What became of each fault, and how long that took, the rest of the run included."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float]] = []

    def right(self, name: str, run: Run, data: Data) -> None:
        """Hold a run to the bits of an undisturbed one."""
        code, report, lines = run.end()
        assert (code, lines) == (0, [])
        assert {field: report[field] for field in data.expected} == data.expected
        self.rows.append((name, RIGHT, run.seconds))

    def error(self, name: str, run: Run, exit_code: int, pattern: str) -> None:
        """Hold a run to one line, and an exit code."""
        code, report, lines = run.end()
        assert (code, report, len(lines)) == (exit_code, None, 1), lines
        assert re.fullmatch(f"Error: {pattern}", lines[0]), lines[0]
        self.rows.append((name, lines[0], run.seconds))

    def __str__(self) -> str:
        rows = [f"{seconds:6.1f} s  {name:44} {outcome}" for name, outcome, seconds in self.rows]
        faults = [row for row in self.rows if NONE not in row[0]]
        right = [seconds for _, outcome, seconds in faults if outcome == RIGHT]
        wrong = [seconds for _, outcome, seconds in faults if outcome != RIGHT]
        rows.append(
            f"{len(faults)} faults: {len(right)} right, in at most {max(right, default=0):.1f} s;"
            f" {len(wrong)} errors, in at most {max(wrong, default=0):.1f} s"
        )
        return "\n".join(rows)
