"""Arrays that lie in a file as they do in memory, read through a map of the file or from it."""

import io
import math
import mmap
import os
import sys
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from kldiv_dask import config
from kldiv_dask.storage.contents import Contents, contents_of, seen_file
from kldiv_dask.storage.source import Source, check_unchanged, display_name, spans

Values = np.ndarray[Any, np.dtype[Any]]

# A read takes as long as copying so many bytes that aren't needed.
_GAP = 2**14


@dataclass(frozen=True, slots=True)
class MappedSource(Source):
    """An array at some place in a file.

    Parameters
    ----------
    offset : int
        Where the first element begins, in bytes.
    size : int
        Size of the file when it was opened, in bytes.
    mtime_ns : int
        When the file was last written, in nanoseconds since the epoch.
    strides : tuple of int, optional
        Bytes from one element to the next along each axis; none if nothing lies between elements.
    is_mapped : bool, optional
        Whether regions are views of a map of the file; by default what ``kldiv.map-files`` says.
    """

    offset: int
    size: int
    mtime_ns: int
    strides: tuple[int, ...] = ()
    is_mapped: bool = field(default_factory=lambda: config.flag("map-files"), kw_only=True)

    @property
    def most_elements(self) -> int:
        """No bound: there are no stored chunks; see `Source.most_elements`."""
        return sys.maxsize

    def read(self, index: tuple[Any, ...]) -> Any:
        """Return a region, a read-only view of a map of the file if it can be; see `Source.read`.

        The pages of a map are read when the view is used, by whichever thread uses it. Elements at
        an odd address are copied, because compiled loops would need a version of their own for
        them.
        """
        view = self.region(self.stored_dtype, self.shape, self.offset, self.strides, index)
        values = np.require(view.astype(self.stored_dtype.newbyteorder("="), copy=False), None, "A")
        if values is not view:
            self.check_unchanged()
        return values

    def region(
        self,
        dtype: Any,
        shape: tuple[int, ...],
        offset: int,
        strides: tuple[int, ...],
        index: tuple[Any, ...],
    ) -> Values:
        """Give a region of what lies in the file as an array.

        A map beyond the end of the file would kill the process (SIGBUS), and one of another file,
        or of one that is being written, would mix the old with the new. So size and time are
        checked before each read, which takes 2 µs, and `check_maps` does it after the use. From a
        file that is not mapped, the region is read into memory, and they are checked then.
        """
        self.check_unchanged()
        if self.is_mapped:
            array = np.ndarray(shape, dtype, self._map(), offset, strides or None, self.order)
            view: Values = array[index]
            return view
        # Only its strides are needed, so the array need not be there.
        strides = strides or _strides(shape, np.dtype(dtype).itemsize, self.order)
        bounds = spans(index, shape)
        first = offset + sum(start * s for (start, _), s in zip(bounds, strides, strict=True))
        with open(self.path, "rb", buffering=0) as file:
            lengths = tuple(max(stop - start, 0) for start, stop in bounds)
            values = _from_file(file, np.dtype(dtype), lengths, first, strides)
        self.check_unchanged()
        return values[
            tuple(slice(None, None, i.step) if isinstance(i, slice) else 0 for i in index)
        ]

    def check_unchanged(self) -> None:
        """Raise ValueError if the file is not what it was when it was opened."""
        check_unchanged(os.stat(self.path), self.size, self.mtime_ns)

    def _map(self) -> "_Map":
        version = self.path, self.size, self.mtime_ns
        file_map = _MAPS.get(version)
        if file_map is None:
            with open(self.path, "rb") as file:
                check_unchanged(os.fstat(file.fileno()), self.size, self.mtime_ns)
                file_map = _MAPS[version] = _Map(file.fileno(), 0, access=mmap.ACCESS_READ)
                file_map.version = version
        return file_map

    def contents(self) -> Contents:
        """Look at the file; see `Source.contents`. All of it was written."""
        return contents_of(self, [seen_file(os.path.basename(self.path), os.stat(self.path))])


class _Map(mmap.mmap):
    """A map that knows the path, the size and the time of its file."""

    version: tuple[str, int, int]


# Every map holds a file descriptor, and there may be thousands of chunks in memory: all views of a
# file share a map, which is closed with the last of them.
_MAPS: WeakValueDictionary[tuple[str, int, int], _Map] = WeakValueDictionary()


def check_maps(*arrays: Any) -> None:
    """Raise ValueError if an array is a view of a file that has changed since it was opened.

    What was computed from the views before then is of the file as it was, as far as a file system
    tells when a file is written.

    Parameters
    ----------
    *arrays : array_like
        Of anything that is no view of a map nothing is known.
    """
    for array in arrays:
        base = array
        while isinstance(base, np.ndarray):
            base = base.base
        if isinstance(base, _Map):
            path, size, mtime_ns = base.version
            try:
                check_unchanged(os.stat(path), size, mtime_ns)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{display_name(path, None)} was changed while it was read: {error}"
                ) from error


def _strides(shape: tuple[int, ...], itemsize: int, order: str) -> tuple[int, ...]:
    """Give the bytes from one element to the next along each axis, if nothing lies between."""
    ndim = len(shape)
    inner = (shape[:axis] if order == "F" else shape[axis + 1 :] for axis in range(ndim))
    return tuple(itemsize * math.prod(sizes) for sizes in inner)


def _from_file(
    file: io.FileIO, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, strides: Any
) -> Values:
    """Read an array that lies in a file; at once, unless there is much between its elements."""
    needed = math.prod(shape) * dtype.itemsize
    if not needed:
        return np.empty(shape, dtype)
    steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    length = sum(steps) + dtype.itemsize
    if length <= max(2 * needed, _GAP):
        return np.ndarray(shape, dtype, _bytes(file, offset, length), 0, strides)
    values = np.empty(shape, dtype)
    axis = steps.index(max(steps))
    rest = [(*values[:axis], *values[axis + 1 :]) for values in (shape, strides)]
    parts = np.moveaxis(values, axis, 0)
    for i in range(shape[axis]):
        parts[i, ...] = _from_file(file, dtype, rest[0], offset + i * strides[axis], rest[1])
    return values


def _bytes(file: io.FileIO, offset: int, length: int) -> Values:
    """Read so many bytes, of which the system gives 2 GiB at a time."""
    buffer = np.empty(length, np.uint8)
    file.seek(offset)
    done = 0
    while done < length:
        count = file.readinto(buffer.data[done:])
        if not count:
            raise ValueError(f"the file ends at byte {offset + done} of {offset + length}")
        done += count
    return buffer
