"""Align a pair of operands: two Dask arrays in, the same two with equal chunks out."""

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.utils import format_bytes

from kldiv_dask.arrays import as_array, as_read, check_kind, check_numpy, plain
from kldiv_dask.options import check_floats

Chunks = tuple[tuple[int, ...], ...]

# Where some positions begin and end along each of their axes.
Box = tuple[tuple[int, int], ...]


class Pair(NamedTuple):
    """Two Dask arrays, cast and chunked alike, ready for blockwise work.

    `dtype` is the promoted type, `chunks` are those of the broadcast result; sizes may be NaN.
    `matching` are the axes, counted from the last, along which both have more than one element.
    `where` is None, or an array of booleans that is chunked like the result where it is not of
    length one. `nbytes` is the size of what the operands were at first, NaN if it is unknown.
    """

    input: da.Array
    target: da.Array
    dtype: np.dtype[Any]
    chunks: Chunks
    matching: tuple[int, ...]
    where: da.Array | None
    nbytes: float

    @property
    def ndim(self) -> int:
        """The number of axes of the broadcast result."""
        return len(self.chunks)

    @property
    def axes(self) -> tuple[int, ...]:
        """All axes of the broadcast result."""
        return tuple(range(self.ndim))

    @property
    def masked(self) -> tuple[int, ...]:
        """The axes, counted from the last, along which `where` has more than one element."""
        sizes = () if self.where is None else self.where.shape
        return tuple(axis for axis in range(-len(sizes), 0) if sizes[axis] != 1)

    def of_positions(self, box: Box) -> "Pair":
        """Return the pair of a box of the positions, which are all axes but the last."""
        input, target = (cut(array, box, trailing=1) for array in (self.input, self.target))
        return self._replace(input=input, target=target, chunks=_common_chunks(input, target))

    @property
    def row_multiplicity(self) -> int:
        """How many blocks hold each row of `input`: those side by side in one row of blocks."""
        blocks = math.prod(map(len, self.chunks))
        return blocks // self.input.numblocks[0] if self.input.ndim else blocks


def as_dask(input: Any, target: Any) -> tuple[da.Array, da.Array]:
    """Turn the operands into Dask arrays; one that is not yet takes the other's chunks."""
    arrays = [as_array(name, a) for name, a in (("input", input), ("target", target))]
    check_floats(*arrays)
    arrays = [as_read(name, a) for name, a in zip(("input", "target"), arrays, strict=True)]
    lazy = [a for a in arrays if isinstance(a, da.Array)]
    if lazy:
        shape, chunks = lazy[0].shape, lazy[0].chunks
    else:
        widest = max(arrays, key=_nbytes)
        shape = widest.shape
        chunks = da.core.normalize_chunks("auto", shape, dtype=widest.dtype)
    input, target = (
        a if isinstance(a, da.Array) else _chunk_like(a, shape, chunks) for a in arrays
    )
    check_numpy("input", input)
    check_numpy("target", target)
    return input, target


def _chunk_like(array: Any, shape: tuple[int, ...], chunks: Chunks) -> da.Array:
    """Chunk an array alike where its axes, counted from the last, are as long as in `shape`."""
    pairs = zip(reversed(array.shape), reversed(shape), reversed(chunks), strict=False)
    fitting = [chunk if size == other else -1 for size, other, chunk in pairs]
    # Dask has no automatic chunks for an array without elements.
    leading = ["auto" if math.prod(array.shape) else -1] * (array.ndim - len(fitting))
    return da.from_array(array, chunks=(*leading, *reversed(fitting)))


def _check_shapes(input: da.Array, target: da.Array) -> None:
    for axis in _matching(input, target):
        left, right = input.shape[axis], target.shape[axis]
        if _differ(left, right):
            message = (
                f"input of shape {input.shape} and target of shape {target.shape} "
                "do not broadcast together"
            )
            if axis == -1 and left and right and input.shape[:-1] == target.shape[:-1]:
                message += (
                    f": they have {left:,} and {right:,} elements along the last axis; if these are"
                    f" classes, and one is padded, cut it: array[..., :{min(left, right)}]"
                )
            raise ValueError(message)


