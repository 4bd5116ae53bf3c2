"""What data are known by: files behind arrays, base files, and what checkpoints are compared by."""

import os
import warnings
from pathlib import Path

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import xarray
import zarr

import kldiv_dask
from kldiv_dask import Evaluation, EvaluationWarning, compare, evaluate, open_array
from kldiv_dask.evaluation.errors import CheckpointError
from tests.helpers.cases import some_slow
from tests.helpers.doubtful import said

LLAMA = Path(__file__).parent / "data" / "llama"
BASE, Q8, OTHER = (str(LLAMA / f"tiny128.{name}") for name in ("base", "q8_0", "othertext.q"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def named(array, *dims):
    return xarray.DataArray(array, dims=dims)


# Checkpoints


def test_a_checkpoint_of_another_axis():
    x, t = normal(6, 6, 6), normal(6, 6, 6, seed=1)
    said(x, t, checkpoint="run")
    with pytest.raises(CheckpointError, match="of another run: axis was -1, now it is -3"):
        said(x, t, axis=0, checkpoint="run")
    said(x, t, axis=2, checkpoint="run")


def test_a_checkpoint_of_dimensions_in_another_order():
    x, t = (da.from_array(normal(6, 6, 5, seed=i), chunks=3) for i in range(2))
    x = named(x.rechunk((3, 3, 5)), "s", "t", "v")
    t = t.rechunk((3, 3, 5))
    said(x, named(t, "s", "t", "v"), dim="v", checkpoint="run")
    with pytest.raises(CheckpointError, match="dimensions was"):
        said(x, named(t, "t", "s", "v"), dim="v", checkpoint="run")


def rewritten(path, values):
    """Write the chunks of a Zarr array again, and not its metadata."""
    zarr.open_array(path, mode="r+")[:] = values


@pytest.mark.parametrize(
    "wrap",
    [
        lambda a: named(a, "t", "v"),
        lambda a: named(a, "t", "v").transpose("v", "t"),
        lambda a: a[:8],
        lambda a: a.astype("f8"),
    ],
    ids=["DataArray", "transposed", "sliced", "cast"],
)
def test_files_behind_other_arrays(wrap):
    """They are looked at as those of `open_array` are."""
    values = normal(16, 10).astype("f4")
    zarr.create_array("x.zarr", data=values, chunks=(4, 10))
    x = wrap(open_array("x.zarr"))
    axes = {"dim": "v"} if hasattr(x, "dims") else {}
    t = normal(*x.shape, seed=1)
    t = named(t, *x.dims) if axes else t
    said(x, t, checkpoint="run", **axes)
    os.utime("x.zarr/c/0/0", ns=(0, 10**18))
    rewritten("x.zarr", 3 * values)
    with pytest.raises(CheckpointError, match=r"input: .*x\.zarr has changed"):
        said(wrap(open_array("x.zarr")), t, checkpoint="run", **axes)
    Path("x.zarr/c/1/0").unlink()
    _, messages = said(wrap(open_array("x.zarr")), t, **axes)
    assert any(m.startswith("input: 1 stored chunk is not there") for m in messages)


def test_handles_of_stores_have_no_checkpoint():
    zarr.create_array("x.zarr", data=normal(4, 10))
    with h5py.File("x.h5", "w") as file:
        file["x"] = normal(4, 10)
        for handle, name in (zarr.open_array("x.zarr"), "zarr.Array"), (file["x"], "h5py.Dataset"):
            said(handle, normal(4, 10, seed=1))
            with pytest.raises(ValueError, match=f"input is a {name}, of which a checkpoint can't"):
                said(handle, normal(4, 10, seed=1), checkpoint="run")


def test_files_that_could_not_be_looked_at():
    zarr.create_array("x.zarr", data=normal(16, 10), chunks=(1, 10))
    with dask.config.set({"kldiv.files-checked": 5}):
        said("x.zarr", normal(16, 10, seed=1), checkpoint="run")
        _, messages = said("x.zarr", normal(16, 10, seed=1), checkpoint="run")
    assert any("so it is not known whether the others were rewritten" in m for m in messages)


def failing_at(values, *places):
    def fail(block, block_info=None):
        if block_info[0]["chunk-location"][0] in places:
            raise OSError("gone")
        return block

    array = da.from_array(values, chunks=(4, 10))
    return array.map_blocks(fail, dtype="f8", meta=np.empty((0, 0)))


@pytest.mark.filterwarnings("ignore:positions .* are left out")
def test_what_is_adopted_is_compared():
    x, t = normal(16, 10), normal(16, 10, seed=1)
    options = {"checkpoint": "run", "progress": False, "scheduler": "sync"}
    with dask.config.set({"kldiv.slab-size": 4}):
        part = evaluate(failing_at(x, 1), t, on_error="skip", **options)
    with pytest.raises(CheckpointError, match=r"is of other data: positions \[0:4\]"):
        evaluate(7 * x, t, resume="adopt", **options)
    adopted = evaluate(x, t, resume="adopt", **options)
    assert adopted.mean == part.mean
    assert "after comparing" not in adopted.provenance["taken_over"]
    assert "of its slabs were read, to compare" in adopted.provenance["taken_over"]


@pytest.mark.filterwarnings("ignore:positions .* are left out")
def test_nothing_to_compare_is_not_adopted():
    x, t = normal(16, 10), normal(16, 10, seed=1)
    options = {"checkpoint": "run", "progress": False, "scheduler": "sync"}
    with pytest.raises(kldiv_dask.EvaluationError, match="no position"):
        evaluate(failing_at(x, 0, 1, 2, 3), t, on_error="skip", **options)
    with pytest.raises(CheckpointError, match="has nothing to compare with"):
        evaluate(x, t, resume="adopt", **options)


# Base files


@pytest.mark.parametrize(
    "pair",
    [
        (open_array, open_array),
        (str, open_array),
        (open_array, str),
        (lambda path: named(open_array(path), "c", "r", "v"),) * 2,
    ],
    ids=["arrays", "path and array", "array and path", "DataArrays"],
)
def test_base_files_over_different_texts(pair):
    axes = {"dim": "v"} if hasattr(pair[0](BASE), "dims") else {}
    with pytest.raises(ValueError, match="must be of the same text, got token"):
        said(pair[0](OTHER), pair[1](BASE), **axes)
    with pytest.raises(ValueError, match="must be of the same text, got token"):
        said(Q8, BASE, labels=open_array(OTHER, key="labels"))


def test_parts_of_base_files_over_different_texts():
    _, messages = said(open_array(OTHER)[:4], open_array(BASE)[:4])
    assert any("must be of the same text, got token" in m for m in messages)


@pytest.mark.parametrize(
    "wrap", [lambda a: named(a, "c", "r", "v"), lambda a: a[:8]], ids=["DataArray", "sliced"]
)
def test_what_is_made_of_base_files_is_rounded_like_them(wrap):
    wanted, _ = said(Q8, BASE)
    pair = [wrap(open_array(path)) for path in (Q8, BASE)]
    result, messages = said(*pair, **({"dim": "v"} if hasattr(pair[0], "dims") else {}))
    assert messages == []
    assert (result.mean, result.options["kind"]) == (wanted.mean, "log_probs")
    assert result.options["generalized"]


def test_generalized_divergences_are_no_others():
    one, _ = said(Q8, BASE)
    for name, path in (("q", Q8), ("t", BASE)):
        np.save(f"{name}.npy", open_array(path).compute())
    other, _ = said("q.npy", "t.npy", kind="log_probs")
    with pytest.raises(ValueError, match="differ in generalized"):
        compare(one, other)
    with pytest.raises(ValueError, match="differ in generalized"):
        one.merge(other)


# Results


def test_merging_keeps_what_only_the_other_says():
    x, t = normal(4, 8, 20), normal(4, 8, 20, seed=1)
    one, _ = said(x, t)
    other, _ = said(x[:1], t)
    for merged in (one.merge(other), other.merge(one)):
        assert merged.provenance["repeated"].startswith("input, over positions")
    for wrong in (None, "res.kld"):
        with pytest.raises(TypeError, match="others must be Evaluations, got a "):
            one.merge(wrong)
    np.save("x.npy", x)
    with pytest.raises(ValueError, match=r"x\.npy is no result of kldiv-dask"):
        Evaluation.load("x.npy")


def test_sources_are_named_in_provenance():
    np.save("x.npy", normal(4, 10))
    result, _ = said(open_array("x.npy"), normal(4, 10, seed=1))
    assert result.provenance["input"] == os.path.abspath("x.npy")


# Arrays by position


@pytest.mark.parametrize("name", ["labels", "groups", "where"])
def test_chunks_of_small_arrays_that_are_not_there(name):
    dtype = "bool" if name == "where" else "i4"
    small = zarr.create_array("small.zarr", shape=(8,), chunks=(2,), dtype=dtype)
    small[:4] = 1
    x, t = normal(8, 10), normal(8, 10, seed=1)
    result, messages = said(x, t, **{name: "small.zarr"})
    text = f"{name}: 2 stored chunks are not there: never written, or all equal to the fill value 0"
    assert [one["operand"] for one in result.missing] == [name]
    assert text in str(result).replace("\n  ", " ")
    # Masks that are False in whole chunks are nothing unusual.
    assert any(text in one for one in messages) == (name != "where")
    if name == "labels":
        _, messages = said(x, t, labels="small.zarr", where=np.arange(8) < 4)
        assert messages == []


# What is equal


def test_equal_arrays_by_any_way():
    x = normal(4, 8, 10)
    group = zarr.open_group("g.zarr", mode="w")
    group.create_array("a", data=x)
    np.save("x.npy", x)
    Path("copy.npy").write_bytes(Path("x.npy").read_bytes())
    os.link("x.npy", "link.npy")
    lazy = da.from_array(x, chunks=(2, 8, 10))
    dims = ("s", "t", "v")
    ways = [
        ("g.zarr", "g.zarr/a", {"input_key": "a"}),
        (x, x[:], {}),
        ("x.npy", "copy.npy", {}),
        ("x.npy", "link.npy", {}),
        (named(lazy, *dims), named(lazy, *dims), {"dim": "v"}),
    ]
    for one, other, options in ways:
        result, (message,) = said(one, other, **options)
        assert (
            message
            == "input and target are equal at all positions, as if one array was given twice"
        )
        assert result.doubts() == [message]
        assert message in str(result)


def test_nothing_and_nan():
    x, t = normal(4, 10), normal(4, 10, seed=1)
    assert said(x, t, where=np.zeros(4, bool))[1] == ["no position is included"]
    assert "the divergence is NaN at all positions" in said(x * np.nan, t)[1]


@pytest.mark.parametrize("dtype", some_slow("f4", "f8", "f2"))
def test_uniform_distributions_are_no_constant_rows(dtype):
    p = np.exp(normal(8, 10))
    p /= p.sum(-1, keepdims=True)
    uniform = np.full((8, 10), 0.1)
    for kind, q, given in (("probs", uniform, p), ("log_probs", np.log(uniform), np.log(p))):
        result, messages = said(q.astype(dtype), given.astype(dtype), kind=kind)
        assert messages == []
        assert result.checks["input_constant"]["count"] == 0
    _, messages = said(0 * p.astype(dtype), p.astype(dtype), kind="probs")
    assert any(one.startswith("8 rows of input are constant") for one in messages)


@pytest.mark.parametrize("dtype", some_slow("f4", "f8", "f2", "bf16"))
def test_flat_probabilities_are_no_log_probabilities(dtype):
    import ml_dtypes

    p = np.exp(normal(20, 3200))
    p = (p / p.sum(-1, keepdims=True)).astype(ml_dtypes.bfloat16 if dtype == "bf16" else dtype)
    _, messages = said(p[::-1], p, kind="log_probs")
    assert messages[0].startswith("input and target look like probabilities, not log-probabilities")


def test_log_probabilities_that_do_not_sum_to_one():
    x, t = normal(50, 100), normal(50, 100, seed=1)
    pair = [a - a.max(-1, keepdims=True) for a in (x, t)]
    _, messages = said(*pair, kind="log_probs")
    assert sum("rows of input have probabilities that do not sum to 1" in m for m in messages) == 1
    log10 = [(a - np.log(np.exp(a).sum(-1, keepdims=True))) / np.log(10) for a in (x, t)]
    _, messages = said(*log10, kind="log_probs")
    assert sum("logarithms to another base than e" in m for m in messages) == 2


def test_a_negative_mean_beside_an_infinite_one():
    p = np.array([[0.5, 0.5, 0], [0.4, 0.6, 0], [0.3, 0.7, 0], [0.3, 0.3, 0.4]])
    q = p.copy()
    q[:3, :2] *= 1.00001
    q[3] = 0.5, 0.5, 0
    result, messages = said(q, p, kind="probs")
    assert result.mean == np.inf
    assert any(one.startswith("the mean of the finite divergences is -") for one in messages)


def test_version():
    assert kldiv_dask.__version__[0].isdigit()
    with warnings.catch_warnings():
        warnings.simplefilter("error", EvaluationWarning)
        assert "__version__" not in kldiv_dask.__all__
