"""What is accepted as an array, and the one line that refuses anything else."""

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import zarr

from kldiv_dask import (
    Evaluation,
    KLDivergence,
    evaluate,
    kl_div,
    kl_div_summary,
    kl_div_with_logits,
)
from tests.helpers.cases import some_slow
from tests.helpers.commands import call
from tests.test_operands import without_expressions

X, T = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("f4")
NAMES = ["a", "b", "a", "é", "b", "é"]
NUMBERS = [1, 2, 1, 3, 2, 3]
MASK = np.array([1, 0, 1, 1, 0, 1])


def evaluated(x=X, t=T, **options):
    return evaluate(x, t, progress=False, **options)


def lazily(array):
    return da.from_array(array, chunks=2)


# Groups


def groups_of_strings():
    array = np.array(NAMES)
    series = pd.Series(NAMES)
    encoded = np.char.encode(array, "utf-8")
    return {
        "list": NAMES,
        "bytes": encoded,
        "objects": array.astype(object),
        "objects of bytes": encoded.astype(object),
        "column": pd.DataFrame({"g": NAMES})["g"],
        "column of objects": series.astype(object),
        "column of strings": series.astype("string"),
        "column of categories": series.astype("category"),
        "categories": pd.Categorical(NAMES),
        "lazy bytes": lazily(encoded),
        "lazy objects": lazily(array.astype(object)),
        "lazy strings": lazily(array),
        **({"StringDType": array.astype(np.dtypes.StringDType())} if STRINGS else {}),
    }


STRINGS = hasattr(np.dtypes, "StringDType")


@pytest.mark.parametrize("name", some_slow(*groups_of_strings()))
def test_groups_of_strings(name, tmp_path):
    found = evaluated(groups=groups_of_strings()[name])
    wanted = evaluated(groups=np.array(NAMES))
    assert found.groups == wanted.groups
    assert list(found.groups) == ["a", "b", "é"]
    assert "é" in str(found)
    found.to_json(tmp_path / "r.json")
    found.save(tmp_path / "r")
    assert Evaluation.load(tmp_path / "r").groups == wanted.groups


@pytest.mark.parametrize(
    "groups",
    [
        NUMBERS,
        np.array(NUMBERS, object),
        pd.Series(NUMBERS, dtype="Int64"),
        pd.Series(NUMBERS, dtype="category"),
        np.array(NUMBERS, "u8"),
        lazily(np.array(NUMBERS, object)),
    ],
)
def test_groups_of_integers(groups, tmp_path):
    found = evaluated(groups=groups)
    assert found.groups == evaluated(groups=np.array(NUMBERS)).groups
    found.to_json(tmp_path / "r.json")
    found.save(tmp_path / "r")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            ["a", 1, "b", 2, "c", 3],
            "groups must be .*, all of one kind, got objects of type int, str",
        ),
        ([b"a", "a"] * 3, "groups must be .*, all of one kind, got objects of type bytes, str"),
        ([True, 1] * 3, "groups must be .*, all of one kind, got objects of type bool, int"),
        ([1.5] * 6, "groups must be .*, all of one kind, got objects of type float"),
        ([2**70] * 6, "groups must be .*, all of one kind, got objects of type int"),
        (["a", None] * 3, r"groups must be integers, booleans or strings, got None at \(1,\)"),
        (pd.Series(["a", None] * 3, dtype="string"), r"groups must be .*, got <NA> at \(1,\)"),
        (pd.Series(["a", None] * 3, dtype="category"), r"groups must be .*, got nan at \(1,\)"),
        (np.array([b"\xff"] * 6), "groups has bytes that are no UTF-8: "),
        (lazily(np.array([b"\xff"] * 6)), "groups has bytes that are no UTF-8: "),
        (lazily(np.array(["a", None] * 3, object)), r"groups must be .*, got None at \(1,\)"),
        (np.arange(6.0), "groups must be integers, booleans or strings, got dtype float64"),
        ([["a"], ["b", "c"]], "groups must be .*, all of one kind, got objects of type list"),
    ],
)
def test_groups_that_are_refused(groups, message):
    with pytest.raises(Exception, match=message) as caught:
        evaluated(groups=groups)
    assert isinstance(caught.value, ValueError | TypeError | RuntimeError)