def _differ(length: float, other: float) -> bool:
    """Whether two lengths, each perhaps unknown, are known to differ."""
    return length != other and not (math.isnan(length) or math.isnan(other))


def _padded(shape: tuple[Any, ...], ndim: int, fill: Any = 1) -> tuple[Any, ...]:
    return (fill,) * (ndim - len(shape)) + tuple(shape)


def align(
    input: da.Array, target: da.Array, dtype: np.dtype[Any], where: Any = None, *, stacklevel: int
) -> Pair:
    """Cast a pair where it narrows, and give both operands, and `where`, the same chunks.

    Operands whose chunks differ are rechunked here, once and with a warning, rather than silently
    cut into the common refinement of both chunkings.
    """
    _check_shapes(input, target)
    nbytes = sum(math.prod(a.shape) * a.dtype.itemsize for a in (input, target))
    input, target = (_joined(_narrowed(a, dtype)) for a in (input, target))
    # Rechunking the smaller one moves fewer bytes.
    if _nbytes(input) < _nbytes(target):
        target, input = _rechunk_second(target, input, ("target", "input"), stacklevel + 1)
    else:
        input, target = _rechunk_second(input, target, ("input", "target"), stacklevel + 1)
    chunks = _common_chunks(input, target)
    where = None if where is None else align_to_result("where", where, chunks)
    return Pair(input, target, dtype, chunks, tuple(_matching(input, target)), where, nbytes)


def _common_chunks(input: da.Array, target: da.Array) -> Chunks:
    """Return the chunks of what two arrays broadcast to that have the same chunks where both do."""
    ndim = max(input.ndim, target.ndim)
    return tuple(
        right if size == 1 else left
        for size, left, right in zip(
            _padded(input.shape, ndim),
            _padded(input.chunks, ndim, (1,)),
            _padded(target.chunks, ndim, (1,)),
            strict=True,
        )
    )


def repeated_operands(input: da.Array, target: da.Array) -> list[str]:
    """Name the operand that is repeated along positions; the classes are last in both.

    Raises
    ------
    ValueError
        Both are: each would be paired with every position of the other, such as (8, V) with
        (8, 1, V).
    """
    shapes = {"input": input.shape[:-1], "target": target.shape[:-1]}
    ndim = max(map(len, shapes.values()))
    padded = [_padded(shape, ndim) for shape in shapes.values()]
    repeated = [
        name
        for name, shape, other in zip(shapes, padded, reversed(padded), strict=True)
        if any(size == 1 != length for size, length in zip(shape, other, strict=True))
    ]
    if len(repeated) == 2:
        raise ValueError(
            f"input has positions of shape {shapes['input']} and target of shape "
            f"{shapes['target']}, so both would be repeated and each position of one compared with "
            "every one of the other; the positions must be equal, or only one operand repeated: "
            "reshape the operands, or index one of them with [None] to repeat it"
        )
    return repeated


def cut(array: da.Array, box: Box, trailing: int = 0) -> da.Array:
    """Return the part of an array that broadcasts to a box of positions.

    `trailing` axes come after those of the positions, and are left whole.
    """
    ndim = array.ndim - trailing
    spans = zip(array.shape[:ndim], box[len(box) - ndim :], strict=True)
    index = tuple(
        slice(None) if size == 1 or span == (0, size) else slice(*span) for size, span in spans
    )
    return array if all(item == slice(None) for item in index) else array[index]


def single_array_pair(array: da.Array, where: da.Array | None, nbytes: float) -> Pair:
    """Return an array, and what of it is included, in the shape of a pair with itself."""
    return Pair(array, array, array.dtype, array.chunks, (), where, nbytes)


