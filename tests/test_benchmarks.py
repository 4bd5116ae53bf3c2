"""The comparison with other libraries runs, compares like with like, and times what it says."""

import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import comparison, end_to_end, evaluation, logits, summary
from tests.benchmarks.contestants import CLASSES, NARROW, OURS, RIVALS, Case, Contestant, pair
from tests.benchmarks.measurement import Times, in_parts, pinned, read
from tests.helpers.cases import dtype_of

ROOT = Path(__file__).parents[1]
SIZE = 2 * CLASSES

# JAX's threads would be in the way of other tests, and torch's compiler is slow: these two are left
# to the test of the command.
RIVALS_HERE = [
    rival for rival in RIVALS if rival.available() and rival.name not in ("JAX", "torch compiled")
]


def test_the_command(tmp_path):
    readme, output = tmp_path / "README.md", tmp_path / "table.md"
    readme.write_text("before\n<!-- benchmark -->\nold\n<!-- /benchmark -->\nafter\n")
    command = [sys.executable, "-m", "tests.benchmarks.comparison", "--size", str(SIZE)]
    command += ["--rounds", "1", "--cases", "float32 sum", ", 1 thread"]
    command += ["--update-readme", readme, "--output", output]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"numpy {np.__version__}" in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    available = [rival.name for rival in RIVALS if rival.available()]
    assert {"NumPy", "Dask"} <= set(available)
    columns = [cell.strip() for cell in table[0].strip("|").split("|")]
    assert columns == ["1 thread", "ns", "/ reading", *available]
    assert [line.split(" | ")[0] for line in table[2:]] == [
        "| float32 sum",
        "| float32 sum, log target",
    ]
    assert output.read_text() == done.stdout
    assert readme.read_text() == (
        f"before\n<!-- benchmark -->\n\n{done.stdout}\n<!-- /benchmark -->\nafter\n"
    )


def test_a_file_without_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- /benchmark -->\n<!-- benchmark -->\n")
    with pytest.raises(ValueError, match=r"README\.md has no <!-- benchmark --> with"):
        comparison.around(readme)


@pytest.mark.parametrize(
    "case",
    [
        case if case.dtype == "float32" else pytest.param(case, marks=pytest.mark.slow)
        for case in comparison.CASES
    ],
    ids=str,
)
def test_contestants_agree(case):
    x, t = pair(SIZE, case.dtype, case.log_target)
    assert x.dtype == t.dtype == dtype_of(case.dtype)
    times = comparison.measure(case, x, t, RIVALS_HERE, rounds=2)
    absent = {"SciPy"} if case.log_target else set()
    absent |= {"numexpr"} if case.dtype in NARROW else set()
    expected = {rival.name for rival in RIVALS_HERE} - absent
    assert set(times.seconds) == {comparison.READING, OURS.name} | expected
    assert {len(seconds) for seconds in times.seconds.values()} == {2}
    figures = comparison.kernel_figures(times, x.size, RIVALS_HERE)
    given = [figure != comparison.MISSING for figure in figures[2:]]
    assert given == [rival.name in expected for rival in RIVALS_HERE]


def test_a_contestant_that_computes_something_else_is_refused():
    case = Case("float32", log_target=False, reduction="sum", threads=1)
    x, t = pair(SIZE, case.dtype, case.log_target)
    cross_entropy = Contestant("wrong", "numpy", lambda case, x, t: lambda: [-(t * x).sum()])
    with pytest.raises(ValueError, match="float32 sum, 1 thread: wrong gives"):
        comparison.measure(case, x, t, [cross_entropy], rounds=1)


def test_a_contestant_that_is_not_installed():
    assert not Contestant("none", "no_such_package", lambda case, x, t: None).available()


