"""Data that are not what they are said to be: what is said of them, and that it is said."""

import os
import re
import warnings
from pathlib import Path

import dask.array as da
import h5py
import numpy as np
import pytest
import xarray
import zarr
from scipy.special import softmax

from kldiv_dask import (
    Evaluation,
    EvaluationError,
    KLDivergence,
    kl_div,
    kl_div_with_logits,
    kl_div_with_logits_summary,
    open_pair,
)
from kldiv_dask.storage import ChunkReadError
from tests.helpers.cases import some_slow
from tests.helpers.commands import call
from tests.helpers.doubtful import MEAN, S, T, said

ONE_ARRAY = "input and target are equal at all positions, as if one array was given twice"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_good_data():
    result, messages = said(S, T)
    assert (result.mean, messages) == (pytest.approx(MEAN, rel=1e-7), [])
    assert "data checks: nothing found" in str(result)


# Chunks that were never written


def partly_written(kind, name, values):
    """Store an array in chunks of one sequence, of which only two are written."""
    if kind == "hdf5":
        with h5py.File(f"{name}.h5", "w") as file:
            array = file.create_dataset("x", shape=values.shape, chunks=(1, 16, 40), dtype="f4")
            array[:2] = values[:2]
        return f"{name}.h5"
    options = {"zarr_format": 2 if kind == "zarr2" else 3}
    chunks = {"chunks": (1, 16, 40)}
    if kind == "sharded":
        chunks = {"chunks": (1, 8, 40), "shards": (4, 16, 40)}
    array = zarr.create_array(
        f"{name}.zarr", shape=values.shape, dtype="f4", fill_value=0, **chunks, **options
    )
    array[:2] = values[:2]
    return f"{name}.zarr"


@pytest.mark.parametrize("kind", some_slow("sharded", "zarr3", "zarr2", "hdf5"))
def test_chunks_that_were_never_written(kind, capsys):
    paths = [partly_written(kind, name, a) for name, a in (("s", S), ("t", T))]
    result, messages = said(*paths)
    assert result.mean < MEAN / 4
    chunks = 12 if kind == "sharded" else 6
    if kind == "sharded":  # a shard of four sequences is not there, and half of the other
        chunks = 1 + 4
    for name, path in zip(("input", "target"), paths, strict=True):
        pattern = rf"{name}: {chunks} stored chunks are not there: .* fill value 0, first at \["
        assert any(re.match(rf"{pattern}.*{path}", one) for one in messages), messages
        constant = f"96 rows of {name} are constant, all classes being equal, as where data were"
        assert any(one.startswith(constant) for one in messages)
        assert result.checks[f"{name}_constant"]["count"] == 96
    assert [one["chunks"] for one in result.missing] == [chunks, chunks]
    assert "data checks: nothing found" not in str(result)
    assert str(result).count("! ") == 4
    # What is left out by a mask, such as padding, may be missing.
    written = (np.arange(8) < 2)[:, None]
    for where in written, da.from_array(written, chunks=3):
        result, messages = said(*paths, where=where)
        assert (result.missing, messages) == ([], [])
    np.save("where.npy", written)
    code, _, err = call(capsys, *paths, "--kind", "logits", "--where", "where.npy")
    assert (code, err) == (0, [])
    code, _, err = call(capsys, *paths, "--kind", "logits")
    assert code == 0
    assert sum("stored chunks are not there: never written" in line for line in err) == 2


@pytest.mark.parametrize("damage", ["link", "directory"])
def test_a_chunk_that_is_no_file(damage):
    for name, values in (("s", S), ("t", T)):
        zarr.create_array(f"{name}.zarr", data=values, chunks=(1, 16, 40))
    chunk = Path("t.zarr/c/3/0/0")
    chunk.unlink()
    chunk.mkdir() if damage == "directory" else chunk.symlink_to("gone")
    message = r"t\.zarr/c/3/0/0 must be a file, got a (directory|link to nothing)"
    with pytest.raises(ValueError, match=message):
        said("s.zarr", "t.zarr")
    lazy = kl_div_with_logits(*open_pair("s.zarr", "t.zarr"))
    with pytest.raises(ChunkReadError, match=message):
        lazy.compute(scheduler="sync")


def test_one_and_the_same_array(capsys):
    np.save("t.npy", T)
    Path("link.npy").symlink_to("t.npy")
    for pair in ((T, T), ("t.npy", "t.npy"), ("t.npy", "link.npy"), [da.from_array(T)] * 2):
        assert said(*pair)[1] == [ONE_ARRAY]
    code, _, (line,) = call(capsys, "t.npy", "link.npy", "--kind", "logits")
    assert (code, line) == (0, f"warning: {ONE_ARRAY}")


