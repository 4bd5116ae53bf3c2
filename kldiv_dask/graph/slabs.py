"""The walk over a grid of blocks that is too large for one graph, slab by slab."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import dask
import dask.array as da
import numpy as np

from kldiv_dask import config, partial_sum
from kldiv_dask.graph.tree import tree_reduce
from kldiv_dask.grid import grid_slices

# Pairs in a slab whose end somebody waits to hear of: a few for each of a hundred threads.
AT_LEAST = 256


def size(blocks: da.Array) -> int:
    """Return how many blocks of partials there are."""
    return math.prod(blocks.numblocks)


def is_large(blocks: da.Array) -> bool:
    """Whether there are more blocks than one graph should have."""
    return size(blocks) > config.count("graph-size")


def walk(
    blocks: da.Array, *, progress: Callable[[int], Any] | None = None, **kwargs: Any
) -> da.Array:
    """Compute the partials of all blocks and merge them, slab by slab.

    Parameters
    ----------
    blocks : dask.array.Array
        Of shape ``(*numblocks, SIZE)``.
    progress : callable, optional
        Called with the number of blocks of each slab that is done, which is a sixteenth of them or
        `AT_LEAST` then, if ``slab-size`` of the configuration is not less.
    **kwargs
        Passed on to `dask.compute`.

    Returns
    -------
    dask.array.Array
        What `tree_reduce` would return, of one chunk in memory.
    """
    total = partial_sum.zero()
    # One after the other: graphs that share tasks, such as the chunks of a mask, may not be in a
    # distributed scheduler's hands at once.
    most = config.count("slab-size")
    if progress:
        most = min(most, max(size(blocks) // 16, AT_LEAST))
    for slab in _slabs(blocks, most):
        (partial,) = dask.compute(tree_reduce(slab, None, tuple(range(slab.ndim - 1))), **kwargs)
        total = partial_sum.merge(np.stack([total, partial.reshape(partial_sum.SIZE)]), axis=(0,))
        if progress:
            progress(size(slab))
    return da.from_array(total.reshape((1,) * (blocks.ndim - 1) + total.shape))


def _slabs(blocks: da.Array, most: int) -> Iterator[da.Array]:
    for place in grid_slices(blocks.numblocks[:-1], most):
        # A block of partials has one element along each axis of the grid.
        yield blocks[place]
