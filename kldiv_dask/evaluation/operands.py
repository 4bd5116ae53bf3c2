"""From the arguments of an evaluation to aligned arrays."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from kldiv_dask import graph, xarray_support
from kldiv_dask.align import (
    Box,
    Pair,
    align,
    align_to_result,
    as_dask,
    axis_to_end,
    repeated_operands,
)
from kldiv_dask.arrays import torch_to_numpy
from kldiv_dask.dtypes import TABLE
from kldiv_dask.evaluation import regions
from kldiv_dask.evaluation.data import PATHS, Data
from kldiv_dask.evaluation.errors import EvaluationWarning
from kldiv_dask.evaluation.slabs import Grid
from kldiv_dask.kernels.checks import OPERANDS
from kldiv_dask.options import resolve_class_axis, resolve_dtype
from kldiv_dask.statistics.chunks import EvaluationSpec
from kldiv_dask.storage import key_called, open_array, open_beside, open_pair
from kldiv_dask.storage.chunking import Chunks

# How far from 1 the probabilities of a row may sum at most, which only types of 8 bits come to.
MOST_TOLERANCE = 0.5

OF_PAIR, BY_POSITION = ("input", "target"), ("where", "groups", "labels")


class Arguments(NamedTuple):
    """The arrays that `evaluate` takes, or their paths."""

    input: Any
    target: Any
    where: Any
    groups: Any
    labels: Any

    def opened(
        self, keys: Mapping[str, str | None], *, chunks: Chunks, allow_truncated: bool
    ) -> "Arguments":
        """Open the arrays that are given by their paths.

        Beside DataArrays, a string is the name of a coordinate. `keys` has the name of each array
        in its file, by argument.
        """
        # Tensors become arrays: they have no token that lasts, and so no identity.
        operands = {name: torch_to_numpy(name, array) for name, array in self._asdict().items()}
        if self.input is self.target:
            operands["target"] = operands["input"]
        input, target = operands["input"], operands["target"]
        _check_keys(operands, keys, OF_PAIR)
        reading: dict[str, Any] = {"chunks": chunks, "allow_truncated": allow_truncated}
        if isinstance(input, PATHS) and isinstance(target, PATHS):
            reading |= {f"{name}_key": keys[name] for name in OF_PAIR}
            operands["input"], operands["target"] = open_pair(input, target, **reading)
        else:
            for name in OF_PAIR:
                if isinstance(operands[name], PATHS):
                    with key_called(f"{name}_key"):
                        operands[name] = open_array(operands[name], key=keys[name], **reading)
        for name in BY_POSITION:
            operands[name] = xarray_support.coordinate(
                name, operands[name], operands["input"], operands["target"]
            )
        _check_keys(operands, keys, BY_POSITION)
        for name in BY_POSITION:
            if isinstance(operands[name], PATHS):
                with key_called(f"{name}_key"):
                    operands[name] = open_beside(
                        operands[name], key=keys[name], allow_truncated=allow_truncated
                    )
        return Arguments(**operands)


def _check_keys(
    operands: Mapping[str, Any], keys: Mapping[str, str | None], names: tuple[str, ...]
) -> None:
    """Refuse the key of an argument that is no path."""
    for name in names:
        if keys[name] is not None and not isinstance(operands[name], PATHS):
            raise ValueError(f"{name}_key is {keys[name]!r}, and {name} is no path")


class Operands(NamedTuple):
    """Aligned arrays, with the classes along the last axis.

    `by_position` has `where`, `groups` and `labels`, or None. `axis` is the axis of the classes in
    the operands, counted from the last. `dims` are the names of the axes of the positions, and
    `own_dims` those of each array, if they have names. `repeated` has the name of the operand that
    is repeated along the positions, if one is.
    """

    pair: Pair
    by_position: dict[str, da.Array | None]
    spec: EvaluationSpec
    data: Data
    axis: int
    dims: list[str]
    own_dims: dict[str, list[str]]
    repeated: list[str]

    def grid(self, box: Box) -> Grid:
        """Return the pairs of chunks of a box of the positions."""
        is_whole = box == regions.box_of(self.spec.shape)
        states = graph.states(self.pair, self.by_position, self.spec, None if is_whole else box)
        pair = self.pair if is_whole else self.pair.of_positions(box)
        return Grid(box, states, pair.chunks[:-1])

    def sample(self) -> da.Array:
        """Return the state of one position and one class, of arrays of the same types."""
        ndim = self.pair.ndim
        input, target = (
            da.zeros((1,) * a.ndim, a.dtype) for a in (self.pair.input, self.pair.target)
        )
        pair = self.pair._replace(input=input, target=target, chunks=((1,),) * ndim)
        by_position = {
            name: None if a is None else da.full((1,) * a.ndim, name == "where", a.dtype)
            for name, a in self.by_position.items()
        }
        spec = self.spec._replace(shape=(1,) * (ndim - 1))
        return graph.states(pair, by_position, spec)

    def present(self) -> dict[str, bool]:
        """Return for each array by position whether it was given."""
        return {name: array is not None for name, array in self.by_position.items()}

    def pairing(self) -> dict[str, Any]:
        """Return the options, beside the shapes, that decide which elements are paired."""
        return {"axis": self.axis, "dims": self.dims, "dimensions": self.own_dims}

    def remarks(self) -> dict[str, Any]:
        """Return what is added to the provenance of a result, beside its options."""
        remarks: dict[str, Any] = {}
        if self.spec.generalized:
            remarks["generalized"] = "sum p log(p / q) - p + q, of rows that do not sum to 1"
        if self.dims:
            remarks |= {"dims": self.dims, "cluster_axis": self.dims[self.spec.cluster_axis]}
        for name in self.repeated:
            remarks["repeated"] = f"{name}, over positions of shape {self.spec.shape}"
        checked = list(self.data.partly_checked())
        return remarks | ({"looked_at": "; ".join(checked)} if checked else {})

    def missing_chunks(self, scheduler: Any) -> list[dict[str, Any]]:
        """Describe the stored chunks that were never written, where positions are included."""
        where = self.by_position["where"]
        return self.data.missing_chunks(where, self.spec.shape, self.axis, scheduler)


def prepare(
    arguments: Arguments,
    *,
    kind: str | None,
    axis: int,
    dim: Any,
    temperature: float,
    cluster_axis: int | str,
    wide: bool,
    stacklevel: int,
) -> Operands:
    """Align the arrays; refuse options and shapes that do not fit."""
    data = Data(arguments._asdict())
    _check_texts(data, stacklevel + 1)
    tolerated = {
        name: max(getattr(source, "tolerance", 0.0) for source in sources)
        for name, sources in data.sources.items()
        if name in ("input", "target")
    }
    rounded = any(
        getattr(source, "is_rounded", False) for name in tolerated for source in data.sources[name]
    )
    if kind is None:
        kind = "log_probs" if rounded else "logits"
    if kind not in OPERANDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, OPERANDS))}, got {kind!r}")
    operands = arguments._asdict()
    input, target = operands.pop("input"), operands.pop("target")
    matched = xarray_support.match(input, target, operands, axis=axis, dim=dim, classes=True)
    arrays = as_dask(matched.input, matched.target)
    wide |= resolve_dtype(*arrays, None) == np.float64 or kind != "logits"
    computed = graph.compute_dtype(wide, temperature)
    class_axis = resolve_class_axis(matched.axis, *arrays)
    if any(math.isnan(length) for array in arrays for length in array.shape):
        raise ValueError(
            "input and target have unknown chunk sizes; call compute_chunk_sizes() on them, or "
            "to_dask_array(lengths=True) on a dataframe"
        )
    moved = [axis_to_end(class_axis, array) for array in arrays]
    repeated = repeated_operands(*moved)
    joined = [a if a.numblocks[-1] == 1 else a.rechunk({a.ndim - 1: -1}) for a in moved]
    pair = align(joined[0], joined[1], np.dtype(np.float64), stacklevel=stacklevel + 1)
    shape = tuple(map(sum, pair.chunks[:-1]))
    number = _checked_cluster_axis(cluster_axis, len(shape), matched.dims[:-1])
    positions = pair.chunks[:-1]
    by_position = {
        name: None if array is None else align_to_result(name, array, positions)
        for name, array in matched.position_args.items()
    }
    tolerances = [
        tolerated.get(name) or tolerance(array)
        for name, array in zip(("input", "target"), moved, strict=True)
    ]
    if kind != "logits" and temperature != 1:
        raise ValueError(f"temperature is {temperature} with kind={kind!r}; it is for logits")
    generalized = rounded and kind != "logits"
    spec = EvaluationSpec(
        shape, number, kind, temperature, computed, (tolerances[0], tolerances[1]), generalized
    )
    return Operands(
        pair,
        by_position,
        spec,
        data,
        class_axis,
        list(map(str, matched.dims[:-1])),
        xarray_support.own_dims(arguments._asdict()),
        repeated,
    )


def _check_texts(data: Data, stacklevel: int) -> None:
    """Refuse base files over different texts; warn if only parts of them are read."""
    difference, is_whole = data.other_text()
    if difference and is_whole:
        raise ValueError(difference)
    if difference:
        warnings.warn(difference, EvaluationWarning, stacklevel=stacklevel + 1)


def tolerance(array: da.Array) -> float:
    """Return how far from 1 the rounded probabilities of a row, the last axis, may sum.

    With u the largest relative error of rounding to the type, probabilities p are off by p u, and
    those of log-probabilities by p |log p| u, which adds up to at most u log(classes); twice that
    is allowed. Below are the errors of who computed them in float32, and what is flushed to
    zero.
    """
    classes = array.shape[-1]
    stored = TABLE[array.dtype.name]
    rounding = math.ldexp(2, -stored.precision) * (1 + math.log(classes))
    flushed = math.ldexp(classes, stored.lowest - 1)
    # What is off by more says of no type that rounding did it.
    return min(max(rounding + flushed, 1e-5), MOST_TOLERANCE)


def _checked_cluster_axis(axis: Any, ndim: int, dims: xarray_support.Dims) -> int:
    if dims and isinstance(axis, str):
        if axis not in dims:
            names = ", ".join(map(repr, dims))
            raise ValueError(f"cluster_axis is {axis!r}; the positions have {names}")
        return dims.index(axis)
    if not isinstance(axis, int | np.integer) or isinstance(axis, bool):
        raise TypeError(f"cluster_axis must be an integer, got {axis!r}")
    if ndim and not -ndim <= axis < ndim:
        raise ValueError(f"cluster_axis is {axis}; the positions have {ndim} axes")
    return int(axis) % max(ndim, 1)
