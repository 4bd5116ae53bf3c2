"""Base files of llama.cpp: what is read, and which files are refused."""

import os
import pickle
import re
import shutil
from pathlib import Path

import dask.array as da
import numpy as np
import pytest

from kldiv_dask import EvaluationWarning, evaluate, kl_div
from kldiv_dask.storage import ChunkReadError, llama, llama_format, open_array, open_pair
from tests.helpers import llama_base
from tests.helpers.stores import date_later

RNG = np.random.default_rng(7)
REAL = Path(__file__).parent / "data" / "llama"
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


def kl(log_q, log_p):
    """Divergence of each row, in float64."""
    log_q, log_p = (np.asarray(x, float) for x in (log_q, log_p))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


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


# How near the truth


def truth(logits):
    logits = logits.astype(float)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def run(input, target, **options):
    return evaluate(input, target, progress=False, scheduler="sync", **options)


def known(folder, kind, error, nats=16, rows=8):
    """Write rows that are known; return their mean divergence, and the evaluation."""
    rng = np.random.default_rng(11)
    p = np.array([llama_base.teacher(rng, kind, 32_000) for _ in range(rows)])
    q = np.array([llama_base.student(rng, row, error) for row in p])
    for name, logits in (("q", q), ("p", p)):
        llama_base.write(folder / name, logits[None], np.zeros((1, 2 * rows + 1)), nats)
    return kl(truth(q), truth(p)).mean(), run(folder / "q", folder / "p")


ERRORS = 0.003, 0.02, 0.1, 0.4


# Each takes long; one is enough where slow tests do not run.
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "bulk")) for k in llama_base.KINDS]
)
def test_near_the_truth(tmp_path, kind):
    """Nearly all that differs in peaked rows is below the floor; see `llama.LogProbsSource`."""
    bound = 0.06 if kind == "peaked" else 0.01
    for error in ERRORS:
        true, found = known(tmp_path, kind, error)
        assert found.overall.min > 0
        assert abs(found.mean - true) < bound * true
        assert found.provenance["generalized"].startswith("sum p log(p / q) - p + q")
        # Rows of such files are not called wrong for what the format does to them.
        for operand, name in (("input", "q"), ("target", "p")):
            check = found.checks[f"{operand}_not_normalized"]
            assert check["count"] == 0
            tolerance = llama.open_source(str(tmp_path / name), None).tolerance
            # Of 32,000 classes no more can be raised than has been in half of the kinds.
            least = 1e-4 if kind in ("heavy", "two", "zipf") else 0.0035
            assert least < check["largest_deviation"] < tolerance < 0.0039


@pytest.mark.parametrize("kind", llama_base.KINDS)
def test_perplexities_are_nearly_right(tmp_path, kind):
    """What is expected of labels, were they drawn from the true rows."""
    logits = np.array([llama_base.teacher(RNG, kind, 32_000) for _ in range(8)])
    llama_base.write(tmp_path / "p", logits[None], np.zeros((1, 17)))
    true, found = truth(logits), open_array(tmp_path / "p").compute()[0]
    assert abs((np.exp(true) * (true - found)).sum(-1).mean()) < 5e-4


@pytest.mark.slow
def test_nearer_than_without_the_excess(tmp_path):
    """Of students that are nearly the same, sum p log(p / q) of such rows is below zero."""
    for kind in llama_base.KINDS:
        true, found = known(tmp_path, kind, 0.003)
        x, t = (open_array(tmp_path / name).compute()[0] for name in "qp")
        plain = kl(x, t)
        assert abs(found.mean - true) < 0.2 * abs(plain.mean() - true) + 1e-8
        x, t = (truth(values) for values in (x, t))
        assert run(tmp_path / "q", tmp_path / "p", kind="logits").mean == pytest.approx(
            kl(x, t).mean(), rel=1e-4
        )


