"""The command: what it prints where, with which exit code, and what it leaves behind."""

import json
import logging
import os
import re
import signal
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr
from distributed import LocalCluster

from kldiv_dask import kl_div_summary, open_pair
from kldiv_dask.cli import cluster
from kldiv_dask.cli.common import parse_chunks
from kldiv_dask.cli.compute import _plain
from tests.helpers.commands import at_terminal, call, eventually, run, started


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Names of two files in the current directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("x.npy", np.log(rng.dirichlet(np.ones(50), 40)).astype("f4"))
    np.save("t.npy", rng.dirichlet(np.ones(50), 40))
    return "x.npy", "t.npy"


@pytest.fixture
def masked(pair):
    """The same, where two elements of the first column have no probability."""
    for path, nothing in zip(pair, (-np.inf, 0), strict=True):
        values = np.load(path)
        values[:2, 0] = nothing
        np.save(path, values)
    return pair


@pytest.fixture
def endless(tmp_path, monkeypatch):
    """A Zarr array of 32 GiB, of which no chunk was ever written, given as both arrays."""
    monkeypatch.chdir(tmp_path)
    shape, chunks = (2**23, 2**10), (2**12, 2**10)
    zarr.create_array("x.zarr", shape=shape, chunks=chunks, dtype="f4", fill_value=0.5)
    return "x.zarr", "x.zarr", "--reduction", "sum", "--chunks", "16 MiB"


