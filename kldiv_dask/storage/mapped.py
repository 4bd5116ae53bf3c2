"""Arrays that lie in a file as they do in memory, read through a map of the file."""

import mmap
import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from kldiv_dask.storage.contents import Contents, contents_of, seen_file
from kldiv_dask.storage.source import Source, check_unchanged


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
    """

    offset: int
    size: int
    mtime_ns: int
    strides: tuple[int, ...] = ()

    def read(self, index: tuple[Any, ...]) -> Any:
        """Map the file and return a read-only view of a region; see `Source.read`.

        The pages are read when the view is used, by whichever thread uses it. Elements at an odd
        address are copied, because compiled loops would need a version of their own for them.
        """
        whole = self.view(self.stored_dtype, self.shape, self.offset, self.strides)
        return np.require(whole[index], requirements="A")

    def view(
        self, dtype: Any, shape: tuple[int, ...], offset: int, strides: tuple[int, ...]
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """See a part of the file as an array.

        A map beyond the end of the file would kill the process (SIGBUS), and one of another file,
        or of one that is being written, would mix the old with the new. So size and time are
        checked first, at every read, which takes 2 µs.
        """
        check_unchanged(os.stat(self.path), self.size, self.mtime_ns)
        version = self.path, self.size, self.mtime_ns
        whole = _MAPS.get(version)
        if whole is None:
            with open(self.path, "rb") as file:
                check_unchanged(os.fstat(file.fileno()), self.size, self.mtime_ns)
                whole = _MAPS[version] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(shape, dtype, whole, offset, strides or None, self.order)

    def contents(self) -> Contents:
        """Look at the file; see `Source.contents`. All of it was written."""
        return contents_of(self, [seen_file(os.path.basename(self.path), os.stat(self.path))])


# Every map holds a file descriptor, and there may be thousands of chunks in memory: all views of a
# file share a map, which is closed with the last of them.
_MAPS: WeakValueDictionary[tuple[str, int, int], mmap.mmap] = WeakValueDictionary()
