"""The walk over the data of an evaluation, slab by slab, which can be taken up where it ended."""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np

from kldiv_dask import config
from kldiv_dask.align import Box
from kldiv_dask.evaluation import checkpoint, regions
from kldiv_dask.evaluation.checkpoint import Progress, Sample
from kldiv_dask.evaluation.data import Identities
from kldiv_dask.evaluation.errors import CheckpointError, EvaluationError, EvaluationWarning
from kldiv_dask.graph import merged_state
from kldiv_dask.kernels.segments import pieces
from kldiv_dask.statistics.state import State, merge

Slices = tuple[slice, ...]
Notify = Callable[[Progress], None]

# Slabs that a checkpoint keeps a digest of, at most twice as many.
SAMPLES = 4


def client_of(scheduler: Any) -> Any:
    """Return the client of a cluster that `dask.compute` would use; None if it would use none."""
    get = dask.base.get_scheduler() if scheduler is None else scheduler
    client = getattr(get, "__self__", get)
    return client if hasattr(client, "nthreads") else None


def threads(scheduler: Any) -> int:
    """Return how many pairs of chunks are worked on at once."""
    client = client_of(scheduler)
    count = os.cpu_count() if client is None else sum(client.nthreads().values())
    return max(count or 1, 1)


class Grid(NamedTuple):
    """The pairs of chunks of a box of the positions, and the state of each."""

    box: Box
    states: da.Array
    chunks: tuple[tuple[int, ...], ...]

    def slabs(self, most: int) -> Iterator[Slices]:
        """Yield parts of at most so many pairs of chunks."""
        return pieces(self.states.numblocks, most)

    def part(self, place: Slices) -> "Grid":
        """Return the grid of some of the pairs."""
        spans, chunks = [], []
        for (start, _), lengths, cut in zip(self.box, self.chunks, place, strict=False):
            ends = [start, *(start + np.cumsum(lengths)).tolist()]
            spans.append((ends[cut.start], ends[: cut.stop + 1][-1]))
            chunks.append(lengths[cut])
        return Grid(tuple(spans), self.states[place], tuple(chunks))


class Run:
    """One evaluation.

    Parameters
    ----------
    shape : tuple of int
        That of the positions.
    grid_of : callable
        Returns the `Grid` of a box of the positions.
    path : Path or None
        The checkpoint.
    options, data : dict
        What tells this run from any other, for JSON; `data` is called for.
    resume : bool or 'adopt'
        Whether to go on from a checkpoint, and even from one of data that were known otherwise.
    interval : float or None
        After how many seconds it is written again; None for what the configuration says.
    skip : bool
        Whether to leave out what can't be computed.
    scheduler : str or distributed.Client, optional
        As for `dask.compute`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        grid_of: Callable[[Box], Grid],
        path: Path | None,
        options: dict[str, Any],
        data: Callable[[], Identities],
        *,
        resume: bool | str,
        interval: float | None,
        skip: bool,
        scheduler: Any,
    ) -> None:
        self._grid_of, self._path, self._skip = grid_of, path, skip
        self._options = options
        self._data = data() if path is not None else {}
        self._interval = (
            config.seconds("evaluate.checkpoint-interval") if interval is None else interval
        )
        self._compute_options = {} if scheduler is None else {"scheduler": scheduler}
        each = config.count("evaluate.pairs-per-thread")
        self.slab = min(each * threads(scheduler), config.count("slab-size"))
        self.progress = Progress(done=[], samples=[], seconds=0.0, skipped=[], state=None)
        if path is not None and resume and path.exists():
            self.progress = checkpoint.load(path, options, self._data, adopt=resume == "adopt")
            if resume == "adopt":
                self._compare_samples()
        self.found = self.progress.positions
        everything = regions.whole(shape)
        self.left = [grid_of(box) for box in regions.left_over(everything, self.progress.done)]

    def walk(self, notify: Notify) -> Progress:
        """Do what is left, and return the end; save it, or what there is where it ends early."""
        try:
            self._walk(notify)
        finally:
            self._save()
        return self.progress

    def _walk(self, notify: Notify) -> None:
        start = saved = time.monotonic()
        before = self.progress.seconds
        slabs = (grid.part(place) for grid in self.left for place in grid.slabs(self.slab))
        for slab in slabs:
            state, skipped = self._computed(slab)
            now = time.monotonic()
            self.progress = self._after(slab.box, state, skipped, before + now - start)
            if now - saved >= self._interval:
                self._save()
                saved = now
            notify(self.progress)

    def _after(
        self, box: Box, state: State | None, skipped: list[dict[str, Any]], seconds: float
    ) -> Progress:
        """Return the progress when a slab is done too."""
        before = self.progress
        samples = before.samples
        if self._path is not None and state is not None and not skipped:
            samples = [*samples, Sample(box, checkpoint.digest(state))]
            if len(samples) > 2 * SAMPLES:  # the first, the last, and some between them
                samples = [*samples[:-1:2], samples[-1]]
        known = [one for one in (before.state, state) if one is not None]
        return Progress(
            done=regions.joined(before.done, box),
            samples=samples,
            seconds=seconds,
            skipped=before.skipped + skipped,
            state=merge(known) if known else None,
        )

    def _save(self) -> None:
        if self._path is not None:
            checkpoint.save(self._path, self._options, self._data, self.progress)

    def _compare_samples(self) -> None:
        """Compute the first, a middle and the last again of the slabs that a checkpoint knows."""
        samples = self.progress.samples
        for index in sorted({0, len(samples) // 2, len(samples) - 1} if samples else ()):
            sample = samples[index]
            grid = self._grid_of(sample.box)
            state = merge([self._compute(grid.part(place)) for place in grid.slabs(self.slab)])
            if checkpoint.digest(state) != sample.digest:
                raise CheckpointError(
                    f"checkpoint {self._path} is of other data: positions "
                    f"{regions.text(sample.box)} give another result than they did",
                    moved=False,
                )

    def _computed(self, slab: Grid) -> tuple[State | None, list[dict[str, Any]]]:
        """Compute a slab, or what of it can be computed."""
        try:
            return self._compute(slab), []
        except (ConnectionError, TimeoutError):
            raise  # there is nobody to compute another
        except Exception as error:
            if not self._skip:
                where = regions.text(slab.box)
                raise EvaluationError(f"positions {where} failed: {error}") from error
        found, skipped = [], []
        for place in slab.slabs(1):
            pair = slab.part(place)
            try:
                found.append(self._compute(pair))
            except (ConnectionError, TimeoutError):
                raise
            except Exception as error:
                message = f"positions {regions.text(pair.box)} are left out: {error}"
                warnings.warn(message, EvaluationWarning, stacklevel=4)
                positions, region = regions.size(pair.box), list(map(list, pair.box))
                skipped.append({"region": region, "positions": positions, "error": str(error)})
        return merge(found) if found else None, skipped

    def _compute(self, slab: Grid) -> State:
        (found,) = dask.compute(merged_state(slab.states), **self._compute_options)
        state: State = found.reshape(-1)[0]
        return state

    @property
    def pairs(self) -> int:
        """How many pairs of chunks are left to do."""
        return sum(math.prod(grid.states.numblocks) for grid in self.left)
