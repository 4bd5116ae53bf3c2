"""Inputs that the tests share: data types, shapes, values, and every way to chunk an array."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.reference import finfo

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Chunks = tuple[tuple[int, ...], ...]

FLOATS = ("float16", "float32", "float64")
REDUCTIONS = ("none", "mean", "batchmean", "sum")

# (shape of input, shape of target)
SHAPES: list[tuple[Shape, Shape]] = [
    ((), ()),
    ((1,), (1,)),
    ((5,), (5,)),
    ((4, 7), (4, 7)),
    ((2, 3, 4), (2, 3, 4)),
    ((2, 1, 3, 2), (2, 1, 3, 2)),
    # broadcast, both ways
    ((), (2, 3)),
    ((2, 3), ()),
    ((3,), (2, 3)),
    ((2, 3), (3,)),
    ((1, 3), (5, 3)),
    ((5, 3), (1, 3)),
    ((4, 1), (1, 5)),
    ((2, 1, 4), (3, 1)),
    # nothing in them
    ((0,), (0,)),
    ((0, 3), (0, 3)),
    ((3, 0), (3, 0)),
    ((1, 0), (5, 1)),
    ((0,), (1,)),
    ((), (0,)),
    ((2, 0), ()),
]


def dtype_of(name: str) -> np.dtype[Any]:
    """`numpy.dtype` that knows bfloat16 too."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def narrow(values: Array, dtype: npt.DTypeLike) -> Array:
    """Cast, letting what is too large become infinite."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(values).astype(dtype)


def log_probabilities(rng: np.random.Generator, shape: Shape, dtype: npt.DTypeLike) -> Array:
    """Log-probabilities over the last axis of an array, from standard normal logits."""
    logits = rng.standard_normal(shape)
    if logits.size and logits.ndim:
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return narrow(logits - (logits.ndim == 0), dtype)


def probabilities(rng: np.random.Generator, shape: Shape, dtype: npt.DTypeLike) -> Array:
    """Probabilities that sum to 1, but for rounding, over the last axis of an array."""
    return narrow(np.exp(log_probabilities(rng, shape, np.float64)), dtype)


def special_values(dtype: npt.DTypeLike) -> Array:
    """Both zeros, the ends of the subnormal and of the normal range, 1, infinities and NaN."""
    info = finfo(dtype)
    smallest = float(info.smallest_subnormal)
    normal = float(info.smallest_normal)
    positive = [0.0, smallest, normal - smallest, normal, 0.5, 1.0, float(info.max), np.inf]
    return np.array([*positive, *(-value for value in positive), np.nan]).astype(dtype)


def special_grid(dtype: npt.DTypeLike) -> tuple[Array, Array]:
    """Every pair of special values, as (input, target)."""
    values = special_values(dtype)
    x, t = np.meshgrid(values, values)
    return x.ravel(), t.ravel()


def canceling(
    rng: np.random.Generator, size: int, dtype: npt.DTypeLike, log_target: bool
) -> tuple[Array, Array]:
    """An (input, target) pair whose terms span nearly the whole type and sum to exactly zero.

    The terms are minus the input, exactly, because the targets are all 1 (or log 1). In float64
    they reach from 1e-299 to 1e299.
    """
    info = finfo(dtype)
    exponents = 0.97 * rng.uniform(int(info.minexp), int(info.maxexp), size // 2)
    half = np.exp2(exponents).astype(dtype)
    x = rng.permutation(np.concatenate([half, -half]))
    return x, np.full_like(x, 0.0 if log_target else 1.0)


def some_slow(first: Any, *rest: Any) -> list[Any]:
    """Values of a parameter of a test, of which only the first runs where slow tests do not."""
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in rest)]


def slow_unless(usual: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases of a test, of which only the usual ones run where slow tests do not."""
    usual, cases = list(usual), list(cases)
    assert all(case in cases for case in usual)
    return [
        case if case in usual else pytest.param(*case, marks=pytest.mark.slow) for case in cases
    ]


def compositions(length: int) -> Iterator[tuple[int, ...]]:
    """Every way to write a length as a sum of positive chunks, in order."""
    if length == 0:
        yield (0,)
        return
    for cuts in itertools.product((False, True), repeat=length - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), length]
        yield tuple(int(chunk) for chunk in np.diff(edges))


def all_chunkings(shape: Shape) -> Iterator[Chunks]:
    """Every chunking of every axis: 2**(n - 1) for an axis of n, multiplied over the axes."""
    return itertools.product(*map(compositions, shape))


def random_chunking(rng: np.random.Generator, shape: Shape) -> Chunks:
    """One chunking, with every possible boundary drawn independently at a random density."""
    chunks = []
    for length in shape:
        cuts = np.flatnonzero(rng.random(max(length - 1, 0)) < rng.random()) + 1
        chunks.append(tuple(int(chunk) for chunk in np.diff([0, *cuts, length])))
    return tuple(chunks)


def operand_chunks(shape: Shape, chunks: Chunks) -> Chunks:
    """The chunks of an operand that broadcasts to an array with the given chunks."""
    last = chunks[len(chunks) - len(shape) :]
    return tuple((1,) if length == 1 else axis for length, axis in zip(shape, last, strict=True))
