"""The file that a run is resumed from.

One line says what the file is and the SHA-256 of the rest, which is NumPy's ``.npz`` format. A
checkpoint is written under another name and moved to its own, so that there is always a whole one.
"""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.statistics.state import Extremes, State
from kldiv_dask.statistics.tables import Table

VERSION = 1

_MAGIC = b"kldiv-dask checkpoint "


class Progress(NamedTuple):
    """How far a run has come: `done` pairs of chunks in C order, in slabs of at most `slab`.

    `skipped` has the regions that were left out, as JSON holds them.
    """

    done: int
    slab: int
    seconds: float
    skipped: list[dict[str, Any]]
    state: State | None


def packed(state: State) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a state, by name."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, value in state._asdict().items():
        if isinstance(value, tuple):
            parts = value._asdict()  # type: ignore[attr-defined]
            arrays |= {f"{name}.{part}": np.asarray(one) for part, one in parts.items()}
        else:
            arrays[name] = np.asarray(value)
    return arrays


def unpacked(arrays: dict[str, npt.NDArray[Any]]) -> State:
    """Return the state of what `packed` returned."""
    fields: dict[str, Any] = {}
    for name, kind in State.__annotations__.items():
        if kind in (Table, Extremes):
            parts = {part: arrays[f"{name}.{part}"] for part in kind._fields}
            fields[name] = kind(**{p: one if one.ndim else int(one) for p, one in parts.items()})
        else:
            fields[name] = arrays[name]
    return State(**fields)


def dumps(header: dict[str, Any], state: State | None) -> bytes:
    """Return a header, which JSON can hold, and a state as bytes."""
    buffer = io.BytesIO()
    text = np.array(json.dumps(header))
    arrays: dict[str, Any] = {} if state is None else packed(state)
    np.savez(buffer, header=text, **arrays)
    body = buffer.getvalue()
    digest = hashlib.sha256(body).hexdigest().encode()
    return _MAGIC + str(VERSION).encode() + b" " + digest + b"\n" + body


def loads(content: bytes, name: str) -> tuple[dict[str, Any], State | None]:
    """Return what `dumps` was given; `name` is for errors."""
    line, _, body = content.partition(b"\n")
    words = line.removeprefix(_MAGIC).split()
    if not line.startswith(_MAGIC) or len(words) != 2:
        raise ValueError(f"{name} is no checkpoint of kldiv-dask")
    if words[0] != str(VERSION).encode():
        found = words[0].decode(errors="replace")
        raise ValueError(f"{name} is of version {found}; accepted is {VERSION}")
    if hashlib.sha256(body).hexdigest().encode() != words[1]:
        raise ValueError(f"{name} is damaged: its content does not have the digest that it names")
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    return header, unpacked(arrays) if arrays else None


def save(path: Path, fingerprint: dict[str, Any], progress: Progress) -> None:
    """Write a checkpoint in the place of the one before, if there is one."""
    header = progress._asdict() | {"fingerprint": fingerprint}
    state = header.pop("state")
    write_atomically(path, dumps(header, state))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that under its name there is always a whole one, or none."""
    # What a killed process has left behind is overwritten by the next.
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path, fingerprint: dict[str, Any]) -> Progress:
    """Read a checkpoint of the run that a fingerprint describes.

    Raises
    ------
    ValueError
        It is damaged, or of another run: the first difference is named.
    """
    header, state = loads(path.read_bytes(), f"checkpoint {path}")
    if "done" not in header:
        raise ValueError(f"{path} is the result of a run, not its checkpoint")
    found = header.pop("fingerprint")
    for name in fingerprint | found:
        if found.get(name) != fingerprint.get(name):
            raise ValueError(
                f"checkpoint {path} is of another run: {name} was {found.get(name)!r}, now it is "
                f"{fingerprint.get(name)!r}; resume=False starts over in its place"
            )
    return Progress(**header, state=state)
