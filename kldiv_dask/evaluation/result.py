"""The result of an evaluation."""

import json
import math
import os
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kldiv_dask.evaluation import checkpoint, files
from kldiv_dask.report import plots, render, wording
from kldiv_dask.statistics import doubts
from kldiv_dask.statistics import state as states
from kldiv_dask.statistics.results import Labels, Statistics
from kldiv_dask.statistics.state import CHECKS, EvaluationState
from kldiv_dask.statistics.summarize import summarize

# Of `Evaluation.to_dict`. 2: "clustering", "missing" and "fingerprints", and more checks. 3: "nan",
# "infinite", "finite" and "worst_finite" of statistics; their errors are those of finite positions.
# 4: names of checks in American spelling.
SCHEMA = 4

_NAMES = ("positions", "input", "target")


class Evaluation:
    """Every statistic of the divergence of one model from another, from `evaluate`.

    Parameters
    ----------
    state, options, provenance, skipped, missing
        What `evaluate` has found, and says of it.

    Attributes
    ----------
    shape : tuple of int
        That of the positions.
    skipped : list of dict
        What could not be read and was left out: its ``region``, how many ``positions`` it has, and
        the ``error``.
    missing : list of dict
        Of an array, how many stored ``chunks`` are not there where positions count, the region of
        the ``first``, the ``fill`` that they read as, and whether the array is the ``whole`` of
        what is stored, not something made of it, of which it is not known what counts.
    provenance : dict
        Where all this comes from.

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
        """The mean divergence in nats, the exact sum divided by the count and rounded once.

        NaN or infinite if the divergence of any position is: ``overall.mean_of_finite`` is the mean
        over the other positions.
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
        """What labels tell, if there were any."""
        return self.overall.labels

    @property
    def by_position(self) -> list[dict[str, Any]]:
        """The mean divergence along the last axis of the positions, if they have two or more."""
        return self.overall.by_position

    @cached_property
    def checks(self) -> dict[str, dict[str, Any]]:
        """How many positions have what may be wrong with the data, and the first few of them.

        Only what can be of data of this kind: that probabilities do not sum to 1 is not said of
        logits.
        """
        first, found = self.state.first, {}
        kind, labels = self.options["kind"], self.options["labels"]
        for name in ("nan", "infinite", *doubts.applicable(kind, labels)):
            places = first.places[first.groups == CHECKS.index(name)]
            index = [[int(i) for i in np.unravel_index(place, self.shape)] for place in places]
            found[name] = {"count": self.overall.checks[name], "first": index}
        for side, operand in enumerate(("input", "target")):
            if f"{operand}_not_normalized" in found:
                deviation = float(self.state.deviations[side])
                found[f"{operand}_not_normalized"]["largest_deviation"] = deviation
        return found

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the contents of ``input`` and ``target``, and of which ``positions``.

        They are made of the stored bits at all positions that are included, and of their order:
        they depend on neither chunks nor paths. Equal ones are no proof that contents are equal.
        """
        numbers = self.state.fingerprints.tolist()
        return {name: f"{number:016x}" for name, number in zip(_NAMES, numbers, strict=True)}

    def doubts(self) -> list[str]:
        """Say what makes it doubtful that the data are what they are said to be, in sentences."""
        return doubts.of_state(self.state, self.options["kind"])

    @property
    def clustering(self) -> dict[str, Any]:
        """What the clusters are: ``of`` how many sequences, or positions, and how many in each.

        ``each`` is None if the clusters of merged evaluations are runs of other lengths.
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
            Of other data, with the same options and the same length of all axes but the first.

        Returns
        -------
        Evaluation
            As of all data in one; but that beyond 1024 sequences they are put together in other
            runs, so that clustered standard errors may differ a little.

        Raises
        ------
        ValueError
            The evaluations do not go together.
        TypeError
            One of them is no Evaluation.
        """
        joined = self
        for other in others:
            if not isinstance(other, Evaluation):
                raise TypeError(f"merge takes Evaluations, got a {type(other).__name__}")
            joined = joined._joined(other)
        return joined

    def _joined(self, other: "Evaluation") -> "Evaluation":
        if not self.shape or self.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"positions of shape {self.shape} and {other.shape} do not follow each other along "
                "the first axis"
            )
        for name in ("kind", "generalized", "temperature", "cluster_axis", "classes", "revision"):
            left, right = self.options[name], other.options[name]
            if left != right:
                raise ValueError(f"the evaluations differ in {name}: {left!r} and {right!r}")
        for name in ("groups", "labels"):
            if self.options[name] != other.options[name]:
                raise ValueError(f"one of the evaluations has {name} and the other has none")
        rows = self.shape[0]
        moved = states.offset_positions(other.state, rows * math.prod(self.shape[1:]))
        each = self.options["each"] if self.options["each"] == other.options["each"] else None
        if self.options["cluster_axis"] == 0:
            cells = None if each is None or rows % each else rows // each
            moved, is_regular = states.offset_clusters(moved, self.state, cells)
            each = each if is_regular else None
        shape = (rows + other.shape[0], *self.shape[1:])
        skipped = [
            region
            | {"region": [[end + rows for end in region["region"][0]], *region["region"][1:]]}
            for region in other.skipped
        ]
        options = {
            name: value if value == other.options[name] else [value, other.options[name]]
            for name, value in self.options.items()
        }
        options |= {
            "shape": list(shape),
            "each": each,
            "where": self.options["where"] or other.options["where"],
        }
        provenance = {}
        for name in self.provenance | other.provenance:
            values = [one.provenance[name] for one in (self, other) if name in one.provenance]
            same = len(values) == 1 or values[0] == values[1]
            provenance[name] = values[0] if same else ", ".join(map(str, values))
        provenance |= {"seconds": self.provenance["seconds"] + other.provenance["seconds"]}
        merged = states.merge([self.state, moved])
        missing = self.missing + other.missing
        return Evaluation(merged, options, provenance, self.skipped + skipped, missing)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as dicts and lists; `report` shows what they are."""
        return {
            "schema": SCHEMA,
            "unit": "nats",
            "kind": self.options["kind"],
            "shape": list(self.shape),
            "overall": _plain(self.overall),
            "groups": [{"group": name, **_plain(one)} for name, one in self.groups.items()],
            "clustering": self.clustering,
            "checks": self.checks,
            "doubts": self.doubts(),
            "missing": self.missing,
            "skipped": self.skipped,
            "fingerprints": self.fingerprints,
            "provenance": self.provenance,
        }

    def to_json(self, path: str | os.PathLike[str] | None = None, *, indent: int = 1) -> str:
        """Return `to_dict` as JSON, and write it to a file if one is named.

        Numbers that are not finite are the strings "nan", "inf" and "-inf".
        """
        text = json.dumps(_json(self.to_dict()), indent=indent, allow_nan=False)
        if path is not None:
            files.write(path, f"{text}\n".encode())
        return text

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is known to a file, from which `load` makes it again."""
        header = {
            "options": self.options,
            "provenance": self.provenance,
            "skipped": self.skipped,
            "missing": self.missing,
        }
        files.write(path, checkpoint.dumps(header, self.state))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """Read what `save` has written; ValueError if it is something else, or damaged."""
        header, state = checkpoint.loads(Path(path).read_bytes(), str(path), "result")
        if state is None or "provenance" not in header:
            raise ValueError(
                f"{path} must be a file that `save` wrote, got the checkpoint of a run"
            )
        return cls(state, **header)

    def plot(self) -> Any:
        """Return a matplotlib figure of the distribution, by position, and of the groups."""
        return plots.figure(self.to_dict())

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that has everything, with figures, and needs no other file."""
        files.write(path, render.page(self.to_dict()).encode())

    def _repr_html_(self) -> str:
        return render.fragment(self.to_dict())

    def __str__(self) -> str:
        return render.text(self.to_dict())

    def __repr__(self) -> str:
        overall = vars(self.overall)
        positions = wording.positions(overall)
        return f"<Evaluation: mean {wording.finite_mean(overall):.6g} nats over {positions}>"


def _plain(numbers: Statistics) -> dict[str, Any]:
    """Return statistics as what JSON can hold, quantiles as pairs."""
    plain = asdict(numbers)
    plain["quantiles"] = [list(pair) for pair in numbers.quantiles.items()]
    if numbers.labels is not None:
        pairs = numbers.labels.p_change_quantiles.items()
        plain["labels"]["p_change_quantiles"] = [list(pair) for pair in pairs]
    return plain


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
