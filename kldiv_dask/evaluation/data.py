"""The arrays of a run: their identities, and whether they were changed since."""

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
from kldiv_dask.evaluation.scheduling import compute_options
from kldiv_dask.storage import Contents, Source, change, other_text, source_of, sources_in
from kldiv_dask.xarray_support.names import is_dataarray

PATHS = str, os.PathLike

Identities = dict[str, dict[str, Any] | None]


def describe(operand: Any, key: str | None = None) -> str:
    """Describe an argument in a few words.

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
    """The arrays of a run, by argument; None for an argument that was not given.

    The files of stored arrays are looked up here, and again by `check_unchanged`.

    Parameters
    ----------
    arrays : mapping of str to array_like or None
        The arrays before they are rechunked; those given by their paths are open.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays = arrays
        self._inner = {name: _inner(name, array) for name, array in arrays.items()}
        self.sources = {
            name: sources
            for name, array in self._inner.items()
            if isinstance(array, da.Array) and (sources := sources_in(array))
        }
        """The stored arrays that each array is read or computed from."""
        # The arguments that are stored arrays, not computed from any.
        self._stored = {
            name
            for name, array in self._inner.items()
            if name in self.sources and source_of(array) is not None
        }
        self._contents = {
            name: [source.contents() for source in sources]
            for name, sources in self.sources.items()
        }

    def identities(self) -> Identities:
        """Return what identifies each array, for JSON.

        That is the path and the files of a stored array, the name and the known files of another
        Dask array, and the content of an array in memory.

        Raises
        ------
        ValueError
            An array is a handle, such as `zarr.Array`, that does not tell whether its files were
            rewritten.
        """
        return {
            name: None if array is None else self._identity(name, array)
            for name, array in self._arrays.items()
        }

    def _identity(self, name: str, array: Any) -> dict[str, Any]:
        files = [contents.to_dict() for contents in self._contents.get(name, ())]
        if name in self._stored:
            return files[0]
        inner = self._inner[name]
        if isinstance(inner, da.Array):
            return {"array": describe(array), "known": inner.name, "from": files}
        if is_stored(array):
            raise ValueError(
                f"{name} is a {type(array).__module__.partition('.')[0]}.{type(array).__name__}, of"
                " which a checkpoint can't tell whether it was rewritten; pass its path, or what "
                "open_array returns"
            )
        return {"array": describe(array), "known": dask.base.tokenize(array)}

    def partly_checked(self) -> Iterator[str]:
        """Yield the stored arrays of which not all files were looked up, with their numbers."""
        for name, contents in self._contents.items():
            for stored in contents:
                if stored.checked < stored.files:
                    yield f"{stored.checked:,} of {stored.files:,} files of {name}"

    def other_text(self) -> tuple[str, bool]:
        """Return how the texts of base files differ, and whether the whole files are read.

        The sentence is empty if they do not differ.
        """
        for name, other in itertools.combinations(("input", "target", "labels"), 2):
            is_whole = {name, other} <= self._stored
            pairs = itertools.product(self.sources.get(name, ()), self.sources.get(other, ()))
            for first, second in pairs:
                if difference := other_text(first, second, is_whole=is_whole):
                    return difference, is_whole
        return "", True

    def are_same(self) -> bool:
        """Whether input and target are one and the same array."""
        if {"input", "target"} <= self._stored:
            stored = [self.sources[name][0] for name in ("input", "target")]
            return len({(os.path.realpath(source.path), source.key) for source in stored}) == 1
        pair = [self._inner[name] for name in ("input", "target")]
        lazy = all(isinstance(array, da.Array) for array in pair)
        return pair[0] is pair[1] or (lazy and pair[0].name == pair[1].name)

    def missing_chunks(
        self, where: da.Array | None, shape: tuple[int, ...], axis: int | None, scheduler: Any
    ) -> list[dict[str, Any]]:
        """Describe the stored chunks that were never written, for each array that lacks some.

        They count where positions are included. All of them count for `where` itself, and for an
        array that is computed from stored ones.

        Parameters
        ----------
        where : dask.array.Array or None
            Which positions to include; broadcasts to `shape`.
        shape : tuple of int
            The shape of the positions, or of all elements.
        axis : int or None
            The axis of the operands, counted from the last, that is not in `shape`.
        scheduler
            As for `dask.compute`.
        """
        missing = []
        mask = None
        for name, source, contents in self._each():
            regions = contents.missing
            if not regions:
                continue
            is_stored = name in self._stored
            if is_stored and name != "where" and where is not None:
                if mask is None:
                    (mask,) = dask.compute(where, **compute_options(scheduler))
                    mask = np.broadcast_to(mask, shape)
                dropped = axis if name in ("input", "target") else None
                regions = tuple(
                    region
                    for region in regions
                    if mask[_slices(region, source.shape, dropped, len(shape))].any()
                )
            if regions:
                missing.append(
                    {
                        "operand": name,
                        "whole": is_stored,
                        "array": source.name,
                        "chunks": len(regions),
                        "first": [list(span) for span in regions[0]],
                        "fill": contents.fill,
                    }
                )
        return missing

    def check_unchanged(self) -> None:
        """Raise an error if a stored array was changed since the run began."""
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
    """Yield a sentence for each array that differs."""
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
    """Yield a sentence for each stored array of which not all files were looked up."""
    for name, identity in data.items():
        sources = [] if identity is None else identity.get("from", [identity])
        for stored in (Contents(**source) for source in sources if "path" in source):
            if stored.checked < stored.files:
                yield (
                    f"{name}: {stored.checked:,} of the {stored.files:,} files of {stored.path} "
                    "could be looked at, so it is not known whether the others were rewritten"
                )


def _inner(name: str, array: Any) -> Any:
    """Return the Dask array in a DataArray; anything else as it is."""
    return array.data if is_dataarray(name, array) and array.chunks is not None else array


def _called(identity: Mapping[str, Any]) -> str:
    return str(identity.get("path") or identity["array"])


def _slices(region: Box, shape: tuple[int, ...], axis: int | None, ndim: int) -> tuple[slice, ...]:
    """Return the slices of `ndim` axes that a region, without `axis`, broadcasts to."""
    axes = list(zip(region, shape, strict=True))
    if axis is not None:
        del axes[axis]
    slices = [slice(None) if size == 1 else slice(*span) for span, size in axes]
    return (*[slice(None)] * (ndim - len(slices)), *slices)
