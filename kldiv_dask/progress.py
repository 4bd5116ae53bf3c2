"""The progress of long computations: a line on stderr, or updates for a callable."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

from dask.utils import format_time


class ProgressUpdate(NamedTuple):
    """How far a computation is.

    Examples
    --------
    >>> ProgressUpdate(1, 4, "positions", " 25%, 8 positions/s, 375.00 ms left").unit
    'positions'
    """

    done: int
    """How many units are done."""
    total: int
    """How many units there are."""
    unit: str
    """What is counted: ``'positions'``, or ``'pairs of chunks'``."""
    text: str
    """A line that says the same, with the rate and the time that is left."""


ProgressCallback = Callable[[ProgressUpdate], Any]

ProgressOption = bool | ProgressCallback | None


def reporter(progress: ProgressOption) -> ProgressCallback | None:
    """Return what to call with each update; None if updates go nowhere.

    Parameters
    ----------
    progress : bool, callable or None
        None for a line on stderr if that is a terminal or the output of a notebook, True for the
        line in any case, False for none; or what is called with each `ProgressUpdate`.

    Raises
    ------
    TypeError
        `progress` is something else.

    Examples
    --------
    >>> reporter(False) is None, reporter(print) is print
    (True, True)
    """
    if callable(progress):
        return progress
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be None, True, False or a callable, got {progress!r}")
    shown = can_rewrite_line(sys.stderr) if progress is None else progress
    return Line(sys.stderr) if shown else None


def can_rewrite_line(file: TextIO | None) -> bool:
    """Whether a file is a terminal, or the output of a notebook; a process may have no stderr."""
    if file is None:
        return False
    return file.isatty() or type(file).__module__.partition(".")[0] == "ipykernel"


class Line:
    """Writes the text of each update over the one before."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._width = file, 0

    def __call__(self, update: ProgressUpdate) -> None:
        """Write the line, and end it if all is done."""
        self._width = max(self._width, len(update.text))
        end = "\n" if update.done == update.total else ""
        self._file.write(f"\r{update.text:<{self._width}}{end}")
        self._file.flush()


def counter(callback: ProgressCallback, total: int, unit: str) -> Callable[[int], None]:
    """Return what to call with the number of units that were done since the last call.

    Examples
    --------
    >>> notify = counter(lambda update: print(update.done, "of", update.total), 5, "positions")
    >>> notify(2)
    2 of 5
    >>> notify(3)
    5 of 5
    """
    start = time.monotonic()
    done = 0

    def notify(units: int) -> None:
        nonlocal done
        done += units
        rate = done / max(time.monotonic() - start, 1e-9)
        callback(ProgressUpdate(done, total, unit, describe(done, total, unit, rate)))

    return notify


def describe(done: int, total: int, unit: str, rate: float) -> str:
    """Return the fraction that is done, the rate in units per second, and the time left, if any.

    Examples
    --------
    >>> describe(25, 100, "positions", 1.5)
    ' 25%, 2 positions/s, 50.00 s left'
    """
    words = f"{done / max(total, 1):4.0%}, {rate:,.0f} {unit}/s"
    left = total - done
    return f"{words}, {format_time(left / rate)} left" if left and rate else words
