"""Dask graphs over an aligned pair: block, merge, finalize.

Everything here is public Dask API, so that the result works under Dask's default arrays and under
``array.query-planning``.
"""

from kldiv_dask.graph.blocks import partials, sums, terms
from kldiv_dask.graph.evaluations import reduce_states, states
from kldiv_dask.graph.finalize import batch_size, count, finalize_array, finalize_scalar, squeeze
from kldiv_dask.graph.gathering import gathered
from kldiv_dask.graph.positions import (
    LogitsSpec,
    compute_dtype,
    divergences,
    mask_positions,
    position_partials,
)
from kldiv_dask.graph.slabs import is_large, size, walk
from kldiv_dask.graph.tree import fan_in, tree_reduce

__all__ = [
    "LogitsSpec",
    "batch_size",
    "compute_dtype",
    "count",
    "divergences",
    "fan_in",
    "finalize_array",
    "finalize_scalar",
    "gathered",
    "is_large",
    "mask_positions",
    "partials",
    "position_partials",
    "reduce_states",
    "size",
    "squeeze",
    "states",
    "sums",
    "terms",
    "tree_reduce",
    "walk",
]