# Labels


def test_labels():
    labels = [0, 1, 2, 3, 4, -100]
    wanted = evaluated(labels=np.array(labels)).overall
    assert wanted == evaluated(labels=np.array(labels, object)).overall
    assert wanted == evaluated(labels=pd.Series(labels, dtype="Int64")).overall
    for kind in ("u1", "u8"):
        some = evaluated(labels=np.arange(6, dtype=kind) % 5).overall
        assert some == evaluated(labels=np.arange(6) % 5).overall


@pytest.mark.parametrize("wrap", [np.asarray, lazily])
def test_labels_beyond_integers_are_no_missing_ones(wrap):
    """2**64 - 100 would be -100 in int64: a position without a label."""
    with pytest.raises(
        Exception, match="labels must be classes, or -100 for none, got 18446744073709551516"
    ):
        evaluated(labels=wrap(np.full(6, 2**64 - 100, "u8")))
    with pytest.raises(ValueError, match=r"labels must be integers, got .* at \(2,\)"):
        evaluated(labels=pd.Series([0, 1, None, 1, 2, 3], dtype="Int64").astype(object))


# Masks


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.astype("u1"),
        MASK.tolist(),
        MASK.astype(object),
        MASK.astype(bool).astype(object),
        pd.Series(MASK),
        pd.Series(MASK, dtype="boolean"),
        lazily(MASK),
        zarr.array(MASK),
    ],
)
def test_masks_of_zeros_and_ones(mask):
    wanted = MASK > 0
    assert evaluated(where=mask).overall == evaluated(where=wanted).overall
    value = kl_div_with_logits(X, T, where=wanted).compute()
    assert kl_div_with_logits(X, T, where=mask).compute() == value
    batches = KLDivergence("logits")
    batches.update(X, T, where=mask)
    assert batches.compute() == value
    pair, wide = (X.T, abs(T.T)), {"reduction": "sum", "axis": 0}
    one, other = (kl_div(*pair, where=said, **wide).compute() for said in (mask, wanted))
    assert (one == other).all()
    assert kl_div_summary(*pair, where=mask).compute().numel == 20


def test_a_mask_of_one_number():
    assert kl_div_summary(X, abs(T), where=1).compute().numel == 30
    assert kl_div_summary(X, abs(T), where=0).compute().numel == 0


@pytest.mark.parametrize("number", [2, -1])
def test_other_numbers_are_no_masks(number):
    message = f"where must be booleans, or integers of 0 and 1, got {number}"
    for function in (evaluated, kl_div_with_logits):
        with pytest.raises(ValueError, match=message):
            function(X, T, where=MASK * number)
    lazy = kl_div_with_logits(X, T, where=lazily(MASK * number))  # not known before it is read
    with pytest.raises(ValueError, match=message):
        lazy.compute()
    with pytest.raises(RuntimeError, match=message):
        evaluated(where=lazily(MASK * number))


def test_masks_of_the_command(tmp_path, monkeypatch, capsys, client):
    monkeypatch.chdir(tmp_path)
    zarr.create_group("said.zarr").create_array("deep/mask", data=MASK.astype("u1"))
    for name, array in {"x": X, "t": T, "twos": 2 * MASK}.items():
        np.save(f"{name}.npy", array)
    options = "x.npy", "t.npy", "--kind", "logits", "--scheduler", client.scheduler.address
    found = call(capsys, *options, "--where", "said.zarr", "--where-key", "deep/mask")
    wanted = kl_div_with_logits(X, T, where=MASK > 0).compute()
    assert found == (0, f"{np.float32(wanted)!s}\n", [])
    code, out, (line,) = call(capsys, *options, "--where", "twos.npy")
    assert (code, out) == (1, "")
    assert line.endswith("where must be booleans, or integers of 0 and 1, got 2")
    code, out, (line,) = call(capsys, *options, "--where-key", "mask")
    assert (code, out) == (2, "")
    assert line == "Error: --where-key is 'mask', and there is no --where"


