"""The command that evaluates: what it prints and writes, and how it goes on after Ctrl-C."""

import functools
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
import zarr
from scipy import special

from kldiv_dask import Evaluation, evaluate, open_array
from kldiv_dask.statistics import doubts
from tests.helpers import commands, llama_base
from tests.helpers.commands import at_terminal

call = functools.partial(commands.call, command="evaluate")

ROWS = 900


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory with a pair of arrays, as files and in a group, and what goes along."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, t = special.log_softmax(rng.normal(size=(2, 12, 5, 7)), axis=-1).astype("f4")
    small = {"labels": rng.integers(7, size=(12, 5)), "where": rng.random((12, 5)) < 0.8}
    for name, array in {"x": x, "t": t, "groups": np.arange(12)[:, None] % 3, **small}.items():
        np.save(f"{name}.npy", array)
    group = zarr.create_group("both.zarr")
    for name, array in (("deep/x", x), ("t", t)):
        group.create_array(name, data=array, chunks=(2, 5, 7))
    np.save("mask5.npy", np.ones((5, 12), bool))
    np.save("wide.npy", np.zeros((12, 5, 9), "f4"))
    with h5py.File("evil.h5", "w") as file:
        for name in ("\x1b[2J", "b"):  # the first clears a terminal
            file[name] = np.zeros(3)
    Path("out").mkdir()
    return tmp_path


@pytest.fixture
def on(client):
    return "--scheduler", client.scheduler.address


@pytest.fixture
def long():
    """A pair of arrays of a few hundred chunks."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(ROWS, 4)).astype("f4")
    zarr.create_array("long.zarr", data=values, chunks=(1, 4))
    np.save("long.npy", rng.normal(size=(ROWS, 4)).astype("f4"))
    return "long.npy", "long.zarr", "--chunks", "3,4"


def test_arrays_by_position_in_files_of_many_and_of_strings(on, capsys):
    where, labels = np.load("where.npy").astype("u1"), np.load("labels.npy")
    names = np.array([["a"], ["bc"], ["d"]] * 4)
    with h5py.File("said.h5", "w") as file:
        file["labels"], file["deep/where"] = labels, where
        file["fixed"], file["groups"] = names.astype("S"), names.astype(object)
    safetensors.numpy.save_file({"labels": labels, "where": where}, "said.safetensors")
    of_any_length = names.astype(np.dtypes.StringDType())
    zarr.create_group("said.zarr").create_array("groups", data=of_any_length)
    zarr.create_array("two.zarr", data=names, zarr_format=2)
    np.save("names.npy", names)
    small = {"where": where > 0, "groups": names, "labels": labels}
    wanted = evaluate("x.npy", "t.npy", **small, progress=False)
    said = [
        ("said.h5", "deep/where", "said.h5", "groups", "said.h5", "labels"),
        ("said.safetensors", "where", "said.h5", "fixed", "said.safetensors", "labels"),
        ("where.npy", None, "said.zarr", "groups", "labels.npy", None),
        ("where.npy", None, "two.zarr", None, "labels.npy", None),
        ("where.npy", None, "names.npy", None, "labels.npy", None),
    ]
    for number, (*one,) in enumerate(said):
        options = {}
        for name, path, key in zip(("where", "groups", "labels"), one[::2], one[1::2], strict=True):
            options |= {f"--{name}": path} | ({f"--{name}-key": key} if key else {})
        given = [part for option in options.items() for part in option]
        code, _, err = call(capsys, "x.npy", "t.npy", *on, *given, "--save", f"out/{number}")
        assert (code, err) == (0, [])
        found = Evaluation.load(f"out/{number}")
        assert found.overall == wanted.overall
        assert found.groups == wanted.groups
        assert list(found.groups) == ["a", "bc", "d"]


def test_labels_in_a_base_file(on, capsys):
    rng = np.random.default_rng(1)
    logits, tokens = rng.normal(size=(2, 3, 3, 8)), rng.integers(8, size=(3, 8))
    for name, values in zip(("x.kld", "t.kld"), logits, strict=True):
        llama_base.write(name, values, tokens)
    given = "--labels", "t.kld", "--labels-key", "labels"
    code, _, err = call(capsys, "x.kld", "t.kld", *on, *given, "--save", "out/r")
    assert (code, err) == (0, [])
    wanted = evaluate("x.kld", "t.kld", labels=open_array("t.kld", key="labels"), progress=False)
    assert Evaluation.load("out/r").overall == wanted.overall
    for name in ("x.kld", "t.kld"):
        os.truncate(name, os.path.getsize(name) - 1)
    found = evaluate("x.kld", "t.kld", labels="t.kld", labels_key="labels", allow_truncated=True,
                     progress=False)  # fmt: skip
    assert found.count == 6
    assert found.overall.labels is not None


def strict(path):
    """Parse JSON, and nothing that only Python takes for JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(Path(path).read_text(), parse_constant=refuse)


