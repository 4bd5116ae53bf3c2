"""Tensors of ``.safetensors`` files, mapped into memory chunk by chunk."""

import json
import os
from typing import Any

import numpy as np

from kldiv_dask.dtypes import TABLE, dtype_called
from kldiv_dask.extras import require
from kldiv_dask.storage.mapped import MappedSource
from kldiv_dask.storage.source import (
    check_dtype,
    check_shape,
    display_name,
    name_some,
    require_local,
)

DESCRIPTION = "a .safetensors file"

_DTYPES = {
    "BOOL": "?",
    **{f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)},
    **{row.safetensors: f"<f{row.bits // 8}" for row in TABLE.values() if row.in_numpy},
    "C64": "<c8",
}
_FLOATS = {row.safetensors: name for name, row in TABLE.items()}


def can_open(path: str) -> bool:
    """Whether `path` is meant as a ``.safetensors`` file."""
    return path.lower().endswith(".safetensors")


def open_source(path: str, key: str | None) -> MappedSource:
    """Read the header of a ``.safetensors`` file.

    The package checks the header, and that the tensors fill the file. It does not read them: it
    would hold Python's lock while it copies, so one thread would read at a time.

    Parameters
    ----------
    path : str
        Absolute local path.
    key : str or None
        Name of the tensor; it can be left out if there is only one.

    Returns
    -------
    MappedSource
        The handle of the tensor.

    Raises
    ------
    ValueError
        If `path` is a URL, `key` does not name a tensor, there is none or a choice of them without
        a key, or the file is damaged or truncated.
    TypeError
        If the data type can't be read, such as floating numbers of 4 bits.
    ImportError
        If safetensors, or for types that NumPy lacks ml_dtypes, is not installed.
    """
    require_local(path, DESCRIPTION)
    package = require("safetensors", "safetensors", path)
    with open(path, "rb") as opened:
        status = os.fstat(opened.fileno())
        try:
            with package.safe_open(path, framework="numpy") as file:
                keys = sorted(file.keys())
        except package.SafetensorError as error:
            raise ValueError(f"{path} is not a readable .safetensors file: {error}") from error
        # The length of the header in 8 bytes, the header, and the data, where offsets count from.
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    contents = name_some(keys) if keys else "it holds no tensors"
    if key is None:
        if len(keys) != 1:
            raise ValueError(f"{path} holds {len(keys)} tensors; {contents}")
        (key,) = keys
    name = display_name(path, key)
    if key not in keys:
        raise ValueError(f"{name} does not exist; {contents}")
    tensor = header[key]
    shape, dtype = tuple(tensor["shape"]), _dtype(tensor["dtype"], path, name)
    check_shape(shape, dtype, name)
    return MappedSource(
        path=path,
        key=key,
        shape=shape,
        stored_dtype=dtype,
        stored_chunks=(1,) * len(shape),
        order="C",
        offset=8 + length + tensor["data_offsets"][0],
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _dtype(stored: str, path: str, name: str) -> np.dtype[Any]:
    """Translate the format's name of a data type."""
    if stored in _FLOATS and stored not in _DTYPES:
        return dtype_called(_FLOATS[stored], path)
    if stored not in _DTYPES:
        raise TypeError(
            f"{name} must be of booleans, integers or {', '.join(_FLOATS)} to be read, got"
            f" {stored}: save it as BF16 or F32"
        )
    dtype = np.dtype(_DTYPES[stored])
    check_dtype(dtype, name)
    return dtype
