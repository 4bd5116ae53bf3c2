"""The bits of evaluations depend on the data alone."""

import dask.array as da
import numpy as np
import pytest

from kldiv_dask import kl_div_with_logits
from kldiv_dask.statistics.chunks import EvaluationSpec, evaluate_chunks
from kldiv_dask.statistics.state import merge
from tests.helpers.cases import slow_unless, some_slow
from tests.helpers.evaluations import extras, pair, rng, run, same_bits

# Bits


# Each type, and each way to come to compute in float64.
@pytest.mark.parametrize(
    ("dtype", "temperature", "computed"),
    slow_unless(
        [("float32", 2.0, None), ("float64", 1.0, None)],
        [
            ("float16", 3.0, None),
            ("bfloat16", 1.0, None),
            ("float32", 2.0, None),
            ("float32", 1.0, "float64"),
            ("float64", 1.0, None),
        ],
    ),
)
def test_bits_of_the_divergence(dtype, temperature, computed):
    """They are those of `kl_div_with_logits`, whose float32 results are rounded once more."""
    shape = (12, 7)
    input, target = pair("logits", dtype, shape, classes=300)
    options = {"temperature": temperature, "dtype": computed}
    found = run(input, target, groups=np.arange(84).reshape(shape), **options)
    alone = kl_div_with_logits(input, target, reduction="none", **options).compute()
    ours = np.array([one.sum for one in found.groups.values()]).reshape(shape)
    assert (ours.astype(alone.dtype) == alone).all()
    for reduction, number in {"sum": found.overall.sum, "mean": found.mean}.items():
        other = kl_div_with_logits(input, target, reduction=reduction, **options).compute()
        assert other.dtype.type(number) == other


def chunkings(shape):
    """Cut positions at random, three times; the classes too, which are joined again."""
    r = rng(7)
    for number in range(3):
        cuts = [
            np.sort(r.choice(np.arange(1, length), r.integers(1, min(length, 6)), replace=False))
            for length in shape
        ]
        pieces = [
            np.diff([0, *cut, length]).tolist() for cut, length in zip(cuts, shape, strict=True)
        ]
        yield tuple(map(tuple, pieces)), (9,) if number else (4, 5)


@pytest.fixture(
    scope="module",
    params=some_slow(("logits", "float32"), ("log_probs_and_probs", "float64")),
    ids=str,
)
def whole(request):
    """A pair with all that is odd, its options, and the state of it in one chunk."""
    kind, dtype = request.param
    shape = (30, 11)
    input, target = pair(kind, dtype, shape)
    target[3, 4, 2:5] = -np.inf if kind == "logits" else 0.0
    input[9, 1, 6] = -np.inf
    input[20, 10] = np.nan
    input[21:24], target[21:24] = input[:3], target[:3]  # ties
    more = extras(shape)
    options = {name: more[name] for name in ("where", "labels")}
    options |= {"groups": more["strings"], "kind": kind}
    return input, target, options, run(input, target, **options).state


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("scheduler", ["sync", "threads", "cluster"])
def test_bits_of_chunkings(whole, scheduler, number, request):
    input, target, options, state = whole
    positions, classes = list(chunkings((30, 11)))[number]
    pair = [da.from_array(a, chunks=(*positions, classes)) for a in (input, target)]
    if scheduler == "cluster":
        scheduler = request.getfixturevalue("client")
    same_bits(run(*pair, **options, scheduler=scheduler).state, state)


@pytest.mark.parametrize("layout", ["F", "strided", "swapped"])
def test_bits_of_layouts(whole, layout):
    input, target, options, state = whole
    if layout == "F":
        pair = [np.asfortranarray(a) for a in (input, target)]
    elif layout == "strided":
        pair = [np.repeat(a, 2, axis=1)[:, ::2] for a in (input, target)]
    else:
        pair = [a.astype(a.dtype.newbyteorder()) for a in (input, target)]
    same_bits(run(*pair, **options).state, state)


@pytest.mark.parametrize("seed", range(5))
def test_bits_of_merges(whole, seed):
    """States of pieces, merged in a random order in random numbers."""
    input, target, options, state = whole
    kind = options["kind"]
    dtype = np.dtype(np.float32 if kind == "logits" else np.float64)
    spec = EvaluationSpec((30, 11), 0, kind, 1.0, dtype, (1e-5, 1e-5))
    small = [options[name] for name in ("where", "groups", "labels")]
    r = rng(seed)
    states = []
    for rows in np.split(np.arange(30), np.unique(r.integers(1, 30, 8))):
        for columns in np.split(np.arange(11), np.unique(r.integers(1, 11, 2))):
            part = np.ix_(rows, columns)
            start = int(rows[0]), int(columns[0])
            arrays = [a[part] for a in (input, target)]
            states.append(evaluate_chunks(*arrays, start, *(a[part] for a in small), spec))
    while len(states) > 1:
        r.shuffle(order := list(range(len(states))))
        size = int(r.integers(1, 5))
        some, others = order[:size], order[size:]
        states = [states[i] for i in others] + [merge([states[i] for i in some])]
    same_bits(states[0], state)
