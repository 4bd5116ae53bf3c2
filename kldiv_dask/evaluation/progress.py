"""What a run has to read, and how far it has come, in a line that is written again and again."""

import math
import sys
import time
from pathlib import Path
from typing import TextIO

from dask.utils import format_bytes

from kldiv_dask import partial_sum
from kldiv_dask.evaluation.checkpoint import Progress
from kldiv_dask.evaluation.run import Run
from kldiv_dask.report.wording import not_finite
from kldiv_dask.statistics import tables
from kldiv_dask.statistics.intervals import cell_sums, clustered, interval


class ProgressLine:
    """Writes a line for each slab that is done, over the one before.

    Parameters
    ----------
    positions : int
        How many there are in all.
    nbytes : int
        The size of both operands.
    run : Run
        What is to be done.
    path : Path or None
        Its checkpoint.
    file : text file
        Where to.
    """

    def __init__(
        self, positions: int, nbytes: int, run: Run, path: Path | None, file: TextIO | None = None
    ) -> None:
        self._positions, self._first = positions, run.resumed
        self._file = sys.stderr if file is None else file
        self._start = time.monotonic()
        self._width = 0
        found, pairs = run.resumed, run.remaining.pairs
        if not run.remaining:
            self._write(f"100%, all of it from {path}, nothing to read", end="\n")
            return
        left = format_bytes(nbytes * (positions - found) // max(positions, 1))
        known = f", the rest from {path}" if found else ""
        of_chunks = f"{pairs:,} pair{'s' * (pairs != 1)} of chunks"
        self._write(f"{found / max(positions, 1):4.0%}, {of_chunks}, {left} to read{known}")

    def __call__(self, progress: Progress) -> None:
        """Write the line."""
        seconds = time.monotonic() - self._start
        done, total = progress.positions, self._positions
        rate = (done - self._first) / max(seconds, 1e-9)
        left = (total - done) / rate if rate else math.inf
        words = [
            f"{done / max(total, 1):4.0%}",
            f"{rate:,.0f} positions/s",
            f"{_duration(left)} left",
        ]
        if progress.state is not None:
            counts, sums = cell_sums(tables.merge_groups(progress.state.cells))
            if counts:
                mean, error = clustered(counts, sums)
                low, high = interval(mean, error, len(counts) - 1)
                words.append(f"mean {mean:.5g} ± {(high - low) / 2:.2g} nats")
            for sum_of_kl in tables.merge_groups(progress.state.totals).sums[:, 0]:
                kl = partial_sum.total(sum_of_kl)
                found = not_finite({"nan": kl.nan, "infinite": kl.posinf + kl.neginf})
                words += [found] if found else []
        self._write(", ".join(words), end="\n" if done == total else "")

    def _write(self, line: str, end: str = "") -> None:
        self._width = max(self._width, len(line))
        self._file.write(f"\r{line:<{self._width}}{end}")
        self._file.flush()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
