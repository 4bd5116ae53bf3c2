"""The format of checkpoints, from which a run resumes, and of saved evaluations.

The first line has the layout of the file and the SHA-256 of the rest, which is in NumPy's ``.npz``
format.
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
    """The positions of a computed slab, and the digest of its state."""

    box: Box
    digest: str


class Progress(NamedTuple):
    """What a run has computed so far.

    `done` has the positions that are done, in boxes that do not depend on chunks, and `skipped` the
    regions of them that were left out. `samples` are some slabs, to compare with. `state` is None
    if no position was computed.
    """

    done: list[Box]
    samples: list[Sample]
    seconds: float
    skipped: list[dict[str, Any]]
    state: EvaluationState | None

    @property
    def positions(self) -> int:
        """The number of positions that are done, with those left out."""
        return sum(map(size, self.done))


def packed(state: EvaluationState) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a state, by name."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, value in state._asdict().items():
        if isinstance(value, tuple):
            fields = value._asdict()  # type: ignore[attr-defined]
            arrays |= {f"{name}.{field}": np.asarray(part) for field, part in fields.items()}
        else:
            arrays[name] = np.asarray(value)
    return arrays


def unpacked(arrays: dict[str, npt.NDArray[Any]]) -> EvaluationState:
    """Return the state of the arrays that `packed` returned."""
    fields: dict[str, Any] = {}
    for name, kind in EvaluationState.__annotations__.items():
        if kind in (KeyedSums, Extremes):
            parts = {field: arrays[f"{name}.{field}"] for field in kind._fields}
            fields[name] = kind(
                **{field: part if part.ndim else int(part) for field, part in parts.items()}
            )
        else:
            fields[name] = arrays[name]
    return EvaluationState(**fields)


def dumps(header: dict[str, Any], state: EvaluationState | None) -> bytes:
    """Return the content of a file, of a header for JSON and a state."""
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
    """Return the arguments of `dumps`; errors name the file `name` and say `what` it should be."""
    line, _, body = content.partition(b"\n")
    words = line.removeprefix(_MAGIC).split()
    if not line.startswith(_MAGIC) or len(words) != 2:
        raise ValueError(f"{name} is no {what} of kldiv-dask")
    if words[0] != str(LAYOUT).encode():
        layout = words[0].decode(errors="replace")
        raise ValueError(
            f"{name} has layout {layout}, which another version of kldiv-dask writes; this one "
            f"reads layout {LAYOUT}: evaluate again, or use the version that wrote it"
        )
    if hashlib.sha256(body).hexdigest().encode() != words[1]:
        raise ValueError(f"{name} is damaged: its content does not have the digest that it names")
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    return header, unpacked(arrays) if arrays else None


def digest(state: EvaluationState) -> str:
    """Return the SHA-256 of a state."""
    hasher = hashlib.sha256()
    for name, array in packed(state).items():
        hasher.update(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return hasher.hexdigest()


def save(path: Path, options: dict[str, Any], data: Identities, progress: Progress) -> None:
    """Write a checkpoint; it replaces the one before."""
    header = progress._asdict() | {"options": options, "data": data}
    state = header.pop("state")
    files.write(path, dumps(header, state))


def load(path: Path, options: dict[str, Any], data: Identities, *, adopt: bool) -> Progress:
    """Read a checkpoint of the run with these options and data.

    With `adopt`, the identities of the data are not compared: the caller must compare the samples.

    Raises
    ------
    ValueError
        The file is damaged, has another layout, or is no checkpoint.
    CheckpointError
        The options or the data of the run were others.
    """
    header, state = loads(path.read_bytes(), f"checkpoint {path}")
    if "done" not in header:
        raise ValueError(f"{path} is the result of a run, not its checkpoint")
    stored_options, stored_data = header.pop("options"), header.pop("data")
    differing = [
        f"{name} was {stored_options.get(name)!r}, now it is {options[name]!r}"
        for name in options
        if stored_options.get(name) != options[name]
    ]
    changed = [] if differing or adopt else list(differences(stored_data, data))
    if differing or changed:
        reason = f"checkpoint {path} is of another run: {'; '.join(differing[:1] + changed)}"
        raise CheckpointError(reason, moved=not differing)
    header["done"] = [_box(box) for box in header["done"]]
    header["samples"] = [Sample(_box(box), digest) for box, digest in header["samples"]]
    return Progress(**header, state=state)


def _box(spans: list[list[int]]) -> Box:
    return tuple((start, stop) for start, stop in spans)
