"""Operands whose dimensions have names: matched by name, and results that have the names again.

No other module knows of xarray. What computes is given plain arrays, laid out so that NumPy's
broadcasting by position pairs what belongs together by name.
"""

import math
import sys
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from kldiv_dask.align import as_dask
from kldiv_dask.options import resolve_axes, resolve_integer_axis

Dims = tuple[Hashable, ...]

ATTRIBUTES = {"units": "nats", "long_name": "KL divergence"}


class Operands(NamedTuple):
    """Plain arrays that broadcast by position, and what they were.

    `small` are those that broadcast to the result, by argument, and `axis` numbers what was meant.
    `dims` are the dimensions of the broadcast operands, classes last. They and `named`, the
    operands that are labelled, are empty if none is.
    """

    input: Any
    target: Any
    small: dict[str, Any]
    axis: Any
    dims: Dims = ()
    named: tuple[Any, ...] = ()

    def wrap(self, result: da.Array, axes: tuple[int, ...] | None = None) -> Any:
        """Return what has reduced `axes`, by default all, with the names of its dimensions."""
        if not self.named:
            return result
        import xarray

        reduced = set(self.dims) if axes is None else {self.dims[axis] for axis in axes}
        kept = _without(self.dims, reduced)
        coords = self.named[0].coords
        others = [
            # Xarray would compute them to see whether they are equal.
            array.drop_vars([c for c in array.coords if c in coords and _lazy(coords, array, c)])
            for array in self.named[1:]
        ]
        wrapped = xarray.apply_ufunc(
            lambda *_: result,
            self.named[0],
            *others,
            input_core_dims=[array.dims for array in self.named],
            output_core_dims=[kept if result.ndim == len(kept) else self.dims],
            exclude_dims=reduced,
            join="exact",
            dask="allowed",
            keep_attrs="drop_conflicts",
        )
        wrapped.name = "kl_divergence"
        wrapped.attrs |= ATTRIBUTES
        return wrapped


def match(
    input: Any,
    target: Any,
    small: Mapping[str, Any],
    *,
    axis: Any = None,
    dim: Any = None,
    classes: bool = False,
) -> Operands:
    """Lay out operands by the names of their dimensions; where none has names, leave them alone.

    `small` is what is said of elements or, with `classes`, of positions. `axis` or `dim` say which
    dimensions are meant, by number or by name: with `classes` the one that is to come last.
    """
    operands = {"input": input, "target": target}
    named = {name: array for name, array in operands.items() if is_named(name, array)}
    labelled = named | {name: array for name, array in small.items() if is_named(name, array)}
    if not named:
        if dim is not None:
            raise ValueError(
                f"dim is {dim!r} where neither input nor target is a DataArray; accepted is axis"
            )
        return Operands(input, target, dict(small), axis)
    _check_labels(labelled)
    meant = _meant(dim, axis, named, classes)
    last = meant if classes and meant else ()
    for name, array in named.items():
        if not set(last) <= set(array.dims):
            raise ValueError(
                f"{name} has the dimensions {_shown(array.dims)}, and not that of the classes, "
                f"{_shown(last)}"
            )
    outer = _without(_union(named), last)
    dims = outer + last
    named = _in_equal_chunks(named, operands)
    arrays = as_dask(*(named[n].data if n in named else operands[n] for n in operands))
    # What the axes of plain arrays stand for: of operands, and of what is said of positions.
    full = _by_position([array.dims for array in named.values()])
    places = _by_position([_without(array.dims, last) for array in named.values()])
    laid = {
        n: _laid_out(array, named[n].dims if n in named else _tail(n, array, full), dims)
        for n, array in zip(operands, arrays, strict=True)
    }
    said: dict[str, Any] = {}
    for name, array in small.items():
        if name in labelled:
            said[name] = _laid_out(array.data, _among(outer, name, array), outer)
        elif array is not None:
            array = array if isinstance(array, da.Array) else np.asanyarray(array)
            said[name] = _laid_out(array, _tail(name, array, places), outer)
        else:
            said[name] = None
    numbers = -1 if classes else None if meant is None else tuple(map(dims.index, meant))
    return Operands(**laid, small=said, axis=numbers, dims=dims, named=tuple(named.values()))


