"""The exact sums of `pointwise` terms along some axes of a pair of chunks: one for each output.

For `axis`. Each output has an accumulator of its own; the invariants are those of `pointwise`.
"""

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.grid import Slices, grid_slices
from kldiv_dask.kernels import exact_sum
from kldiv_dask.kernels.layout import BUFFER, Buffers
from kldiv_dask.kernels.llvm_hints import prefetch, tile_size
from kldiv_dask.kernels.pointwise import Chunk, Mask, PointwiseSpec, fill, kernel, padded, workspace
from kldiv_dask.kernels.stored_floats import as_stored

# Outputs that are summed at a time, so that their accumulators take no more than some 300 kB.
OUTPUTS = 512

# Elements of a row that are copied at a time where a row is not what lies together in memory. With
# 64, from 512 rows, an element was copied in half the time it took with 256, from 64 rows.
STRIDED = 64


def _sum_rows(x, t, mask, accumulators, length, carries, log_target, zero_target, terms, rest):
    """Add the terms of each row of `length` elements to its accumulator, and carry if told."""
    tile = tile_size(terms)
    half = tile // 2
    size = len(accumulators) * length
    row = 0
    row_end = length
    for start in range(0, size, tile):
        # The last tile ends at the end.
        first = min(start, x.size - tile)
        stop = min(start + tile, size)
        prefetch(x, first + tile, half)
        prefetch(t, first + tile, half)
        fill(x, t, mask, first, terms, log_target, zero_target)
        prefetch(x, first + tile + half, half)
        prefetch(t, first + tile + half, half)
        while start < stop:
            end = min(row_end, stop)
            exact_sum.add_terms(accumulators[row], terms[start - first : end - first], rest)
            start = end
            if end == row_end:
                if carries:
                    exact_sum.carry_compiled(accumulators[row])
                row += 1
                row_end += length


class RowSums:
    """A pair of chunks whose terms are to be summed along some axes.

    The outputs are met run by run: ``for run in sums.runs: sums.add(accumulators, run)``.

    Parameters
    ----------
    input, target : arrays that broadcast together
        Converted to the computation type tile by tile.
    where : bool array that broadcasts to the shape of both, or None
        Which terms to add.
    axes : tuple of int
        What to sum along.
    spec : PointwiseSpec
        Which terms.

    Attributes
    ----------
    shape : tuple of int
        That of the outputs.
    runs : iterator of tuples of slices
        Each takes a run of at most `OUTPUTS` outputs, in C order.
    """

    def __init__(
        self,
        input: Chunk,
        target: Chunk,
        where: Mask | None,
        axes: tuple[int, ...],
        spec: PointwiseSpec,
    ) -> None:
        stored = [as_stored(input), as_stored(target)]
        full = np.broadcast_shapes(input.shape, target.shape)
        last = range(-len(axes), 0)
        masks = [] if where is None else [where]
        self._operands = [
            np.moveaxis(np.broadcast_to(a, full), axes, last) for a in (*stored, *masks)
        ]
        self._no_mask = [None] * (not masks)
        self._buffers = Buffers(self._operands)
        self._spec = spec
        self._work = workspace(spec)
        moved = self._operands[0].shape
        output_ndim = len(moved) - len(axes)
        self.shape, self._row = moved[:output_ndim], moved[output_ndim:]
        outputs = OUTPUTS
        self._at_once = math.prod(self._row)
        if any(_fastest(operand) < output_ndim for operand in self._operands):
            outputs = min(outputs, max(math.prod(self.shape), 1))
            self._at_once = min(self._at_once, STRIDED * (OUTPUTS // outputs))
        elif self._buffers.needed:
            self._at_once = min(self._at_once, BUFFER)
            outputs = min(outputs, BUFFER // max(self._at_once, 1))
        self.runs = grid_slices(self.shape, outputs)
        types = (numba.int64[:, ::1], numba.int64, numba.boolean)
        self._kernel = kernel(
            _sum_rows, [*stored, *(masks or self._no_mask)], types, spec, numba.float64[::1]
        )

    def included(self, output_slices: Slices) -> npt.NDArray[np.int64]:
        """Return how many terms each of a piece of the outputs is the sum of, flat."""
        if self._no_mask:
            outputs = math.prod(
                len(range(*cut.indices(size)))
                for cut, size in zip(output_slices, self.shape, strict=True)
            )
            return np.full(outputs, math.prod(self._row), np.int64)
        along = tuple(range(-len(self._row), 0))
        counts: npt.NDArray[np.int64] = self._operands[-1][output_slices].sum(
            axis=along, dtype=np.int64
        )
        return counts.reshape(-1)

    def add(self, accumulators: npt.NDArray[np.int64], output_slices: Slices) -> None:
        """Add the sums of some outputs to `accumulators`, a row for each, left canonical."""
        spec = self._spec
        parts = list(grid_slices(self._row, self._at_once))
        for part in parts:
            operand_segments = self._buffers.contiguous(
                [a[output_slices + part] for a in self._operands]
            )
            length = operand_segments[0].size // max(len(accumulators), 1)
            if length:
                operands = padded([*operand_segments, *self._no_mask], self._work[0].size)
                # An accumulator has room for the parts of any row that fits in memory.
                carries = part is parts[-1]
                options = spec.log_target or None, spec.zero_target
                self._kernel(*operands, accumulators, length, carries, *options, *self._work)


def _fastest(array: npt.NDArray[Any]) -> int:
    """Return the axis along which neighbors are nearest in memory."""
    steps = [
        abs(stride) if size > 1 and stride else math.inf
        for size, stride in zip(array.shape, array.strides, strict=True)
    ]
    return min(range(array.ndim), key=steps.__getitem__, default=0)
