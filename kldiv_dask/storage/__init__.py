"""Stored arrays, opened lazily as Dask arrays that are aligned to each other at read time.

A format is a module with a `recognises(path)`, an `open_source(path, key)` and a `Source`: a small
handle that knows where an array is and how to read a region of it. Everything else, the choice of
chunks, the Dask array and the errors, is shared.
"""

from kldiv_dask.storage.opening import open_array, open_pair
from kldiv_dask.storage.source import ChunkReadError

__all__ = ["ChunkReadError", "open_array", "open_pair"]
