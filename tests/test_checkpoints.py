"""Checkpoints that don't fit, and evaluations of data that can't be read."""

import re

import dask
import numpy as np
import pytest

from kldiv_dask import EvaluationError, EvaluationWarning, evaluate
from kldiv_dask.evaluation import checkpoint
from kldiv_dask.evaluation.errors import CheckpointError
from tests.helpers.evaluations import same_bits
from tests.helpers.resumable import GROUPS, LABELS, VALUES, Countdown, go, load, positions_of
from tests.helpers.stores import chunk_files, write


@pytest.fixture(autouse=True)
def small_slabs():
    with dask.config.set({"kldiv.evaluate.slab-time": 0}):
        yield


@pytest.fixture(scope="module")
def undisturbed():
    return go().state


# Checkpoints that don't fit


def flip(content):
    return content[:-200] + bytes([content[-200] ^ 1]) + content[-199:]


DAMAGES = {
    "truncated": (lambda content: content[:-1], "is damaged: its content does not have the digest"),
    "flipped": (flip, "is damaged: its content does not have the digest"),
    "longer": (lambda content: content + b"\0", "is damaged: its content does not have the digest"),
    "foreign": (lambda content: b"\x93NUMPY\1\0" + content, "is no checkpoint of kldiv-dask"),
    "empty": (lambda content: b"", "is no checkpoint of kldiv-dask"),
    "newer": (
        lambda content: re.sub(rb"point \d+ ", b"point 9 ", content, count=1),
        "has layout 9, which anoth",
    ),
}


@pytest.fixture
def half(tmp_path):
    """The checkpoint of a run that failed half way."""
    with pytest.raises(EvaluationError):
        go(tmp_path / "half", before=Countdown(13, OSError("no such row")))
    assert 0 < positions_of(load(tmp_path / "half")[0]) < 24 * 3
    return tmp_path / "half"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints(half, undisturbed, damage):
    change, message = DAMAGES[damage]
    content = change(half.read_bytes())
    half.write_bytes(content)
    with pytest.raises(ValueError, match=f"checkpoint {half} {message}"):
        go(half)
    assert half.read_bytes() == content
    same_bits(go(half, resume=False).state, undisturbed)


def test_every_flipped_bit_of_the_first_line(half):
    content = half.read_bytes()
    for place in range(content.index(b"\n") + 1):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            with pytest.raises(ValueError, match=r"^half (is no checkpoint|is damaged|has layout)"):
                checkpoint.loads(bytes(damaged), "half")


CHANGES = {
    "labels": {"labels": LABELS.T.copy().T[::-1]},
    "groups": {"groups": None},
    "where": {"where": np.ones(3, bool)},
    "temperature": {"temperature": 2.0},
    "kind": {"kind": "log_probs"},
    "cluster_axis": {"cluster_axis": 1},
    "computed_in": {},
    "input": {},
    "target": {},
}


WAS = " was .*, now it is"
OTHER = (
    " is another ndarray of .*, or has other contents; if the data were only moved, .*resume='ad"
)
CHANGED = {
    "labels": OTHER,
    "input": OTHER,
    "target": OTHER,
    "groups": ": there is none now",
    "where": ": there was none, now there is",
}


@pytest.mark.parametrize("name", CHANGES)
def test_checkpoints_of_other_runs(tmp_path, name):
    path = tmp_path / "run"
    given = {"scheduler": "sync", "progress": False, "checkpoint": path}
    if name in ("input", "target", "computed_in"):
        pair = {"input": VALUES[0].astype("f4"), "target": VALUES[1].astype("f4")}
        evaluate(**pair, **given)
        options = {"dtype": "float64"} if name == "computed_in" else {name: pair[name] + 1}

        def other():
            evaluate(**pair | options, **given)

    else:
        go(path)

        def other():
            go(path, **CHANGES[name])

    content = path.read_bytes()
    with pytest.raises(
        ValueError, match=f"{path} is of another run: {name}{CHANGED.get(name, WAS)}"
    ):
        other()
    assert path.read_bytes() == content


def test_results_are_no_checkpoints(tmp_path):
    go().save(tmp_path / "result")
    with pytest.raises(ValueError, match="result is the result of a run, not its checkpoint"):
        go(tmp_path / "result")


def test_finished_runs_read_nothing(tmp_path, undisturbed):
    go(tmp_path / "run")
    again = go(tmp_path / "run", before=Countdown(1, AssertionError("read")))
    same_bits(again.state, undisturbed)


# What can't be read

BROKEN = "c/2/0/0"
CHUNKS = (4, 3, 5)


@pytest.fixture
def stored(tmp_path):
    """A pair of Zarr arrays in 6 chunks, and a file of one of them."""
    paths = [
        write(tmp_path, "zarr3", values, chunks=CHUNKS, name=name)[0]
        for values, name in zip(VALUES, ("student", "teacher"), strict=True)
    ]
    (file,) = (file for file in chunk_files(paths[0]) if str(file).endswith(BROKEN))
    return paths, file


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_chunks_that_are_left_out(stored, tmp_path, scheduler):
    paths, file = stored
    file.write_bytes(b"garbage")
    options = {"progress": False, "scheduler": scheduler, "labels": LABELS, "groups": GROUPS}
    options["chunks"] = CHUNKS
    message = r"positions \[8:12, 0:3\] are left out: .*student\.zarr \[8:12, 0:3, 0:5\] could not"
    with pytest.warns(EvaluationWarning, match=message):
        found = evaluate(*paths, on_error="skip", checkpoint=tmp_path / "run", **options)
    masked = evaluate(*VALUES, where=(np.arange(24) // 4 != 2)[:, None], **options)
    assert found.count == masked.count == 60
    same_bits(found.state._replace(groups=masked.state.groups), masked.state)
    (skipped,) = found.skipped
    assert (skipped["region"], skipped["positions"]) == ([[8, 12], [0, 3]], 12)
    assert "student.zarr [8:12, 0:3, 0:5] could not be read" in skipped["error"]
    again = evaluate(*paths, on_error="skip", checkpoint=tmp_path / "run", **options)
    assert again.skipped == found.skipped
    same_bits(again.state, found.state)


def test_chunks_that_fail(stored, tmp_path):
    paths, file = stored
    content = file.read_bytes()
    file.write_bytes(b"garbage")
    options = {"progress": False, "scheduler": "sync", "checkpoint": tmp_path / "run"}
    options["chunks"] = CHUNKS
    for _ in range(2):
        with pytest.raises(
            EvaluationError, match=r"positions \[8:.*, 0:3\] failed: .*student\.zarr"
        ):
            evaluate(*paths, **options)
        header, _ = load(tmp_path / "run")
        assert positions_of(header) <= 24
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"input: .*student\.zarr has changed: .*c/2/0/0"):
        evaluate(*paths, **options)
    whole = evaluate(*VALUES, progress=False, scheduler="sync")
    same_bits(evaluate(*paths, resume="adopt", **options).state, whole.state)


def test_nothing_can_be_read(stored):
    paths, _ = stored
    for file in chunk_files(paths[0]):
        file.write_bytes(b"garbage")
    with (
        pytest.warns(EvaluationWarning, match="are left out"),
        pytest.raises(EvaluationError, match="no position could be evaluated"),
    ):
        evaluate(*paths, progress=False, scheduler="sync", on_error="skip", chunks=CHUNKS)
