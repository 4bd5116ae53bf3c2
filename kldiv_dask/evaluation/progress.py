"""The progress of a run: how much is left to read, and the mean so far."""

import time
from pathlib import Path

from dask.utils import format_bytes

from kldiv_dask import partial_sum
from kldiv_dask.evaluation.checkpoint import Progress
from kldiv_dask.evaluation.run import Run
from kldiv_dask.progress import ProgressCallback, ProgressUpdate, describe
from kldiv_dask.report.wording import not_finite
from kldiv_dask.statistics import tables
from kldiv_dask.statistics.intervals import cell_sums, clustered, interval
from kldiv_dask.statistics.state import EvaluationState


class RunProgress:
    """Reports how much there is to read, and then how far a run is after each slab.

    Parameters
    ----------
    callback : callable
        Called with each `ProgressUpdate`.
    positions : int
        The number of all positions.
    nbytes : int
        The size of both operands.
    run : Run
        The run, before it computes.
    path : Path or None
        Its checkpoint.
    """

    def __init__(
        self, callback: ProgressCallback, positions: int, nbytes: int, run: Run, path: Path | None
    ) -> None:
        self._callback, self._positions, self._resumed = callback, positions, run.resumed
        self._start = time.monotonic()
        if not run.remaining:
            self._send(positions, f"100%, all of it from {path}, nothing to read")
            return
        resumed, pairs = run.resumed, run.remaining.pairs
        size = format_bytes(nbytes * (positions - resumed) // max(positions, 1))
        rest = f", the rest from {path}" if resumed else ""
        of_chunks = f"{pairs:,} pair{'s' * (pairs != 1)} of chunks"
        text = f"{resumed / max(positions, 1):4.0%}, {of_chunks}, {size} to read{rest}"
        self._send(resumed, text)

    def __call__(self, progress: Progress) -> None:
        """Report what is done."""
        seconds = time.monotonic() - self._start
        done = progress.positions
        rate = (done - self._resumed) / max(seconds, 1e-9)
        words = [describe(done, self._positions, "positions", rate)]
        if progress.state is not None:
            words += _means(progress.state)
        self._send(done, ", ".join(words))

    def _send(self, done: int, text: str) -> None:
        self._callback(ProgressUpdate(done, self._positions, "positions", text))


def _means(state: EvaluationState) -> list[str]:
    """Return the mean of the finite divergences so far, and how many are not finite."""
    words = []
    counts, sums = cell_sums(tables.merge_groups(state.cells))
    if counts:
        mean, error = clustered(counts, sums)
        low, high = interval(mean, error, len(counts) - 1)
        words.append(f"mean {mean:.5g} ± {(high - low) / 2:.2g} nats")
    for sum_of_kl in tables.merge_groups(state.totals).sums[:, 0]:
        kl = partial_sum.total(sum_of_kl)
        nonfinite = not_finite({"nan": kl.nan, "infinite": kl.posinf + kl.neginf})
        words += [nonfinite] if nonfinite else []
    return words