def is_named(name: str, operand: Any) -> bool:
    """Whether the argument `name` is a DataArray; no other labelled object is accepted."""
    xarray = sys.modules.get("xarray")  # unless it has been imported, there are none
    if xarray is None or isinstance(operand, xarray.DataArray):
        return xarray is not None
    if isinstance(operand, xarray.Dataset) or type(operand).__module__.startswith("xarray."):
        raise TypeError(
            f"{name} is a {type(operand).__name__}; accepted is a DataArray: pick a variable, as "
            "dataset['logits'] does"
        )
    return False


def coordinate(name: str, key: Any, input: Any, target: Any) -> Any:
    """Return the coordinate that a string means beside DataArrays, and anything else as it is."""
    operands = [a for n, a in (("input", input), ("target", target)) if is_named(n, a)]
    if not operands or not isinstance(key, str):
        return key
    found = [array.coords[key] for array in operands if key in array.coords]
    if not found:
        known = _shown(dict.fromkeys(c for array in operands for c in array.coords))
        raise ValueError(
            f"{name} is {key!r}; accepted are the coordinates of input and target, {known}, an"
            " array, or a file as pathlib.Path"
        )
    if not found[0].variable.broadcast_equals(found[-1].variable):
        raise ValueError(f"{name} is {key!r}, a coordinate that differs between input and target")
    values = found[0].values if found[0].dtype.kind in "OT" else np.empty(0)
    if values.size and all(isinstance(value, str) for value in values.flat):
        return found[0].copy(data=values.astype(str))
    return found[0]


def _meant(dim: Any, axis: Any, named: Mapping[str, Any], classes: bool) -> Dims | None:
    """Return the names of the dimensions that are meant; None if that was not said."""
    if dim is None and axis is None:
        return None
    if dim is None:
        given = axis if isinstance(axis, tuple) and not classes else (axis,)
        return tuple(_numbered(number, named, classes) for number in given)
    if axis != (-1 if classes else None):
        raise ValueError(f"dim is {dim!r} and axis is {axis!r}; accepted is one of them")
    several = isinstance(dim, Iterable) and not isinstance(dim, str) and not classes
    meant = tuple(dim) if several else (dim,)
    every = _union(named)
    if not set(meant) <= set(every):
        raise ValueError(f"dim is {dim!r}; the dimensions of the operands are {_shown(every)}")
    if len(set(meant)) < len(meant):
        raise ValueError(f"dim is {dim!r}, which names a dimension twice")
    return meant


def _numbered(number: Any, named: Mapping[str, Any], classes: bool) -> Hashable:
    """Return the dimension that has a number, the same in each array with so many."""
    if classes:
        number = resolve_integer_axis(number)
    resolve_axes(number, max(array.ndim for array in named.values()))  # for its errors
    found: dict[str, Hashable] = {
        name: array.dims[number]
        for name, array in named.items()
        if -array.ndim <= number < array.ndim
    }
    if len(set(found.values())) > 1:
        dims = " and ".join(f"{dim!r} of {name}" for name, dim in found.items())
        raise ValueError(f"axis {number} is {dims}; give its name as dim, or transpose one of them")
    return next(iter(found.values()))


