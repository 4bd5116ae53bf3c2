"""NumPy's ``.npy`` files, memory-mapped chunk by chunk."""

import math
import os
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from kldiv_dask.storage.source import Source, check_dtype, is_url

DESCRIPTION = "a .npy file"

# Version 3.0 is 2.0 with a UTF-8 header instead of a Latin-1 one. They differ only in the field
# names of structured types, which are refused anyway.
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True, slots=True)
class NpySource(Source):
    """An array in a ``.npy`` file.

    Parameters
    ----------
    offset : int
        Where the data begins, in bytes.
    size : int
        Size of the file when it was opened, in bytes.
    mtime_ns : int
        When the file was last written, in nanoseconds since the epoch.
    """

    offset: int
    size: int
    mtime_ns: int

    def read(self, index: tuple[Any, ...]) -> Any:
        """Map the file and return a read-only view of a region; see `Source.read`.

        The pages are read when the view is used. A map beyond the end of the file would then kill
        the process (SIGBUS), so the size is checked first, at every read.
        """
        size = os.stat(self.path).st_size
        if size != self.size:
            raise ValueError(f"the file has {size} bytes, it had {self.size} when it was opened")
        whole = _MAPS.get(self)
        if whole is None:
            whole = _MAPS[self] = np.memmap(
                self.path, self.stored_dtype, "r", self.offset, self.shape, self.order
            )
        return np.asarray(whole)[index]


# Every map holds a file descriptor, and there may be thousands of chunks in memory: all views of a
# file share a map, which is closed with the last of them.
_MAPS: WeakValueDictionary[NpySource, np.memmap[Any, np.dtype[Any]]] = WeakValueDictionary()


def recognises(path: str) -> bool:
    """Whether `path` is meant as a ``.npy`` file."""
    return path.lower().endswith(".npy")


def open_source(path: str, key: str | None) -> NpySource:
    """Read the header of a ``.npy`` file.

    Parameters
    ----------
    path : str
        Absolute local path.
    key : None
        A ``.npy`` file holds one array without a name.

    Returns
    -------
    NpySource
        The handle of the array.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If `path` is a URL, a key is given, the header is damaged, or the data is truncated.
    TypeError
        If the data type can't be read; objects are never unpickled.
    """
    if is_url(path):
        raise ValueError(f"{path} is a URL; a .npy file is mapped into memory, so it must be local")
    if key is not None:
        raise ValueError(f"key={key!r} was given for {path}; a .npy file holds one unnamed array")
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        try:
            version = np.lib.format.read_magic(file)
            if version not in _HEADER_READERS:
                raise ValueError(f"unknown format version {version}")
            shape, fortran_order, dtype = _HEADER_READERS[version](file)
        except ValueError as error:
            raise ValueError(f"{path} is not a readable .npy file: {error}") from error
        offset = file.tell()
    check_dtype(dtype, path)
    expected = offset + math.prod(shape) * dtype.itemsize
    if status.st_size < expected:
        raise ValueError(
            f"{path} is truncated: an array of shape {shape} and dtype {dtype} takes"
            f" {expected} bytes with its header, the file has {status.st_size}"
        )
    return NpySource(
        path=path,
        key=None,
        shape=shape,
        stored_dtype=dtype,
        stored_chunks=(1,) * len(shape),
        order="F" if fortran_order else "C",
        offset=offset,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )
