"""What all statistics cost beside the divergence alone, and the memory of many positions.

Run as ``python -m tests.benchmarks.evaluation``. The first table compares `evaluate` with
`kl_div_with_logits`, which take turns, on one thread. Each row of the second is a process of its
own, which evaluates positions that are made as they are needed.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time

import dask
import dask.array as da
import numpy as np

import kldiv_dask


def overhead_row(positions: int, classes: int, noise: float, rounds: int) -> str:
    """Time both on logits in memory, in four chunks: a row of the table."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 3, (positions, classes)).astype(np.float32)
    student = teacher + noise * rng.normal(size=teacher.shape).astype(np.float32)
    chunks = (-(-positions // 4), classes)
    pair = [da.from_array(a, chunks=chunks, name=False) for a in (student, teacher)]
    seconds: dict[str, list[float]] = {"alone": [], "all": []}
    with dask.config.set(scheduler="synchronous"):
        for _ in range(rounds + 1):
            start = time.perf_counter()
            mean = kldiv_dask.kl_div_with_logits(*pair).compute()
            middle = time.perf_counter()
            result = kldiv_dask.evaluate(*pair, progress=False)
            end = time.perf_counter()
            if np.float32(result.mean) != mean:
                raise ArithmeticError(f"{result.mean} is not {mean}")
            seconds["alone"].append(middle - start)
            seconds["all"].append(end - middle)
    alone, all_of_it = (statistics.median(times[1:]) for times in seconds.values())
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)][1:]
    size = positions * classes
    numbers = (1e9 * alone / size, 1e9 * all_of_it / size, statistics.median(ratios))
    return f"| {positions:,} x {classes:,} | {noise} | " + " | ".join(f"{n:.2f}" for n in numbers)


def memory_row(positions: int, classes: int) -> str:
    """Evaluate many positions: a row of the table."""
    shape, chunks = (positions, classes), (1_000_000, classes)
    rng = da.random.default_rng(0)
    teacher = rng.normal(0, 3, shape, chunks=chunks).astype(np.float32)
    student = teacher + rng.normal(0, 0.1, shape, chunks=chunks).astype(np.float32)
    start = time.perf_counter()
    result = kldiv_dask.evaluate(student, teacher, progress=False)
    seconds = time.perf_counter() - start
    if result.count != positions:
        raise ArithmeticError(f"{result.count} positions of {positions}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"| {positions:,} x {classes} | {1e6 * seconds / positions:.2f} | {peak:.0f} |"


def main(arguments: list[str]) -> None:
    """Print both tables, or one row of the second."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=2**26, help="logits of a pair of the first")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--positions", nargs="*", type=int, default=[10_000_000, 100_000_000])
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.row:
        print(memory_row(options.row, 2))
        return
    print("| positions | noise | ns a logit, alone | all statistics | ratio |")
    print("| --- | --: | --: | --: | --: |")
    for classes in (32_768, 1_024):
        for noise in (0.1, 3.0):
            print(overhead_row(options.size // classes, classes, noise, options.rounds), "|")
    if options.positions:
        print("\n| positions | µs a position | peak MiB |\n| --- | --: | --: |", flush=True)
    for count in options.positions:
        command = [sys.executable, "-m", "tests.benchmarks.evaluation", "--row", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