# Temperature


@pytest.mark.parametrize("digits", [400, 5000])
def test_temperatures_beyond_float64(digits):
    temperature = 10**digits
    message = "^temperature must be a positive finite number, got one beyond float64$"
    for function in (
        lambda: kl_div_with_logits(X, T, temperature=temperature),
        lambda: KLDivergence("logits", temperature=temperature),
        lambda: evaluated(temperature=temperature),
    ):
        with pytest.raises(ValueError, match=message):
            function()
    with pytest.raises(ValueError, match=r"temperature must be .*, got nan"):
        kl_div_with_logits(X, T, temperature=float("nan"))


# Operands

FUNCTIONS = {
    "kl_div": lambda x, t: kl_div(x, t, reduction="sum").compute(),
    "kl_div_with_logits": lambda x, t: kl_div_with_logits(x, t).compute(),
    "evaluate": lambda x, t: evaluated(x, t).mean,
    "KLDivergence": lambda x, t: KLDivergence("logits").update(x, t),
}
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@each_function
def test_what_numpy_takes_is_taken(function, tmp_path):
    pair = X.astype("f8"), abs(T).astype("f8")
    mapped = np.memmap(tmp_path / "x", "f8", "w+", shape=X.shape)
    mapped[:] = X
    wanted = function(*pair)
    for x in (pair[0].tolist(), tuple(pair[0]), mapped, pd.DataFrame(pair[0]), zarr.array(pair[0])):
        assert function(x, pair[1]) == wanted


@each_function
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            X.astype(object),
            r"got object; convert it, as input.astype\('float32'\)",
        ),
        (pd.DataFrame(X).astype("Float32"), "the dtype of input must be one of .*, got object"),
        (None, "the dtype of input must be one of .*, got object"),
        (
            np.ma.masked_less(X, 0),
            r"input must .*, got MaskedArray; pass np.ma.getdata\(input\), and",
        ),
        ([[1.0], [1.0, 2.0]], "input must be an array, got a list: "),
    ],
)
def test_operands_that_are_refused(function, x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        function(x, T)


@each_function
@pytest.mark.parametrize("axis", ["index", "columns"])
def test_frames_of_other_labels_are_refused(function, axis):
    x, t = pd.DataFrame(X), pd.DataFrame(abs(T))
    wanted = function(x, t)
    other = t.set_axis(getattr(t, axis)[::-1], axis=axis)
    with pytest.raises(
        ValueError, match=f"target must have the labels of input in its {axis}, in the same order"
    ):
        function(x, other)
    assert str(function(x, other.to_numpy())) == str(wanted)


def test_rows_of_pandas_are_not_paired_by_position_alone():
    frame = pd.DataFrame(X)
    with pytest.raises(ValueError, match="groups must have the labels of input in its index"):
        evaluated(frame, T, groups=pd.Series(NAMES)[::-1])
    found = evaluated(frame, T, groups=pd.Series(NAMES)[::-1].to_numpy())
    assert found.groups["a"].count == 2


@without_expressions
def test_unknown_lengths_are_said_to_be_so():
    unknown = da.from_array(X, chunks=(2, 5))
    with dask.config.set({"array.slicing.split-large-chunks": False}):
        unknown = unknown[da.from_array(np.ones(6, bool), chunks=2)]
    message = r"unknown chunk sizes; .*or to_dask_array\(lengths=True\) on a dataframe"
    with pytest.raises(ValueError, match=message):
        evaluated(unknown[:, 0], T[:, 0])
