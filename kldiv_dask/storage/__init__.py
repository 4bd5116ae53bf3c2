"""Stored arrays, opened lazily as Dask arrays that are aligned to each other at read time.

A format is a module with a `can_open(path)`, an `open_source(path, key)` and a `Source`: a small
handle that knows where an array is and how to read a region of it. Everything else, the choice of
chunks, the Dask array and the errors, is shared.

`Source`, `source_of`, `sources_in`, `open_beside`, `key_called`, `check_maps`, `other_text`,
`Contents` and `change` are for the rest of the package.
"""

from kldiv_dask.storage.contents import Contents as Contents
from kldiv_dask.storage.contents import change as change
from kldiv_dask.storage.llama import other_text as other_text
from kldiv_dask.storage.mapped import check_maps as check_maps
from kldiv_dask.storage.opening import key_called as key_called
from kldiv_dask.storage.opening import open_array, open_pair
from kldiv_dask.storage.opening import open_beside as open_beside
from kldiv_dask.storage.source import ChunkReadError
from kldiv_dask.storage.source import Source as Source
from kldiv_dask.storage.sources import source_of as source_of
from kldiv_dask.storage.sources import sources_in as sources_in

__all__ = ["ChunkReadError", "open_array", "open_pair"]
