"""The arguments of an evaluation: opened, aligned and checked at once, and computed later."""

import contextlib
import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt

from kldiv_dask.evaluation import files, regions
from kldiv_dask.evaluation.checkpoint import Progress
from kldiv_dask.evaluation.data import describe
from kldiv_dask.evaluation.errors import EvaluationError
from kldiv_dask.evaluation.operands import Arguments, Operands, prepare
from kldiv_dask.evaluation.progress import RunProgress
from kldiv_dask.evaluation.result import Evaluation
from kldiv_dask.evaluation.run import Notify, Run
from kldiv_dask.evaluation.scheduling import client_of
from kldiv_dask.evaluation.warn import EarlyWarning, warn_of_result, warn_of_sources
from kldiv_dask.options import float_dtype, resolve_temperature
from kldiv_dask.progress import ProgressCallback, ProgressOption, reporter
from kldiv_dask.storage.chunking import Chunks
from kldiv_dask.versions import LAYOUT, REVISION, check_workers

# The options that are part of the provenance.
_IN_PROVENANCE = (
    "kind",
    "classes",
    "temperature",
    "computed_in",
    "cluster_axis",
    "layout",
    "revision",
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """An evaluation whose arrays are opened, aligned and checked; nothing is computed yet.

    The parameters are those of `evaluate`, which describes them and what is refused.
    """

    input: Any
    target: Any
    kind: Literal["logits", "log_probs", "probs", "log_probs_and_probs"] | None = None
    axis: int = -1
    dim: Hashable = None
    temperature: float = 1.0
    where: Any = None
    groups: Any = None
    labels: Any = None
    cluster_axis: int | str = 0
    dtype: npt.DTypeLike | None = None
    chunks: Chunks = None
    input_key: str | None = None
    target_key: str | None = None
    where_key: str | None = None
    groups_key: str | None = None
    labels_key: str | None = None
    allow_truncated: bool = False
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_interval: float | None = None
    resume: bool | Literal["adopt"] = True
    on_error: Literal["raise", "skip"] = "raise"

    operands: Operands = field(init=False)
    """The arrays, aligned."""

    def __post_init__(self) -> None:
        resolve_temperature(self.temperature)
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {self.on_error!r}")
        if self.resume not in (True, False, "adopt"):
            raise ValueError(f"resume must be True, False or 'adopt', got {self.resume!r}")
        if self.dtype is not None and float_dtype(self.dtype) != np.float64:
            raise ValueError(f"dtype must be None or 'float64', got {self.dtype!r}")
        if self.checkpoint is not None:
            files.check(self.checkpoint, "checkpoint")
        arguments = Arguments(self.input, self.target, self.where, self.groups, self.labels)
        keys = {name: getattr(self, f"{name}_key") for name in arguments._fields}
        operands = prepare(
            arguments.opened(keys, chunks=self.chunks, allow_truncated=self.allow_truncated),
            kind=self.kind,
            axis=self.axis,
            dim=self.dim,
            temperature=resolve_temperature(self.temperature),
            cluster_axis=self.cluster_axis,
            wide=self.dtype is not None,
            stacklevel=4,
        )
        object.__setattr__(self, "operands", operands)

    def sample(self) -> da.Array:
        """Return the state of one position of the same types, to compile the kernels with."""
        return self.operands.sample()

    def run(self, *, progress: ProgressOption, scheduler: Any) -> Evaluation:
        """Compute the evaluation."""
        callback = reporter(progress)
        client = client_of(scheduler)
        if client is not None:
            check_workers(client)
        with contextlib.ExitStack() as stack:
            path = None
            if self.checkpoint is not None:
                path = Path(self.checkpoint).absolute()
                stack.enter_context(files.locked(path))
            return self._run(path, callback, scheduler)

    def _run(
        self, path: Path | None, callback: ProgressCallback | None, scheduler: Any
    ) -> Evaluation:
        operands, spec = self.operands, self.operands.spec
        missing = operands.missing_chunks(scheduler)
        warned = warn_of_sources(operands.data, missing)
        options = self._options()
        run = Run(
            spec.shape,
            operands.grid,
            path,
            options | operands.pairing(),
            operands.data.identities,
            resume=self.resume,
            interval=self.checkpoint_interval,
            skip=self.on_error == "skip",
            scheduler=scheduler,
        )
        total = regions.size(regions.box_of(spec.shape))
        early = EarlyWarning(spec.kind, warned)
        listeners: list[Notify] = [early]
        if callback is not None:
            listeners.append(RunProgress(callback, total, int(operands.pair.nbytes), run, path))

        def notify(progress: Progress) -> None:
            for listener in listeners:
                listener(progress)

        end = run.compute(notify)
        if run.resumed < total:
            operands.data.check_unchanged()
        if end.state is None:
            why = f": {end.skipped[0]['error']}" if end.skipped else ""
            raise EvaluationError(f"no position could be evaluated{why}")
        provenance = {
            "input": describe(self.input, self.input_key),
            "target": describe(self.target, self.target_key),
            **{name: options[name] for name in _IN_PROVENANCE},
            "dtype": operands.pair.input.dtype.name,
            "seconds": round(end.seconds, 3),
            **operands.remarks(),
            **(
                {"taken_over": _taken_over(run.resumed, total, run.compared, path)}
                if run.resumed
                else {}
            ),
        }
        options |= operands.present() | {"each": spec.sequences_per_cell}
        result = Evaluation(end.state, options, provenance, end.skipped, missing)
        warn_of_result(result, early)
        return result

    def _options(self) -> dict[str, Any]:
        """Return the options that decide on the result, for JSON."""
        spec = self.operands.spec
        return {
            "kind": spec.kind,
            "classes": self.operands.pair.chunks[-1][0],
            "shape": list(spec.shape),
            "temperature": spec.temperature,
            "computed_in": spec.dtype.name,
            "generalized": spec.generalized,
            "cluster_axis": spec.cluster_axis,
            "layout": LAYOUT,
            "revision": REVISION,
        }


def _taken_over(resumed: int, total: int, compared: int, path: Path | None) -> str:
    """Describe how many positions are from a checkpoint; `compared` slabs were computed again."""
    if resumed == total:
        read = (
            f"only {compared} of its slabs were read, to compare"
            if compared
            else "nothing was read"
        )
        return f"all positions, {read}: {path}"
    after = f", after comparing {compared} of its slabs" if compared else ""
    return f"{resumed:,} of {total:,} positions{after}: {path}"
