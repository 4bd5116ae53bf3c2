"""Pairs in memory and in files, reduced through Dask as a user does, and only read and summed."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import dask.array as da
import numpy as np

import kldiv_dask
from tests.benchmarks.contestants import OURS, Case, dask_expression, in_chunks, pair
from tests.benchmarks.measurement import Array, Run, Times, counted, pinned, read

Pair = tuple[da.Array, da.Array]

# What is timed beside `kl_div`.
BARE, SUMMING, READING, DASK = "bare kernel", "summing", "reading", "Dask"


def _in_memory(folder: Path, x: Array, t: Array) -> Pair:
    return in_chunks(x), in_chunks(t)


def _npy(folder: Path, x: Array, t: Array) -> Pair:
    np.save(folder / "x.npy", x)
    np.save(folder / "t.npy", t)
    return kldiv_dask.open_pair(folder / "x.npy", folder / "t.npy")


def _zarr(folder: Path, x: Array, t: Array) -> Pair:
    in_chunks(x).to_zarr(str(folder / "x.zarr"))
    in_chunks(t).to_zarr(str(folder / "t.zarr"))
    return kldiv_dask.open_pair(folder / "x.zarr", folder / "t.zarr")


class Setting(NamedTuple):
    """Where a pair is kept, and how many threads reduce it."""

    store: Callable[[Path, Array, Array], Pair]
    where: str
    threads: int

    def __str__(self) -> str:
        return f"{self.where}, {counted(self.threads)}"


SETTINGS = [
    Setting(store, where, threads)
    for store, where in (
        (_in_memory, "in memory, 16 MiB chunks"),
        (_npy, "`.npy` files"),
        (_zarr, "Zarr, compressed"),
    )
    for threads in (1, 2)
]


def _compute(expression: Callable[[], da.Array], threads: int) -> Run:
    """Build a graph and compute it: a user waits for both."""
    return lambda: expression().compute(scheduler="threads", num_workers=threads)


def _read(x: da.Array, t: da.Array) -> da.Array:
    """Return one element for each pair of chunks, after reading them once."""
    return da.map_blocks(
        lambda x, t: np.full((1, 1), read(x, t)),
        x,
        t,
        chunks=tuple((1,) * blocks for blocks in x.numblocks),
        meta=np.empty((0, 0), np.int64),
    )


def measure(setting: Setting, folder: Path, size: int, rounds: int) -> Times:
    """Time the sum over a float32 pair of about `size` elements, and what it is compared with."""
    case = Case("float32", log_target=False, reduction="sum", threads=setting.threads)
    x, t = pair(size, case.dtype, case.log_target)
    with pinned(case.threads):
        stored_x, stored_t = setting.store(folder, x, t)
        expressions: dict[str, Callable[[], da.Array]] = {
            OURS.name: lambda: kldiv_dask.kl_div(stored_x, stored_t, reduction="sum"),
            SUMMING: lambda: stored_x.sum() + stored_t.sum(),
            READING: lambda: _read(stored_x, stored_t),
            DASK: lambda: dask_expression(case.log_target, stored_x, stored_t).sum(),
        }
        runs = {name: _compute(build, case.threads) for name, build in expressions.items()}
        bare = OURS.make(case, x, t)
        assert bare is not None
        runs[BARE] = bare
        first = {name: run() for name, run in runs.items()}
        assert first[BARE] == [first[OURS.name]]
        return Times(runs, rounds)