@pytest.mark.parametrize("setting", end_to_end.SETTINGS, ids=str)
def test_end_to_end(setting, tmp_path):
    times = end_to_end.measure(setting, tmp_path, 16 * CLASSES, rounds=2)
    assert len(times.seconds) == 5
    assert {len(seconds) for seconds in times.seconds.values()} == {2}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_bit_is_read(dtype, threads):
    x, t = pair(3 * CLASSES, dtype, log_target=True)
    expected = np.bitwise_xor.reduce([*x.view("i8").ravel(), *t.view("i8").ravel()])
    assert expected != 0
    assert np.bitwise_xor.reduce(in_parts(read, threads, x, t)()) == expected


def test_parts_are_done_at_the_same_time():
    barrier = threading.Barrier(2)
    rows = np.arange(10).reshape(5, 2)
    parts = in_parts(lambda x, t: (barrier.wait(10), x, t)[1:], 2, rows, -rows)()
    assert [np.concatenate(part).tolist() for part in zip(*parts, strict=True)] == [
        rows.tolist(),
        (-rows).tolist(),
    ]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system can't pin threads")
def test_pinning_holds_for_every_thread():
    before = os.sched_getaffinity(0)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(os.sched_getaffinity, 0).result() == before
        with pinned(1):
            inside = pool.submit(os.sched_getaffinity, 0).result()
            assert inside == os.sched_getaffinity(0)
            assert len(inside) == 1
        assert pool.submit(os.sched_getaffinity, 0).result() == before
    assert os.sched_getaffinity(0) == before


def test_times_and_ratios():
    taken = []
    runs = {
        "long": lambda: (taken.append("long"), time.sleep(0.05)),
        "short": lambda: (taken.append("short"), time.sleep(0.005)),
    }
    times = Times(runs, rounds=5)
    assert times.median("long") >= 0.05
    assert 0.005 <= times.median("short") < times.median("long")
    assert times.ratio("long", "short") == pytest.approx(1 / times.ratio("short", "long"))
    assert times.ratio("long", "short") > 1
    rounds = {tuple(taken[i : i + 2]) for i in range(0, 10, 2)}
    assert rounds == {("long", "short"), ("short", "long")}


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.123, "0.12"), (1.99, "1.99"), (1.996, "2.0"), (9.94, "9.9"), (9.96, "10"), (123.4, "123")],
)
def test_figures(number, text):
    assert comparison.figure(number) == text


def test_divergences_from_logits(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- logits benchmark -->\n<!-- /logits benchmark -->\nafter\n")
    command = [sys.executable, "-m", "tests.benchmarks.logits", "--positions", "4"]
    command += ["--classes", "3000", "--rounds", "1", "--dtypes", "float32"]
    done = subprocess.run(
        [*command, "--update-readme", readme], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| float32")]
    assert {logits.OURS, logits.READING} <= {row[1] for row in rows}
    assert all(float(row[2]) > 0 for row in rows)
    assert readme.read_text() == (
        f"before\n<!-- logits benchmark -->\n\n{out}\n<!-- /logits benchmark -->\nafter\n"
    )


def test_the_rows_of_the_readme_are_those_of_the_full_tables():
    """If this fails, run ``python -m tests.benchmarks.summary``."""
    full = summary.TABLES.read_text()
    before, after = comparison.around(summary.README)
    assert summary.README.read_text() == f"{before}\n{summary.rows(full)}{after}"
    changed = re.sub(r"(?<=^\| float32 sum \| )[\d.]+", "9.99", full, flags=re.MULTILINE)
    assert changed != full
    assert summary.rows(changed) != summary.rows(full)


def test_the_full_tables_have_markers():
    for marker in (comparison.MARKER, logits.MARKER):
        before, after = comparison.around(summary.TABLES, marker)
        assert "| " in summary.TABLES.read_text()[len(before) : -len(after)]


def test_evaluation(capsys):
    evaluation.main(["--size", "65536", "--rounds", "1", "--positions", "3000"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines if line[2:3].isdigit()] == [
        "| 2 x 32,768",
        "| 2 x 32,768",
        "| 64 x 1,024",
        "| 64 x 1,024",
        "| 3,000 x 2",
    ]