def _check_labels(labelled: Mapping[str, Any]) -> None:
    sizes: dict[Hashable, tuple[str, float]] = {}
    labels: dict[Hashable, tuple[str, Any]] = {}
    for name, array in labelled.items():
        for dim, size in array.sizes.items():
            if math.isnan(size):
                raise ValueError(
                    f"{name} has unknown chunk sizes along {dim!r}; call compute_chunk_sizes() on "
                    "its data first"
                )
            first, length = sizes.setdefault(dim, (name, size))
            if size != length:
                raise ValueError(
                    f"{name} has length {size} along {dim!r} where {first} has {length}; accepted "
                    "are equal lengths"
                )
            if dim in array.xindexes:
                own = array.coords[dim].variable
                first, others = labels.setdefault(dim, (name, own))
                if not own.equals(others):
                    raise ValueError(
                        f"{name} has other labels along {dim!r} than {first}, or another order of "
                        "them; accepted are equal ones, as xarray.align or reindex_like gives"
                    )


def _in_equal_chunks(named: Mapping[str, Any], operands: Mapping[str, Any]) -> dict[str, Any]:
    """Return labelled arrays in chunks: those that are not yet are read like the other operand.

    That holds for arrays of files too, which xarray would otherwise read whole.
    """
    chunks: dict[Hashable, Any] = {}
    plain = [array for name, array in operands.items() if name not in named]
    if plain and isinstance(plain[0], da.Array):
        (other,) = named.values()
        chunks.update(zip(reversed(other.dims), reversed(plain[0].chunks), strict=False))
    chunked = dict(named)
    for name, array in sorted(named.items(), key=lambda item: item[1].chunks is None):
        if array.chunks is None and array.size and array.dtype.kind in "fV":
            sizes = array.sizes
            like = {d: chunks[d] for d in sizes if d in chunks and sum(chunks[d]) == sizes[d]}
            data = array.variable.chunk(dict.fromkeys(sizes, "auto") | like).data
            chunked[name] = array = array.copy(deep=False, data=data)
        chunks = dict(zip(array.dims, array.chunks or (), strict=False)) | chunks
    return chunked


def _by_position(several: list[Dims]) -> Dims | None:
    """Return the dimensions that broadcasting pairs as names do, if by position it does."""
    longest = max(several, key=len)
    return longest if all(longest[len(longest) - len(d) :] == d for d in several) else None


def _tail(name: str, array: Any, dims: Dims | None) -> Dims:
    """Return the dimensions that the axes of a plain array stand for: the last ones."""
    if not array.ndim:
        return ()
    if dims is None:
        raise ValueError(
            f"{name} is a plain array, and the dimensions of input and target are not in one order;"
            " accepted is a DataArray"
        )
    if array.ndim > len(dims):
        raise ValueError(
            f"{name} is a plain array of {array.ndim} axes; accepted is a DataArray, or at most"
            f" the axes {_shown(dims)}"
        )
    return dims[len(dims) - array.ndim :]


def _among(dims: Dims, name: str, array: Any) -> Dims:
    own: Dims = array.dims
    if not set(own) <= set(dims):
        raise ValueError(
            f"{name} has the dimensions {_shown(own)}; accepted are some of {_shown(dims)}"
        )
    return own


def _laid_out(data: Any, dims: Dims, wanted: Dims) -> Any:
    """Transpose an array, with new axes of length one between those it has."""
    order = [dims.index(dim) for dim in wanted if dim in dims]
    data = data if order == sorted(order) else data.transpose(order)
    has = [dim in dims for dim in wanted]
    inner = has[has.index(True) :] if order else []
    return data if all(inner) else data[tuple(slice(None) if one else None for one in inner)]


def _lazy(coords: Any, array: Any, name: Hashable) -> bool:
    return coords[name].chunks is not None or array.coords[name].chunks is not None


def _union(named: Mapping[str, Any]) -> Dims:
    return tuple(dict.fromkeys(dim for array in named.values() for dim in array.dims))


def _without(dims: Dims, left_out: Iterable[Hashable]) -> Dims:
    left_out = set(left_out)
    return tuple(dim for dim in dims if dim not in left_out)


def _shown(names: Iterable[Hashable]) -> str:
    return ", ".join(map(repr, names)) or "none"