@pytest.mark.parametrize("kind", llama_base.KINDS)
def test_a_floor_of_24_nats_is_better(tmp_path, kind):
    for error in ERRORS:
        true, found = known(tmp_path, kind, error, nats=24)
        assert found.overall.min > 0
        assert abs(found.mean - true) < 0.001 * true + 2e-7
        for operand in "input", "target":
            assert found.checks[f"{operand}_not_normalized"]["count"] == 0


def test_labels_at_the_floor_are_counted(tmp_path):
    """Their probabilities are not known, and perplexity is of the floor instead."""
    logits = RNG.standard_normal((1, 4, 500)) * 8
    far = logits < logits.max(-1, keepdims=True) - 16.5
    for name in "qp":
        llama_base.write(tmp_path / name, logits, np.zeros((1, 9)))
    labels = np.array([[np.flatnonzero(far[0, i])[0] for i in range(4)]])
    labels[0, 2:] = logits[0, 2:].argmax(-1)
    with pytest.warns(EvaluationWarning, match="input and target are equal"):
        found = run(tmp_path / "q", tmp_path / "p", labels=labels)
    for side in "input", "target":
        assert found.checks[f"{side}_label_at_floor"] == {"count": 2, "first": [[0, 0], [0, 1]]}
    assert "2 positions are with the label at the floor of the input" in str(found)


# What llama.cpp itself writes and prints

PAIRS = {  # the student, the teacher, what was printed, bound of the error of its mean
    "q4_0": ("tiny128.q", "tiny128.base", "tiny128.llama.txt", 3e-6),
    "q8_0": ("tiny128.q8_0", "tiny128.base", "tiny128.q8_0.llama.txt", 1e-6),
    "odd": ("even33.q", "even33.base", "even33.llama.txt", 3e-6),
}


def printed(file, name):
    text = (REAL / file).read_text()
    return float(re.search(rf"^{re.escape(name)} *: *(-?[\d.]+)", text, re.MULTILINE)[1])


@pytest.mark.parametrize("pair", PAIRS)
def test_as_llama_prints_it(pair):
    student, teacher, file, bound = PAIRS[pair]
    labels = open_array(REAL / teacher, key="labels")
    found = run(REAL / student, REAL / teacher, labels=labels)
    assert abs(found.mean - printed(file, "Mean    KLD")) < bound
    assert abs(found.overall.max - printed(file, "Maximum KLD")) < 2e-5
    assert round(100 * found.overall.top1_agreement, 3) == printed(file, "Same top p")
    for name, value in (
        ("PPL(Q)", found.labels.perplexity_input),
        ("PPL(base)", found.labels.perplexity_target),
    ):
        assert value == pytest.approx(printed(file, f"Mean {name}"), rel=5e-6)
    assert abs(100 * found.labels.p_change_mean - printed(file, "Mean    Δp")) < 1e-3
    assert abs(100 * found.labels.p_change_rms - printed(file, "RMS Δp   ")) < 1e-3
    assert found.options["kind"] == "log_probs"


def test_a_student_that_is_nearly_the_same_is_not_below_zero():
    files = REAL / "tiny128.q8_0", REAL / "tiny128.base"
    assert kl(*(open_array(file).compute() for file in files)).min() < -2e-5
    assert printed("tiny128.q8_0.llama.txt", "Minimum KLD") < 0
    found = run(*files)
    assert found.overall.min > 2e-6
    assert found.mean == pytest.approx(3.64e-5, rel=0.005)


def test_opened_files_are_known_as_such():
    """`evaluate` sees where an array is from, whether it is given the path or the array."""
    files = REAL / "tiny128.q", REAL / "tiny128.base"
    wanted = run(*files)
    assert run(*open_pair(*files)).mean == wanted.mean
    plain = run(*(open_array(file).compute() for file in files), kind="log_probs")
    assert plain.mean != wanted.mean


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


def replace_row(path, *row):
    """Write row 2 of chunk 1 of 3 x 3."""
    data = llama_base.row_bytes(*row)
    with open(path, "r+b") as file:
        file.seek(20 + 4 * 3 * 8 + 5 * len(data))
        file.write(data)


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
