"""The section `kldiv` of Dask's configuration."""

import ast
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import yaml

import kldiv_dask
from kldiv_dask import config, evaluate, kl_div, kl_div_summary, open_array
from kldiv_dask.evaluation import checkpoint, regions
from kldiv_dask.evaluation.pace import Pace
from kldiv_dask.storage import ChunkReadError
from kldiv_dask.storage.source import Source
from tests.helpers.cases import slow_unless
from tests.test_graph import stages

FOLDER = Path(kldiv_dask.__file__).parent
TEXT = config.DEFAULTS.read_text()


def leaves(tree, before="kldiv"):
    for name, value in tree.items():
        key = f"{before}.{name}"
        yield from leaves(value, key) if isinstance(value, dict) else [(key, value)]


DEFAULTS = dict(leaves(yaml.safe_load(TEXT)["kldiv"]))

READERS = {
    "chunk-size": config.size,
    "map-files": config.flag,
    "retry-delays": config.delays,
    "files-checked": config.count,
    "split-every": config.count,
    "graph-size": config.count,
    "slab-size": config.count,
    "evaluate.slab-time": config.seconds,
    "evaluate.checkpoint-interval": config.seconds,
}


# The file and the code


def keys_read():
    """Every key that is read, and by what."""
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("config."):
                yield ast.literal_eval(node.args[0]), getattr(config, node.func.attr)


def test_every_key_is_read_and_every_key_read_is_in_the_file():
    assert dict(keys_read()) == READERS
    assert set(DEFAULTS) == {f"kldiv.{key}" for key in READERS}


def test_the_defaults_are_in_force_and_mean_something():
    assert {key: dask.config.get(key) for key in DEFAULTS} == DEFAULTS
    assert {key: read(key) for key, read in READERS.items()} == {
        "chunk-size": 2**27,
        "map-files": True,
        "retry-delays": [0.5, 2.0],
        "files-checked": 10_000,
        "split-every": 32,
        "graph-size": 100_000,
        "slab-size": 50_000,
        "evaluate.slab-time": 4.0,
        "evaluate.checkpoint-interval": 60.0,
    }


def test_every_key_has_a_comment_with_a_reason():
    lines = TEXT.splitlines()
    found = [n for n, line in enumerate(lines) if re.match(r" +[a-z-]+: \S", line)]
    assert len(found) == len(DEFAULTS)
    for n in found:
        comment = []
        while lines[n - 1].lstrip().startswith("# "):
            comment.append(lines[n := n - 1])
        assert len(comment) >= 2, lines[n]


# What is accepted


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("chunk-size", "64MiB", 2**26),
        ("chunk-size", 1e6, 10**6),
        ("retry-delays", [], []),
        ("retry-delays", (1, "250 ms"), [1.0, 0.25]),
        ("split-every", 2, 2),
        ("evaluate.checkpoint-interval", 0, 0.0),
        ("evaluate.checkpoint-interval", "5 minutes", 300.0),
    ],
)
def test_values(key, value, wanted):
    with dask.config.set({f"kldiv.{key}": value}):
        assert READERS[key](key) == wanted


SIZE = "a size such as '64 MiB', or a number of bytes, from 1 on"
DURATION = "a duration such as '5 minutes', or a number of seconds"
DELAYS = "a list of durations such as [0.5, '2 s'], or [] for none"
NONSENSE = ["abc", "", "5 parsecs", None, True, {}, -1, float("nan"), float("inf"), 10**400]
REFUSED = [
    *(("chunk-size", value, SIZE) for value in [*NONSENSE, [], 0, "0 B"]),
    *(("evaluate.checkpoint-interval", value, DURATION) for value in [*NONSENSE, [], "-1 s"]),
    *(("retry-delays", value, DELAYS) for value in [*NONSENSE, 2, "1 s", [1, "abc"], [-1], [True]]),
    *(
        (key, value, "a whole number from 1 on")
        for key in ("files-checked", "graph-size", "slab-size")
        for value in ("abc", "8", None, True, 0, -1, 2.0)
    ),
]


