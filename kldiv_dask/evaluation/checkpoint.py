"""The file that a run is resumed from.

One line says what the file is and the SHA-256 of the rest, which is NumPy's ``.npz`` format. A
checkpoint is written whole, so that there is always one.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.align import Box
from kldiv_dask.evaluation import files
from kldiv_dask.evaluation.data import Identities, differences
from kldiv_dask.evaluation.errors import CheckpointError
from kldiv_dask.evaluation.regions import size
from kldiv_dask.statistics.extremes import Extremes
from kldiv_dask.statistics.state import EvaluationState
from kldiv_dask.statistics.tables import KeyedSums
from kldiv_dask.versions import LAYOUT

_MAGIC = b"kldiv-dask checkpoint "


class Sample(NamedTuple):
    """A slab that was done: where it is, and a digest of its state."""

    box: Box
    digest: str


class Progress(NamedTuple):
    """How far a run has come.

    `done` has the positions that are done, in boxes that no chunks decide; `skipped` the regions of
    them that were left out; and `samples` some slabs, to compare with.
    """

    done: list[Box]
    samples: list[Sample]
    seconds: float
    skipped: list[dict[str, Any]]
    state: EvaluationState | None

    @property
    def positions(self) -> int:
        """How many positions are done."""
        return sum(map(size, self.done))


def packed(state: EvaluationState) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a state, by name."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, value in state._asdict().items():
        if isinstance(value, tuple):
            parts = value._asdict()  # type: ignore[attr-defined]
            arrays |= {f"{name}.{part}": np.asarray(one) for part, one in parts.items()}
        else:
            arrays[name] = np.asarray(value)
    return arrays


def unpacked(arrays: dict[str, npt.NDArray[Any]]) -> EvaluationState:
    """Return the state of what `packed` returned."""
    fields: dict[str, Any] = {}
    for name, kind in EvaluationState.__annotations__.items():
        if kind in (KeyedSums, Extremes):
            parts = {part: arrays[f"{name}.{part}"] for part in kind._fields}
            fields[name] = kind(**{p: one if one.ndim else int(one) for p, one in parts.items()})
        else:
            fields[name] = arrays[name]
    return EvaluationState(**fields)


def dumps(header: dict[str, Any], state: EvaluationState | None) -> bytes:
    """Return a header, which JSON can hold, and a state as bytes."""
    buffer = io.BytesIO()
    text = np.array(json.dumps(header))
    arrays: dict[str, Any] = {} if state is None else packed(state)
    np.savez(buffer, header=text, **arrays)
    body = buffer.getvalue()
    digest = hashlib.sha256(body).hexdigest().encode()
    return _MAGIC + str(LAYOUT).encode() + b" " + digest + b"\n" + body


def loads(
    content: bytes, name: str, what: str = "checkpoint"
) -> tuple[dict[str, Any], EvaluationState | None]:
    """Return what `dumps` was given; `name`, and `what` it should be, are for errors."""
    line, _, body = content.partition(b"\n")
    words = line.removeprefix(_MAGIC).split()
    if not line.startswith(_MAGIC) or len(words) != 2:
        raise ValueError(f"{name} is no {what} of kldiv-dask")
    if words[0] != str(LAYOUT).encode():
        found = words[0].decode(errors="replace")
        raise ValueError(
            f"{name} has layout {found}, which another version of kldiv-dask writes; this one reads"
            f" layout {LAYOUT}: evaluate again, or use the version that wrote it"
        )
    if hashlib.sha256(body).hexdigest().encode() != words[1]:
        raise ValueError(f"{name} is damaged: its content does not have the digest that it names")
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    return header, unpacked(arrays) if arrays else None


def digest(state: EvaluationState) -> str:
    """Return what tells a state from others."""
    found = hashlib.sha256()
    for name, array in packed(state).items():
        found.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()


def save(path: Path, options: dict[str, Any], data: Identities, progress: Progress) -> None:
    """Write a checkpoint in the place of the one before, if there is one."""
    header = progress._asdict() | {"options": options, "data": data}
    state = header.pop("state")
    files.write(path, dumps(header, state))


def load(path: Path, options: dict[str, Any], data: Identities, *, adopt: bool) -> Progress:
    """Read a checkpoint of the run that options and data describe.

    With `adopt`, the data may be known by other names and times; whoever asks for it has to compare
    the samples.

    Raises
    ------
    ValueError
        It is damaged, of another layout, or no checkpoint.
    CheckpointError
        It is of another run.
    """
    header, state = loads(path.read_bytes(), f"checkpoint {path}")
    if "done" not in header:
        raise ValueError(f"{path} is the result of a run, not its checkpoint")
    before, known = header.pop("options"), header.pop("data")
    differing = [
        f"{name} was {before.get(name)!r}, now it is {options[name]!r}"
        for name in options
        if before.get(name) != options[name]
    ]
    changed = [] if differing or adopt else list(differences(known, data))
    if differing or changed:
        reason = f"checkpoint {path} is of another run: {'; '.join(differing[:1] + changed)}"
        raise CheckpointError(reason, moved=not differing)
    header["done"] = [_box(box) for box in header["done"]]
    header["samples"] = [Sample(_box(box), digest) for box, digest in header["samples"]]
    return Progress(**header, state=state)


def _box(spans: list[list[int]]) -> Box:
    return tuple((start, stop) for start, stop in spans)
