"""Commands of this package, run as a user would, and what they leave behind."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kldiv_dask.cli import main

SCRIPTS = Path(sysconfig.get_path("scripts"))


@contextlib.contextmanager
def started(
    *command: str, stderr: int = subprocess.PIPE, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a session of its own; at the end, look for what it left there."""
    scratch = Path("scratch")
    scratch.mkdir()
    before = set(os.listdir())
    environment = {**os.environ, "TMPDIR": str(scratch.absolute()), **environment}
    with subprocess.Popen(
        [SCRIPTS / command[0], *command[1:]],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield process
            process.wait(60)
            # Python's own resource tracker ends when it sees that the others have.
            assert eventually(lambda: not session(process.pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert list(scratch.iterdir()) == []
    assert set(os.listdir()) == before


def session(leader: int) -> list[psutil.Process]:
    """Processes of a session, other than those that have ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within ten seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def run(*command: str, **environment: Any) -> tuple[int, str, list[str]]:
    """Run a command to its end: exit code, stdout and lines on stderr."""
    with started(*command, **environment) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode().splitlines()


def call(
    capsys: pytest.CaptureFixture[str], *arguments: str, command: str = "compute"
) -> tuple[Any, str, list[str]]:
    """Call a command in this process: exit code, stdout and lines on stderr."""
    with pytest.raises(SystemExit) as end:
        main([command, *arguments], prog_name="kldiv-dask")
    out, err = capsys.readouterr()
    return end.value.code, out, err.splitlines()


class Terminal:
    """A terminal to give a command as its stderr."""

    def __init__(self) -> None:
        self.end, self.stderr = pty.openpty()
        self.text = ""

    def read(self, until: str = r"(?!)") -> str:
        """Read up to a pattern, or until nobody has the terminal open any more."""
        while not re.search(until, self.text):
            try:
                self.text += os.read(self.end, 4096).decode()
            except OSError:  # EIO: closed at the other side
                break
        return self.text

    def close(self) -> None:
        os.close(self.end)


@contextlib.contextmanager
def at_terminal(
    *command: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    terminal = Terminal()
    with (
        contextlib.closing(terminal),
        started(*command, stderr=terminal.stderr, **environment) as process,
    ):
        os.close(terminal.stderr)
        yield process, terminal
