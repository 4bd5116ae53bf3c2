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
Sizes = Mapping[Hashable, int]
Arrays = Mapping[str, Any]

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

        reduced = set(self.dims if axes is None else (self.dims[axis] for axis in axes))
        kept = tuple(dim for dim in self.dims if dim not in reduced)
        first = self.named[0].coords
        # What labels a reduced dimension of one operand is no label of the whole result.
        gone = {c for a in self.named for c, own in a.coords.items() if reduced & set(own.dims)}
        arrays: list[Any] = []
        for array in self.named:
            own = array.coords
            left_out = set(own) & (gone | set(self.dims) - set(array.dims))
            if arrays:  # xarray would compute what both have, to see whether it is equal
                both = set(own) & set(first)
                left_out |= {c for c in both if {own[c].chunks, first[c].chunks} != {None}}
            arrays.append(array.drop_vars(left_out))
        wrapped = xarray.apply_ufunc(
            lambda *_: result,
            *arrays,
            input_core_dims=[array.dims for array in arrays],
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
    small: Arrays,
    *,
    axis: Any = None,
    dim: Any = None,
    classes: bool = False,
) -> Operands:
    """Lay out operands by the names of their dimensions; where none has names, leave them alone.

    `small` is what is said of elements or, with `classes`, of positions. `axis` or `dim` say which
    dimensions are meant, by number or by name: with `classes` the one that is to come last.
    """
    given = {"input": input, "target": target} | dict(small)
    labelled = {name: array for name, array in given.items() if is_named(name, array)}
    named = {name: array for name, array in labelled.items() if name not in small}
    if not named:
        if dim is not None:
            raise ValueError(
                f"dim is {dim!r} where neither input nor target is a DataArray; accepted is axis"
            )
        return Operands(input, target, dict(small), axis)
    import xarray

    _check_labels(labelled)
    sizes = {d: size for array in named.values() for d, size in array.sizes.items()}
    meant = _meant(dim, axis, named, tuple(sizes), classes)
    last = meant if classes else ()
    outer = {d: size for d, size in sizes.items() if d not in last}
    dims = (*outer, *last)
    own: dict[str, Dims] = {}
    for name, array in given.items():
        own[name] = _own(name, array, outer if name in small else sizes, named)
        if name in named and not set(last) <= set(own[name]):
            raise ValueError(
                f"{name} has the dimensions {_shown(own[name])}, and not that of the classes, "
                f"{_shown(last)}"
            )
    data = given | _in_chunks(labelled, given, own, sizes)
    # Xarray would read files to hand them over.
    arrays = tuple(array.copy(deep=False, data=data[name]) for name, array in named.items())
    data["input"], data["target"] = as_dask(data["input"], data["target"])
    for name, array in data.items():
        if isinstance(array, da.Array):
            wanted = tuple(outer) if name in small else dims
            # New axes of length one stand between those it has, not before them.
            start = min(map(wanted.index, own[name]), default=len(wanted))
            data[name] = xarray.Variable(own[name], array).set_dims(wanted[start:]).data
    numbers = -1 if classes else tuple(map(dims.index, meant))
    return Operands(data.pop("input"), data.pop("target"), data, numbers, dims, arrays)


def is_named(name: str, operand: Any) -> bool:
    """Whether the argument `name` is a DataArray; no other labelled object is accepted."""
    xarray = sys.modules.get("xarray")  # unless it has been imported, there are none
    if xarray is None or isinstance(operand, xarray.DataArray):
        return xarray is not None
    if type(operand).__module__.startswith("xarray."):
        raise TypeError(
            f"{name} is a {type(operand).__name__}; accepted is a DataArray: pick a variable, as "
            "dataset['logits'] does"
        )
    return False


def coordinate(name: str, key: Any, input: Any, target: Any) -> Any:
    """Return the coordinate that a string means beside DataArrays, and anything else as it is.

    Strings that are held as objects, as files give them, become an array of NumPy's strings.
    """
    operands = [a for n, a in (("input", input), ("target", target)) if is_named(n, a)]
    if operands and isinstance(key, str):
        found = [array.coords[key] for array in operands if key in array.coords]
        if not found:
            known = _shown(dict.fromkeys(c for array in operands for c in array.coords))
            raise ValueError(
                f"{name} is {key!r}; accepted are the coordinates of input and target, {known}, an"
                " array, or a file as pathlib.Path"
            )
        if not found[0].variable.broadcast_equals(found[-1].variable):
            raise ValueError(
                f"{name} is {key!r}, a coordinate that differs between input and target"
            )
        key = found[0]
    if is_named(name, key) and key.dtype.kind in "OT":
        values = np.asarray(key.values, object)
        if values.size and all(isinstance(value, str) for value in values.flat):
            return key.copy(data=values.astype(str))
    return key