def align_to_result(name: str, where: Any, chunks: Chunks) -> da.Array:
    """Give what is said of the result its chunks. It is small beside the operands."""
    where = as_array(name, where)
    check_kind(name, where.dtype)
    if type(where) is np.ndarray:
        where = plain(name, where)
    shape = tuple(map(sum, chunks))
    axis_sizes = list(zip(range(-1, -len(where.shape) - 1, -1), reversed(where.shape), strict=True))
    if len(axis_sizes) > len(shape) or any(
        _differ(size, shape[axis]) for axis, size in axis_sizes if size != 1
    ):
        raise ValueError(
            f"{name} of shape {where.shape} does not broadcast to the shape {shape} of the result"
        )
    wide = [axis for axis, size in axis_sizes if size != 1]
    if not isinstance(where, da.Array):
        cut = {axis: chunks[axis] for axis in wide if not math.isnan(shape[axis])}
        sizes = tuple(cut.get(axis, -1) for axis, _ in reversed(axis_sizes))
        where = da.from_array(where, chunks=sizes)
    check_numpy(name, where)
    where = _joined(plain(name, where))
    wanted = _chunks_like(chunks, where, wide, ("the result", name))
    return where if wanted == where.chunks else where.rechunk(wanted)


def _matching(first: da.Array, second: da.Array) -> Iterator[int]:
    for axis in range(-min(first.ndim, second.ndim), 0):
        if first.shape[axis] != 1 and second.shape[axis] != 1:
            yield axis


def _narrowed(array: da.Array, dtype: np.dtype[Any]) -> da.Array:
    # Widening is exact and left to the kernels, which do it piece by piece.
    widens = array.dtype.name == dtype.name or array.dtype.itemsize < dtype.itemsize
    return array if widens else array.astype(dtype)


def _joined(array: da.Array) -> da.Array:
    """Make one chunk of an axis of length one; an empty chunk beside it would not broadcast."""
    split = [i for i, size in enumerate(array.shape) if size == 1 and array.numblocks[i] > 1]
    return array.rechunk(dict.fromkeys(split, 1)) if split else array


def _nbytes(array: Any) -> float:
    """Return the size in bytes, 0 if it is unknown."""
    size = math.prod(array.shape)
    return 0 if math.isnan(size) else size * array.dtype.itemsize


def _rechunk_second(
    first: da.Array, second: da.Array, names: tuple[str, str], stacklevel: int
) -> tuple[da.Array, da.Array]:
    """Rechunk `second` like `first` on the axes that match."""
    wanted = _chunks_like(first.chunks, second, _matching(first, second), names)
    if wanted == second.chunks:
        return first, second
    warnings.warn(
        f"{names[1]} has chunks {_brief(second.chunks)} where {names[0]} has "
        f"{_brief(first.chunks)}: {names[1]} ({format_bytes(_nbytes(second))} in "
        f"{math.prod(second.numblocks)} chunks) is rechunked, which copies and may move all of it "
        f"once more. Open both with equal chunks, as kldiv_dask.open_pair does, or pass "
        f"chunks={names[0]}.chunks to dask.array.from_array",
        da.PerformanceWarning,
        stacklevel=stacklevel + 1,
    )
    return first, second.rechunk(wanted)


def _chunks_like(
    chunks: Chunks, array: da.Array, axes: Iterable[int], names: tuple[str, str]
) -> Chunks:
    """Return the chunks of `array`, with the given ones along some axes, counted from the last."""
    wanted = list(array.chunks)
    for axis in axes:
        left, right = chunks[axis], array.chunks[axis]
        if left == right:
            continue
        if any(map(math.isnan, left + right)):
            if len(left) == len(right):
                continue  # equal if the data say so: the blocks check it
            raise ValueError(
                f"{names[0]} and {names[1]} have unknown chunk sizes along axis {axis} in "
                f"{len(left)} and {len(right)} chunks, which can't be matched; call "
                "compute_chunk_sizes() on them first, or to_dask_array(lengths=True) on a dataframe"
            )
        wanted[axis] = left
    return tuple(wanted)


def _brief(chunks: Chunks) -> str:
    return "(" + ", ".join(f"{len(c)} x {max(c, default=0)}" for c in chunks) + ")"


def axis_to_end(axis: int, array: da.Array) -> da.Array:
    """Move an axis, counted from the last, to the end. Array expressions have no moveaxis."""
    axes = list(range(array.ndim))
    axes.append(axes.pop(axis))
    return array if axis == -1 else array.transpose(axes)
