"""Chunks of any layout as the contiguous, aligned, native 1-d segments that compiled loops take.

For all kernels. Invariant: each element of a chunk is in one segment, beside the elements of the
other operands at its place.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kldiv_dask.grid import grid_slices

Array = npt.NDArray[Any]

# Elements that are copied at a time where operands are strided, broadcast or of another byte
# order: two buffers of 64 KiB in float32, which stay in a second-level cache.
BUFFER = 16384


def segments(*operands: Array, flags: Sequence[str]) -> Any:
    """Iterate over operands that broadcast together, in the order that suits their layout.

    Operands that are contiguous already come as one segment and are not copied.

    Parameters
    ----------
    *operands : arrays that broadcast together
    flags : sequence of {'readonly', 'writeonly'}
        One for each operand.

    Returns
    -------
    numpy.nditer
        Of tuples of segments. Where one is written to, use it as a context manager.
    """
    # NumPy's stubs misspell the flag "contig".
    return np.nditer(  # type: ignore[call-overload]
        operands,
        flags=["external_loop", "buffered", "growinner", "zerosize_ok"],
        op_flags=[[flag, "contig", "aligned", "nbo"] for flag in flags],
        order="K",
        buffersize=BUFFER,
    )


def row_segments(*operands: Array) -> Iterator[tuple[Array, ...]]:
    """Iterate over operands as whole rows, which lie along the last axis, in C order.

    Operands that are all contiguous come as one segment and are not copied. Otherwise a segment has
    at most `BUFFER` elements, or one row.

    Parameters
    ----------
    *operands : arrays of equal shape, at least 1-d
        Only to be read.

    Yields
    ------
    tuple of 1-d arrays
        Each a whole number of rows, and none without elements. Their memory is used again for what
        comes next.
    """
    *shape, row = operands[0].shape
    buffers = Buffers(operands)
    most = max(BUFFER // max(row, 1), 1) if buffers.needed else math.prod(shape)
    for rows in grid_slices(tuple(shape), most):
        segments = buffers.contiguous([operand[rows] for operand in operands])
        if segments[0].size:
            yield tuple(segments)


class Buffers:
    """A buffer for each operand that has to be copied to be contiguous, aligned and native."""

    def __init__(self, operands: Sequence[Array]) -> None:
        self._buffers: list[Array | None] = [None] * len(operands)
        self.needed = not all(map(_is_plain, operands))

    def contiguous(self, parts: Sequence[Array]) -> list[Array]:
        """Return parts of the operands as 1-d segments, copied where that is needed."""
        return [self._contiguous(index, part) for index, part in enumerate(parts)]

    def _contiguous(self, index: int, part: Array) -> Array:
        if _is_plain(part):
            return part.reshape(-1)
        buffer = self._buffers[index]
        if buffer is None or buffer.size < part.size:
            buffer = self._buffers[index] = np.empty(part.size, part.dtype.newbyteorder("="))
        segment = buffer[: part.size]
        segment.reshape(part.shape)[...] = part
        return segment


def _is_plain(array: Array) -> bool:
    return bool(array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative)