@pytest.mark.parametrize(("key", "value", "accepted"), REFUSED)
def test_refused(key, value, accepted):
    with (
        dask.config.set({f"kldiv.{key}": value}),
        pytest.raises(ValueError, match=f"^kldiv.{key} must be ") as caught,
    ):
        READERS[key](key)
    assert str(caught.value) == f"kldiv.{key} must be {accepted}, got {value!r}"


# Where it counts


@pytest.fixture
def stored(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((64, 16)))
    return tmp_path / "x.npy"


def test_chunk_size(stored):
    assert open_array(stored).numblocks == (1, 1)
    with dask.config.set({"kldiv.chunk-size": "1 kiB"}):
        assert open_array(stored).numblocks == open_array(stored, chunks="auto").numblocks == (8, 1)
        assert open_array(stored, chunks="2 kiB").numblocks == (4, 1)
        assert open_array(stored, chunks=(4, -1)).numblocks == (16, 1)
    with dask.config.set({"kldiv.chunk-size": "abc"}):
        assert open_array(stored, chunks="2 kiB").numblocks == (4, 1)
        with pytest.raises(ValueError, match=r"^kldiv.chunk-size must be a size .*, got 'abc'$"):
            open_array(stored)


def test_split_every():
    x = da.zeros((100, 2), chunks=(1, 2))
    named = {}
    for value, given in ((32, None), (4, None), (4, 32), (4, {0: 32}), (4, {1: 32})):
        with dask.config.set({"kldiv.split-every": value}):
            names = stages(kl_div(x, x, reduction="sum", split_every=given))
        named[value, str(given)] = names["kl-div-merge-partial"]
    few, many = 4, 25 + 7 + 2
    assert list(named.values()) == [few, many, few, few, many]
    for value in (1, "8"):
        with (
            dask.config.set({"kldiv.split-every": value}),
            pytest.raises(ValueError, match=f"^kldiv.split-every must be .*, got {value!r}$"),
        ):
            kl_div(x, x, reduction="sum")


@pytest.mark.parametrize("key", ["graph-size", "slab-size"])
def test_sizes_of_graphs_are_checked_when_they_count(key):
    x = da.zeros((4, 2), chunks=(1, 2))
    lazy = kl_div_summary(x, x)
    with (
        dask.config.set({"kldiv.graph-size": 2, f"kldiv.{key}": "many"}),
        pytest.raises(ValueError, match=f"^kldiv.{key} must be a whole number .*, got 'many'$"),
    ):
        lazy.compute()