@pytest.mark.parametrize("side", ["input", "target"])
def test_constant_rows(side):
    operands = {"input": S.copy(), "target": T.copy()}
    operands[side][3, 5:7] = 1.5
    mask = np.ones((8, 16), bool)
    mask[3, 5] = False
    result, (message,) = said(**operands, where=mask)
    assert message.startswith(f"1 row of {side} is constant")
    assert result.checks[f"{side}_constant"] == {"count": 1, "first": [[3, 6]]}


# Every position with every other


@pytest.mark.parametrize("shapes", [((8,), (8, 1)), ((1, 8), (8, 1)), ((3, 1, 2), (4, 1))])
def test_both_repeated(shapes, capsys):
    x, t = (np.random.default_rng(i).normal(size=(*s, 50)) for i, s in enumerate(shapes))
    message = "so both would be repeated and each position of one compared with every one"
    running = KLDivergence("logits")
    for run in (said, kl_div_with_logits, kl_div_with_logits_summary, running.update):
        with pytest.raises(ValueError, match=message):
            run(x, t)
    np.save("x.npy", x)
    np.save("t.npy", t)
    for command in (["--kind", "logits"], []):
        name = "compute" if command else "evaluate"
        code, _, (line,) = call(capsys, "x.npy", "t.npy", *command, command=name)
        assert code == 2
        assert message in line
    # torch's function broadcasts both.
    assert kl_div(x, t, reduction="none").shape == (*np.broadcast_shapes(*shapes), 50)