def strict(text):
    """Parse JSON, and nothing that only Python takes for JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def in_python(*paths, **options):
    keys = {name: options.pop(name) for name in ("input_key", "target_key") if name in options}
    return kl_div_summary(*open_pair(*paths, **keys), **options).compute(scheduler="sync")


def assert_agrees(report, summary):
    """Hold a JSON report against a summary, bit for bit."""
    for name, expected in summary._asdict().items():
        assert np.isfinite(expected)
        assert type(expected)(report[name]) == expected
    assert report["dtype"] == summary.sum.dtype.name
    assert report["value"] == report[report["reduction"]]


# Values


@pytest.mark.slow
def test_a_cluster_is_started_and_the_value_alone_is_printed(pair):
    code, out, err = run("kldiv-dask", "compute", *pair, "--workers", "2")
    expected = in_python(*pair).mean
    assert (code, out) == (0, str(expected) + "\n")
    assert np.isfinite(expected)
    (line,) = err
    assert line.startswith("warning: --reduction mean divides by the number of elements")


def test_it_is_a_dask_command_too(client, masked):
    options = "--reduction", "batchmean", "--json", "--scheduler", client.scheduler.address
    code, out, err = run("dask", "kldiv", "compute", *masked, *options)
    assert (code, out.count("\n")) == (0, 1)
    assert err == [
        "warning: of 2000 terms 2 are NaN, 0 +inf and 0 -inf;"
        " --zero-safe counts zero targets as 0 where INPUT is infinite, and negative ones want"
        " --kind log_probs, or --kind logits for logits"
    ]
    report = strict(out)
    seconds = report.pop("seconds")
    assert 0 < seconds < 60
    assert report == {
        "value": "nan",
        "reduction": "batchmean",
        "sum": "nan",
        "mean": "nan",
        "batchmean": "nan",
        "numel": 2000,
        "batch_size": 40,
        "nan_count": 2,
        "posinf_count": 0,
        "neginf_count": 0,
        "kind": "log_probs_and_probs",
        "axis": None,
        "temperature": None,
        "where": None,
        "where_key": None,
        "dtype": "float64",
        "zero_safe": False,
        "input_key": None,
        "target_key": None,
        "chunks": None,
        "allow_truncated": False,
        "repeated": None,
        "bytes_read": 2000 * (4 + 8),
        "input": "x.npy",
        "target": "t.npy",
        "version": version("kldiv-dask"),
    }


def test_the_other_dask_commands_are_as_they_were(pair):
    code, out, err = run("dask", "--help")
    assert (code, err) == (0, [])
    assert re.search(r"^  kldiv +Kullback-Leibler", out, re.MULTILINE)
    assert re.search(r"^  worker +Launch", out, re.MULTILINE)


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum", "chunks": "auto"},
        {"reduction": "batchmean", "chunks": "7,-1"},
        {"reduction": "sum", "dtype": "float32", "chunks": "1 kB"},
        {"reduction": "mean", "dtype": "bfloat16"},
        {"reduction": "sum", "kind": "log_probs"},
        {"reduction": "batchmean", "input_key": "deep/x", "target_key": "t"},
    ],
    ids=str,
)
def test_options(client, pair, capsys, options):
    if "input_key" in options:
        group = zarr.create_group("g.zarr")
        for key, path in zip(("deep/x", "t"), pair, strict=True):
            group.create_array(key, data=np.load(path))
        pair = "g.zarr", "g.zarr"
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in options.items()
    ]
    call_it = [*pair, *flags, f"--scheduler={client.scheduler.address}"]
    expected = in_python(
        *pair,
        log_target="kind" in options,
        **{k: v for k, v in options.items() if k not in ("reduction", "chunks", "kind")},
    )
    code, out, _ = call(capsys, *call_it, "--json")
    assert code == 0
    assert options.items() <= strict(out).items()
    assert_agrees(strict(out), expected)
    code, out, _ = call(capsys, *call_it)
    assert (code, out) == (0, str(getattr(expected, options["reduction"])) + "\n")


def test_zero_safe(client, masked, capsys):
    address = client.scheduler.address
    code, out, err = call(capsys, *masked, "--zero-safe", "--json", "--scheduler", address)
    assert code == 0
    assert_agrees(strict(out), in_python(*masked, zero_safe=True))
    assert [line for line in err if "terms" in line] == []


@pytest.mark.parametrize(
    ("field", "plain"),
    [
        (np.float32(0.1), 0.1),
        (np.float16(65504), 65500.0),
        (np.float64(1 / 3), 1 / 3),
        (np.float64(-0.0), -0.0),
        (np.float32(1e-45), 1e-45),
        (np.int64(2**53 + 1), 2**53 + 1),
        (np.float32(np.inf), "inf"),
        (np.float64(-np.inf), "-inf"),
        (None, None),
        ("x.npy", "x.npy"),
    ],
)
def test_numbers_in_json(field, plain):
    assert _plain(field) == plain
    assert type(_plain(field)) is type(plain)
    assert str(_plain(field)) == str(plain)


@pytest.mark.parametrize(
    ("text", "chunks"),
    [
        (None, None),
        ("auto", "auto"),
        ("64 MiB", "64 MiB"),
        ("1000", 1000),
        ("-1", -1),
        ("1000,-1", (1000, -1)),
        ("1000, auto", (1000, "auto")),
    ],
)
def test_chunks(text, chunks):
    assert parse_chunks(text) == chunks


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.npy", "t.npy"], "no.npy does not exist"),
        (["x.txt", "t.npy"], "x.txt is of no format that can be read"),
        (["whole.npy", "t.npy"], "whole.npy must be of dtype .*, got int64"),
        (["x.npy", "short.npy"], "the shapes of input, (40, 50) in .*x.npy, and target, (39, 50)"),
        (["x.npy", "t.npy", "--chunks", "big"], "--chunks big does not suit the shape (40, 50)"),
        (["x.npy", "t.npy", "--chunks", "1,2,3"], "--chunks (1, 2, 3) does not suit"),
        (["x.npy", "t.npy", "--target-key", "k"], "--target-key k was given for .*t.npy"),
        (["g.zarr", "t.npy", "--input-key", "k"], "g.zarr:k does not exist; it holds no arrays"),
        (["x.npy", "t.npy", "--scheduler", "nowhere"], "--scheduler nowhere: missing port"),
        (["x.npy", "t.npy", "--scheduler", "tcp://127.0.0.1:1"], "127.0.0.1:1: Timed out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(pair, capsys, monkeypatch, arguments, message):
    Path("x.txt").write_text("0.5")
    np.save("whole.npy", np.ones((40, 50), int))
    np.save("short.npy", np.ones((39, 50)))
    zarr.create_group("g.zarr")
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT", 0.5)
    code, out, (line,) = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert line.startswith("Error: ")
    assert re.search(re.sub(r"([()])", r"\\\1", message), line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.npy"], "Missing argument 'TARGET'"),
        (["x.npy", "t.npy", "--reduction", "none"], "'none' is not one of"),
        (["x.npy", "t.npy", "--workers", "0"], "0 is not in the range"),
        (["x.npy", "t.npy", "--scheduler", "tcp://h:1", "--threads", "2"], "one started here"),
    ],
)
def test_bad_usage_is_exit_code_2(pair, capsys, arguments, message):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err[-1]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(capsys, flag):
    code, out, err = call(capsys, flag)
    assert (code, err) == (0, [])
    assert "kldiv-dask compute student.zarr teacher.zarr --reduction batchmean" in out


# Failures of the computation


def test_a_damaged_chunk(client, endless, capsys):
    zarr.create_array("bad.zarr", data=np.ones((64, 2**10), "f4"), chunks=(32, 512))
    chunk = Path("bad.zarr/c/1/0")
    chunk.write_bytes(chunk.read_bytes()[:-9])
    options = "--chunks", "32,512", "--scheduler", client.scheduler.address
    code, out, (*_, line) = call(capsys, "bad.zarr", "bad.zarr", *options, "--reduction", "sum")
    assert (code, out) == (1, "")
    path = re.escape(str(Path("bad.zarr").absolute()))
    assert re.fullmatch(rf"Error: on a worker, {path} \[32:64, 0:512\] could not be read: .*", line)


def test_a_file_that_the_workers_do_not_have(client, pair):
    # What this names depends on who looks.
    x = f"/proc/self/cwd/{pair[0]}"
    code, out, (line,) = run(
        "kldiv-dask", "compute", x, pair[1], "--scheduler", client.scheduler.address
    )
    assert (code, out) == (1, "")
    assert line.startswith(f"Error: on a worker, {x} [0:40, 0:50] could not be read: FileNotFound")


@pytest.mark.slow
def test_workers_that_die(endless):
    command = "kldiv-dask", "compute", *endless, "--workers", "1"
    once = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with at_terminal(*command, **once) as (process, terminal):
        terminal.read(until="[1-9]%")
        for worker in psutil.Process(process.pid).children():
            if "spawn_main" in " ".join(worker.cmdline()):
                worker.kill()
        assert re.search(r"\x1b\[2KError: KilledWorker: Attempted to run .*\n$", terminal.read())
    assert process.returncode == 1


@pytest.mark.slow
def test_a_cluster_that_is_late_and_goes_away(endless):
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as remote:
        address = remote.scheduler_address
        command = "kldiv-dask", "compute", *endless, "--scheduler", address
        with at_terminal(*command) as (process, terminal):
            terminal.read(until="warning: the cluster has no workers yet; waiting for them\r\n")
            remote.scale(1)
            terminal.read(until="[1-9]%")
            remote.close()
            assert re.search(
                r"\x1b\[2KError: .* lost the connection to the scheduler.*\n$", terminal.read()
            )
        assert process.returncode == 1


def test_workers_without_the_package(pair, capsys, monkeypatch):
    Path("sitecustomize.py").write_text("import sys; sys.modules['kldiv_dask'] = None")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    with LocalCluster(n_workers=1, dashboard_address="127.0.0.1:0") as remote:
        (worker,) = remote.workers.values()
        code, out, (line,) = call(capsys, *pair, "--scheduler", remote.scheduler_address)
        assert (code, out) == (2, "")
        assert f"worker {worker.worker_address} cannot import kldiv_dask: " in line


# Progress, and stopping


def test_a_bar_at_a_terminal(client, pair):
    command = "kldiv-dask", "compute", *pair, "--reduction", "sum", "--chunks", "1,-1"
    with at_terminal(*command, "--scheduler", client.scheduler.address) as (process, terminal):
        text = terminal.read()
        assert process.stdout.read().decode() == f"{in_python(*pair).sum!s}\n"
    assert process.returncode == 0
    assert re.search(r"\r\[#+\] \| 100% Completed \| +\d+\.\ds", text)
    assert text.endswith("\r\x1b[2K")


def test_stopped_while_computing(endless):
    with at_terminal("kldiv-dask", "compute", *endless) as (process, terminal):
        terminal.read(until="[1-9]%")
        os.killpg(process.pid, signal.SIGINT)  # to all processes, as a terminal sends Ctrl-C
        bars = r"(\r\[#* *\] \| \d+% Completed \| +\S+s)+"
        assert re.search(
            bars + r".*stopping \.\.\.(\r\x1b\[2K)+Error: stopped by SIGINT\r\n\Z", terminal.read()
        )
        assert process.stdout.read() == b""
    assert process.returncode == 130


@pytest.mark.slow
def test_stopped_while_another_cluster_computes(client, endless):
    command = "kldiv-dask", "compute", *endless, "--scheduler", client.scheduler.address
    with at_terminal(*command) as (process, terminal):
        terminal.read(until="[1-9]%")
        process.send_signal(signal.SIGTERM)
        assert terminal.read().endswith("\x1b[2KError: stopped by SIGTERM\r\n")
    assert process.returncode == 143
    assert eventually(
        lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 0
    )


def test_stopped_while_the_cluster_starts(endless):
    with started("kldiv-dask", "compute", *endless) as process:
        while not list(Path("scratch").iterdir()):
            time.sleep(0.01)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.3)
        assert process.communicate() == (b"", b"Error: stopped by SIGINT\n")
    assert process.returncode == 130


def test_a_local_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with cluster.connect(workers=2, threads=3) as client:
        assert list(client.nthreads().values()) == [3, 3]
        assert client.scheduler.address.startswith("tcp://127.0.0.1:")
        assert re.match(r"http://127.0.0.1:(?!8787/)", client.dashboard_link)
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("distributed.worker").isEnabledFor(logging.WARNING)
