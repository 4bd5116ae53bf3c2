"""The pairs of chunks of an evaluation, and the slabs of them that are computed in one graph."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import dask.array as da
import numpy as np

from kldiv_dask.align import Box
from kldiv_dask.evaluation import regions
from kldiv_dask.grid import grid_slices, grid_step


class Grid(NamedTuple):
    """The pairs of chunks of a box of the positions.

    `states` has the state of each pair, and `chunks` their lengths along each axis.
    """

    box: Box
    states: da.Array
    chunks: tuple[tuple[int, ...], ...]

    @property
    def pairs(self) -> int:
        """The number of pairs of chunks."""
        return math.prod(self.states.numblocks)

    def slabs(self, max_pairs: int) -> Iterator["Grid"]:
        """Yield parts of at most `max_pairs` pairs of chunks."""
        for slices in grid_slices(self.states.numblocks, max_pairs):
            yield self.part(slices)

    def part(self, slices: tuple[slice, ...]) -> "Grid":
        """Return some of the pairs, by slices of the grid."""
        box, chunks = [], []
        for (start, _), lengths, cut in zip(self.box, self.chunks, slices, strict=False):
            ends = [start, *(start + np.cumsum(lengths)).tolist()]
            box.append((ends[cut.start], ends[: cut.stop + 1][-1]))
            chunks.append(lengths[cut])
        return Grid(tuple(box), self.states[slices], tuple(chunks))


class Remaining:
    """The pairs of chunks that are not computed yet, in order.

    `pairs` is their number at the beginning.
    """

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.pairs = sum(grid.pairs for grid in grids)
        self._parts = [(grid, regions.box_of(grid.states.numblocks)) for grid in grids]

    def __bool__(self) -> bool:
        return bool(self._parts)

    def take(self, max_pairs: int) -> Grid:
        """Remove the next slab, of at most `max_pairs` pairs, and return it."""
        grid, box = self._parts.pop(0)
        lengths = [stop - start for start, stop in box]
        steps = grid_step(lengths, max_pairs)
        slab = tuple((start, start + step) for (start, _), step in zip(box, steps, strict=True))
        self._parts[:0] = [(grid, rest) for rest in regions.left_over(box, [slab])]
        return grid.part(tuple(slice(*span) for span in slab))
