"""Which source each array reads that was opened in this process."""

import threading

import dask.array as da
from dask.blockwise import Blockwise

from kldiv_dask.storage.source import Source

_SOURCES: dict[str, Source] = {}  # the newest, by the names of their arrays
_MOST_SOURCES = 10_000
_LOCK = threading.Lock()


def remember(name: str, source: Source) -> None:
    """Note which source an array reads, in place of the oldest note if there are many."""
    with _LOCK:
        _SOURCES.pop(name, None)
        _SOURCES[name] = source
        while len(_SOURCES) > _MOST_SOURCES:
            del _SOURCES[next(iter(_SOURCES))]


def source_of(array: da.Array) -> Source | None:
    """Return which source a Dask array reads.

    Parameters
    ----------
    array : dask.array.Array
        Any array.

    Returns
    -------
    Source or None
        The source, if `open_array` or `open_pair` made the array in this process; None of arrays
        that were derived from it, or that were read, by ``persist``, and so may be older than what
        is stored.
    """
    return _sources_of(array).get(array.name)


def sources_in(array: da.Array) -> list[Source]:
    """Return which sources a Dask array is made of, as far as its graph tells.

    Parameters
    ----------
    array : dask.array.Array
        Any array.

    Returns
    -------
    list of Source
        Those of `source_of` of the array itself, or of what it was derived from.
    """
    return list(_sources_of(array).values())


def _sources_of(array: da.Array) -> dict[str, Source]:
    """Return the sources of an array and of what it was derived from, by the names of arrays."""
    layers = getattr(array.dask, "layers", None)
    if layers is None:  # an array expression, of which only the name is known
        names = [array.name]
    else:  # what was computed, by `persist`, is no Blockwise
        names = [name for name, layer in layers.items() if isinstance(layer, Blockwise)]
    return {name: source for name in names if (source := _SOURCES.get(name)) is not None}
