"""The walk over the data of an evaluation, slab by slab, which can be taken up where it ended."""

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np

from kldiv_dask import config
from kldiv_dask.align import Box
from kldiv_dask.evaluation import checkpoint, regions
from kldiv_dask.evaluation.checkpoint import Progress, Sample
from kldiv_dask.evaluation.data import Identities, unwatched
from kldiv_dask.evaluation.errors import (
    CheckpointError,
    ClusterError,
    EvaluationError,
    EvaluationWarning,
)
from kldiv_dask.graph import reduce_states
from kldiv_dask.grid import grid_slices, grid_step
from kldiv_dask.statistics.state import EvaluationState, merge

Slices = tuple[slice, ...]
Notify = Callable[[Progress], None]

# Slabs that a checkpoint keeps a digest of, at most twice as many.
SAMPLES = 4


def client_of(scheduler: Any) -> Any:
    """Return the client of a cluster that `dask.compute` would use; None if it would use none."""
    get = dask.base.get_scheduler() if scheduler is None else scheduler
    client = getattr(get, "__self__", get)
    return client if hasattr(client, "nthreads") else None


def is_lost(error: Exception, client: Any) -> bool:
    """Whether an error is of a cluster that computes nothing any more, not of a task."""
    if client is None:
        return False
    from distributed import CancelledError

    # A scheduler that ends, or that somebody restarts, drops all tasks. By their names, as not all
    # versions have both: how it says that there has been no worker for too long.
    waited = type(error).__name__ in ("NoWorkerError", "NoValidWorkerError")
    return waited or isinstance(error, CancelledError) or client.status != "running"


def threads(scheduler: Any) -> int:
    """Return how many pairs of chunks are worked on at once."""
    client = client_of(scheduler)
    if client is None:
        return os.cpu_count() or 1
    try:
        count: int = sum(client.nthreads().values())
        return max(count, 1)
    except Exception as error:
        raise ClusterError(f"the cluster was lost: {error}") from error


class Grid(NamedTuple):
    """The pairs of chunks of a box of the positions, and the state of each."""

    box: Box
    states: da.Array
    chunks: tuple[tuple[int, ...], ...]

    def slabs(self, most: int) -> Iterator[Slices]:
        """Yield parts of at most so many pairs of chunks."""
        return grid_slices(self.states.numblocks, most)

    @property
    def pairs(self) -> int:
        """How many pairs of chunks there are."""
        return math.prod(self.states.numblocks)

    def part(self, place: Slices) -> "Grid":
        """Return the grid of some of the pairs."""
        spans, chunks = [], []
        for (start, _), lengths, cut in zip(self.box, self.chunks, place, strict=False):
            ends = [start, *(start + np.cumsum(lengths)).tolist()]
            spans.append((ends[cut.start], ends[: cut.stop + 1][-1]))
            chunks.append(lengths[cut])
        return Grid(tuple(spans), self.states[place], tuple(chunks))