def numbers(result):
    """All but where they come from."""
    report = json.loads(result.to_json()) if isinstance(result, Evaluation) else result
    assert report["overall"]["count"] > 0
    return {name: value for name, value in report.items() if name != "provenance"}


def test_what_is_printed_and_written(client, on, capsys):
    outputs = "--html", "out/a.html", "--json", "out/a.json", "--save", "out/a.kl"
    small = "--where", "where.npy", "--groups", "groups.npy", "--labels", "labels.npy"
    code, out, err = call(capsys, "x.npy", "t.npy", *small, *outputs, *on)
    assert (code, err) == (0, [])
    arrays = {name: np.load(f"{name}.npy") for name in ("where", "groups", "labels")}
    expected = evaluate("x.npy", "t.npy", **arrays, progress=False, scheduler=client)
    assert expected.count == arrays["where"].sum()
    assert len(expected.groups) == 3
    assert numbers(strict("out/a.json")) == numbers(expected)
    loaded = Evaluation.load("out/a.kl")
    assert numbers(loaded) == numbers(expected)
    assert out == f"{loaded}\n"
    assert f"{expected.mean:.4f}" in out
    page = Path("out/a.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<svg" in page


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--temperature", "2", "--cluster-axis", "1"], {"temperature": 2.0, "cluster_axis": 1}),
        (["--axis", "0", "--chunks", "-1,1,-1"], {"axis": 0}),
        (["--kind", "log_probs"], {"kind": "log_probs"}),
    ],
)
def test_options(client, on, capsys, flags, options):
    code, _, err = call(capsys, "x.npy", "t.npy", *flags, "--json", "out/a.json", *on)
    assert (code, err) == (0, [])
    expected = evaluate("x.npy", "t.npy", **options, progress=False, scheduler=client)
    assert numbers(strict("out/a.json")) == numbers(expected)
    plain = evaluate("x.npy", "t.npy", progress=False, scheduler=client)
    assert numbers(plain) != numbers(expected)


def test_float64(client, on, capsys):
    code, _, err = call(capsys, "x.npy", "t.npy", "--dtype", "float64", "--json", "out/a.json", *on)
    assert (code, err) == (0, [])
    assert strict("out/a.json")["provenance"]["computed_in"] == "float64"


def test_arrays_in_one_group_and_a_checkpoint_of_them(client, on, capsys):
    arguments = ["both.zarr", "both.zarr", "--input-key", "deep/x", "--target-key", "t"]
    arguments += ["--chunks", "2,-1,-1", "--checkpoint", "out/run.ckpt", "--json", "out/a.json"]
    code, _, err = call(capsys, *arguments, *on)
    assert (code, err) == (0, [])
    expected = evaluate("x.npy", "t.npy", progress=False, scheduler=client)
    assert numbers(strict("out/a.json")) == numbers(expected)
    provenance = strict("out/a.json")["provenance"]
    assert (provenance["input"], provenance["target"]) == ("both.zarr:deep/x", "both.zarr:t")
    arguments[arguments.index("deep/x")] = "t"
    code, out, (warning, line) = call(capsys, *arguments, *on)
    assert (code, out) == (2, "")
    assert warning == f"warning: {doubts.EQUAL}"
    assert line.startswith("Error: checkpoint ")
    assert re.search(
        "is of another run: input: it is .*both.zarr:t, it was .*both.zarr:deep/x", line
    )
    assert "--adopt compares some of them and goes on; --no-resume starts over" in line


