"""Align a pair of operands: two Dask arrays in, the same two with equal chunks out."""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.utils import format_bytes

Chunks = tuple[tuple[int, ...], ...]


class Pair(NamedTuple):
    """Two Dask arrays, cast and chunked alike, ready for blockwise work.

    `dtype` is the promoted type, `chunks` are those of the broadcast result; sizes may be NaN.
    `matching` are the axes, counted from the last, along which both have more than one element.
    """

    input: da.Array
    target: da.Array
    dtype: np.dtype[Any]
    chunks: Chunks
    matching: tuple[int, ...]


def as_dask(input: Any, target: Any) -> tuple[da.Array, da.Array]:
    """Turn the operands into Dask arrays; one that is not yet takes the other's chunks."""
    arrays = [a if isinstance(a, da.Array) else np.asanyarray(a) for a in (input, target)]
    match [isinstance(a, da.Array) for a in arrays]:
        case [True, False]:
            arrays[1] = _chunk_like(arrays[1], arrays[0])
        case [False, True]:
            arrays[0] = _chunk_like(arrays[0], arrays[1])
        case [False, False]:
            wide = max(arrays, key=lambda a: a.nbytes)
            arrays = [_chunk_like(a, da.asanyarray(wide)) for a in arrays]
    return arrays[0], arrays[1]


def _chunk_like(array: npt.NDArray[Any], like: da.Array) -> da.Array:
    sizes = zip(reversed(array.shape), reversed(like.shape), strict=False)
    fitting = [
        chunks if size == other else -1
        for (size, other), chunks in zip(sizes, reversed(like.chunks), strict=False)
    ]
    leading = ["auto"] * (array.ndim - len(fitting))
    return da.from_array(array, chunks=(*leading, *reversed(fitting)))


def _check_shapes(input: da.Array, target: da.Array) -> None:
    for axis in _matching(input, target):
        left, right = input.shape[axis], target.shape[axis]
        if left != right and not (math.isnan(left) or math.isnan(right)):
            raise ValueError(
                f"input of shape {input.shape} and target of shape {target.shape} "
                "do not broadcast together"
            )


def _padded(shape: tuple[Any, ...], ndim: int, fill: Any = 1) -> tuple[Any, ...]:
    return (fill,) * (ndim - len(shape)) + tuple(shape)


def align(input: da.Array, target: da.Array, dtype: np.dtype[Any], *, stacklevel: int) -> Pair:
    """Cast a pair where it narrows, and give both operands the same chunks.

    Operands whose chunks differ are rechunked here, once and with a warning, rather than silently
    cut into the common refinement of both chunkings.
    """
    _check_shapes(input, target)
    input, target = (_narrowed(a, dtype) for a in (input, target))
    # Rechunking the smaller one moves fewer bytes.
    if _known_bytes(input) < _known_bytes(target):
        target, input = _rechunk_second(target, input, ("target", "input"), stacklevel + 1)
    else:
        input, target = _rechunk_second(input, target, ("input", "target"), stacklevel + 1)
    ndim = max(input.ndim, target.ndim)
    chunks = tuple(
        right if size == 1 else left
        for size, left, right in zip(
            _padded(input.shape, ndim),
            _padded(input.chunks, ndim, (1,)),
            _padded(target.chunks, ndim, (1,)),
            strict=True,
        )
    )
    return Pair(input, target, dtype, chunks, tuple(_matching(input, target)))


def _matching(first: da.Array, second: da.Array) -> Iterator[int]:
    for axis in range(-min(first.ndim, second.ndim), 0):
        if first.shape[axis] != 1 and second.shape[axis] != 1:
            yield axis


def _narrowed(array: da.Array, dtype: np.dtype[Any]) -> da.Array:
    # Widening is exact and left to the kernels, which do it tile by tile.
    return array.astype(dtype) if array.dtype.itemsize > dtype.itemsize else array


def _known_bytes(array: da.Array) -> float:
    size = math.prod(array.shape)
    return 0 if math.isnan(size) else size * array.dtype.itemsize


def _rechunk_second(
    first: da.Array, second: da.Array, names: tuple[str, str], stacklevel: int
) -> tuple[da.Array, da.Array]:
    """Rechunk `second` like `first` on the axes that match."""
    wanted = list(second.chunks)
    for axis in _matching(first, second):
        left, right = first.chunks[axis], second.chunks[axis]
        if left == right:
            continue
        if any(map(math.isnan, left + right)):
            if len(left) == len(right):
                continue  # equal if the data say so: the blocks check it
            raise ValueError(
                f"{names[0]} and {names[1]} have unknown chunk sizes along axis {axis} in "
                f"{len(left)} and {len(right)} chunks, which can't be matched; call "
                "compute_chunk_sizes() on them first"
            )
        wanted[axis] = left
    if wanted == list(second.chunks):
        return first, second
    warnings.warn(
        f"{names[1]} has chunks {_brief(second.chunks)} where {names[0]} has "
        f"{_brief(first.chunks)}: {names[1]} ({format_bytes(_known_bytes(second))} in "
        f"{math.prod(second.numblocks)} chunks) is rechunked, which reads and may move all of it once more. "
        f"Open both with equal chunks, as kldiv_dask.open_pair does, or pass "
        f"chunks={names[0]}.chunks to dask.array.from_array",
        da.PerformanceWarning,
        stacklevel=stacklevel + 1,
    )
    return first, second.rechunk(tuple(wanted))


def _brief(chunks: Chunks) -> str:
    return "(" + ", ".join(f"{len(c)} x {max(c, default=0)}" for c in chunks) + ")"