class Pace:
    """How many pairs of chunks the next graph takes, so that it takes a few seconds.

    Parameters
    ----------
    pairs : int
        How many there are in all.
    """

    # The line of progress moves so often, at least, where there are enough pairs for all threads.
    _PARTS = 25
    # The first graph compiles the kernels, and a pair may be from a cache: the next is not much
    # larger than the one before, whatever that took.
    _GROWTH = 4

    def __init__(self, pairs: int) -> None:
        self._wanted = config.seconds("evaluate.slab-time")
        self._most = min(config.count("slab-size"), max(pairs // self._PARTS, 1))
        self._next = 1.0

    def pairs(self, threads: int) -> int:
        """Return how many pairs to take; as many for each thread, and one at least."""
        each = int(min(self._next, self._most) // threads)
        return min(max(each, 1) * threads, config.count("slab-size"))

    def took(self, pairs: int, seconds: float) -> None:
        """Learn how long so many pairs took."""
        rate = pairs / max(seconds, 1e-9)
        self._next = min(rate * self._wanted, max(self._next, pairs) * self._GROWTH)


class Remaining:
    """The pairs of chunks that are left to do, in order."""

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.pairs = sum(grid.pairs for grid in grids)
        self._parts = [(grid, regions.whole(grid.states.numblocks)) for grid in grids]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def take(self, most: int) -> Grid:
        """Return the next of them, at most so many."""
        grid, box = self._parts.pop(0)
        lengths = [stop - start for start, stop in box]
        spans = zip(box, grid_step(lengths, most), strict=True)
        taken = tuple((start, start + length) for (start, _), length in spans)
        self._parts[:0] = [(grid, rest) for rest in regions.left_over(box, [taken])]
        return grid.part(tuple(slice(*span) for span in taken))


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
        self._scheduler = scheduler
        self.progress = Progress(done=[], samples=[], seconds=0.0, skipped=[], state=None)
        self.compared = 0  # how many slabs of the checkpoint were computed again
        self._written = 0  # how many positions are done in the checkpoint
        if path is not None and resume and path.exists():
            self.progress = checkpoint.load(path, options, self._data, adopt=resume == "adopt")
            if resume == "adopt":
                self._compare_samples()
            else:
                self._written = self.progress.positions
                for sentence in unwatched(self._data):
                    warnings.warn(sentence, EvaluationWarning, stacklevel=5)
        self.found = self.progress.positions
        everything = regions.whole(shape)
        boxes = regions.left_over(everything, self.progress.done)
        self.left = Remaining([grid_of(box) for box in boxes])

    def walk(self, notify: Notify) -> Progress:
        """Do what is left, and return the end; save it, or what there is where it ends early."""
        try:
            self._walk(notify)
        finally:
            self._save("what was done since it was last written is in no file")
        return self.progress

    def _walk(self, notify: Notify) -> None:
        start = time.monotonic()
        saved = -math.inf  # after the first slab too, as a run that is stopped goes on from it
        before = self.progress.seconds
        pace = Pace(self.left.pairs)
        while self.left:
            began = time.monotonic()
            slab = self.left.take(pace.pairs(threads(self._scheduler)))
            done, skipped = self._computed(slab)
            now = time.monotonic()
            pace.took(slab.pairs, now - began)
            self.progress = self._after(slab.box, done, skipped, before + now - start)
            if now - saved >= self._interval:
                self._save(f"the run goes on, and tries again in {self._interval:g} s")
                saved = now
            notify(self.progress)

    def _after(
        self,
        box: Box,
        found: list[tuple[Box, EvaluationState]],
        skipped: list[dict[str, Any]],
        seconds: float,
    ) -> Progress:
        """Return the progress when a slab is done too."""
        before = self.progress
        samples = before.samples
        if self._path is not None and found:
            first, state = found[0]
            samples = [*samples, Sample(first, checkpoint.digest(state))]
            if len(samples) > 2 * SAMPLES:  # the first, the last, and some between them
                samples = [*samples[:-1:2], samples[-1]]
        known = [state for _, state in found]
        known = known if before.state is None else [before.state, *known]
        return Progress(
            done=regions.joined(before.done, box),
            samples=samples,
            seconds=seconds,
            skipped=before.skipped + skipped,
            state=merge(known) if known else None,
        )

    def _save(self, otherwise: str) -> None:
        """Write the checkpoint if there is something new; if it can't be, say so and what then."""
        done = self.progress.positions
        if self._path is None or done == self._written:
            return
        try:
            checkpoint.save(self._path, self._options, self._data, self.progress)
            self._written = done
        except OSError as error:
            message = f"checkpoint {self._path} could not be written: {error}; {otherwise}"
            warnings.warn(message, EvaluationWarning, stacklevel=5)

    def _compare_samples(self) -> None:
        """Compute the first, a middle and the last again of the slabs that a checkpoint knows."""
        samples = self.progress.samples
        if self.progress.positions and not samples:
            raise CheckpointError(
                f"checkpoint {self._path} has nothing to compare with: all that was done was left "
                "out",
                moved=False,
            )
        for index in sorted({0, len(samples) // 2, len(samples) - 1} if samples else ()):
            sample = samples[index]
            grid = self._grid_of(sample.box)
            most = threads(self._scheduler)
            state = merge([self._compute(grid.part(place)) for place in grid.slabs(most)])
            if checkpoint.digest(state) != sample.digest:
                raise CheckpointError(
                    f"checkpoint {self._path} is of other data: positions "
                    f"{regions.text(sample.box)} give another result than they did",
                    moved=False,
                )
            self.compared += 1

    def _computed(
        self, slab: Grid
    ) -> tuple[list[tuple[Box, EvaluationState]], list[dict[str, Any]]]:
        """Compute a slab, or what of it can be computed, in pieces."""
        try:
            return [(slab.box, self._compute(slab))], []
        except ClusterError:
            raise  # there is nobody to compute another
        except Exception as error:
            if not self._skip:
                where = regions.text(slab.box)
                raise EvaluationError(f"positions {where} failed: {error}") from error
        found, skipped = [], []
        for place in slab.slabs(1):
            pair = slab.part(place)
            try:
                found.append((pair.box, self._compute(pair)))
            except ClusterError:
                raise
            except Exception as error:
                message = f"positions {regions.text(pair.box)} are left out: {error}"
                warnings.warn(message, EvaluationWarning, stacklevel=4)
                positions, region = regions.size(pair.box), list(map(list, pair.box))
                skipped.append({"region": region, "positions": positions, "error": str(error)})
        return found, skipped

    def _compute(self, slab: Grid) -> EvaluationState:
        options = {} if self._scheduler is None else {"scheduler": self._scheduler}
        try:
            (found,) = dask.compute(reduce_states(slab.states), **options)
        except Exception as error:
            if is_lost(error, client_of(self._scheduler)):
                raise ClusterError(f"the cluster was lost: {error}") from error
            raise
        state: EvaluationState = found.reshape(-1)[0]
        return state
