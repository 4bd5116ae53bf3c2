"""Dask graphs over an aligned pair: block, merge, finalise.

Everything here is public Dask API, so that the result works under Dask's default arrays and under
``array.query-planning``.
"""

from kldiv_dask.graph.blocks import partials, terms
from kldiv_dask.graph.tree import count, merged, value

__all__ = ["count", "merged", "partials", "terms", "value"]
