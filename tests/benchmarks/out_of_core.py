"""Reduce a Zarr pair much larger than the memory of the one worker that does it.

Run as ``python -m tests.benchmarks.out_of_core [--gib 4] [--limit-gib 1]``. Writes the pair to a
temporary directory, and fails if the worker's peak memory exceeds its limit or if the result is not
the one that other chunks and an unlimited process give.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.utils import format_bytes, format_time
from distributed import Client, LocalCluster

import kldiv_dask

CLASSES = 32768
CHUNK_ROWS = 256


@dataclass(frozen=True)
class Run:
    """What one out-of-core reduction took."""

    value: np.float32
    data_bytes: int
    peak_bytes: int
    seconds: float


def write_pair(folder: Path, nbytes: int, dtype: str = "float32") -> tuple[str, str]:
    """Write log-probabilities and probabilities, `nbytes` in all; return their paths."""
    rows = nbytes // (2 * np.dtype(dtype).itemsize * CLASSES)
    rng = da.random.default_rng(0)
    paths = []
    for name, power in (("input", 1.0), ("target", 0.5)):
        logits = rng.standard_normal((rows, CLASSES), chunks=(CHUNK_ROWS, CLASSES), dtype="f4")
        logs = power * logits - da.log(da.exp(power * logits).sum(axis=1, keepdims=True))
        values = logs if name == "input" else da.exp(logs)
        paths.append(str(folder / f"{name}.zarr"))
        with dask.config.set(scheduler="threads", num_workers=2):
            values.astype(dtype).to_zarr(paths[-1])
    return paths[0], paths[1]


def peak_rss() -> int:
    """Return the largest resident size that this process has had, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def reduce_pair(
    paths: tuple[str, str], memory_limit: int, threads: int = 2, chunks: Any = None
) -> Run:
    """Reduce a stored pair on one worker process."""
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=threads,
            memory_limit=memory_limit,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        x, t = kldiv_dask.open_pair(*paths, chunks=chunks)
        start = time.perf_counter()
        value = kldiv_dask.kl_div(x, t, reduction="sum").compute()
        seconds = time.perf_counter() - start
        (peak,) = client.run(peak_rss).values()
    return Run(value, x.nbytes + t.nbytes, peak, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0, help="size of both arrays together")
    parser.add_argument("--limit-gib", type=float, default=1.0, help="memory limit of the worker")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pair(Path(folder), int(options.gib * 2**30))
        limit = int(options.limit_gib * 2**30)
        run = reduce_pair(paths, limit)
        small = kldiv_dask.open_pair(*paths, chunks=(CHUNK_ROWS, CLASSES))
        again = kldiv_dask.kl_div(*small, reduction="sum").compute(scheduler="threads")
    print(f"data          {format_bytes(run.data_bytes)}")
    print(f"worker limit  {format_bytes(limit)}")
    print(f"worker peak   {format_bytes(run.peak_bytes)}")
    print(f"time          {format_time(run.seconds)}")
    print(f"sum           {run.value} (other chunks: {again})")
    if run.peak_bytes >= limit or run.value != again:
        raise SystemExit("the worker's peak is over its limit, or the result depends on the chunks")


if __name__ == "__main__":
    main()