@pytest.mark.parametrize("shape", some_slow((40,), (1, 40), (1, 16, 40)))
def test_one_repeated(shape, capsys):
    target = T[:1].reshape(-1, 40)[: int(np.prod(shape)) // 40].reshape(shape)
    result, messages = said(S, target)
    assert messages == []
    assert result.provenance["repeated"] == "target, over positions of shape (8, 16)"
    assert "  repeated: target, over positions of shape (8, 16)" in str(result)
    np.save("s.npy", S)
    np.save("t.npy", target)
    _, out, err = call(capsys, "s.npy", "t.npy", "--kind", "logits", "--json")
    assert err == []
    assert '"repeated": "target"' in out


# Huge but finite


@pytest.mark.parametrize("value", [-1e160, -1e300, np.finfo(float).min, 1e200])
@pytest.mark.parametrize("shape", [(128, 40), (8, 16, 40)])
def test_huge_logits(value, shape):
    input, target = (a.astype("f8").reshape(shape) for a in (S, T))
    input.reshape(-1, 40)[5, 3] = value
    result, messages = said(input, target, labels=np.zeros(shape[:-1], int))
    assert messages == []
    p = softmax(target.reshape(-1, 40)[5])
    expected = abs(value) * (p[3] if value < 0 else 1 - p[3])
    assert result.overall.max == pytest.approx(expected, rel=1e-12)
    assert result.mean == pytest.approx(expected / 128, rel=1e-12)
    # The standard error of one huge number among 128, each of which, or 16, is a cluster.
    clusters = 128 if len(shape) == 2 else 8
    one = expected / 128
    assert result.overall.standard_error_clustered == pytest.approx(one, rel=1e-9)
    assert result.overall.clusters == clusters
    assert result.overall.standard_error in (pytest.approx(one, rel=1e-9), np.inf) or np.isnan(
        result.overall.standard_error
    )
    result.to_json()
    assert str(result)


# Intervals


def test_one_axis_of_positions_is_no_sequences():
    """Twenty texts, flattened: neighbors are alike, and nobody can know where a text ends."""
    r = np.random.default_rng(3)
    hard = np.repeat(r.exponential(size=20), 250)[:, None]
    t = r.normal(size=(5000, 8))
    s = t + hard * r.normal(size=t.shape)
    flat, _ = said(s, t)
    assert flat.clustering == {"of": "positions", "count": 5000, "each": 5}
    text = str(flat)
    assert "sequences" not in text
    assert "clustered by 1,000 runs of 5 neighboring positions" in text.splitlines()[0]
    assert "too narrow if texts are longer than a run" in text.replace("\n  ", " ")
    whole, _ = said(s.reshape(20, 250, 8), t.reshape(20, 250, 8))
    assert "clustered by 20 sequences" in str(whole).splitlines()[0]
    ratio = whole.overall.standard_error_clustered / flat.overall.standard_error_clustered
    assert ratio > 4
    for one in (flat, whole):
        assert "(too small where neighbors are alike)" in str(one)


def test_more_sequences_than_clusters():
    r = np.random.default_rng(4)
    t = r.normal(size=(2500, 2, 3))
    result, _ = said(t + 0.1, t * 1.1)
    assert result.clustering == {"of": "sequences", "count": 2500, "each": 3}
    assert "clustered by 834 runs of 3 neighboring sequences" in str(result).splitlines()[0]


def test_independent_positions():
    result, _ = said(S[0], T[0])
    text = " ".join(str(result).split())
    assert "if positions are independent, which neighbors seldom are)" in text


# Values that stand for missing ones


@pytest.mark.parametrize("form", [2, 3])
def test_fill_values_of_cf(form):
    """-9999 is no logit where the attributes say so: the position is NaN, as xarray has it."""
    values = S.copy()
    values[2, 3, 4] = np.nan
    dims = ("text", "token", "class")
    data = xarray.Dataset({"s": (dims, values), "t": (dims, T)})
    encoding = {"s": {"_FillValue": np.float32(-9999)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.to_zarr("both.zarr", zarr_format=form, encoding=encoding, consolidated=False)
    assert (zarr.open("both.zarr", mode="r")["s"][2, 3, 4]) == -9999
    result, messages = said("both.zarr", "both.zarr", input_key="s", target_key="t")
    assert messages == []
    assert result.checks["nan"] == {"count": 1, "first": [[2, 3]]}
    assert abs(result.overall.mean_of_finite - MEAN) < 1e-4


# Files that change


def test_a_file_that_is_replaced_during_the_run():
    for name, values in (("s", S), ("t", T)):
        np.save(f"{name}.npy", values)
    x, t = open_pair("s.npy", "t.npy", chunks=(1, -1, -1))
    calls = []

    def replace(block):
        calls.append(0)
        if len(calls) == 3:
            np.save("new.npy", S + 1)
            os.utime("new.npy", ns=(0, 10**18))
            os.replace("new.npy", "s.npy")
        return block

    watched = t.map_blocks(replace, meta=np.empty((0, 0, 0), "f4"))
    with pytest.raises(EvaluationError, match=r"s\.npy.*the file was written at 2001-09-09"):
        said(x, watched)


def test_a_store_that_is_rewritten_during_the_run(capsys):
    """Every read succeeds; that the chunks are others is seen at the end."""
    for name, values in (("s", S), ("t", T)):
        zarr.create_array(f"{name}.zarr", data=values, chunks=(1, 16, 40))
    x, t = open_pair("s.zarr", "t.zarr", chunks=(1, -1, -1))

    def touch(block):
        os.utime("s.zarr/c/7/0/0", ns=(0, 10**18))
        return block

    watched = t.map_blocks(touch, meta=np.empty((0, 0, 0), "f4"))
    with pytest.raises(
        EvaluationError, match=r"input was changed while it was read, .*s\.zarr has"
    ):
        said(x, watched)


def test_results_carry_fingerprints_of_contents(folder):
    """Of what is read, whatever its chunks, layout and path; not of another order."""
    np.save("s.npy", S)
    zarr.create_array("t.zarr", data=T, chunks=(3, 5, 7))
    wanted = said(S, T)[0].fingerprints
    for pair in (
        ("s.npy", "t.zarr"),
        (np.asfortranarray(S), da.from_array(T, chunks=(1, 3, 9))),
        (S.astype(">f4"), T),
    ):
        assert said(*pair)[0].fingerprints == wanted
    parts = [said(S[rows], T[rows])[0] for rows in (np.s_[:3], np.s_[3:4], np.s_[4:])]
    assert parts[0].merge(*parts[1:]).fingerprints == wanted
    assert said(T, S)[0].fingerprints == wanted | {
        "input": wanted["target"],
        "target": wanted["input"],
    }
    changed = T.copy()
    changed[7, 15, 39] = np.nextafter(changed[7, 15, 39], np.float32(9))
    swapped = T.copy()
    swapped[[2, 3]] = T[[3, 2]]
    classes = T.copy()
    classes[1, 1, [4, 36]] = T[1, 1, [36, 4]]
    for other in (changed, swapped, classes):
        found = said(S, other)[0].fingerprints
        assert found["target"] != wanted["target"]
        assert (found["input"], found["positions"]) == (wanted["input"], wanted["positions"])
    said(S, T)[0].save("result")
    assert Evaluation.load("result").fingerprints == wanted


def test_chunk_read_errors_of_kl_div_too():
    np.save("s.npy", S)
    np.save("t.npy", T)
    x, t = open_pair("s.npy", "t.npy")
    lazy = kl_div_with_logits(x, t)
    os.utime("t.npy", ns=(0, 10**18))
    with pytest.raises(ChunkReadError, match=r"t\.npy.*was written at 2001.*cp -p, rsync -t"):
        lazy.compute(scheduler="sync")
