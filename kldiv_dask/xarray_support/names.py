"""What the names of dimensions and coordinates mean, and what is refused of them."""

import math
import sys
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from kldiv_dask.options import resolve_axes, resolve_integer_axis

Dims = tuple[Hashable, ...]
Sizes = Mapping[Hashable, int]
Arrays = Mapping[str, Any]


def is_dataarray(name: str, operand: Any) -> bool:
    """Whether the argument `name` is a DataArray; any other labeled object is refused."""
    xarray = sys.modules.get("xarray")  # unless it has been imported, there are none
    if xarray is None or isinstance(operand, xarray.DataArray):
        return xarray is not None
    if type(operand).__module__.startswith("xarray."):
        raise TypeError(
            f"{name} must be a DataArray, got a {type(operand).__name__}; pick a variable, as "
            "dataset['logits'] does"
        )
    return False


def coordinate(name: str, key: Any, input: Any, target: Any) -> Any:
    """Return the coordinate that a string means beside DataArrays, and anything else as it is.

    Strings that are held as objects, as files give them, become an array of NumPy's strings.
    """
    operands = [a for n, a in (("input", input), ("target", target)) if is_dataarray(n, a)]
    if operands and isinstance(key, str):
        coordinates = [array.coords[key] for array in operands if key in array.coords]
        if not coordinates:
            names = format_names(dict.fromkeys(c for array in operands for c in array.coords))
            raise ValueError(
                f"{name} must be a coordinate of input or target, {names}, an array, or a file as "
                f"pathlib.Path, got {key!r}"
            )
        if not coordinates[0].variable.broadcast_equals(coordinates[-1].variable):
            raise ValueError(
                f"{name} is {key!r}, a coordinate that differs between input and target"
            )
        key = coordinates[0]
    if is_dataarray(name, key) and key.dtype.kind in "OT":
        values = np.asarray(key.values, object)
        if values.size and all(isinstance(value, str) for value in values.flat):
            return key.copy(data=values.astype(str))
    return key


def own_dims(arrays: Arrays) -> dict[str, list[str]]:
    """Return the dimensions of those arrays that have names for them, in their order."""
    return {n: list(map(str, a.dims)) for n, a in arrays.items() if is_dataarray(n, a)}


def resolve_dims(dim: Any, axis: Any, dataarrays: Arrays, all_dims: Dims, classes: bool) -> Dims:
    """Return the names of the dimensions that are meant, by default all."""
    if dim is not None:
        if axis != (-1 if classes else None):
            raise ValueError(f"dim or axis must be given, not both, got {dim!r} and {axis!r}")
        is_single = classes or isinstance(dim, str) or not isinstance(dim, Iterable)
        chosen: Dims = (dim,) if is_single else tuple(dim)
        if not all(d in all_dims for d in chosen):
            raise ValueError(
                f"dim is {dim!r}; the dimensions of the operands are {format_names(all_dims)}"
            )
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"dim is {dim!r}, which names a dimension twice")
        return chosen
    if classes:
        axis = resolve_integer_axis(axis)
    elif axis is None:
        return all_dims
    resolve_axes(axis, max(array.ndim for array in dataarrays.values()))  # for its errors
    chosen = ()
    for number in axis if isinstance(axis, tuple) else (axis,):
        named = {n: a.dims[number] for n, a in dataarrays.items() if -a.ndim <= number < a.ndim}
        if len(set(named.values())) > 1:
            dims = " and ".join(f"{d!r} of {name}" for name, d in named.items())
            raise ValueError(
                f"axis {number} is {dims}; give its name as dim, or transpose one of them"
            )
        chosen += (*named.values(),)[:1]
    return chosen


def check_labels(labeled: Arrays) -> None:
    """Refuse dimensions that differ in length, and indexes in labels or their order."""
    sizes: dict[Hashable, tuple[str, float]] = {}
    labels: dict[Hashable, tuple[str, Any]] = {}
    for name, array in labeled.items():
        if len(array.sizes) < array.ndim:
            raise ValueError(
                f"{name} has the dimensions {format_names(array.dims)}, one of them twice"
            )
        for dim, size in array.sizes.items():
            if math.isnan(size):
                raise ValueError(
                    f"{name} has unknown chunk sizes along {dim!r}; call compute_chunk_sizes() on "
                    "its data first"
                )
            other, length = sizes.setdefault(dim, (name, size))
            if size != length:
                raise ValueError(
                    f"{name} must be as long as {other} along {dim!r}, {length}, got {size}"
                )
        for index in array.xindexes:
            label = array.coords[index].variable
            other, equal = labels.setdefault(index, (name, label))
            if not label.equals(equal):
                raise ValueError(
                    f"{name} must have the labels of {other} along {index!r}, in the same order, "
                    "got others; use xarray.align or reindex_like"
                )


def dims_of(name: str, array: Any, sizes: Sizes, dataarrays: Arrays) -> Dims:
    """Return the dimensions of an array; the axes of a plain one stand for the last of `sizes`."""
    dims = tuple(sizes)
    if is_dataarray(name, array):
        if not set(array.dims) <= set(dims):
            raise ValueError(
                f"{name} must have dimensions out of {format_names(dims)}, got "
                f"{format_names(array.dims)}"
            )
        return tuple(array.dims)
    shape = array.shape if hasattr(array, "shape") else np.shape(array)
    ends = [tuple(d for d in other.dims if d in sizes) for other in dataarrays.values()]
    if shape and any(end != dims[len(dims) - len(end) :] for end in ends):
        raise ValueError(
            f"{name} must be a DataArray, as the dimensions of input and target are not in one "
            "order, got a plain array"
        )
    last_dims = dims[max(len(dims) - len(shape), 0) :]
    if len(shape) > len(last_dims) or any(
        sizes[d] == 1 != n for d, n in zip(last_dims, shape, strict=True)
    ):
        raise ValueError(
            f"{name} must be a DataArray, or a plain array with at most the axes "
            f"{format_names(dims)} of lengths {tuple(sizes.values())}, got one of shape {shape}"
        )
    return last_dims


def format_names(names: Iterable[Hashable]) -> str:
    """Return names for a message."""
    return ", ".join(map(repr, names)) or "none"
