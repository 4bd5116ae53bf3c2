"""Base files of llama.cpp: what is read."""

import pickle

import dask.array as da
import numpy as np
import pytest

from kldiv_dask import kl_div
from kldiv_dask.storage import ChunkReadError, llama, llama_format, open_array, open_pair
from tests.helpers import llama_base
from tests.helpers.llama_files import RNG, SHAPES, bits, make, replace_row
from tests.helpers.stores import date_later


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "base.kld")


# What is read


@pytest.mark.parametrize("chunks", [None, "64 B", (1, 2, -1), (2, 1, 3), 1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("key", [None, "log_probs"])
def test_log_probs(tmp_path, shape, chunks, key):
    path = make(tmp_path / "base", *shape)
    wanted = llama_base.log_probs(path)
    n_chunk, n_ctx, n_vocab = shape
    assert wanted.shape == (n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab)
    x = open_array(path, key=key, chunks=chunks if n_vocab < 100 else None)
    assert x.dtype == np.float32
    for scheduler in "sync", "threads":
        assert bits(x.compute(scheduler=scheduler)) == bits(wanted)
    tokens = llama_base.read(path)[1]
    assert np.array_equal(open_array(path, key="tokens").compute(), tokens)


@pytest.mark.parametrize("block", [1, 50, 100])
def test_blocks_of_rows(path, monkeypatch, block):
    """One row at a time, of 9 rows of 7; a few of a chunk; and several chunks."""
    monkeypatch.setattr(llama_format, "_BLOCK", block)
    wanted = llama_base.log_probs(path)
    source = llama.open_source(str(path), None)
    for index in (np.s_[:], np.s_[1:, 1:], np.s_[::2, :, 2:5], np.s_[:, 2, 6], np.s_[::-1, 1:2]):
        assert bits(source[index]) == bits(np.array(wanted[index]))
    assert source[3:].shape == (0, 3, 7)
    assert source[:, 3:].shape == (3, 0, 7)


def test_quantized_as_llama_does(tmp_path):
    """The error of half a code, and the floor 16 below the maximum."""
    logits = RNG.standard_normal((1, 4, 1000)) * 8
    path = tmp_path / "base"
    llama_base.write(path, logits, np.zeros((1, 9)))
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    largest = exact.max(-1, keepdims=True)
    assert (exact < largest - 16).any()
    found = open_array(path).compute()
    assert np.abs(found - np.maximum(exact, largest - 16)).max() < 0.51 * 16 / 65535
    assert np.allclose(found.min(-1, keepdims=True), largest - 16, atol=1e-5)


@pytest.mark.parametrize("n_ctx", [3, 4, 5, 8, 9])
def test_rows_predict_the_tokens_of_the_second_half(tmp_path, n_ctx):
    """llama.cpp's loop: row j is judged by ``(tokens + n_ctx / 2)[j + 1]``."""
    path = make(tmp_path / "base", 3, n_ctx, 7)
    first, rows = n_ctx // 2, n_ctx - 1 - n_ctx // 2
    tokens = llama_base.read(path)[1]
    labels = open_array(path, key="labels", chunks=(2, -1))
    wanted = [[chunk[first:][j + 1] for j in range(rows)] for chunk in tokens]
    assert (labels.shape, labels.dtype) == ((3, rows), np.int32)
    assert labels.compute().tolist() == wanted
    assert labels.compute()[:, -1].tolist() == tokens[:, -1].tolist()


@pytest.mark.parametrize("nats", [16, 24])
def test_rows_nearly_add_up(tmp_path, nats):
    """Far from the largest, thousands of classes are raised to the floor."""
    path = tmp_path / "base"
    logits = RNG.standard_normal((1, 4, 4000)) * 8
    logits[0, 3] /= 8  # a row above the floor
    llama_base.write(path, logits, np.zeros((1, 9)), nats)
    misses = np.exp(open_array(path).compute().astype(float)).sum(-1)[0] - 1
    tolerance = llama.open_source(str(path), None).tolerance
    assert 1e-6 < np.abs(misses).max() < tolerance < 1e-3
    assert (misses[:3] > 1e-5).all() == (nats == 16)


def test_flat_and_extreme_rows(tmp_path):
    logits = np.zeros((1, 5, 5))
    logits[0, 1, 2] = np.inf
    logits[0, 2, 3] = 1e6
    logits[0, 3] = [0, 0, -1e-6, -3, -np.inf]
    logits[0, 4] = np.nan
    with np.errstate(invalid="ignore"):
        llama_base.write(tmp_path / "base", logits, np.zeros((1, 11)))
    x = open_array(tmp_path / "base").compute()[0]
    assert np.allclose(x[0], -np.log(5))
    assert np.isnan(x[1]).all()
    assert x[2].argmax() == 3
    assert np.allclose(x[2] - x[2].max(), [-16, -16, -16, 0, -16])
    assert np.array_equal(np.isnan(x).any(-1), [False, True, False, False, True])
    assert x[3, 4] == x[3].min()


def test_a_row_with_one_nan(path):
    """llama.cpp takes the extremes of the other logits, and the logarithm of the sum is NaN."""
    scale, _, codes = llama_base.encode(RNG.standard_normal(7))
    replace_row(path, scale, np.nan, codes)
    x = open_array(path).compute()
    wanted = np.zeros(x.shape, bool)
    wanted[1, 2] = True
    assert np.array_equal(np.isnan(x), wanted)


def test_indexing_the_opened_array(path):
    x = open_array(path, chunks=(2, 2, 3))
    wanted = llama_base.log_probs(path)
    for index in (
        np.s_[1:3, 1, 2:6:2],
        np.s_[0],
        np.s_[..., 4],
        np.s_[2, 0, 6],
        np.s_[::-1, :, 1:],
    ):
        assert np.array_equal(x[index].compute(), wanted[index])
    source = llama.open_source(str(path), None)
    assert np.array_equal(source[1:3, 1, 4], wanted[1:3, 1, 4])


def test_whole_rows_by_default(tmp_path):
    """Classes are not split, whatever the size asked for; a file is as large as a real one."""
    path = tmp_path / "base"
    n_ctx, n_vocab, n_chunk = 512, 128_256, 100
    with open(path, "wb") as file:
        file.write(llama_base.header(n_ctx, n_vocab, n_chunk))
        file.truncate(20 + 4 * n_chunk * n_ctx + n_chunk * 255 * (8 + 2 * n_vocab))
    x = open_array(path)
    assert x.shape == (100, 255, n_vocab)
    assert max(x.chunks[0]) == 1
    assert x.chunks[2] == (n_vocab,)
    assert 64e6 < max(x.chunks[1]) * n_vocab * 4 <= 2**27
    with pytest.warns(UserWarning, match="base:log_probs has stored chunks of 501.00 kiB"):
        assert open_array(path, chunks="1 kB").chunks[2] == (n_vocab,)
    with pytest.raises(ChunkReadError, match=r"row \[99, \d+\] was never written"):
        x[-1, -1].compute()


def test_pair_with_another_format(path, tmp_path):
    base = llama_base.log_probs(path)
    q = np.log(RNG.dirichlet(np.ones(7), base.shape[:2])).astype("f4")
    np.save(tmp_path / "q.npy", q)
    x, t = open_pair(tmp_path / "q.npy", path, chunks=(1, 2, -1))
    assert x.chunks == t.chunks
    assert bits(t.compute()) == bits(base)
    found = kl_div(x, t, reduction="sum", log_target=True).compute()
    wanted = kl_div(da.from_array(q), da.from_array(base), reduction="sum", log_target=True)
    assert bits(found) == bits(wanted.compute())
    assert found > 0
    x, t = open_pair(path, path)
    assert bits(x.compute()) == bits(t.compute()) == bits(base)


def test_on_a_cluster(path, client):
    x = open_array(path, chunks=(1, 2, -1))
    assert bits(x.compute(scheduler=client)) == bits(llama_base.log_probs(path))


@pytest.mark.parametrize("key", [None, "log_probs", "labels", "tokens"])
def test_handles_pickle_small_and_keys_follow_the_contents(path, key):
    source = llama.open_source(str(path), key)
    pickled = pickle.dumps(source)
    assert len(pickled) - len(str(path)) < 400
    assert pickle.loads(pickled) == source  # noqa: S301
    first = open_array(path, key=key)
    assert open_array(path, key=key).name == first.name
    before = first.compute().copy()  # of what may be a view of the file
    make(path)
    date_later(path)
    second = open_array(path, key=key)
    assert second.name != first.name
    assert not np.array_equal(second.compute(), before)
