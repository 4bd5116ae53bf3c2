"""Compare this library with others and with only reading the data; print Markdown tables.

Run as ``python -m tests.benchmarks.comparison``. Of torch, JAX, SciPy and numexpr it measures those
that are installed. Each has to give the same value as this library, to within what its type can do.
Everything at full size takes half an hour; ``--quick`` takes two minutes.
"""

import argparse
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np

from tests.benchmarks import end_to_end
from tests.benchmarks.contestants import CLASSES, OURS, RIVALS, Case, Contestant, pair
from tests.benchmarks.end_to_end import BARE, DASK, READING, SETTINGS, SUMMING, Setting
from tests.benchmarks.measurement import Array, Times, counted, in_parts, pinned, read

CASES = [
    Case(dtype, log_target, reduction, threads)
    for dtype in ("float16", "bfloat16", "float32", "float64")
    for log_target in (False, True)
    for reduction in ("sum", "none")
    for threads in (1, 2)
]

# How far a rival's sum may be from this library's, relative to it. The terms of 16-bit types have
# two or three digits.
TOLERANCE = {"float16": 1e-2, "bfloat16": 2e-2, "float32": 1e-4, "float64": 1e-12}

# Pairs that Dask reduces are so many times larger, for several chunks of the default size.
LARGER = 4

# In LLVM's words and in the usual ones, the widest first.
VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "neon": "NEON"}

PACKAGES = ("numpy", "numba", "dask", "zarr", "torch", "jax", "scipy", "numexpr")
MISSING = "\N{EN DASH}"
# Around the tables in this folder's README.md, and around the few rows in the package's.
MARKER = "benchmark"

KERNELS = """\
The function that Dask calls for each pair of chunks, over {size:,} elements in memory, in rows of
{classes} classes; targets are probabilities unless a row says otherwise. *ns*: nanoseconds an
element. */ reading*: this time divided by that of reading both arrays once (*none* also writes its
result). Other columns: the time of that library divided by this one's.
"""
END_TO_END = """\
float32 sums over {size:,} elements through Dask, files in the page cache. *s*: seconds. Divided by
the time of the function alone with the same data in memory (*/ bare*), of `x.sum() + t.sum()` over
the same Dask arrays (*/ summing*), and of reading each pair of chunks once (*/ reading*). *Dask*:
the time of `(t * (da.log(t) - x)).sum()` divided by this one's.
"""


