"""Dask graphs over an aligned pair: block, merge, finalize.

Everything here is public Dask API, so that the result works under Dask's default arrays and under
``array.query-planning``.
"""

from kldiv_dask.graph.blocks import partials, sums, terms
from kldiv_dask.graph.evaluations import merged_state, states
from kldiv_dask.graph.finalize import batch_size, count, value, values, without
from kldiv_dask.graph.gathering import gathered
from kldiv_dask.graph.positions import (
    Logits,
    computed_in,
    divergences,
    mask_positions,
    position_partials,
)
from kldiv_dask.graph.slabs import is_large, size, walk
from kldiv_dask.graph.tree import fan_in, merged

__all__ = [
    "Logits",
    "batch_size",
    "computed_in",
    "count",
    "divergences",
    "fan_in",
    "gathered",
    "is_large",
    "mask_positions",
    "merged",
    "merged_state",
    "partials",
    "position_partials",
    "size",
    "states",
    "sums",
    "terms",
    "value",
    "values",
    "walk",
    "without",
]
