"""Operands laid out by the names of their dimensions, and results that get the names back."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import dask.array as da

from kldiv_dask.align import as_dask
from kldiv_dask.arrays import check_pandas
from kldiv_dask.xarray_support.names import (
    Arrays,
    Dims,
    Sizes,
    check_labels,
    dims_of,
    format_names,
    is_dataarray,
    resolve_dims,
)

ATTRIBUTES = {"units": "nats", "long_name": "KL divergence"}


class Operands(NamedTuple):
    """Plain arrays that broadcast by position, and what they were.

    `position_args` are those that broadcast to the result, by argument. `axis` numbers what was
    meant.
    `dims` are the dimensions of the broadcast operands, classes last. They and `dataarrays`, the
    operands that are labeled, are empty if none is.
    """

    input: Any
    target: Any
    position_args: dict[str, Any]
    axis: Any
    dims: Dims = ()
    dataarrays: tuple[Any, ...] = ()

    def wrap(self, result: da.Array, axes: tuple[int, ...] | None = None) -> Any:
        """Return what has reduced `axes`, by default all, with the names of its dimensions."""
        if not self.dataarrays:
            return result
        import xarray

        reduced = set(self.dims if axes is None else (self.dims[axis] for axis in axes))
        remaining = tuple(dim for dim in self.dims if dim not in reduced)
        first = self.dataarrays[0].coords
        # What labels a reduced dimension of one operand is no label of the whole result.
        gone = {
            name
            for array in self.dataarrays
            for name, coordinate in array.coords.items()
            if reduced & set(coordinate.dims)
        }
        arrays: list[Any] = []
        for array in self.dataarrays:
            coords = array.coords
            left_out = set(coords) & (gone | set(self.dims) - set(array.dims))
            if arrays:  # xarray would compute what both have, to see whether it is equal
                both = set(coords) & set(first)
                left_out |= {c for c in both if {coords[c].chunks, first[c].chunks} != {None}}
            arrays.append(array.drop_vars(left_out))
        wrapped = xarray.apply_ufunc(
            lambda *_: result,
            *arrays,
            input_core_dims=[array.dims for array in arrays],
            output_core_dims=[remaining if result.ndim == len(remaining) else self.dims],
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
    position_args: Arrays,
    *,
    axis: Any = None,
    dim: Any = None,
    classes: bool = False,
) -> Operands:
    """Lay out operands by the names of their dimensions; where none has names, leave them alone.

    `position_args` has the arguments by element or, with `classes`, by position. `axis` or `dim`
    choose dimensions by number or by name: with `classes` the one that is to come last.
    """
    operands = {"input": input, "target": target} | dict(position_args)
    check_pandas(operands)
    labeled = {name: array for name, array in operands.items() if is_dataarray(name, array)}
    dataarrays = {name: array for name, array in labeled.items() if name not in position_args}
    if not dataarrays:
        if dim is not None:
            raise ValueError(
                "dim must be None where neither input nor target is a DataArray, got "
                f"{dim!r}; use axis"
            )
        return Operands(input, target, dict(position_args), axis)
    import xarray

    check_labels(labeled)
    sizes = {d: size for array in dataarrays.values() for d, size in array.sizes.items()}
    chosen = resolve_dims(dim, axis, dataarrays, tuple(sizes), classes)
    last = chosen if classes else ()
    outer = {d: size for d, size in sizes.items() if d not in last}
    dims = (*outer, *last)
    dims_by_name: dict[str, Dims] = {}
    for name, array in operands.items():
        dims_by_name[name] = dims_of(
            name, array, outer if name in position_args else sizes, dataarrays
        )
        if name in dataarrays and not set(last) <= set(dims_by_name[name]):
            raise ValueError(
                f"{name} must have the dimension of the classes, {format_names(last)}, got "
                f"{format_names(dims_by_name[name])}"
            )
    data = operands | _in_chunks(labeled, operands, dims_by_name, sizes)
    # Xarray would read files to hand them over.
    arrays = tuple(array.copy(deep=False, data=data[name]) for name, array in dataarrays.items())
    data["input"], data["target"] = as_dask(data["input"], data["target"])
    for name, array in data.items():
        if isinstance(array, da.Array):
            wanted = tuple(outer) if name in position_args else dims
            # New axes of length one stand between those it has, not before them.
            start = min(map(wanted.index, dims_by_name[name]), default=len(wanted))
            data[name] = xarray.Variable(dims_by_name[name], array).set_dims(wanted[start:]).data
    numbers = -1 if classes else tuple(map(dims.index, chosen))
    return Operands(data.pop("input"), data.pop("target"), data, numbers, dims, arrays)


def _in_chunks(
    labeled: Arrays, operands: Arrays, dims_by_name: Arrays, sizes: Sizes
) -> dict[str, Any]:
    """Return what labeled arrays hold; what has no chunks is read like the operand that has.

    That holds for arrays of files too, which xarray would otherwise read whole.
    """
    chunks: dict[Hashable, Any] = {}
    for name in ("input", "target"):
        if name in labeled or isinstance(operands[name], da.Array):
            lengths_by_dim = zip(dims_by_name[name], operands[name].chunks or (), strict=False)
            chunks |= {d: lengths for d, lengths in lengths_by_dim if sum(lengths) == sizes[d]}
    data = {}
    for name, array in labeled.items():
        variable = array.variable.to_base_variable()
        if array.chunks is None:
            # What has no elements, or is refused later, has no automatic chunks.
            other = "auto" if array.size and array.dtype.kind in "fV" else -1
            variable = variable.chunk({d: chunks.get(d, other) for d in array.dims})
            chunks |= variable.chunksizes
        data[name] = variable.data
    return data
