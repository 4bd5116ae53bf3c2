"""The walk over a grid of blocks that is too large for one graph, slab by slab."""

import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import dask
import dask.array as da
import numpy as np

from kldiv_dask import partial
from kldiv_dask.graph.tree import merged
from kldiv_dask.kernels.segments import pieces

# Blocks that one graph may have. Dask's scheduler keeps about 2 kB for each.
GRAPH = 100_000

# Blocks of a slab: some seconds of a scheduler's time, which takes about a millisecond for each.
SLAB = 10_000

# Slabs that are computed at a time, so that no worker waits for the end of one.
IN_FLIGHT = 3


def size(blocks: da.Array) -> int:
    """Return how many blocks of partials there are."""
    return math.prod(blocks.numblocks)


def walk(
    blocks: da.Array, *, progress: Callable[[int], Any] | None = None, **kwargs: Any
) -> da.Array:
    """Compute the partials of all blocks and merge them, slab by slab.

    Parameters
    ----------
    blocks : dask.array.Array
        Of shape ``(*numblocks, SIZE)``.
    progress : callable, optional
        Called with the number of blocks of each slab that is done.
    **kwargs
        Passed on to `dask.compute`.

    Returns
    -------
    dask.array.Array
        What `merged` would return, of one chunk in memory.
    """
    total = partial.zero()
    running: dict[Future[Any], int] = {}
    at_a_time = IN_FLIGHT if _is_distributed(**kwargs) else 1
    pool = ThreadPoolExecutor(at_a_time)
    try:
        for slab in _slabs(blocks):
            if len(running) == at_a_time:
                total = _collect(total, running, progress)
            running[pool.submit(_compute, slab, kwargs)] = size(slab)
        while running:
            total = _collect(total, running, progress)
    finally:  # on an error or Ctrl-C, without waiting for the slabs that are running
        pool.shutdown(wait=False, cancel_futures=True)
    return da.from_array(total.reshape((1,) * (blocks.ndim - 1) + total.shape))


def _is_distributed(**kwargs: Any) -> bool:
    """Whether a distributed scheduler computes; any other has its own threads at work with one."""
    get = dask.base.get_scheduler(**kwargs)
    return type(getattr(get, "__self__", None)).__name__ == "Client"


def _compute(slab: da.Array, kwargs: Mapping[str, Any]) -> partial.Partial:
    (found,) = dask.compute(merged(slab, None, tuple(range(slab.ndim - 1))), **kwargs)
    result: partial.Partial = found.reshape(partial.SIZE)
    return result


def _slabs(blocks: da.Array) -> Iterator[da.Array]:
    grid = blocks.numblocks[:-1]
    for place in pieces(grid, SLAB):
        # A block of partials has one element along each axis of the grid.
        yield blocks[place]


def _collect(
    total: partial.Partial,
    running: dict[Future[Any], int],
    progress: Callable[[int], Any] | None,
) -> partial.Partial:
    """Wait for slabs that are running, and add those that are done to the total."""
    for done in wait(running, return_when=FIRST_COMPLETED).done:
        total = partial.merge(np.stack([total, done.result()]), axis=(0,))
        count = running.pop(done)
        if progress:
            progress(count)
    return total
