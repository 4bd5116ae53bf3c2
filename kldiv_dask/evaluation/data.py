"""The arrays of a run: what they are known by, and whether they still are what they were."""

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import dask
import dask.array as da
import dask.base
import numpy as np

from kldiv_dask.align import Box
from kldiv_dask.arrays import is_stored
from kldiv_dask.evaluation.errors import EvaluationError
from kldiv_dask.storage import Contents, Source, change, other_text, source_of, sources_in
from kldiv_dask.xarray_support.names import is_dataarray

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
    inner = _inner("it", operand)
    source = source_of(inner) if isinstance(inner, da.Array) else None
    if source is not None:
        return source.name
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
        self._inner = {name: _inner(name, array) for name, array in arrays.items()}
        self.sources = {
            name: found
            for name, array in self._inner.items()
            if isinstance(array, da.Array) and (found := sources_in(array))
        }
        """What each is read from, wholly or in part."""
        self._whole = {
            name
            for name, array in self._inner.items()
            if name in self.sources and source_of(array) is not None
        }
        self._contents = {
            name: [source.contents() for source in found] for name, found in self.sources.items()
        }

    def identities(self) -> Identities:
        """Return what tells each array from others, for JSON.

        Stored arrays are known by their path and their files, Dask arrays by their names, and by
        the files that are known to be read for them, and arrays in memory by what is in them.

        Raises
        ------
        ValueError
            An array is a handle of what is stored, such as `zarr.Array`, of which nothing tells
            whether it was rewritten.
        """
        return {
            name: None if array is None else self._identity(name, array)
            for name, array in self._arrays.items()
        }

    def _identity(self, name: str, array: Any) -> dict[str, Any]:
        known = [found.to_dict() for found in self._contents.get(name, ())]
        if name in self._whole:
            return known[0]
        inner = self._inner[name]
        if isinstance(inner, da.Array):
            return {"array": describe(array), "known": inner.name, "from": known}
        if is_stored(array):
            raise ValueError(
                f"{name} is a {type(array).__module__.partition('.')[0]}.{type(array).__name__}, of"
                " which a checkpoint can't tell whether it was rewritten; pass its path, or what "
                "open_array returns"
            )
        return {"array": describe(array), "known": dask.base.tokenize(array)}

    def partly_checked(self) -> Iterator[str]:
        """Say of which stored arrays only some files were looked at."""
        for name, contents in self._contents.items():
            for found in contents:
                if found.checked < found.files:
                    yield f"{found.checked:,} of {found.files:,} files of {name}"

    def other_text(self) -> tuple[str, bool]:
        """Say how the texts of base files differ, if they do, and whether these are read wholly."""
        for one, other in itertools.combinations(("input", "target", "labels"), 2):
            whole = {one, other} <= self._whole
            pairs = itertools.product(self.sources.get(one, ()), self.sources.get(other, ()))
            for first, second in pairs:
                if found := other_text(first, second, whole=whole):
                    return found, whole
        return "", True

    def are_same(self) -> bool:
        """Whether input and target are one and the same array."""
        if {"input", "target"} <= self._whole:
            stored = [self.sources[name][0] for name in ("input", "target")]
            return len({(os.path.realpath(one.path), one.key) for one in stored}) == 1
        pair = [self._inner[name] for name in ("input", "target")]
        lazy = all(isinstance(array, da.Array) for array in pair)
        return pair[0] is pair[1] or (lazy and pair[0].name == pair[1].name)

    def missing_chunks(
        self, where: da.Array | None, shape: tuple[int, ...], axis: int | None, scheduler: Any
    ) -> list[dict[str, Any]]:
        """Say of each array how many stored chunks are not there, where they count.

        Of an array that is made of a stored one, and of `where` itself, all of them count.

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
        for name, source, contents in self._each():
            regions = contents.missing
            if not regions:
                continue
            whole = name in self._whole
            if whole and name != "where" and where is not None:
                if mask is None:
                    options = {} if scheduler is None else {"scheduler": scheduler}
                    mask = np.broadcast_to(dask.compute(where, **options)[0], shape)
                dropped = axis if name in ("input", "target") else None
                places = [_place(one, source.shape, dropped, len(shape)) for one in regions]
                regions = tuple(
                    one for one, place in zip(regions, places, strict=True) if mask[place].any()
                )
            if regions:
                found.append(
                    {
                        "operand": name,
                        "whole": whole,
                        "array": source.name,
                        "chunks": len(regions),
                        "first": [list(span) for span in regions[0]],
                        "fill": contents.fill,
                    }
                )
        return found

    def check_unchanged(self) -> None:
        """Raise an error if a stored array is not what it was when the run began."""
        for name, source, contents in self._each():
            changed = change(contents.to_dict(), source.contents().to_dict())
            if changed:
                raise EvaluationError(
                    f"{name} was changed while it was read, so the result would be of a mixture: "
                    f"{changed}; evaluate it again once nothing writes to it"
                )

    def _each(self) -> Iterator[tuple[str, Source, Contents]]:
        for name, sources in self.sources.items():
            for source, contents in zip(sources, self._contents[name], strict=True):
                yield name, source, contents


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
        elif "from" in after and before.get("known") == after["known"]:
            for was_read, is_read in zip(before["from"], after["from"], strict=True):
                if changed := change(was_read, is_read):
                    yield f"{name}: {changed}"
        elif _called(before) == _called(after):
            yield f"{name} is another {_called(after)}, or has other contents"
        else:
            yield f"{name} was {_called(before)}, now it is {_called(after)}"


def unwatched(data: Identities) -> Iterator[str]:
    """Say of which stored arrays it can't be told whether they were rewritten, a sentence each."""
    for name, identity in data.items():
        stored = [] if identity is None else identity.get("from", [identity])
        for one in (Contents(**found) for found in stored if "path" in found):
            if one.checked < one.files:
                yield (
                    f"{name}: {one.checked:,} of the {one.files:,} files of {one.path} could be "
                    "looked at, so it is not known whether the others were rewritten"
                )


def _inner(name: str, array: Any) -> Any:
    """Return the Dask array in a DataArray; anything else as it is."""
    return array.data if is_dataarray(name, array) and array.chunks is not None else array


def _called(identity: Mapping[str, Any]) -> str:
    return str(identity.get("path") or identity["array"])


def _place(region: Box, shape: tuple[int, ...], axis: int | None, ndim: int) -> tuple[slice, ...]:
    """Return where a region of an array is among what it broadcasts to, `axis` being dropped."""
    axes = list(zip(region, shape, strict=True))
    if axis is not None:
        del axes[axis]
    own = [slice(None) if size == 1 else slice(*span) for span, size in axes]
    return (*[slice(None)] * (ndim - len(own)), *own)
