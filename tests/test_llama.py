"""Base files of llama.cpp: what is read, and which files are refused."""

import os
import pickle

import dask.array as da
import numpy as np
import pytest

from kldiv_dask import kl_div
from kldiv_dask.storage import ChunkReadError, llama, open_array, open_pair
from tests import llama_base
from tests.stores import date_later

RNG = np.random.default_rng(7)
SHAPES = [(2, 9, 6), (3, 8, 7), (1, 3, 1), (1, 4, 2), (2, 17, 300)]  # n_chunk, n_ctx, n_vocab


def make(path, n_chunk=3, n_ctx=8, n_vocab=7, spread=5.0):
    """Write random logits, some of them far below the largest; return the path."""
    logits = RNG.standard_normal((n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab)) * spread
    tokens = RNG.integers(0, n_vocab, (n_chunk, n_ctx))
    llama_base.write(path, logits, tokens)
    return path


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "base.kld")


def bits(x):
    return x.dtype, x.shape, x.tobytes()


# What is read


@pytest.mark.parametrize("chunks", [None, "64 B", (1, 2, -1), (2, 1, 3), 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_log_probs(tmp_path, shape, chunks):
    path = make(tmp_path / "base", *shape)
    wanted, tokens = llama_base.log_probs(path), llama_base.read(path)[1]
    n_chunk, n_ctx, n_vocab = shape
    assert wanted.shape == (n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab)
    x = open_array(path, chunks=chunks if n_vocab < 100 else None)
    assert x.dtype == np.float32
    for scheduler in "sync", "threads":
        assert bits(x.compute(scheduler=scheduler)) == bits(wanted)
    assert np.array_equal(open_array(path, key="tokens").compute(), tokens)


def test_quantised_as_llama_does(tmp_path):
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


@pytest.mark.parametrize("chunks", [None, (1, 2, -1), (2, 1, 3), 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_renormalised(tmp_path, shape, chunks):
    path = make(tmp_path / "base", *shape)
    x = open_array(path, chunks=chunks if shape[-1] < 100 else None, renormalise=True)
    assert x.dtype == np.float32
    for scheduler in "sync", "threads":
        assert bits(x.compute(scheduler=scheduler)) == bits(llama_base.renormalised(path))
    assert x.name != open_array(path).name


def test_renormalising_makes_rows_add_up(tmp_path):
    path = make(tmp_path / "base", 1, 9, 4000, spread=8.0)
    sums = [
        np.exp(open_array(path, renormalise=on).astype(float)).sum(axis=-1).compute()
        for on in (False, True)
    ]
    # Far from the largest, thousands of classes are raised to the floor.
    assert np.abs(sums[0] - 1).min() > 1e-5
    assert np.abs(sums[1] - 1).max() < 1e-6


@pytest.mark.parametrize("renormalise", [False, True])
def test_flat_and_extreme_rows(tmp_path, renormalise):
    logits = np.zeros((1, 4, 5))
    logits[0, 1, 2] = np.inf
    logits[0, 2, 3] = 1e6
    logits[0, 3] = [0, 0, -1e-6, -3, -np.inf]
    with np.errstate(invalid="ignore"):
        llama_base.write(tmp_path / "base", logits, np.zeros((1, 9)))
    x = open_array(tmp_path / "base", renormalise=renormalise).compute()[0]
    assert np.allclose(x[0], -np.log(5))
    assert np.isnan(x[1]).all()
    assert x[2].argmax() == 3
    assert np.allclose(x[2] - x[2].max(), [-16, -16, -16, 0, -16])
    assert np.array_equal(np.isnan(x).any(-1), [False, True, False, False])
    assert x[3, 4] == x[3].min()


@pytest.mark.parametrize("renormalise", [False, True])
def test_indexing_the_opened_array(path, renormalise):
    x = open_array(path, chunks=(2, 2, 3), renormalise=renormalise)
    wanted = llama_base.renormalised(path) if renormalise else llama_base.log_probs(path)
    for index in (
        np.s_[1:3, 1, 2:6:2],
        np.s_[0],
        np.s_[..., 4],
        np.s_[2, 0, 6],
        np.s_[::-1, :, 1:],
    ):
        assert np.array_equal(x[index].compute(), wanted[index])
    source = llama.open_source(str(path), None)
    assert np.array_equal(source[1:3, 1, 4], llama_base.log_probs(path)[1:3, 1, 4])


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
    assert open_array(path, chunks="1 kB").chunks[2] == (n_vocab,)
    with pytest.raises(ChunkReadError, match="a row was never written"):
        x[-1, -1].compute()


def test_pair_with_another_format(path, tmp_path):
    base = llama_base.renormalised(path)
    q = np.log(RNG.dirichlet(np.ones(7), base.shape[:2])).astype("f4")
    np.save(tmp_path / "q.npy", q)
    x, t = open_pair(tmp_path / "q.npy", path, renormalise=True, chunks=(1, 2, -1))
    assert x.chunks == t.chunks
    assert bits(t.compute()) == bits(base)
    found = kl_div(x, t, reduction="sum", log_target=True).compute()
    wanted = kl_div(da.from_array(q), da.from_array(base), reduction="sum", log_target=True)
    assert bits(found) == bits(wanted.compute())
    assert found > 0
    x, t = open_pair(path, path, renormalise=True)
    assert bits(x.compute()) == bits(t.compute()) == bits(base)


def test_on_a_cluster(path, client):
    x = open_array(path, chunks=(1, 2, -1), renormalise=True)
    assert bits(x.compute(scheduler=client)) == bits(llama_base.renormalised(path))


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


# What is refused


def cut(size):
    return lambda path: os.truncate(path, os.path.getsize(path) + size)


def start(data):
    def write(path):
        with open(path, "r+b") as file:
            file.write(data)

    return write


BROKEN = {
    "one byte short": (cut(-1), r"truncated: 3 chunks of 3 rows of 7 classes take 332.* has 331"),
    "a chunk short": (cut(-72), "truncated: 3 chunks.* take 332 bytes.* has 260"),
    "tokens only": (cut(-216), "truncated.* has 116"),
    "half a header": (cut(-320), "truncated: its header takes 20 bytes, not 12"),
    "a byte more": (cut(1), "damaged: 3 chunks.* take 332 bytes.* has 333"),
    "no context": (start(llama_base.header(2, 7, 3)), "at least 3, 1 and 1, they are 2, 7, 3"),
    "no classes": (start(llama_base.header(8, 0, 3)), "they are 8, 0, 3"),
    "less than no classes": (start(llama_base.header(8, -7, 3)), "they are 8, -7, 3"),
    "no chunks": (start(llama_base.header(8, 7, 0)), "they are 8, 7, 0"),
    "negative": (start(llama_base.header(-8, -7, -3)), "they are -8, -7, -3"),
    "absurd": (start(llama_base.header(*[2**31 - 1] * 3)), "truncated: 2147483647 chunks"),
    "big-endian": (start(llama_base.header(8, 7, 3, ">")), "big-endian"),
    "foreign": (start(b"_Logits_"), "is of no format that can be read; .* or a base file of llama"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refused_when_opened(path, name):
    assert open_array(path).shape == (3, 3, 7)
    damage, message = BROKEN[name]
    damage(path)
    for key in None, "tokens":
        with pytest.raises(ValueError, match=message) as caught:
            open_array(path, key=key)
        assert str(path) in str(caught.value)


def test_refused_keys(path):
    message = r"holds no 'logits'; pass key=, one of 'log_probs', 'labels', 'tokens'"
    with pytest.raises(ValueError, match=message):
        open_array(path, key="logits")


def test_renormalise_is_for_these_files(path, tmp_path):
    np.save(tmp_path / "q.npy", np.ones(7))
    with pytest.raises(ValueError, match=r"renormalise=True is for .*llama.*q\.npy can't"):
        open_array(tmp_path / "q.npy", renormalise=True)
    with pytest.raises(ValueError, match=r"base\.kld:labels can't"):
        open_array(path, key="labels", renormalise=True)
    with pytest.raises(ValueError, match=r"q\.npy and .*q\.npy can't"):
        open_pair(tmp_path / "q.npy", tmp_path / "q.npy", renormalise=True)


def test_damage_after_opening(path):
    x = open_array(path, chunks=(1, -1, -1))
    size = os.path.getsize(path)
    whole = path.read_bytes()
    with open(path, "r+b") as file:  # what a crash leaves: the size, and zeros
        file.seek(-72, os.SEEK_END)
        file.write(bytes(72))
    with pytest.raises(ChunkReadError, match=r"\[2:3, 0:3, 0:7\].*was never written"):
        x.sum().compute()
    assert bits(x[:2].compute()) == bits(llama_base.log_probs(path)[:2])
    path.write_bytes(whole[:-4])
    with pytest.raises(ChunkReadError, match=rf"has {size - 4} bytes, it had {size}"):
        x[0].compute()