@pytest.mark.slow
def test_ctrl_c_and_on_from_there(client, on, long, capsys):
    """What was done is not done again."""
    arguments = *long, "--checkpoint", "out/run.ckpt", "--json", "out/a.json"
    expected = evaluate(*long[:2], chunks=(3, 4), progress=False, scheduler=client)
    command = "kldiv-dask", "evaluate", *arguments, "--checkpoint-interval", "0", *on
    with at_terminal(*command) as (process, terminal):
        terminal.read(until="positions/s")
        process.send_signal(signal.SIGINT)
        text = terminal.read()
        assert process.stdout.read() == b""
    assert process.returncode == 130
    assert text.endswith(
        "\r\x1b[2KError: stopped by SIGINT; run the same command again to go on from"
        " out/run.ckpt\r\n"
    )
    assert re.search(r"\d%, [\d,]+ positions/s, .* left, mean .* nats", text)
    assert os.listdir("out") == ["run.ckpt"]
    code, out, err = call(capsys, *arguments, *on)
    assert (code, err) == (0, [])
    assert out
    assert numbers(strict("out/a.json")) == numbers(expected)
    found = re.fullmatch(r"(\d+) of 900 positions: .*run.ckpt", provenance()["taken_over"])
    assert 0 < int(found[1]) < 900
    code, out, err = call(capsys, *arguments, *on)
    assert (code, err) == (0, [])
    assert "from the checkpoint: all positions, nothing was read: " in " ".join(out.split())
    assert provenance()["taken_over"].startswith("all positions, nothing was read")


def provenance():
    return strict("out/a.json")["provenance"]


@pytest.mark.slow
def test_adopting_a_checkpoint(client, on, long, capsys):
    """Of files that were touched, it is taken over once some of it has been compared."""
    arguments = *long, "--checkpoint", "out/run.ckpt", "--json", "out/a.json", *on
    assert call(capsys, *arguments)[0] == 0
    expected = numbers(strict("out/a.json"))
    os.utime("long.npy", ns=(0, 10**18))
    code, _, (line,) = call(capsys, *arguments)
    assert code == 2
    assert re.search(r"input: .*long.npy has changed: .*written 2001-09-09T01:46:40Z", line)
    code, _, err = call(capsys, *arguments, "--adopt")
    assert (code, err) == (0, [])
    assert numbers(strict("out/a.json")) == expected
    assert call(capsys, *arguments)[0] == 0
    values = np.load("long.npy")
    values[0, 0] += 1
    np.save("long.npy", values)
    code, _, (line,) = call(capsys, *arguments, "--adopt")
    assert code == 2
    assert "is of other data: positions [0:" in line
    code, _, err = call(capsys, *arguments, "--adopt", "--no-resume")
    assert (code, err[-1]) == (
        2,
        "Error: --adopt goes on from the checkpoint, --no-resume does not",
    )


def test_a_failure_names_the_positions_and_how_to_go_on(on, long, capsys):
    Path("long.zarr/c/100/0").write_bytes(b"damaged")
    arguments = "--checkpoint", "out/run.ckpt", "--no-resume"
    code, out, (line,) = call(capsys, *long, *arguments, *on)
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"Error: positions \[\d+:\d+\] failed: .*long.zarr \[99:102, 0:4\] could not be read: .*;"
        r" run the same command again without --no-resume to go on from out/run.ckpt",
        line,
    )


