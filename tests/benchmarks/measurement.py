"""How things are timed: on pinned processors, taking turns, by medians of ratios."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Run = Callable[[], Any]


def counted(threads: int) -> str:
    """Write how many threads there are."""
    return f"{threads} thread{'s' * (threads > 1)}"


def _move_threads(cpus: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it may have ended meanwhile
            os.sched_setaffinity(int(thread.name), cpus)


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this process on as many processors as `threads`, whatever pools its libraries hold.

    A library whose threads outnumber the processors that are left, as JAX's do, has to make do with
    them. Pinning is possible on Linux only; elsewhere nothing is done.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    _move_threads(set(sorted(allowed)[-threads:]))  # the first one also serves interrupts
    try:
        yield
    finally:
        _move_threads(allowed)


class Times:
    """Seconds of every run in every round."""

    def __init__(self, runs: Mapping[str, Run], rounds: int) -> None:
        """Time runs that take turns, in an order that is drawn anew for each round."""
        rng = np.random.default_rng(0)
        self.seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name in rng.permutation(list(runs)):
                start = time.perf_counter()
                result = runs[name]()
                self.seconds[name].append(time.perf_counter() - start)
                del result  # outside the time that was measured

    def median(self, name: str) -> float:
        """Return the median of the seconds that a run took."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Return the median over the rounds of how many times as long one run took as another."""
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return statistics.median(a / b for a, b in pairs)


def in_parts(function: Callable[[Array, Array], Any], threads: int, x: Array, t: Array) -> Run:
    """Apply a function that releases the GIL to as many equal parts of the rows as `threads`."""
    parts = [np.array_split(array, threads) for array in (x, t)]
    if threads == 1:
        return lambda: [function(x, t)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(function, *parts))


@numba.njit(nogil=True)
def _xor(x, t):
    bits = np.int64(0)
    for i in range(x.size):
        bits ^= x[i] ^ t[i]
    return bits


def read(x: Array, t: Array) -> Any:
    """Read two contiguous arrays of equal size once, 64 bits at a time, doing next to nothing."""
    return _xor(*(array.reshape(-1).view(np.int64) for array in (x, t)))
