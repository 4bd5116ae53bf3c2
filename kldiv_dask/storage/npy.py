"""NumPy's ``.npy`` files, mapped into memory chunk by chunk."""

import io
import math
import os

import numpy as np

from kldiv_dask.storage.mapped import MappedSource
from kldiv_dask.storage.source import check_dtype, check_shape, require_local

DESCRIPTION = "a .npy file"

# NumPy reads headers of up to 10,000 characters, and makes room for what they say they have.
_HEAD = 2**16

# Version 3.0 is 2.0 with a UTF-8 header instead of a Latin-1 one. They differ only in the field
# names of structured types, which are refused anyway.
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}


def can_open(path: str) -> bool:
    """Whether `path` is meant as a ``.npy`` file."""
    return path.lower().endswith(".npy")


def open_source(path: str, key: str | None) -> MappedSource:
    """Read the header of a ``.npy`` file.

    Parameters
    ----------
    path : str
        Absolute local path.
    key : None
        A ``.npy`` file holds one array without a name.

    Returns
    -------
    MappedSource
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
    require_local(path, "a .npy file")
    if key is not None:
        raise ValueError(f"key={key!r} was given for {path}; a .npy file holds one unnamed array")
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        head = io.BytesIO(file.read(_HEAD))
    try:
        version = np.lib.format.read_magic(head)
        if version not in _HEADER_READERS:
            raise ValueError(f"unknown format version {version}")
        shape, fortran_order, dtype = _HEADER_READERS[version](head)
    except ValueError as error:
        # What NumPy writes of this type, it does not read.
        hint = "; float8_e5m2 must be saved as float32" if "'<f1'" in str(error) else ""
        raise ValueError(f"{path} is not a readable .npy file: {error}{hint}") from error
    offset = head.tell()
    check_dtype(dtype, path)
    check_shape(shape, dtype, path)
    expected = offset + math.prod(shape) * dtype.itemsize
    if status.st_size < expected:
        raise ValueError(
            f"{path} is truncated: an array of shape {shape} and dtype {dtype} takes"
            f" {expected} bytes with its header, the file has {status.st_size}"
        )
    return MappedSource(
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
