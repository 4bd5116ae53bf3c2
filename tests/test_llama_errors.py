"""Base files of llama.cpp that are refused: damaged, truncated, or of other texts."""

import os
import re
import shutil

import numpy as np
import pytest

from kldiv_dask.storage import ChunkReadError, llama, llama_format, open_array, open_pair
from tests.helpers import llama_base
from tests.helpers.llama_files import REAL, bits, make, replace_row, run
from tests.helpers.stores import date_later


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "base.kld")


# What is refused


def cut(size):
    return lambda path: os.truncate(path, os.path.getsize(path) + size)


def start(data):
    def write(path):
        with open(path, "r+b") as file:
            file.write(data)

    return write


BROKEN = {
    "one byte short": (
        cut(-1),
        r"truncated, .*killed: it has 2 of 3 chunks; pass allow_truncated=True to read those\."
        r" 3 chunks of 3 rows of 7 classes take 332.* has 331",
    ),
    "a chunk short": (cut(-72), "has 2 of 3 chunks; .* take 332 bytes.* has 260"),
    "tokens only": (cut(-216), "it has 0 of 3 chunks; write it again.* has 116"),
    "tokens partly": (cut(-300), "it has 0 of 3 chunks; write it again.* has 32"),
    "half a header": (cut(-320), "truncated: its header takes 20 bytes, not 12"),
    "a byte more": (cut(1), "damaged: 3 chunks.* take 332 bytes.* has 333"),
    "no context": (start(llama_base.header(2, 7, 3)), "at least 3, 1 and 1, they are 2, 7, 3"),
    "no classes": (start(llama_base.header(8, 0, 3)), "they are 8, 0, 3"),
    "less than no classes": (start(llama_base.header(8, -7, 3)), "they are 8, -7, 3"),
    "no chunks": (start(llama_base.header(8, 7, 0)), "they are 8, 7, 0"),
    "negative": (start(llama_base.header(-8, -7, -3)), "they are -8, -7, -3"),
    "absurd": (start(llama_base.header(*[2**31 - 1] * 3)), "it has 0 of 2147483647 chunks"),
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


# Truncated files


@pytest.mark.parametrize(("size", "n_chunk"), [(-1, 2), (-72, 2), (-73, 1), (-144, 1)])
@pytest.mark.parametrize("key", [None, "log_probs", "labels", "tokens"])
def test_truncated_files_up_to_the_last_whole_chunk(path, key, size, n_chunk):
    whole = open_array(path, key=key).compute().copy()
    cut(size)(path)
    with pytest.raises(ValueError, match=f"it has {n_chunk} of 3 chunks"):
        open_array(path, key=key)
    assert bits(open_array(path, key=key, allow_truncated=True).compute()) == bits(whole[:n_chunk])


@pytest.mark.parametrize("name", BROKEN)
def test_refused_even_if_truncated_is_allowed(path, name):
    damage, message = BROKEN[name]
    damage(path)
    if name in ("one byte short", "a chunk short"):
        assert open_array(path, allow_truncated=True).shape == (2, 3, 7)
        return
    with pytest.raises(ValueError, match=message):
        open_array(path, allow_truncated=True)


def test_whole_files_may_be_allowed_to_be_truncated(path):
    assert open_array(path, allow_truncated=True).name == open_array(path).name


def test_a_pair_up_to_what_both_have(path, tmp_path):
    short = tmp_path / "short.kld"
    shutil.copy(path, short)
    cut(-1)(short)
    with pytest.raises(ValueError, match=r"short\.kld is truncated, .* has 2 of 3 chunks"):
        open_pair(short, path)
    wanted = bits(llama_base.log_probs(path)[:2])
    for pair in ((short, path), (path, short), (short, short)):
        x, t = open_pair(*pair, allow_truncated=True)
        assert bits(x.compute()) == bits(t.compute()) == wanted
        assert x.chunks == t.chunks
    np.save(tmp_path / "q.npy", np.zeros((2, 3, 7), "f4"))
    assert open_pair(tmp_path / "q.npy", short, allow_truncated=True)[1].shape == (2, 3, 7)


def test_truncated_is_for_these_files(path, tmp_path):
    np.save(tmp_path / "q.npy", np.ones(7))
    message = r"allow_truncated=True is for base files of llama\.cpp, got .*q\.npy"
    with pytest.raises(ValueError, match=message + "; leave it out"):
        open_array(tmp_path / "q.npy", allow_truncated=True)
    with pytest.raises(ValueError, match=message + r" and .*q\.npy"):
        open_pair(tmp_path / "q.npy", tmp_path / "q.npy", allow_truncated=True)
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_array(tmp_path / "nothing.kld", allow_truncated=True)


# Pairs


def test_other_text_is_refused():
    files = [REAL / "tiny128.othertext.q", REAL / "tiny128.base"]
    tokens = [llama_base.read(file)[1] for file in files]
    chunk, token = np.argwhere(tokens[0] != tokens[1])[0]
    found = " and ".join(str(x[chunk, token]) for x in tokens)
    message = (
        rf"tiny128\.othertext\.q and .*tiny128\.base must be of the same text, got"
        rf" token {token} of chunk {chunk} is {found}, in this order; write both with the same -f"
    )
    for compare in (open_pair, run):
        with pytest.raises(ValueError, match=message):
            compare(*files)


def test_one_other_token_is_refused(path, tmp_path):
    other = tmp_path / "other.kld"
    shutil.copy(path, other)
    with open(other, "r+b") as file:
        file.seek(20 + 4 * (2 * 8 + 7))  # the last one
        file.write(b"\xff\0\0\0")
    last = llama_base.read(path)[1][2, 7]
    with pytest.raises(ValueError, match=f"token 7 of chunk 2 is {last} and 255, in this order"):
        open_pair(path, other)
    cut(-1)(other)  # and with it the chunk of that token
    assert open_pair(path, other, allow_truncated=True)[0].shape == (2, 3, 7)


def test_one_chunk_is_not_repeated():
    with pytest.raises(ValueError, match=r"onechunk\.q and .*base must be .* got 1 and 8 chunks"):
        open_pair(REAL / "tiny128.onechunk.q", REAL / "tiny128.base")


@pytest.mark.parametrize(
    ("shape", "found"),
    [((1, 8, 7), "3 and 1 chunks"), ((3, 7, 7), "8 and 7 tokens a chunk"),
     ((3, 8, 1), "7 and 1 classes")],
)  # fmt: skip
def test_other_shapes_are_refused(path, tmp_path, shape, found):
    other = make(tmp_path / "other.kld", *shape)
    for allow in False, True:
        with pytest.raises(ValueError, match=f"must be of the same text, got {found}, in this"):
            open_pair(path, other, allow_truncated=allow)


# Damaged rows


LOGITS = np.array([3.0, 0, -1, -2, 1, 2, -4])
FAR = np.array([3.0, 0, -1, -20, 1, -30, -15])  # two classes are raised to the floor
INFINITE = float("inf")


DAMAGE = {
    "negative scale": (lambda s, m, c: (-s, m, c), "scale must be between 0 and 24 / 65535, got -"),
    "infinite scale": (lambda s, m, c: (INFINITE, m, c), "scale must be .* got inf"),
    "large scale": (lambda s, m, c: (24.1 / 65535, m, c), r"scale must be .* got 0\.00036"),
    "NaN scale": (lambda s, m, c: (np.nan, m, c), "scale is NaN, its minimum or one of its codes"),
    "NaN, but for the minimum": (lambda s, m, c: (np.nan, m, 0 * c), "scale is NaN, its minimum"),
    "NaN, but for codes": (lambda s, m, c: (np.nan, np.nan, c), "scale is NaN, its minimum"),
    "scale 0 with codes": (lambda s, m, c: (0, m, c), "codes must be from 0 to 0 for a scale of 0"),
    "no largest code": (
        lambda s, m, c: (s, m, np.minimum(c, 65534)),
        "codes must be from 0 to 65535 for a scale of .* got 0 to 65534",
    ),
    "no code 0": (lambda s, m, c: (s, m, np.maximum(c, 1)), "got 1 to 65535"),
    "no codes": (lambda s, m, c: (s, m, 0 * c), "got 0 to 0"),
    "NaN with bad codes": (lambda s, m, c: (s, np.nan, np.maximum(c, 1)), "got 1 to 65535"),
    "high minimum": (
        lambda s, m, c: (s, 1e-4 - 65535 * s, c),
        r"largest log-probability must be between -1\.94591, of 7 equal ones, and 0, got 0\.0001",
    ),
    "low minimum": (lambda s, m, c: (s, -1.947 - 65535 * s, c), r"got -1\.947"),
    "infinite minimum": (lambda s, m, c: (s, -INFINITE, c), "got -inf"),
    "flat and not of 7": (lambda s, m, c: (0, -1.9, 0 * c), r"must add up to 1, they do to 1\.046"),
    "never written": (lambda s, m, c: (0, 0, 0 * c), "never written: its scale and its minimum"),
    "a code": (lambda s, m, c: (s, m, np.r_[c[:1], 65000, c[2:]]), "must add up to 1, they do to"),
    "other minimum": (lambda s, m, c: (s, m + 1e-3, c), r"must add up to 1, they do to 1\.00"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("logits", [LOGITS, FAR], ids=["above the floor", "floored"])
def test_damaged_rows(path, name, logits):
    sound = scale, minimum, codes = llama_base.encode(logits)
    replace_row(path, *sound)
    assert np.isfinite(open_array(path).compute()).all()
    damage, message = DAMAGE[name]
    replace_row(path, *damage(float(scale), float(minimum), codes.astype(int)))
    date_later(path)
    x = open_array(path, chunks=(1, -1, -1))
    x[[0, 2]].compute()
    # Whichever of its classes are asked for.
    for index in (np.s_[:], np.s_[1, 2], np.s_[::-1, 1:, 2:4], np.s_[1:2, 2, 5]):
        with pytest.raises(ChunkReadError, match=r"row \[1, 2\] ") as caught:
            x[index].compute()
        assert re.search(message, str(caught.value))


@pytest.mark.parametrize("block", [1, 2**16])
def test_the_first_damaged_row_is_named(path, monkeypatch, block):
    monkeypatch.setattr(llama_format, "_BLOCK", block)
    scale, minimum, codes = llama_base.encode(FAR)
    replace_row(path, -scale, minimum, codes)
    with open(path, "r+b") as file:
        file.seek(-24, os.SEEK_END)  # the last row
        file.write(bytes(24))
    date_later(path)
    source = llama.open_source(str(path), None)
    for index, message in (
        (np.s_[:], r"row \[1, 2\] is damaged: its scale"),
        (np.s_[2, 1:], r"row \[2, 2\] was never written"),
        (np.s_[::-1], r"row \[2, 2\] was never written"),
    ):
        with pytest.raises(ChunkReadError, match=message):
            source[index]
    assert np.isfinite(source[:, :2]).all()


def test_mass_may_be_missing_as_far_as_there_are_classes_at_the_floor(path):
    """Between none and all of what was raised; here one class in 7 has nearly all the mass."""
    scale, minimum, codes = llama_base.encode(FAR)
    for error, sound in ((-9e-5, True), (9e-5, True), (-3e-4, False), (3e-4, False)):
        replace_row(path, scale, minimum + error, codes)
        date_later(path)
        if sound:
            open_array(path).compute()
        else:
            with pytest.raises(ChunkReadError, match="must add up to 1"):
                open_array(path).compute()


@pytest.mark.parametrize("nats", [16, 24])
@pytest.mark.parametrize("n_vocab", [1, 2, 3, 259, 5000])
def test_what_llama_writes_is_sound(tmp_path, nats, n_vocab):
    """Of any spread and height: codes from 0 to 65535, and sums within what is checked."""
    rng = np.random.default_rng(n_vocab)
    rows = [
        (rng.standard_normal(n_vocab) ** power * spread + height).astype("f4")
        for spread in (1e-6, 1e-3, 0.1, 1, 2.5, 5, 30, 1e4)
        for height in (0, 1, -20, 300, -3000)
        for power in (1, 3)
    ]
    for row in rows[::3]:
        row[: n_vocab // 2] = row[0]
    rows += [np.r_[row[:-1], -np.inf].astype("f4") for row in rows if n_vocab > 1]
    for row in rows:
        scale, _, codes = llama_base.encode(row, nats)
        assert (codes.min(), codes.max()) == (0, 65535 if scale else 0)
    llama_base.write(tmp_path / "base", [rows], np.zeros((1, 2 * len(rows) + 1)), nats)
    x = open_array(tmp_path / "base").compute()
    assert np.isfinite(x).all()
    source = llama.open_source(str(tmp_path / "base"), None)
    assert np.abs(np.exp(x.astype(float)).sum(-1) - 1).max() < source.tolerance


def test_damage_after_opening(path):
    x = open_array(path, chunks=(1, -1, -1))
    opened = path.stat()
    whole = path.read_bytes()
    with open(path, "r+b") as file:  # what a crash leaves: the size, and zeros
        file.seek(-72, os.SEEK_END)
        file.write(bytes(72))
    os.utime(path, ns=(opened.st_atime_ns, opened.st_mtime_ns))
    with pytest.raises(ChunkReadError, match=r"\[2:3, 0:3, 0:7\].*was never written"):
        x.sum().compute()
    assert bits(x[:2].compute()) == bits(llama_base.log_probs(path)[:2])
    path.write_bytes(whole[:-4])
    with pytest.raises(
        ChunkReadError, match=rf"has {opened.st_size - 4} bytes, it had {opened.st_size}"
    ):
        x[0].compute()
