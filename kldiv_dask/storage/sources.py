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
    layers = getattr(array.dask, "layers", None)  # which array expressions do not have
    if layers is not None and not isinstance(layers.get(array.name), Blockwise):
        return None
    return _SOURCES.get(array.name)


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
    layers = getattr(array.dask, "layers", None)
    if layers is None:
        source = source_of(array)
        return [] if source is None else [source]
    return [
        source
        for name, layer in layers.items()
        if isinstance(layer, Blockwise) and (source := _SOURCES.get(name)) is not None
    ]
