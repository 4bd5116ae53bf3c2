"""Tensors of .safetensors files: what is read, and what is refused."""

import json
import os
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from kldiv_dask import kl_div
from kldiv_dask.storage import ChunkReadError, open_array, open_pair, safetensors
from tests.helpers.stores import VALUES, date_later

DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "u2",
    "I16": "i2",
    "U32": "u4",
    "I32": "i4",
    "U64": "u8",
    "I64": "i8",
    "F16": "f2",
    "F32": "f4",
    "F64": "f8",
    "BF16": ml_dtypes.bfloat16,
}


def save(path, tensors, padding=0):
    """Write a file by hand: tensors are (name of the dtype, shape, bytes)."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for key, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode() + b" " * padding
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def path(tmp_path):
    save_file({"scores": VALUES}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def bits(x):
    return x.dtype, x.shape, x.tobytes()


# What is read


@pytest.mark.parametrize("chunks", [None, 3, (4, -1), ((1, 9), (2, 4)), "100 B"])
def test_values(path, chunks):
    x = open_array(path, chunks=chunks)
    for scheduler in "sync", "threads":
        assert bits(x.compute(scheduler=scheduler)) == bits(VALUES)


@pytest.mark.parametrize("padding", range(4))
@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_at_every_address(tmp_path, name, padding):
    """Old files are not padded, so that tensors may begin anywhere."""
    path = tmp_path / "x.safetensors"
    values = VALUES.astype(DTYPES[name])
    save(path, {"before": ("U8", [1], b"x"), "x": (name, [10, 6], values.tobytes())}, padding)
    x = open_array(path, key="x", chunks=(4, 3))
    assert x.dtype == values.dtype
    assert bits(x.compute()) == bits(values)
    chunk = safetensors.open_source(str(path), "x")[2:4, 1:]
    assert chunk.flags.aligned


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_files_of_the_package(tmp_path, dtype):
    path = tmp_path / "x.safetensors"
    tensors = {f"t{i}": (VALUES + i).astype(dtype) for i in range(3)}
    tensors["other"] = np.arange(7, dtype="u1")
    save_file(tensors, path, metadata={"a": "b"})
    for key, values in tensors.items():
        assert bits(open_array(path, key=key).compute()) == bits(values)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1)])
def test_scalar_and_empty_tensors(tmp_path, shape):
    path = tmp_path / "X.SafeTensors"
    values = np.full(shape, 7.0)
    save_file({"x": values}, path)
    assert bits(open_array(path).compute()) == bits(values)


def test_indexing_the_opened_array(path):
    x = open_array(path, chunks=(4, 3))
    for index in (np.s_[1:9:2, 4], np.s_[None, ::-1, -1], np.s_[7], np.s_[2:3, 5]):
        assert np.array_equal(x[index].compute(), VALUES[index])


def test_chunks_are_read_only_views_of_the_file(path):
    chunk = safetensors.open_source(str(path), None)[2:8, 1:5]
    assert chunk.strides == VALUES.strides
    with open(path, "r+b") as file:
        file.seek(-VALUES.nbytes, os.SEEK_END)
        file.write(np.full(60, -1.0).tobytes())
    assert (chunk == -1).all()
    with pytest.raises(ValueError, match="read-only"):
        chunk[0] = 0


def test_pair_of_bfloat16(tmp_path):
    path = tmp_path / "x.safetensors"
    logits = np.random.default_rng(3).standard_normal((2, 8, 50))
    x, t = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(DTYPES["BF16"])
    save_file({"student": x, "teacher": t}, path)
    pair = open_pair(path, path, input_key="student", target_key="teacher", chunks=(3, 20))
    found = kl_div(*pair, reduction="sum", log_target=True, dtype="float64").compute()
    wanted = kl_div(x, t, reduction="sum", log_target=True, dtype="float64").compute()
    assert bits(found) == bits(wanted)
    assert found > 0


def test_handles_pickle_small_and_keys_follow_the_contents(path):
    source = safetensors.open_source(str(path), None)
    assert source == safetensors.open_source(str(path), "scores")
    pickled = pickle.dumps(source)
    assert len(pickled) - len(str(path)) < 400
    assert pickle.loads(pickled) == source  # noqa: S301
    first = open_array(path)
    assert open_array(path).name == first.name
    assert np.array_equal(first.compute(), VALUES)
    save_file({"scores": VALUES + 1}, path)
    date_later(path)
    second = open_array(path)
    assert second.name != first.name
    assert np.array_equal(second.compute(), VALUES + 1)


def test_on_a_cluster(tmp_path, client):
    path = tmp_path / "x.safetensors"
    values = VALUES.astype(ml_dtypes.bfloat16)
    save_file({"x": values}, path)
    x = open_array(path, chunks=(4, 3))
    assert bits(x.compute(scheduler=client)) == bits(values)


# What is refused


def cut(path):
    save_file({"x": VALUES}, path)
    os.truncate(path, os.path.getsize(path) - 8)


def header(length, text):
    return lambda path: path.write_bytes(length.to_bytes(8, "little") + text)


def one(dtype, size):
    return lambda path: save(path, {"x": (dtype, [4], bytes(4 * size))})


NOT_READABLE = r"is not a readable \.safetensors file: .*"
BROKEN = {
    "missing": (lambda path: None, FileNotFoundError, "does not exist"),
    "folder": (lambda path: path.mkdir(), IsADirectoryError, "Is a directory"),
    "empty": (lambda path: path.touch(), ValueError, NOT_READABLE),
    "text": (lambda path: path.write_text("1,2 and 3,4"), ValueError, NOT_READABLE),
    "no JSON": (header(4, b"[{},"), ValueError, NOT_READABLE),
    "huge header": (header(2**63, b"{}"), ValueError, NOT_READABLE),
    "cut header": (header(100, b'{"x"'), ValueError, NOT_READABLE),
    "truncated": (cut, ValueError, NOT_READABLE),
    "bare": (lambda path: save(path, {}), ValueError, "holds 0 tensors; it holds no tensors"),
    "several": (
        lambda path: save_file({f"a{i:02}": VALUES for i in range(12)}, path),
        ValueError,
        "holds 12 tensors; pass key=, one of 'a00', .*'a09' and 2 more$",
    ),
    # Which early versions of the package do not know.
    "complex": (one("C64", 8), (TypeError, ValueError), ":x has dtype complex64|" + NOT_READABLE),
    "float8, other": (
        one("F8_E8M0", 1),
        (TypeError, ValueError),
        "F16, BF16.* got F8_E8M0: save it as BF16 or|" + NOT_READABLE,
    ),
    "float8, narrower": (
        lambda path: save(path, {"x": ("F4", [4], bytes(2))}),
        (TypeError, ValueError),
        "must be of .* got F4: |" + NOT_READABLE,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refused_when_opened(tmp_path, name):
    prepare, error, message = BROKEN[name]
    path = tmp_path / "x.safetensors"
    prepare(path)
    with pytest.raises(error, match=message) as caught:
        open_array(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["q", "", "__metadata__"])
def test_refused_keys(tmp_path, key):
    path = tmp_path / "x.safetensors"
    save(path, {"scores": ("F32", [], bytes(4))})
    message = rf"x\.safetensors:{key} does not exist; pass key=, one of 'scores'"
    with pytest.raises(ValueError, match=message):
        open_array(path, key=key)


def test_refused_urls():
    with pytest.raises(ValueError, match=r"s3://bucket/x\.safetensors is a URL.*must be local"):
        open_array("s3://bucket/x.safetensors")


@pytest.mark.parametrize(
    ("package", "extra"), [("safetensors", "safetensors"), ("ml_dtypes", "bfloat16")]
)
def test_missing_packages_are_named(tmp_path, monkeypatch, package, extra):
    path = tmp_path / "x.safetensors"
    save(path, {"x": ("BF16", [4], bytes(8))})
    monkeypatch.setitem(sys.modules, package, None)
    message = rf'{path} needs the package {package}: pip install "kldiv-dask\[{extra}\]"'
    with pytest.raises(ImportError, match=message):
        open_array(path)


@pytest.mark.parametrize("used", [False, True])
def test_truncated_after_opening(path, used):
    x = open_array(path)
    if used:
        assert np.array_equal(x.compute(), VALUES)
    size = os.path.getsize(path)
    os.truncate(path, size - 8)
    with pytest.raises(ChunkReadError, match=rf"\[0:10, 0:6\].*has {size - 8} bytes") as caught:
        x.compute()
    assert (caught.value.path, caught.value.key) == (str(path), "scores")


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("used", [False, True])
def test_file_of_equal_size_after_opening(tmp_path, path, replace, used):
    x = open_array(path, chunks=(5, -1))
    held = x[:5].compute() if used else None
    written = tmp_path / "new.safetensors" if replace else path
    save_file({"scores": -VALUES}, written)
    date_later(written)
    if replace:
        os.replace(written, path)
    with pytest.raises(ChunkReadError, match=r"\[5:10, 0:6\].*the file was written at .*rsync -t"):
        x[5:].compute()
    if used and replace:
        assert np.array_equal(held, VALUES[:5])  # the map is still of the old file
