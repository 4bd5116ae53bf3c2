"""The arrays of a run: what they are known by, and whether they still are what they were."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import dask
import dask.array as da
import dask.base
import numpy as np

from kldiv_dask.align import Box
from kldiv_dask.evaluation.errors import EvaluationError
from kldiv_dask.storage import change, source_of

PATHS = str, os.PathLike

Identities = dict[str, dict[str, Any] | None]


def describe(operand: Any, key: str | None = None) -> str:
    """Say in a few words what an argument is.

    Examples
    --------
    >>> import numpy as np
    >>> describe(np.zeros((2, 3)))
    'ndarray of 2 x 3 float64'
    """
    if isinstance(operand, PATHS):
        return os.fspath(operand) + (f":{key}" if key else "")
    shape = " x ".join(map(str, getattr(operand, "shape", ())))
    return f"{type(operand).__name__} of {shape} {getattr(operand, 'dtype', '')}".strip()


class Data:
    """The arrays of a run, by argument; None where there is none.

    What is stored is looked at here, and once more by `check_unchanged`.

    Parameters
    ----------
    arrays : mapping of str to array_like or None
        As they are computed with, before they are rechunked; what was given by its path is opened.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays
        self.sources = {
            name: source
            for name, array in arrays.items()
            if isinstance(array, da.Array) and (source := source_of(array)) is not None
        }
        self.contents = {name: source.contents() for name, source in self.sources.items()}

    def identities(self) -> Identities:
        """Return what tells each array from others, for JSON.

        Stored arrays are known by their path and their files, Dask arrays by their names, and
        arrays in memory by what is in them.
        """
        return {
            name: None if array is None else self._identity(name, array)
            for name, array in self._arrays.items()
        }

    def _identity(self, name: str, array: Any) -> dict[str, Any]:
        if name in self.contents:
            return self.contents[name].to_dict()
        inner = getattr(array, "data", None) if hasattr(array, "dims") else array
        known = inner.name if isinstance(inner, da.Array) else dask.base.tokenize(array)
        return {"array": describe(array), "known": known}

    def partly_checked(self) -> Iterator[str]:
        """Say of which stored arrays only some files were looked at."""
        for name, found in self.contents.items():
            if found.checked < found.files:
                yield f"{found.checked:,} of {found.files:,} files of {name}"

    def are_same(self) -> bool:
        """Whether input and target are one and the same array."""
        stored = [self.sources.get(name) for name in ("input", "target")]
        names = [getattr(self._arrays[name], "name", None) for name in ("input", "target")]
        if None not in stored:
            return len({(os.path.realpath(one.path), one.key) for one in stored if one}) == 1
        lazy = all(isinstance(self._arrays[name], da.Array) for name in ("input", "target"))
        return self._arrays["input"] is self._arrays["target"] or (lazy and names[0] == names[1])

    def missing_chunks(
        self, where: da.Array | None, shape: tuple[int, ...], axis: int | None, scheduler: Any
    ) -> list[dict[str, Any]]:
        """Say of each operand how many stored chunks were never written, where they count.

        Parameters
        ----------
        where : dask.array.Array or None
            What is included; broadcasts to `shape`.
        shape : tuple of int
            That of the positions, or of all elements.
        axis : int or None
            The axis of the operands, counted from the last, that `shape` does not have.
        scheduler
            As for `dask.compute`.
        """
        found = []
        mask = None
        for name in ("input", "target"):
            contents = self.contents.get(name)
            if contents is None or not contents.missing:
                continue
            if mask is None and where is not None:
                options = {} if scheduler is None else {"scheduler": scheduler}
                mask = np.broadcast_to(dask.compute(where, **options)[0], shape)
            source, regions = self.sources[name], contents.missing
            if mask is not None:
                ndim = len(shape)
                regions = tuple(
                    one for one in regions if mask[_place(one, source.shape, axis, ndim)].any()
                )
            if regions:
                found.append(
                    {
                        "operand": name,
                        "array": source.name,
                        "chunks": len(regions),
                        "first": [list(span) for span in regions[0]],
                        "fill": contents.fill,
                    }
                )
        return found

    def check_unchanged(self) -> None:
        """Raise an error if a stored array is not what it was when the run began."""
        for name, source in self.sources.items():
            changed = change(self.contents[name].to_dict(), source.contents().to_dict())
            if changed:
                raise EvaluationError(
                    f"{name} was changed while it was read, so the result would be of a mixture: "
                    f"{changed}; evaluate it again once nothing writes to it"
                )


def differences(was: Identities, now: Identities) -> Iterator[str]:
    """Say which arrays are not what they were, one sentence each."""
    for name in now:
        before, after = was.get(name), now[name]
        if before == after:
            continue
        if before is None or after is None:
            there = "there was none, now there is" if before is None else "there is none now"
            yield f"{name}: {there}"
        elif "path" in before and "path" in after:
            changed = change(before, after)
            if changed:
                yield f"{name}: {changed}"
        elif _called(before) == _called(after):
            yield f"{name} is another {_called(after)}, or has other contents"
        else:
            yield f"{name} was {_called(before)}, now it is {_called(after)}"


def _called(identity: Mapping[str, Any]) -> str:
    return str(identity.get("path") or identity["array"])


def _place(region: Box, shape: tuple[int, ...], axis: int | None, ndim: int) -> tuple[slice, ...]:
    """Return where a region of an array is among what it broadcasts to, `axis` being dropped."""
    axes = list(zip(region, shape, strict=True))
    if axis is not None:
        del axes[axis]
    own = [slice(None) if size == 1 else slice(*span) for span, size in axes]
    return (*[slice(None)] * (ndim - len(own)), *own)
