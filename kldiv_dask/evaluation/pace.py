"""How large the slabs of an evaluation are."""

from kldiv_dask import config


class Pace:
    """Chooses the number of pairs of chunks in each slab, so that a slab takes a few seconds.

    Parameters
    ----------
    pairs : int
        The number of pairs in all slabs.
    """

    # The least number of slabs, and of updates of the progress line, if there are enough pairs for
    # all threads.
    _MIN_SLABS = 25
    # A slab is at most so many times as large as the one before, as its time may mislead: the first
    # slab waits for the compiler, and data may be in a cache.
    _MAX_GROWTH = 4

    def __init__(self, pairs: int) -> None:
        self._seconds = config.seconds("evaluate.slab-time")
        self._max_pairs = min(config.count("slab-size"), max(pairs // self._MIN_SLABS, 1))
        self._next = 1.0

    def pairs(self, threads: int) -> int:
        """Return the number of pairs in the next slab: equally many for each thread, at least 1."""
        per_thread = int(min(self._next, self._max_pairs) // threads)
        return min(max(per_thread, 1) * threads, config.count("slab-size"))

    def record(self, pairs: int, seconds: float) -> None:
        """Record the time that a slab took."""
        rate = pairs / max(seconds, 1e-9)
        self._next = min(rate * self._seconds, max(self._next, pairs) * self._MAX_GROWTH)