def test_what_cannot_be_read_is_skipped(on, capsys):
    array = zarr.create_array("x.zarr", data=np.load("x.npy"), chunks=(3, 5, 7))
    assert array.nchunks == 4
    Path("x.zarr/c/1/0/0").write_bytes(b"damaged")
    arguments = "x.zarr", "t.npy", "--chunks", "3,-1,-1", "--on-error", "skip"
    code, out, (line,) = call(capsys, *arguments, "--json", "out/a.json", *on)
    assert code == 0
    assert out
    assert line.startswith("warning: positions [3:6, 0:5] are left out: ")
    report = strict("out/a.json")
    assert [one["region"] for one in report["skipped"]] == [[[3, 6], [0, 5]]]
    assert report["overall"]["count"] == 45


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.npy", "t.npy"], "no.npy does not exist"),
        (["x.npy", "labels.npy"], "labels.npy must be of dtype .*, got int64"),
        (["x.npy", "t.npy", "--labels", "no.npy"], "no.npy does not exist"),
        (["x.npy", "t.npy", "--input-key", "k"], "--input-key k was given for .*x.npy"),
        (["x.npy", "t.npy", "--labels-key", "k"], "--labels-key is 'k', and labels is no path"),
        (["x.npy", "t.npy", "--where", "where.npy", "--where-key", "k"], "--where-key k was given"),
        (
            ["x.npy", "t.npy", "--where", "x.npy"],
            "^Error: --where must be booleans, or integers of 0 and 1, got dtype float32",
        ),
        (["x.npy", "t.npy", "--chunks", "big"], "--chunks big does not suit the shape"),
        (
            ["x.npy", "t.npy", "--html", "no/a.html"],
            "--html must be a file in a .*, got 'no/a.html'",
        ),
        (["x.npy", "t.npy", "--json", "out"], "--json must be a file in a .*, got 'out'"),
        (["x.npy", "t.npy", "--save", "s3://a/b"], "--save must be a file in a .*, got 's3://a/b'"),
        (
            ["x.npy", "t.npy", "--checkpoint", "no/c"],
            "--checkpoint must be a file in a .*, got 'no/c'",
        ),
        (["x.npy", "t.npy", "--save", "/proc/self/a"], "--save is '/proc/self/a', .* not writable"),
        (["x.npy", "t.npy", "--json", "./t.npy"], "--json is ./t.npy, which is TARGET too"),
        (["x.npy", "t.npy", "--json", "a", "--html", "a"], "--json is a, which is --html too"),
        (["x.npy", "t.npy", "--scheduler", "nowhere"], "--scheduler nowhere: missing port"),
        (["x.npy", "t.npy", "--axis", "3"], "^Error: --axis: axis 3 is out of bounds"),
        (["x.npy", "t.npy", "--temperature", "0"], "--temperature .* 0.0"),
        (["x.npy", "t.npy", "--kind", "probs", "--temperature", "2"], "it is for logits"),
        (["x.npy", "t.npy", "--cluster-axis", "2"], "--cluster-axis is 2; the positions have 2"),
        (["x.npy", "t.npy", "--where", "mask5.npy"], r"^Error: --where of shape \(5, 12\) .*12, 5"),
        (
            ["x.npy", "t.npy", "--labels", "mask5.npy"],
            "^Error: --labels must be integers, got dtype bool",
        ),
        (["x.npy", "both.zarr"], "pass --target-key, one of 't', 'deep/x'"),
        (["both.zarr", "t.npy"], "pass --input-key, one of 't', 'deep/x'"),
        (
            ["x.npy", "wide.npy"],
            r"7 and 9 classes; if one is padded, open it by .* cut it: array\[..., :7\]",
        ),
        (["evil.h5", "t.npy"], r"--input-key, one of '\\x1b\[2J', 'b'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_before_any_cluster(capsys, arguments, message):
    start = time.monotonic()
    code, out, (line,) = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert line.startswith("Error: ")
    assert re.search(message, line)
    assert time.monotonic() - start < 5
    assert os.listdir("out") == []


def test_a_file_that_is_no_checkpoint(on, capsys):
    Path("x.txt").write_text("0.5\n")
    code, out, (line,) = call(capsys, "x.npy", "t.npy", "--checkpoint", "x.txt", *on)
    assert (code, out) == (2, "")
    assert re.fullmatch("Error: .*/x.txt is no checkpoint of kldiv-dask", line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "odds"], "'odds' is not one of"),
        (["--checkpoint-interval", "-1"], "-1.0 is not in the range"),
        (["--scheduler", "tcp://h:1", "--threads", "2"], "one started here"),
    ],
)
def test_bad_usage(capsys, arguments, message):
    code, out, err = call(capsys, "x.npy", "t.npy", *arguments)
    assert (code, out) == (2, "")
    assert message in err[-1]


def test_a_page_without_matplotlib_is_refused_at_once(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, (line,) = call(capsys, "x.npy", "t.npy", "--html", "out/a.html")
    assert (code, out) == (2, "")
    assert 'pip install "kldiv-dask[plot]"' in line
