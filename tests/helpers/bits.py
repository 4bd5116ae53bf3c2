"""Data that sum badly, what they should sum to, and what it means to be the same."""

import functools
import itertools
from typing import Any

import dask.array as da
import numpy as np
import pytest

from kldiv_dask import kl_div
from tests import reference
from tests.helpers import cases
from tests.helpers.cases import (
    Array,
    Chunks,
    Shape,
    dtype_of,
    log_probabilities,
    narrow,
    operand_chunks,
    probabilities,
    slow_unless,
    some_slow,
    special_values,
)

FLOATS = (*cases.FLOATS, "bfloat16")
REDUCED = ("sum", "mean", "batchmean")
SORTS = ("usual", "wide", "canceling", "subnormal", "infinite", "masked", "special")
TYPES = list(itertools.product(FLOATS, (False, True)))  # (type of both operands, log_target)
# Each takes kernels of its own, so that most are slow.
SOME_TYPES = [("float32", False), ("float64", True)]
by_dtype = pytest.mark.parametrize("dtype", some_slow("float32", "float64", "float16", "bfloat16"))
by_type = pytest.mark.parametrize(("dtype", "log_target"), slow_unless(SOME_TYPES, TYPES))


def operands(
    sort: str, shapes: tuple[Shape, Shape], name: str, log_target: bool
) -> tuple[Array, Array]:
    """An (input, target) pair of one of `SORTS`, of the type of that name."""
    rng = np.random.default_rng(SORTS.index(sort))
    dtype = dtype_of(name)
    info = reference.finfo(dtype)
    x = log_probabilities(rng, shapes[0], dtype)
    t = (log_probabilities if log_target else probabilities)(rng, shapes[1], dtype)
    certain = np.full_like(t, 0.0 if log_target else 1.0)  # the terms are -x, exactly

    def wide(size: int) -> Array:
        exponents = 0.98 * rng.uniform(int(info.minexp), int(info.maxexp), size)
        return (rng.choice([-1.0, 1.0], size) * np.exp2(exponents)).astype(dtype)

    match sort:
        case "wide":
            x = wide(x.size).reshape(x.shape)
        case "canceling":
            half = wide(x.size // 2)
            values = np.concatenate([half, -half, np.zeros(x.size % 2, dtype)])
            x, t = rng.permutation(values).reshape(x.shape), certain
        case "subnormal":
            most = min(2 ** int(info.nmant), 1000)
            multiples = rng.integers(1 - most, most, x.shape)
            x, t = np.asarray(multiples * float(info.smallest_subnormal), dtype), certain
        case "infinite":
            x = np.where(rng.random(x.shape) < 0.2, -np.inf, x).astype(dtype)
        case "masked":
            np.atleast_1d(x)[..., 1::3] = -np.inf
            np.atleast_1d(t)[..., 1::3] = -np.inf if log_target else 0
        case "special":
            x, t = (np.asarray(rng.choice(special_values(dtype), shape)) for shape in shapes)
    return x, t


def widened(x: Array, t: Array) -> tuple[Array, Array]:
    """The operands in the type of the computation, by way of the type of the result."""
    result = reference.result_type(x, t)
    work = reference.computation_type(result)
    return narrow(x, result).astype(work), narrow(t, result).astype(work)


def terms_of(x: Array, t: Array, **options: Any) -> Array:
    """The library's terms in the type of the computation, from one call on whole arrays."""
    input, target = (da.from_array(a, chunks=-1) for a in widened(x, t))
    lazy = kl_div(input, target, reduction="none", **options)
    return np.asarray(lazy.compute(scheduler="synchronous"))


@functools.cache
def known(
    sort: str, shapes: tuple[Shape, Shape], name: str, log_target: bool, zero_safe: bool = False
) -> tuple[Array, Array, Array]:
    """`operands`, and their terms; shared by those who ask again, and so not to be written to."""
    x, t = operands(sort, shapes, name, log_target)
    return x, t, terms_of(x, t, log_target=log_target, zero_safe=zero_safe)


def expected(terms: Array, x: Array, dtype: Any) -> dict[str, np.generic]:
    """The exact reductions of the terms, rounded once."""
    total = reference.exact_sum(terms)
    dtype = dtype_of(dtype) if isinstance(dtype, str) else dtype
    divisors = 1, total.count, x.shape[0] if x.ndim else 1
    return {r: reference.quotient(total, d, dtype) for r, d in zip(REDUCED, divisors, strict=True)}


def assert_same_bits(got: Any, wanted: Any, *context: Any) -> None:
    """Equal types, shapes and bytes. Where there is to be NaN, any NaN will do."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), context
    nan = np.isnan(wanted)
    assert np.array_equal(np.isnan(got), nan), (got, wanted, *context)
    word = np.dtype(f"u{wanted.itemsize}")
    got, wanted = got[~nan].view(word), wanted[~nan].view(word)
    differ = got != wanted
    assert not differ.any(), (differ.nonzero(), got[differ], wanted[differ], *context)


def lazily(x: Array, t: Array, chunks: Chunks) -> tuple[da.Array, da.Array]:
    """Both operands with the chunks of their broadcast result."""
    first, second = (da.from_array(a, chunks=operand_chunks(a.shape, chunks)) for a in (x, t))
    return first, second
