"""Dask graphs over an aligned pair: block, merge, finalise.

Everything here is public Dask API, so that the result works under Dask's default arrays and under
``array.query-planning``.
"""

from kldiv_dask.graph.blocks import partials, sums, terms
from kldiv_dask.graph.finalise import batch_size, count, value, values, without
from kldiv_dask.graph.positions import Logits, computed_in, divergences, position_partials
from kldiv_dask.graph.tree import fan_in, merged

__all__ = [
    "Logits",
    "batch_size",
    "computed_in",
    "count",
    "divergences",
    "fan_in",
    "merged",
    "partials",
    "position_partials",
    "sums",
    "terms",
    "value",
    "values",
    "without",
]
