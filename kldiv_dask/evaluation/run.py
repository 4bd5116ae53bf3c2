"""The walk over the data of an evaluation, slab by slab, which can be taken up where it ended."""

import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da

from kldiv_dask import config
from kldiv_dask.evaluation import checkpoint
from kldiv_dask.evaluation.checkpoint import Progress
from kldiv_dask.evaluation.errors import EvaluationError, EvaluationWarning
from kldiv_dask.graph import merged_state
from kldiv_dask.kernels.segments import pieces
from kldiv_dask.statistics.state import State, merge

Slices = tuple[slice, ...]
Notify = Callable[[Progress, int], None]


def threads(scheduler: Any) -> int:
    """Return how many pairs of chunks are worked on at once."""
    get = dask.base.get_scheduler() if scheduler is None else scheduler
    client: Any = getattr(get, "__self__", get)
    count = sum(client.nthreads().values()) if hasattr(client, "nthreads") else os.cpu_count()
    return max(count or 1, 1)


class Run:
    """One evaluation.

    Parameters
    ----------
    states : dask.array.Array
        The state of each pair of chunks, of the shape of their grid.
    regions : list of tuples of tuples
        For each axis of the positions, where each chunk begins and ends.
    fingerprint : dict
        What tells this run from any other, for JSON.
    path : Path or None
        The checkpoint.
    interval : float or None
        After how many seconds it is written again; None for what the configuration says.
    """

    def __init__(
        self,
        states: da.Array,
        regions: list[list[tuple[int, int]]],
        fingerprint: dict[str, Any],
        path: Path | None,
        *,
        resume: bool,
        interval: float | None,
        skip: bool,
        scheduler: Any,
    ) -> None:
        self.states, self._regions, self._path = states, regions, path
        self._fingerprint, self._skip = fingerprint, skip
        self._interval = (
            config.seconds("evaluate.checkpoint-interval") if interval is None else interval
        )
        self._options = {} if scheduler is None else {"scheduler": scheduler}
        each = config.count("evaluate.pairs-per-thread")
        slab = min(each * threads(scheduler), config.count("slab-size"))
        self.progress = Progress(done=0, slab=slab, seconds=0.0, skipped=[], state=None)
        if path is not None and resume and path.exists():
            self.progress = checkpoint.load(path, fingerprint)

    def walk(self, notify: Notify) -> Progress:
        """Do what is left, and return the end; save it, or what there is where it ends early."""
        try:
            self._walk(notify)
        finally:
            self._save()
        return self.progress

    def _walk(self, notify: Notify) -> None:
        start = saved = time.monotonic()
        before, done = self.progress.seconds, 0
        for place in pieces(self.states.numblocks, self.progress.slab):
            part = self.states[place]
            done += math.prod(part.numblocks)
            if done <= self.progress.done:
                continue
            state, skipped = self._computed(part, place)
            known = [one for one in (self.progress.state, state) if one is not None]
            now = time.monotonic()
            self.progress = Progress(
                done=done,
                slab=self.progress.slab,
                seconds=before + now - start,
                skipped=self.progress.skipped + skipped,
                state=merge(known) if known else None,
            )
            if now - saved >= self._interval:
                self._save()
                saved = now
            notify(self.progress, self.states.size)

    def _save(self) -> None:
        if self._path is not None:
            checkpoint.save(self._path, self._fingerprint, self.progress)

    def _computed(self, part: da.Array, place: Slices) -> tuple[State | None, list[dict[str, Any]]]:
        """Compute a slab, or what of it can be computed."""
        try:
            return self._compute(part), []
        except (ConnectionError, TimeoutError):
            raise  # there is nobody to compute another
        except Exception as error:
            if not self._skip:
                region = self._region(place)
                raise EvaluationError(f"positions {_text(region)} failed: {error}") from error
        found, skipped = [], []
        for one in pieces(part.numblocks, 1):
            inner = tuple(
                slice(outer.start + cut.start, outer.start + cut.stop)
                for outer, cut in zip(place, one, strict=True)
            )
            try:
                found.append(self._compute(self.states[inner]))
            except (ConnectionError, TimeoutError):
                raise
            except Exception as error:
                region = self._region(inner)
                message = f"positions {_text(region)} are left out: {error}"
                warnings.warn(message, EvaluationWarning, stacklevel=4)
                positions = math.prod(stop - start for start, stop in region)
                skipped.append({"region": region, "positions": positions, "error": str(error)})
        return merge(found) if found else None, skipped

    def _compute(self, part: da.Array) -> State:
        (found,) = dask.compute(merged_state(part), **self._options)
        state: State = found.reshape(-1)[0]
        return state

    def _region(self, place: Slices) -> list[list[int]]:
        """Return where the positions of some chunks begin and end along each axis."""
        cuts = zip(self._regions, place, strict=False)
        spans = [chunks[cut] for chunks, cut in cuts]
        return [[span[0][0], span[-1][1]] for span in spans]


def _text(region: list[list[int]]) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in region) + "]"