class Table(NamedTuple):
    """A Markdown table: its columns, and below them a label and figures for each row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        rule = ["---", *["--:"] * (len(self.columns) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.columns, rule, *self.rows))


def figure(number: float) -> str:
    """Write a time or a ratio to two or three digits."""
    return f"{number:.{2 if number < 1.995 else 1 if number < 9.95 else 0}f}"


def report(label: object, figures: Iterable[str]) -> None:
    """Show progress beside the output."""
    print(f"{label}: {'  '.join(figures)}", file=sys.stderr, flush=True)


def total(parts: Sequence[Any]) -> float:
    """Add up what a contestant returned."""
    # NumPy does not know torch's bfloat16.
    arrays = [np.asarray(part.double() if hasattr(part, "double") else part) for part in parts]
    return sum(float(array.sum(dtype=np.float64)) for array in arrays)


def measure(case: Case, x: Array, t: Array, rivals: Iterable[Contestant], rounds: int) -> Times:
    """Time those that can do a case, and reading both arrays.

    A contestant that computes something else is refused.
    """
    with pinned(case.threads):
        runs = {READING: in_parts(read, case.threads, x, t)}
        runs[READING]()
        for contestant in (OURS, *rivals):
            if run := contestant.make(case, x, t):
                runs[contestant.name] = run
                value, expected = total(run()), total(runs[OURS.name]())
                if not abs(value - expected) <= TOLERANCE[case.dtype] * abs(expected):
                    raise ValueError(f"{case}: {contestant.name} gives {value}, not {expected}")
        return Times(runs, rounds)


def kernel_figures(times: Times, size: int, rivals: Iterable[Contestant]) -> list[str]:
    """Return the figures of one case."""
    return [
        figure(times.median(OURS.name) / size * 1e9),
        figure(times.ratio(OURS.name, READING)),
        *(
            figure(times.ratio(rival.name, OURS.name)) if rival.name in times.seconds else MISSING
            for rival in rivals
        ),
    ]


def kernel_tables(cases: Sequence[Case], size: int, rounds: int) -> Iterator[Table]:
    """Measure the block functions; return a table for each number of threads."""
    rivals = [rival for rival in RIVALS if rival.available()]
    rows = {}
    for data, group in itertools.groupby(cases, lambda case: (case.dtype, case.log_target)):
        x, t = pair(size, *data)
        for case in group:
            rows[case] = kernel_figures(measure(case, x, t, rivals, rounds), x.size, rivals)
            report(case, rows[case])
    for threads in sorted({case.threads for case in cases}):
        columns = [counted(threads), "ns", "/ reading", *(rival.name for rival in rivals)]
        yield Table(columns, [[c.work, *rows[c]] for c in cases if c.threads == threads])


def end_to_end_table(settings: Sequence[Setting], size: int, rounds: int) -> Table:
    """Measure reductions through Dask; return their table."""
    rows = []
    for setting in settings:
        with tempfile.TemporaryDirectory() as folder:
            times = end_to_end.measure(setting, Path(folder), size, rounds)
        figures = [
            figure(times.median(OURS.name)),
            *(figure(times.ratio(OURS.name, base)) for base in (BARE, SUMMING, READING)),
            figure(times.ratio(DASK, OURS.name)),
        ]
        report(setting, figures)
        rows.append([str(setting), *figures])
    return Table(["end to end", "s", "/ bare", "/ summing", "/ reading", "Dask"], rows)


def processor() -> str:
    """Return the name of the processor and its widest vectors, as Numba sees them."""
    name = platform.processor() or platform.machine()
    details = Path("/proc/cpuinfo")  # on Linux
    if details.exists():
        lines = details.read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    features = llvmlite.binding.get_host_cpu_features()
    vectors = [label for flag, label in VECTORS.items() if features.get(flag)][:1]
    return ", ".join([name, *vectors, f"{os.cpu_count()} cores"])


def versions() -> str:
    """Return the versions of what is measured."""
    known = [name for name in PACKAGES if importlib.util.find_spec(name)]
    named = [f"{name} {importlib.metadata.version(name)}" for name in known]
    return ", ".join([f"Python {platform.python_version()}", *named])


def header(rounds: int) -> str:
    """Return what holds for all tables."""
    how = f"Medians over {rounds} rounds in which all take turns, on as many cores as threads."
    return textwrap.fill(f"{processor()}; {versions()}. {how}", 100)


def folded(summary: str, table: Table) -> str:
    """Hide a table until it is asked for."""
    return f"<details><summary>{summary}</summary>\n\n{table}\n\n</details>"


def document(cases: Sequence[Case], settings: Sequence[Setting], size: int, rounds: int) -> str:
    """Measure; return the tables and what they mean, in Markdown."""
    parts = [header(rounds)]
    if cases:
        first, *others = kernel_tables(cases, size, rounds)
        parts += [KERNELS.format(size=size, classes=CLASSES).rstrip(), str(first)]
        parts += [folded(table.columns[0], table) for table in others]
    if settings:
        parts.append(END_TO_END.format(size=LARGER * size).rstrip())
        parts.append(str(end_to_end_table(settings, LARGER * size, rounds)))
    return "\n\n".join(parts) + "\n"


def around(readme: Path, marker: str = MARKER) -> tuple[str, str]:
    """Return what a file has before and after its tables, the markers included."""
    opening, closing = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    before, begin, rest = readme.read_text().partition(opening)
    _, end, after = rest.partition(closing)
    if not end:
        raise ValueError(f"{readme} has no {opening} with {closing} after it")
    return before + begin, end + after


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, help="elements of each array (2^25)")
    parser.add_argument("--rounds", type=int, help="how often each is timed (9)")
    parser.add_argument("--quick", action="store_true", help="2^20 elements and 3 rounds")
    parser.add_argument("--cases", nargs="+", default=[], help="words that the rows must have")
    parser.add_argument("--output", type=Path, help="write the tables to this file too")
    parser.add_argument("--update-readme", type=Path, help="put them between this file's markers")
    options = parser.parse_args()
    size, rounds = (2**20, 3) if options.quick else (2**25, 9)
    cases = [case for case in CASES if all(word in str(case) for word in options.cases)]
    settings = [row for row in SETTINGS if all(word in str(row) for word in options.cases)]
    if not cases and not settings:
        parser.error(
            f"no row has all of {options.cases}; rows are like {CASES[0]} and {SETTINGS[0]}"
        )
    before, after = around(options.update_readme) if options.update_readme else ("", "")
    text = document(cases, settings, options.size or size, options.rounds or rounds)
    print(text, end="")
    if options.output:
        options.output.write_text(text)
    if options.update_readme:
        options.update_readme.write_text(f"{before}\n\n{text}\n{after}")


if __name__ == "__main__":
    main()
