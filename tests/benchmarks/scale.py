"""What a graph of many pairs of chunks costs, and what a second worker process brings.

Run as ``python -m tests.benchmarks.scale``. The first table is of pairs of 2 x 4 elements in
memory: building, optimizing and pickling one graph, and computing slab by slab on a cluster of one
worker process, whose scheduler lives in the measured process. Each row is a process of its own. The
second is of a Zarr pair, on one thread in each of one and of two processes.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cloudpickle
import dask
import dask.array as da
from distributed import Client, LocalCluster

import kldiv_dask
from kldiv_dask.functional.summary import LazySummary
from tests.benchmarks.out_of_core import write_pair


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pairs_of_chunks(count: int) -> LazySummary:
    """Return the summary of so many pairs of chunks."""
    shape, chunks = (2 * count, 4), (2, 4)
    return kldiv_dask.kl_div_summary(
        da.full(shape, -1.5, chunks=chunks), da.full(shape, 0.25, chunks=chunks)
    )


def graph_row(count: int) -> str:
    """Measure one graph: a row of the table."""
    start = time.perf_counter()
    lazy = pairs_of_chunks(count)
    built = time.perf_counter()
    (optimized,) = dask.optimize(lazy.sum)
    graph = optimized.__dask_graph__()
    tasks = len(graph)
    done = time.perf_counter()
    size = len(cloudpickle.dumps(dict(graph))) if count <= 10_000 else None
    pickled = f"{size / count:.0f}" if size else ""
    microseconds = [1e6 * seconds / count for seconds in (built - start, done - built)]
    numbers = (*(f"{number:.0f}" for number in microseconds), f"{tasks / count:.3f}", pickled)
    return " | ".join(["graph", f"{count:,}", *numbers, f"{_peak_mebibytes():.0f}"])


def walk_row(count: int) -> str:
    """Measure the walk on a cluster: a row of the table."""
    start = time.perf_counter()
    with (
        # Tasks of a few microseconds would wait for the scheduler to hand out the next.
        dask.config.set({"distributed.scheduler.worker-saturation": float("inf")}),
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        lazy = pairs_of_chunks(count)
        summary = lazy.compute(scheduler=client)
    # Each pair has 8 elements, of which each term is 0.25 * (log 0.25 + 1.5).
    if int(summary.numel) != 8 * count:
        raise ArithmeticError(f"{summary.numel} elements of {8 * count}")
    seconds = time.perf_counter() - start
    return " | ".join(
        [
            "slabs",
            f"{count:,}",
            f"{1e6 * seconds / count:.0f}",
            "",
            "",
            "",
            f"{_peak_mebibytes():.0f}",
        ]
    )


def workers_table(mebibytes: int, rounds: int) -> str:
    """Time one worker process and two over a Zarr pair, taking turns."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pair(Path(folder), mebibytes * 2**20)
        clusters = {
            n: LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address="127.0.0.1:0")
            for n in seconds
        }
        for turn in range(rounds + 1):
            for n, cluster in clusters.items():
                with Client(cluster, set_as_default=False) as client:
                    pair = kldiv_dask.open_pair(*paths, chunks="16 MiB")
                    lazy = kldiv_dask.kl_div_summary(*pair)
                    start = time.perf_counter()
                    lazy.compute(scheduler=client)
                    if turn:  # the first compiles and fills the page cache
                        seconds[n].append(time.perf_counter() - start)
        for cluster in clusters.values():
            cluster.close()
    ratio = statistics.median(a / b for a, b in zip(seconds[1], seconds[2], strict=True))
    lines = ["| worker processes | seconds | speed |", "| --: | --: | --: |"]
    for n, measured in seconds.items():
        speed = ratio if n == 2 else 1.0
        lines.append(f"| {n} | {statistics.median(measured):.2f} | {speed:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Print both tables, or one row of the first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--graphs", nargs="*", type=int, default=[10_000, 100_000])
    parser.add_argument("--walks", nargs="*", type=int, default=[100_001, 1_000_000])
    parser.add_argument("--mebibytes", type=int, default=2048, help="of the Zarr pair; 0 for none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row", nargs=2, metavar=("KIND", "PAIRS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        kind, count = options.row
        print({"graph": graph_row, "slabs": walk_row}[kind](int(count)))
        return
    rows = [("graph", count) for count in options.graphs]
    rows += [("slabs", count) for count in options.walks]
    if rows:
        print("| | pairs | µs a pair | µs to optimize | tasks a pair | bytes a pair | peak MiB |")
        print("| --- | --: | --: | --: | --: | --: | --: |")
    for kind, count in rows:
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--row", kind, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"| {done.stdout.strip()} |", flush=True)
    if options.mebibytes:
        print()
        print(workers_table(options.mebibytes, options.rounds))


if __name__ == "__main__":
    main(sys.argv[1:])