def _meant(dim: Any, axis: Any, named: Arrays, every: Dims, classes: bool) -> Dims:
    """Return the names of the dimensions that are meant, by default all."""
    if dim is not None:
        if axis != (-1 if classes else None):
            raise ValueError(f"dim is {dim!r} and axis is {axis!r}; accepted is one of them")
        one = classes or isinstance(dim, str) or not isinstance(dim, Iterable)
        meant: Dims = (dim,) if one else tuple(dim)
        if not all(d in every for d in meant):
            raise ValueError(f"dim is {dim!r}; the dimensions of the operands are {_shown(every)}")
        if len(set(meant)) < len(meant):
            raise ValueError(f"dim is {dim!r}, which names a dimension twice")
        return meant
    if classes:
        axis = resolve_integer_axis(axis)
    elif axis is None:
        return every
    resolve_axes(axis, max(array.ndim for array in named.values()))  # for its errors
    meant = ()
    for number in axis if isinstance(axis, tuple) else (axis,):
        found = {n: a.dims[number] for n, a in named.items() if -a.ndim <= number < a.ndim}
        if len(set(found.values())) > 1:
            dims = " and ".join(f"{d!r} of {name}" for name, d in found.items())
            raise ValueError(
                f"axis {number} is {dims}; give its name as dim, or transpose one of them"
            )
        meant += (*found.values(),)[:1]
    return meant


def _check_labels(labelled: Arrays) -> None:
    """Refuse dimensions that differ in length, and indexes in labels or their order."""
    sizes: dict[Hashable, tuple[str, float]] = {}
    labels: dict[Hashable, tuple[str, Any]] = {}
    for name, array in labelled.items():
        if len(array.sizes) < array.ndim:
            raise ValueError(f"{name} has the dimensions {_shown(array.dims)}, one of them twice")
        for dim, size in array.sizes.items():
            if math.isnan(size):
                raise ValueError(
                    f"{name} has unknown chunk sizes along {dim!r}; call compute_chunk_sizes() on "
                    "its data first"
                )
            other, length = sizes.setdefault(dim, (name, size))
            if size != length:
                raise ValueError(
                    f"{name} has length {size} along {dim!r} where {other} has {length}; accepted "
                    "are equal lengths"
                )
        for index in array.xindexes:
            label = array.coords[index].variable
            other, equal = labels.setdefault(index, (name, label))
            if not label.equals(equal):
                raise ValueError(
                    f"{name} has other labels along {index!r} than {other}, or another order of "
                    "them; accepted are equal ones, as xarray.align or reindex_like gives"
                )


def _own(name: str, array: Any, sizes: Sizes, named: Arrays) -> Dims:
    """Return the dimensions of an array; the axes of a plain one stand for the last of `sizes`."""
    dims = tuple(sizes)
    if is_named(name, array):
        if not set(array.dims) <= set(dims):
            raise ValueError(
                f"{name} has the dimensions {_shown(array.dims)}; accepted are some of "
                f"{_shown(dims)}"
            )
        return tuple(array.dims)
    shape = array.shape if hasattr(array, "shape") else np.shape(array)
    ends = [tuple(d for d in other.dims if d in sizes) for other in named.values()]
    if shape and any(end != dims[len(dims) - len(end) :] for end in ends):
        raise ValueError(
            f"{name} is a plain array, and the dimensions of input and target are not in one order;"
            " accepted is a DataArray"
        )
    own = dims[max(len(dims) - len(shape), 0) :]
    if len(shape) > len(own) or any(sizes[d] == 1 != n for d, n in zip(own, shape, strict=True)):
        raise ValueError(
            f"{name} is a plain array of {len(shape)} axes; accepted is a DataArray, or at most "
            f"the axes {_shown(dims)} of lengths {tuple(sizes.values())}, and these are {shape}"
        )
    return own


def _in_chunks(labelled: Arrays, given: Arrays, own: Arrays, sizes: Sizes) -> dict[str, Any]:
    """Return what labelled arrays hold; what has no chunks is read like the operand that has.

    That holds for arrays of files too, which xarray would otherwise read whole.
    """
    chunks: dict[Hashable, Any] = {}
    for name in ("input", "target"):
        if name in labelled or isinstance(given[name], da.Array):
            known = zip(own[name], given[name].chunks or (), strict=False)
            chunks |= {d: lengths for d, lengths in known if sum(lengths) == sizes[d]}
    data = {}
    for name, array in labelled.items():
        variable = array.variable.to_base_variable()
        if array.chunks is None:
            # What has no elements, or is refused later, has no automatic chunks.
            other = "auto" if array.size and array.dtype.kind in "fV" else -1
            variable = variable.chunk({d: chunks.get(d, other) for d in array.dims})
            chunks |= variable.chunksizes
        data[name] = variable.data
    return data


def _shown(names: Iterable[Hashable]) -> str:
    return ", ".join(map(repr, names)) or "none"
