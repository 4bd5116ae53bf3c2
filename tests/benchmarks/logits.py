"""KL divergence straight from logits, against torch and against what SciPy's users write.

Run as ``python -m tests.benchmarks.logits``. All take turns on one processor: the function that
Dask calls for each pair of chunks, the same through Dask as arrays of one chunk, and the rivals.
Beside the times stands the peak of the memory that each takes beyond the logits.
"""

import argparse
import importlib.util
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np

from kldiv_dask import kl_div_with_logits
from kldiv_dask.kernels import softmax_kl
from tests.benchmarks.comparison import around
from tests.benchmarks.measurement import Array, Times, pinned, read

Contestant = Callable[[], Any]
MARKER = "logits benchmark"
OURS, THROUGH_DASK, READING = "bare kernel", "kl_div_with_logits", "reading both arrays"


def logits(positions: int, classes: int, dtype: str) -> tuple[Array, Array]:
    """Return the logits of a student and of its teacher."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 3, (positions, classes)).astype(dtype)
    return (teacher + 0.1 * rng.normal(0, 1, teacher.shape)).astype(dtype), teacher


def contestants(student: Array, teacher: Array) -> dict[str, Contestant]:
    """Return who is compared, as far as it is installed."""
    chunks = [da.from_array(array, chunks=-1) for array in (student, teacher)]
    ours = kl_div_with_logits(*chunks, reduction="batchmean")
    compute = softmax_kl.compute_dtype(student.dtype == np.float64, 1.0)
    found: dict[str, Contestant] = {
        OURS: lambda: (
            softmax_kl.block_divergences(student, teacher, None, compute, 1.0).sum() / len(student)
        ),
        THROUGH_DASK: lambda: ours.compute(scheduler="sync"),
    }
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        functional = torch.nn.functional

        def kl_div(b: Any, a: Any) -> Any:
            log_p, log_q = functional.log_softmax(a, -1), functional.log_softmax(b, -1)
            return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

        pair = [torch.from_numpy(array) for array in (student, teacher)]
        compiled = torch.compile(kl_div)
        found["torch eager"] = lambda: kl_div(*pair)
        found["torch compiled"] = lambda: compiled(*pair)
    if importlib.util.find_spec("scipy"):
        from scipy.special import log_softmax

        def scipy_kl_div() -> Any:
            log_p, log_q = log_softmax(teacher, -1), log_softmax(student, -1)
            return (np.exp(log_p) * (log_p - log_q)).sum() / len(teacher)

        found["SciPy"] = scipy_kl_div
    return found


def peak_memory(run: Contestant) -> int:
    """Return the most bytes that NumPy's arrays take during a run."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def measure(student: Array, teacher: Array, rounds: int) -> list[tuple[str, ...]]:
    """Return the rows of the table for a pair of logits."""
    runs = contestants(student, teacher)
    with pinned(1):
        values = {name: float(run()) for name, run in runs.items()}  # compiles, too
        times = Times({**runs, READING: lambda: read(student, teacher)}, rounds)
    # torch rounds log-probabilities to the type of the logits.
    tolerance = 0.05 if student.dtype == np.float16 else 1e-3
    for name, value in values.items():
        if not np.isclose(value, values[OURS], rtol=tolerance):
            raise ArithmeticError(f"{name} gives {value} where ours is {values[OURS]}")
    rows = []
    for name in (*runs, READING):
        nanoseconds = 1e9 * times.median(name) / student.size
        # What torch allocates can't be seen from here.
        seen = name in runs and "torch" not in name
        memory = f"{peak_memory(runs[name]) / 2**20:.2f}" if seen else ""
        rows.append((name, f"{nanoseconds:.2f}", f"{times.ratio(name, OURS):.2f}", memory))
    return rows


def table(positions: int, classes: int, dtypes: list[str], rounds: int) -> str:
    """Return the table in Markdown, and what it says."""
    lines = [
        f"Divergences of {positions} positions from logits over {classes} classes, on one"
        f" processor; medians over {rounds} rounds in which all take turns.",
        "",
        "| logits | | ns an element | / bare kernel | MiB beyond the logits |",
        "| --- | --- | --: | --: | --: |",
    ]
    for dtype in dtypes:
        rows = measure(*logits(positions, classes, dtype), rounds)
        lines += ["| " + " | ".join((dtype, *row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Print the table, and put it into a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--classes", type=int, default=32768)
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "float64"])
    parser.add_argument("--update-readme", type=Path, help="put it between this file's markers")
    options = parser.parse_args(arguments)
    readme = options.update_readme
    before, after = around(readme, MARKER) if readme else ("", "")
    text = table(options.positions, options.classes, options.dtypes, options.rounds)
    print(text, end="")
    if readme:
        readme.write_text(f"{before}\n\n{text}\n{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