def sizes(pairs, threads, seconds_each, most=50_000):
    """How many pairs the graphs take, if each pair takes so long on its thread."""
    found = []
    with dask.config.set({"kldiv.evaluate.slab-time": "4 s", "kldiv.slab-size": most}):
        pace = Pace(pairs)
        while pairs:
            taken = min(pace.pairs(threads), pairs)
            pace.record(taken, seconds_each * -(-taken // threads))
            found.append(taken)
            pairs -= taken
    return found


def test_slabs_of_evaluations_take_a_few_seconds():
    # A second each: four pairs for each thread, once the first is done.
    assert sizes(1000, 2, 1.0)[:4] == [2, 8, 8, 8]
    # What is quick comes in growing parts, of which there are enough to see it move.
    quick = sizes(1000, 2, 0.001)
    assert quick[:4] == [2, 8, 32, 40]
    assert len(quick) >= 25
    # No thread is without work, and no graph larger than configured.
    assert sizes(64, 16, 100.0) == [16] * 4
    assert set(sizes(64, 16, 100.0, most=3)) == {3, 1}


INTERVALS = [
    ("0 s", None, True),
    ("1 hour", None, False),
    ("0 s", 3600, False),
    ("1 hour", 0, True),
]


@pytest.mark.parametrize(
    ("configured", "given", "early"),
    slow_unless(INTERVALS[:1], INTERVALS),
)
def test_checkpoint_interval(tmp_path, configured, given, early):
    """After the first of three slabs there is a checkpoint, which the second may write anew."""
    path, seen = tmp_path / "checkpoint", []

    def look(block):
        known = checkpoint.loads(path.read_bytes(), "")[0] if path.exists() else {"done": []}
        seen.append(sum(map(regions.size, known["done"])))
        return block

    x, t = (da.from_array(np.arange(9.0).reshape(3, 3) + i, chunks=(1, 3)) for i in range(2))
    with dask.config.set({"kldiv.evaluate.checkpoint-interval": configured, "kldiv.slab-size": 1}):
        watched = (x * 1.5).map_blocks(look, dtype=x.dtype, meta=np.empty((0, 0)))
        options = {"progress": False, "scheduler": "sync", "checkpoint": path}
        evaluate(watched, t, checkpoint_interval=given, **options)
    assert seen == [0, 1, 2 if early else 1]
    assert checkpoint.loads(path.read_bytes(), "")[0]["done"] == [[[0, 3]]]


# On workers


@dataclass(frozen=True, slots=True)
class Busy(Source):
    """Has no time to be read, and counts how often it is tried."""

    def read(self, index):
        with open(self.path, "ab") as file:
            file.write(b".")
        raise OSError("busy")


def attempts(folder, scheduler):
    source = Busy(str(folder / "log"), None, (2,), np.dtype("f8"), (1,), "C")
    array = da.from_array(source, chunks=-1, inline_array=True, meta=np.empty(0))
    with pytest.raises(ChunkReadError, match=r"log \[0:2\] could not be read: OSError: busy"):
        array.compute(scheduler=scheduler, num_workers=1)
    return os.path.getsize(source.path)


@pytest.mark.parametrize("delays", [[], [0, 0, 0]])
def test_retries(tmp_path, delays):
    with dask.config.set({"kldiv.retry-delays": delays}):
        assert attempts(tmp_path, "sync") == 1 + len(delays)


def test_retries_of_processes_are_what_their_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_KLDIV__RETRY_DELAYS", "[0, 0, 0, 0]")
    assert config.delays("retry-delays") == [0.5, 2.0]
    assert attempts(tmp_path, "processes") == 5


def test_retries_of_workers_are_what_is_set_there(tmp_path, client):
    assert set(map(str, client.run(config.delays, "retry-delays").values())) == {"[0.5, 2.0]"}
    try:
        client.run(dask.config.set, {"kldiv.retry-delays": [0, 0, 0, 0, 0]})
        assert attempts(tmp_path, client) == 6
    finally:
        client.run(dask.config.set, {"kldiv.retry-delays": DEFAULTS["kldiv.retry-delays"]})


# Where it comes from

PROGRAM = """
import sys
import kldiv_dask
assert not {"numpy", "numba", "dask.array", "distributed"} & set(sys.modules)
import dask
print(dask.config.get("kldiv.slab-size"), dask.config.get("kldiv.evaluate.slab-time"))
print(kldiv_dask.open_array(sys.argv[1]).numblocks[0])
"""


def told(stored, **environment):
    command = [sys.executable, "-c", PROGRAM, stored]
    return subprocess.check_output(command, env={**os.environ, **environment}, text=True).split()


def test_environment_and_file(stored, tmp_path):
    """Variables come before files, and files before the defaults."""
    written = {"chunk-size": "4 kiB", "slab_size": 300, "evaluate": {"slab-time": "8s"}}
    (tmp_path / "dask.yaml").write_text(yaml.safe_dump({"kldiv": written}))
    assert told(stored, DASK_KLDIV__CHUNK_SIZE="1kiB") == ["50000", "4", "s", "8"]
    file = {"DASK_CONFIG": str(tmp_path / "dask.yaml")}
    assert told(stored, **file) == ["300", "8s", "2"]
    variables = {"DASK_KLDIV__CHUNK_SIZE": "1024", "DASK_KLDIV__EVALUATE__SLAB_TIME": "2"}
    assert told(stored, **file, **variables) == ["300", "2", "8"]
