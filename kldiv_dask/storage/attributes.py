"""Attributes that say what stored numbers mean, by the CF conventions (https://cfconventions.org).

``_FillValue`` and ``missing_value`` stand for elements without a value. ``scale_factor`` and
``add_offset`` turn packed numbers into those that are meant.
"""

import base64
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from kldiv_dask.dtypes import TABLE
from kldiv_dask.storage.source import display_name

_MISSING = ("_FillValue", "missing_value")
_PACKED = {"scale_factor": 1.0, "add_offset": 0.0}
NAMES = (*_MISSING, *_PACKED)


def missing_values(
    attributes: Mapping[str, Any], dtype: np.dtype[Any], name: str
) -> tuple[float, ...]:
    """Return which values of a floating array stand for none.

    Parameters
    ----------
    attributes : mapping
        Of the array.
    dtype : numpy.dtype
        Of the array, as stored.
    name : str
        What messages call the array.

    Returns
    -------
    tuple of float
        In ascending order, rounded to `dtype`, as they are stored. NaN needs no mention, and what
        is beyond the range of `dtype` is not in the array. None at all of integers.

    Raises
    ------
    ValueError
        If an attribute is no number.
    """
    if dtype.name not in TABLE:
        return ()
    missing = set()
    for attribute in _MISSING:
        for value in np.ravel(attributes.get(attribute, ())).tolist():
            number = _number(value)
            if number is None:
                raise ValueError(f"{attribute} of {name} must be a number, got {value!r}")
            with np.errstate(over="ignore"):
                stored = float(dtype.type(number))
            if not np.isnan(stored) and np.isinf(stored) == np.isinf(number):
                missing.add(stored)
    return tuple(sorted(missing))


def refuse_packed(attributes: Mapping[str, Any], path: str, key: str | None, opener: str) -> None:
    """Raise ValueError if the numbers of an array are packed.

    Parameters
    ----------
    attributes : mapping
        Of the array.
    path : str
        Where it is.
    key : str or None
        Name of the array inside `path`.
    opener : str
        Function of xarray that opens the format.
    """
    for attribute, neutral in _PACKED.items():
        value = attributes.get(attribute, neutral)
        numbers = list(map(_number, np.ravel(value).tolist()))
        if any(number != neutral for number in numbers):
            raise ValueError(
                f"{attribute} of {display_name(path, key)} must be {neutral:g} or absent, got"
                f" {value}: its numbers are packed. xarray unpacks them; pass"
                f" {_in_xarray(path, key, opener)} instead of the path"
            )


def _number(value: Any) -> float | None:
    """Read a number, in JSON or as xarray encodes it there; None if it is none.

    In Zarr format 3, xarray writes the 8 bytes of a float64, in base64: JSON has no NaN.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    try:
        return float(value)
    except (TypeError, ValueError):
        pass
    try:
        return float(struct.unpack("<d", base64.b64decode(value, validate=True))[0])
    except (TypeError, ValueError, struct.error):
        return None


def _in_xarray(path: str, key: str | None, opener: str) -> str:
    """Spell how xarray opens an array."""
    if key is None:
        path, _, key = path.rpartition("/")
    group, _, name = key.rpartition("/")
    inside = f", group={group!r}" if group else ""
    return f"xarray.{opener}({path!r}{inside})[{name!r}]"
