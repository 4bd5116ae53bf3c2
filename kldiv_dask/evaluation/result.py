"""The result of an evaluation."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

from kldiv_dask.evaluation import checkpoint, files, merging, serialization
from kldiv_dask.report import plots, render, wording
from kldiv_dask.statistics import doubts, extremes
from kldiv_dask.statistics import state as states
from kldiv_dask.statistics.results import Labels, Statistics
from kldiv_dask.statistics.state import CHECKS, EvaluationState
from kldiv_dask.statistics.summarize import summarize

# What `EvaluationState.fingerprints` are of.
_FINGERPRINTED = ("positions", "input", "target")


class Evaluation:
    """Every statistic of the divergence of one model from another, from `evaluate`.

    Parameters
    ----------
    state, options, provenance, skipped, missing
        The state of the positions, the options of the run, and the attributes below.

    Attributes
    ----------
    shape : tuple of int
        The shape of the positions.
    skipped : list of dict
        Each ``region`` that could not be read and was left out, its number of ``positions``, and
        the ``error``.
    missing : list of dict
        For each array with stored chunks that were never written: their number, ``chunks``, where
        positions are included; the region of the ``first``; the ``fill`` value that they read as;
        and whether the array is the ``whole`` stored array. If it is computed from one, all chunks
        that are missing count.
    provenance : dict
        The data, the options and the time of the run.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import evaluate
    >>> evaluate(np.log([[0.25, 0.75]]), np.log([[0.5, 0.4]]), progress=False)
    <Evaluation: mean 0.211061 nats over 1 position>
    """

    def __init__(
        self,
        state: EvaluationState,
        options: dict[str, Any],
        provenance: dict[str, Any],
        skipped: list[dict[str, Any]],
        missing: list[dict[str, Any]],
    ) -> None:
        self.state, self.options, self.provenance = state, options, provenance
        self.skipped, self.missing = skipped, missing
        self.shape = tuple(options["shape"])

    @cached_property
    def overall(self) -> Statistics:
        """The statistics of all positions."""
        return summarize(states.merge_groups(self.state), 0, self.shape)

    @cached_property
    def groups(self) -> dict[Any, Statistics]:
        """The statistics of each group, by its name; empty if there are no groups."""
        if not self.options["groups"]:
            return {}
        names = self.state.groups.tolist()
        return {name: summarize(self.state, code, self.shape) for code, name in enumerate(names)}

    @property
    def count(self) -> int:
        """The number of positions."""
        return self.overall.count

    @property
    def mean(self) -> float:
        """The mean divergence in nats: the exact sum divided by the count, rounded once.

        It is NaN or infinite if the divergence of any position is. ``overall.mean_of_finite`` is
        the mean over the other positions.
        """
        return self.overall.mean

    @property
    def quantiles(self) -> dict[float, float]:
        """Quantiles of the divergence, by their probability."""
        return self.overall.quantiles

    @property
    def worst(self) -> list[dict[str, Any]]:
        """The 20 positions with the largest divergences, infinite ones first."""
        return self.overall.worst

    @property
    def labels(self) -> Labels | None:
        """How probable both models take the labels to be; None if there are no labels."""
        return self.overall.labels

    @property
    def by_position(self) -> list[dict[str, Any]]:
        """The mean divergence along the last axis of the positions, if they have two or more."""
        return self.overall.by_position

    @cached_property
    def checks(self) -> dict[str, dict[str, Any]]:
        """Number of positions that fail each data check, and the indices of the first few.

        Only the checks that apply to this kind of data: logits need not sum to 1.
        """
        kind, labels = self.options["kind"], self.options["labels"]
        checks: dict[str, dict[str, Any]] = {
            name: {
                "count": self.overall.checks[name],
                "first": extremes.indices_of(self.state.first, CHECKS.index(name), self.shape),
            }
            for name in ("nan", "infinite", *doubts.applicable(kind, labels))
        }
        for operand, deviation in zip(
            ("input", "target"), self.state.deviations.tolist(), strict=True
        ):
            if f"{operand}_not_normalized" in checks:
                checks[f"{operand}_not_normalized"]["largest_deviation"] = deviation
        return checks

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the contents of ``input`` and ``target``, and of the ``positions``.

        They are computed from the stored bits at all included positions, and from their order; they
        do not depend on chunks or paths. Equal fingerprints do not prove that contents are equal.
        """
        numbers = self.state.fingerprints.tolist()
        return {
            name: f"{number:016x}" for name, number in zip(_FINGERPRINTED, numbers, strict=True)
        }

    def doubts(self) -> list[str]:
        """Return sentences that say why the data are probably not of the kind that was named."""
        return doubts.of_state(self.state, self.options["kind"])

    @property
    def clustering(self) -> dict[str, Any]:
        """What the clusters consist ``of``, the ``count`` of these, and how many in ``each``.

        They consist of sequences, or of positions if these have one axis. ``each`` is None if
        evaluations with clusters of different lengths were merged.
        """
        axis, each = self.options["cluster_axis"], self.options["each"]
        return {
            "of": "positions" if len(self.shape) < 2 else "sequences",
            "count": self.shape[axis] if self.shape else 1,
            "each": None if each is None else each << self.state.cells.halvings,
        }

    def merge(self, *others: "Evaluation") -> "Evaluation":
        """Join evaluations of data that follow each other along the first axis.

        Parameters
        ----------
        *others : Evaluation
            Of the data that follow, with the same options, and the same shape but for the first
            axis.

        Returns
        -------
        Evaluation
            The same as one evaluation of all data, with one exception: more than 1024 sequences
            are joined to clusters in other runs, so clustered standard errors may differ a little.

        Raises
        ------
        ValueError
            The options or the shapes differ.
        TypeError
            One of `others` is no Evaluation.
        """
        merged = self
        for other in others:
            if not isinstance(other, Evaluation):
                raise TypeError(f"others must be Evaluations, got a {type(other).__name__}")
            merged = Evaluation(**merging.merge_fields(merged, other))
        return merged

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as dicts and lists."""
        return serialization.to_dict(self)

    def to_json(self, path: str | os.PathLike[str] | None = None, *, indent: int = 1) -> str:
        """Return `to_dict` as JSON, and write it to a file if a path is given.

        Numbers that are not finite are the strings "nan", "inf" and "-inf".
        """
        text = serialization.to_json(self.to_dict(), indent)
        if path is not None:
            files.write(path, f"{text}\n".encode())
        return text

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the evaluation to a file that `load` reads."""
        header = {
            "options": self.options,
            "provenance": self.provenance,
            "skipped": self.skipped,
            "missing": self.missing,
        }
        files.write(path, checkpoint.dumps(header, self.state))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """Read a file that `save` wrote; ValueError if it is another file, or damaged."""
        header, state = checkpoint.loads(Path(path).read_bytes(), str(path), "result")
        if state is None or "provenance" not in header:
            raise ValueError(
                f"{path} must be a file that `save` wrote, got the checkpoint of a run"
            )
        return cls(state, **header)

    def plot(self) -> Any:
        """Return a matplotlib figure: the distribution, the means by position, and the groups."""
        return plots.figure(self.to_dict())

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return a page with all numbers and charts, and write it to a file if a path is given.

        The page needs no other file.
        """
        page = render.page(self.to_dict())
        if path is not None:
            files.write(path, page.encode())
        return page

    def _repr_html_(self) -> str:
        return render.fragment(self.to_dict())

    def __str__(self) -> str:
        return render.text(self.to_dict())

    def __repr__(self) -> str:
        overall = vars(self.overall)
        positions = wording.positions(overall)
        return f"<Evaluation: mean {wording.finite_mean(overall):.6g} nats over {positions}>"
