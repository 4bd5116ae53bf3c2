"""What is given as an array: a NumPy or Dask array of it, or one line that says why not."""

import sys
from collections.abc import Mapping
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.array.utils import meta_from_array

from kldiv_dask.dtypes import TABLE, dtype_called, dtype_read

# What is said of elements or positions: the kinds of type it is computed with, those that are
# turned into one of them, and both in words.
ACCEPTED = {
    "where": ("b", "iuO", "booleans, or integers of 0 and 1"),
    "groups": ("biuU", "SOT", "integers, booleans or strings"),
    "labels": ("iu", "O", "integers"),
}


def as_array(name: str, operand: Any) -> Any:
    """Return a Dask array, or something with a shape and a dtype that can be sliced."""
    if isinstance(operand, da.Array):
        return operand
    if dask.is_dask_collection(operand):
        return da.asanyarray(operand)
    operand = torch_to_numpy(name, operand)
    if is_stored(operand):
        return operand
    # NumPy would make strings of the numbers in a list of both.
    objects = name == "groups" and isinstance(operand, list | tuple)
    try:
        return np.array(operand, object) if objects else np.asanyarray(operand)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(operand).__name__
        raise type(error)(f"{name} must be an array, got a {kind}: {error}") from error


def as_read(name: str, array: Any) -> Any:
    """Give an array the type that its numbers have as soon as they are read."""
    dtype = array.dtype
    read = dtype_read(dtype)
    if read is dtype:
        return array
    if isinstance(array, da.Array):  # workers would wait for its blocks for ever
        raise TypeError(
            f"{name} must not be a Dask array of {dtype}, whose blocks Distributed can't move; "
            "pass the NumPy array, open the file by its path, or make the Dask array of what "
            f"array.astype('{read}') gives"
        )
    return array.astype(read)


def is_stored(operand: Any) -> bool:
    """Whether something is read chunk by chunk, such as an array of zarr or h5py.

    What takes part in NumPy's arithmetic, such as a labeled array, is in memory already.
    """
    has_dtype = isinstance(getattr(operand, "dtype", None), np.dtype)
    return has_dtype and hasattr(operand, "shape") and not hasattr(operand, "__array_ufunc__")


def torch_to_numpy(name: str, operand: Any) -> Any:
    """Return a tensor of torch as a NumPy array, and anything else as it is."""
    if not any(base.__module__.partition(".")[0] == "torch" for base in type(operand).__mro__):
        return operand
    if not hasattr(operand, "detach"):  # a dtype, a module
        raise TypeError(f"{name} must be an array, got a {type(operand).__name__} of torch")
    what = f"{name} must be an array in memory, got a torch tensor"
    if operand.requires_grad:
        raise TypeError(f"{what} that requires grad; pass {name}.detach()")
    if operand.device.type != "cpu":
        raise TypeError(f"{what} on {operand.device}; pass {name}.cpu()")
    if str(operand.layout) != "torch.strided":
        raise TypeError(f"{what} of layout {operand.layout}; pass {name}.to_dense()")
    operand = operand.resolve_conj().resolve_neg()
    row = TABLE.get(str(operand.dtype).removeprefix("torch."))
    if row is not None and not row.in_numpy:  # torch does not know ml_dtypes
        signed = getattr(sys.modules["torch"], f"int{row.bits}")
        return operand.contiguous().view(signed).numpy().view(dtype_called(row.name))
    try:
        return operand.numpy()
    except TypeError as error:
        cast = "long" if name in ACCEPTED else "float"
        raise TypeError(f"{what} of {operand.dtype}; pass {name}.{cast}()") from error


def check_numpy(name: str, array: da.Array) -> None:
    """Refuse chunks of another kind."""
    meta = meta_from_array(array)
    masked = isinstance(meta, np.ma.MaskedArray)
    if masked or not isinstance(meta, np.ndarray):
        hint = f"; pass {name}.filled()" if masked else ""
        if masked and name not in ACCEPTED:
            hint = f"; pass np.ma.getdata({name}), and where, which is False where it is masked"
        raise TypeError(
            f"{name} must have chunks of numpy.ndarray, got {type(meta).__name__}{hint}"
        )


def check_pandas(operands: Mapping[str, Any]) -> None:
    """Refuse objects of pandas whose labels differ, as they are paired by position."""
    for axis in ("index", "columns"):
        labels: dict[int, tuple[str, Any]] = {}
        for name, operand in operands.items():
            axis_labels = getattr(operand, axis, None)
            if axis_labels is None or type(operand).__module__.partition(".")[0] != "pandas":
                continue
            other, other_labels = labels.setdefault(len(axis_labels), (name, axis_labels))
            if not other_labels.equals(axis_labels):
                raise ValueError(
                    f"{name} must have the labels of {other} in its {axis}, in the same order, got "
                    f"others; reindex it, or pass {name}.to_numpy() to pair by position"
                )


def check_kind(name: str, dtype: np.dtype[Any]) -> None:
    """Refuse a type that can't be what is said of positions."""
    kinds, others, accepted = ACCEPTED[name]
    if dtype.kind not in kinds + others:
        raise TypeError(f"{name} must be {accepted}, got dtype {dtype}")


def plain(name: str, array: Any) -> Any:
    """Return what is said of positions in a type to compute with; of Dask arrays, lazily."""
    unsigned = name == "labels" and array.dtype == np.uint64
    if array.dtype.kind in ACCEPTED[name][0] and not unsigned:
        return array
    if not isinstance(array, da.Array):
        return _plain(array, name)
    dtype = {"where": np.dtype(bool), "groups": np.dtype("U"), "labels": np.dtype(np.int64)}[name]
    meta = np.empty((0,) * array.ndim, dtype)
    return da.map_blocks(_plain, array, argument=name, dtype=dtype, meta=meta)


def _plain(block: npt.NDArray[Any], argument: str) -> npt.NDArray[Any]:
    kind = block.dtype.kind
    if kind in "OT":
        block = _of_objects(argument, block.astype(object))
        check_kind(argument, block.dtype)
        kind = block.dtype.kind
    if kind == "S":
        try:
            return np.char.decode(block, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{argument} has bytes that are no UTF-8: {error}") from error
    if argument == "where" and kind in "iu":
        _check(argument, block, (block != 0) & (block != 1), "booleans, or integers of 0 and 1")
        return block.astype(bool)
    if argument == "labels" and kind == "u":
        _check(argument, block, block > np.iinfo(np.int64).max, "classes, or -100 for none")
        return block.astype(np.int64)
    return block


_plain.__name__ = "kl-div-given"  # what Dask calls its tasks


def _check(argument: str, block: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise ValueError(f"{argument} must be {what}, got {block[wrong][0]}")


def _of_objects(argument: str, block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what objects are: strings, bytes, booleans or integers, all of one kind."""
    values = block.reshape(-1).tolist()
    for types, dtype in (((str,), str), ((bytes,), bytes), ((bool, np.bool_), bool)):
        if all(isinstance(value, types) for value in values):
            return block.astype(dtype)
    numbers = all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in values)
    if numbers and all(-(2**63) <= value < 2**63 for value in values):
        return block.astype(np.int64)
    accepted = ACCEPTED[argument][2]
    for place, value in enumerate(values):
        if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
            index = tuple(map(int, np.unravel_index(place, block.shape)))
            raise ValueError(f"{argument} must be {accepted}, got {value} at {index}")
    type_names = ", ".join(sorted({type(value).__name__ for value in values}))
    raise TypeError(
        f"{argument} must be {accepted}, all of one kind, got objects of type {type_names}"
    )
