"""The result of an evaluation."""

import json
import math
import os
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kldiv_dask.evaluation import checkpoint, figures, report
from kldiv_dask.evaluation.statistics import Labels, Statistics, statistics
from kldiv_dask.statistics import state as states
from kldiv_dask.statistics.state import CHECKS, State

SCHEMA = 1


class Evaluation:
    """Every statistic of the divergence of one model from another, from `evaluate`.

    Parameters
    ----------
    state, fingerprint, provenance, skipped
        What `evaluate` has found, and says of it.

    Attributes
    ----------
    shape : tuple of int
        That of the positions.
    skipped : list of dict
        What could not be read and was left out: its ``region``, how many ``positions`` it has, and
        the ``error``.
    provenance : dict
        Where all this comes from.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import evaluate
    >>> evaluate(np.log([[0.25, 0.75]]), np.zeros((1, 2)), progress=False)
    <Evaluation: mean 0.143841 nats over 1 position>
    """

    def __init__(
        self,
        state: State,
        fingerprint: dict[str, Any],
        provenance: dict[str, Any],
        skipped: list[dict[str, Any]],
    ) -> None:
        self.state, self.fingerprint, self.provenance = state, fingerprint, provenance
        self.skipped = skipped
        self.shape = tuple(fingerprint["shape"])

    @cached_property
    def overall(self) -> Statistics:
        """The statistics of all positions."""
        return statistics(states.in_one_group(self.state), 0, self.shape)

    @cached_property
    def groups(self) -> dict[Any, Statistics]:
        """The statistics of each group, by its name; empty if there are no groups."""
        if self.fingerprint["groups"] is None:
            return {}
        names = self.state.groups.tolist()
        return {name: statistics(self.state, code, self.shape) for code, name in enumerate(names)}

    @property
    def count(self) -> int:
        """The number of positions."""
        return self.overall.count

    @property
    def mean(self) -> float:
        """The mean divergence in nats, the exact sum divided by the count and rounded once."""
        return self.overall.mean

    @property
    def quantiles(self) -> dict[float, float]:
        """Quantiles of the divergence, by their probability."""
        return self.overall.quantiles

    @property
    def worst(self) -> list[dict[str, Any]]:
        """The 20 positions with the largest divergences."""
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
        """How many positions have what may be wrong with the data, and the first few of them."""
        first = self.state.first
        found: dict[str, dict[str, Any]] = {}
        for kind, name in enumerate(CHECKS):
            places = first.places[first.groups == kind]
            index = [[int(i) for i in np.unravel_index(place, self.shape)] for place in places]
            found[name] = {"count": self.overall.checks[name], "first": index}
        for side, name in enumerate(CHECKS[-2:]):
            if self.fingerprint["kind"] == "logits":
                del found[name]
            else:
                found[name]["largest_deviation"] = float(self.state.deviations[side])
        return found

    def merge(self, *others: "Evaluation") -> "Evaluation":
        """Join evaluations of data that follow each other along the first axis.

        Parameters
        ----------
        *others : Evaluation
            Of other data, with the same options and the same length of all axes but the first.

        Returns
        -------
        Evaluation
            As of all data in one; but that sequences are put together in other runs where there
            are many, so that clustered standard errors may differ a little.

        Raises
        ------
        ValueError
            The evaluations do not go together.
        """
        joined = self
        for other in others:
            joined = joined._joined(other)
        return joined

    def _joined(self, other: "Evaluation") -> "Evaluation":
        if not self.shape or self.shape[1:] != other.shape[1:]:
            raise ValueError(
                f"positions of shape {self.shape} and {other.shape} do not follow each other along "
                "the first axis"
            )
        for name in ("kind", "temperature", "cluster_axis", "classes"):
            left, right = self.fingerprint[name], other.fingerprint[name]
            if left != right:
                raise ValueError(f"the evaluations differ in {name}: {left!r} and {right!r}")
        for name in ("groups", "labels"):
            if (self.fingerprint[name] is None) != (other.fingerprint[name] is None):
                raise ValueError(f"one of the evaluations has {name} and the other has none")
        rows = self.shape[0]
        moved = states.after(other.state, rows * math.prod(self.shape[1:]))
        if self.fingerprint["cluster_axis"] == 0:
            moved = states.cells_after(moved, self.state)
        shape = (rows + other.shape[0], *self.shape[1:])
        skipped = [
            region
            | {"region": [[end + rows for end in region["region"][0]], *region["region"][1:]]}
            for region in other.skipped
        ]
        fingerprint = {
            name: value if value == other.fingerprint[name] else [value, other.fingerprint[name]]
            for name, value in self.fingerprint.items()
        }
        provenance = {
            name: value
            if value == other.provenance.get(name)
            else f"{value}, {other.provenance.get(name)}"
            for name, value in self.provenance.items()
        }
        fingerprint |= {"shape": list(shape)}
        provenance |= {"seconds": self.provenance["seconds"] + other.provenance["seconds"]}
        merged = states.merge([self.state, moved])
        return Evaluation(merged, fingerprint, provenance, self.skipped + skipped)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as dicts and lists; `report` shows what they are."""
        return {
            "schema": SCHEMA,
            "unit": "nats",
            "kind": self.fingerprint["kind"],
            "shape": list(self.shape),
            "overall": _plain(self.overall),
            "groups": [{"group": name, **_plain(one)} for name, one in self.groups.items()],
            "checks": self.checks,
            "skipped": self.skipped,
            "provenance": self.provenance,
        }

    def to_json(self, path: str | os.PathLike[str] | None = None, *, indent: int = 1) -> str:
        """Return `to_dict` as JSON, and write it to a file if one is named.

        Numbers that are not finite are the strings "nan", "inf" and "-inf".
        """
        text = json.dumps(_json(self.to_dict()), indent=indent, allow_nan=False)
        if path is not None:
            checkpoint.write_atomically(Path(path), text.encode())
        return text

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is known to a file, from which `load` makes it again."""
        header = {
            "fingerprint": self.fingerprint,
            "provenance": self.provenance,
            "skipped": self.skipped,
        }
        checkpoint.write_atomically(Path(path), checkpoint.dumps(header, self.state))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """Read what `save` has written; ValueError if it is something else, or damaged."""
        header, state = checkpoint.loads(Path(path).read_bytes(), str(path))
        if state is None or "provenance" not in header:
            raise ValueError(f"{path} is the checkpoint of a run; accepted is what `save` writes")
        return cls(state, **header)

    def plot(self) -> Any:
        """Return a matplotlib figure of the distribution, by position, and of the groups."""
        return figures.figure(self.to_dict())

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that has everything, with figures, and needs no other file."""
        checkpoint.write_atomically(Path(path), report.page(self.to_dict()).encode())

    def _repr_html_(self) -> str:
        return report.fragment(self.to_dict())

    def __str__(self) -> str:
        return report.text(self.to_dict())

    def __repr__(self) -> str:
        positions = f"{self.count:,} position{'' if self.count == 1 else 's'}"
        return f"<Evaluation: mean {self.mean:.6g} nats over {positions}>"


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
