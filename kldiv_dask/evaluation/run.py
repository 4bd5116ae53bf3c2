"""The loop over the slabs of an evaluation, with checkpoints to resume from."""

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask

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
from kldiv_dask.evaluation.pace import Pace
from kldiv_dask.evaluation.scheduling import client_of, compute_options, is_lost, threads
from kldiv_dask.evaluation.slabs import Grid, Remaining
from kldiv_dask.graph import reduce_states
from kldiv_dask.statistics.state import EvaluationState, merge

Notify = Callable[[Progress], None]

# A checkpoint stores the digests of at least so many slabs, if there are as many, and at most of
# twice as many.
SAMPLES = 4


class Run:
    """The computation of one evaluation.

    Parameters
    ----------
    shape : tuple of int
        The shape of the positions.
    grid_of : callable
        Returns the `Grid` of a box of the positions.
    path : Path or None
        The checkpoint.
    options : dict
        The options that decide on the result, for JSON.
    data : callable
        Returns what identifies the data, for JSON; it is called if there is a checkpoint.
    resume : bool or 'adopt'
        Whether to go on from the checkpoint if it exists; with 'adopt' also if the data have other
        identities.
    interval : float or None
        Seconds from one checkpoint to the next; None for the default of the configuration.
    skip : bool
        Whether to leave out the positions that can't be computed.
    scheduler : str or distributed.Client, optional
        As for `dask.compute`.

    Attributes
    ----------
    progress : Progress
        The positions that are done.
    resumed : int
        How many positions were done in the checkpoint.
    compared : int
        How many slabs of the checkpoint were computed again.
    remaining : Remaining
        The pairs of chunks that are left.
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
        self.compared = 0
        self._saved = 0  # how many positions are done in the checkpoint
        if path is not None and resume and path.exists():
            self._load(path, adopt=resume == "adopt")
        self.resumed = self.progress.positions
        boxes = regions.left_over(regions.box_of(shape), self.progress.done)
        self.remaining = Remaining([grid_of(box) for box in boxes])

    def compute(self, notify: Notify) -> Progress:
        """Compute the remaining slabs, and return the progress at the end.

        `notify` is called with the progress after each slab. The last checkpoint is written also if
        a slab fails.
        """
        try:
            self._compute_slabs(notify)
        finally:
            self._save("what was done since it was last written is in no file")
        return self.progress

    def _load(self, path: Path, *, adopt: bool) -> None:
        """Take over the progress of a checkpoint."""
        self.progress = checkpoint.load(path, self._options, self._data, adopt=adopt)
        if adopt:
            self._compare_samples()
            return
        self._saved = self.progress.positions
        for sentence in unwatched(self._data):
            warnings.warn(sentence, EvaluationWarning, stacklevel=6)

    def _compute_slabs(self, notify: Notify) -> None:
        start = time.monotonic()
        last_save = -math.inf  # the first slab is saved too, so that a run resumes early
        seconds_before = self.progress.seconds
        pace = Pace(self.remaining.pairs)
        while self.remaining:
            slab_start = time.monotonic()
            slab = self.remaining.take(pace.pairs(threads(self._scheduler)))
            computed, skipped = self._compute_or_skip(slab)
            now = time.monotonic()
            pace.record(slab.pairs, now - slab_start)
            seconds = seconds_before + now - start
            self.progress = self._after(slab.box, computed, skipped, seconds)
            if now - last_save >= self._interval:
                self._save(f"the run goes on, and tries again in {self._interval:g} s")
                last_save = now
            notify(self.progress)

    def _after(
        self,
        box: Box,
        computed: list[tuple[Box, EvaluationState]],
        skipped: list[dict[str, Any]],
        seconds: float,
    ) -> Progress:
        """Return the progress with one more slab."""
        before = self.progress
        samples = before.samples
        if self._path is not None and computed:
            first_box, state = computed[0]
            samples = [*samples, Sample(first_box, checkpoint.digest(state))]
            if len(samples) > 2 * SAMPLES:  # the first, the last, and every other one
                samples = [*samples[:-1:2], samples[-1]]
        states = [state for _, state in computed]
        if before.state is not None:
            states.insert(0, before.state)
        return Progress(
            done=regions.joined(before.done, box),
            samples=samples,
            seconds=seconds,
            skipped=before.skipped + skipped,
            state=merge(states) if states else None,
        )

    def _save(self, otherwise: str) -> None:
        """Write the checkpoint if positions were added; if that fails, warn, with `otherwise`."""
        done = self.progress.positions
        if self._path is None or done == self._saved:
            return
        try:
            checkpoint.save(self._path, self._options, self._data, self.progress)
            self._saved = done
        except OSError as error:
            message = f"checkpoint {self._path} could not be written: {error}; {otherwise}"
            warnings.warn(message, EvaluationWarning, stacklevel=5)

    def _compare_samples(self) -> None:
        """Compute the first, a middle and the last sample of the checkpoint again."""
        samples = self.progress.samples
        if self.progress.positions and not samples:
            raise CheckpointError(
                f"checkpoint {self._path} has nothing to compare with: all that was done was left "
                "out",
                moved=False,
            )
        for index in sorted({0, len(samples) // 2, len(samples) - 1} if samples else ()):
            sample = samples[index]
            slabs = self._grid_of(sample.box).slabs(threads(self._scheduler))
            state = merge([self._compute_state(slab) for slab in slabs])
            if checkpoint.digest(state) != sample.digest:
                raise CheckpointError(
                    f"checkpoint {self._path} is of other data: positions "
                    f"{regions.text(sample.box)} give another result than they did",
                    moved=False,
                )
            self.compared += 1

    def _compute_or_skip(
        self, slab: Grid
    ) -> tuple[list[tuple[Box, EvaluationState]], list[dict[str, Any]]]:
        """Compute a slab; if it fails and `skip` is set, each pair of chunks by itself.

        Returns
        -------
        list of (Box, EvaluationState)
            What was computed: the slab, or some of its pairs.
        list of dict
            The pairs that failed.
        """
        try:
            return [(slab.box, self._compute_state(slab))], []
        except ClusterError:
            raise  # no other pair could be computed
        except Exception as error:
            if not self._skip:
                where = regions.text(slab.box)
                raise EvaluationError(f"positions {where} failed: {error}") from error
        computed, skipped = [], []
        for pair in slab.slabs(1):
            try:
                computed.append((pair.box, self._compute_state(pair)))
            except ClusterError:
                raise
            except Exception as error:
                message = f"positions {regions.text(pair.box)} are left out: {error}"
                warnings.warn(message, EvaluationWarning, stacklevel=4)
                positions, region = regions.size(pair.box), list(map(list, pair.box))
                skipped.append({"region": region, "positions": positions, "error": str(error)})
        return computed, skipped

    def _compute_state(self, slab: Grid) -> EvaluationState:
        """Compute the merged state of a slab."""
        try:
            (states,) = dask.compute(reduce_states(slab.states), **compute_options(self._scheduler))
        except Exception as error:
            if is_lost(error, client_of(self._scheduler)):
                raise ClusterError(f"the cluster was lost: {error}") from error
            raise
        state: EvaluationState = states.reshape(-1)[0]
        return state
