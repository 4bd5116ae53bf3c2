"""The loop that splits terms on guessed grids: its guesses change the time, and nothing else."""

import platform
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numba
import numpy as np
import pytest

from kldiv_dask import partial_sum
from kldiv_dask.kernels import jit, pointwise, pointwise_sum
from kldiv_dask.kernels.pointwise_sum import FAILURES, GRIDS, LOOPS
from tests import reference
from tests.helpers.cases import Array, dtype_of, narrow, some_slow

# Around a vector, the shortest strip, a tile, and a strip and its ends.
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 79, 511, 512, 513, 2047, 2048, 2049, 4096 + 77, 20000)
PAIRS = [
    ("float32", "float32"),
    ("float64", "float64"),
    ("float16", "float16"),
    ("bfloat16", "float32"),
    ("float32", "float64"),
]

by_types = pytest.mark.parametrize("names", [PAIRS[0], *some_slow(*PAIRS[1:])])
by_target = pytest.mark.parametrize("log_target", [False, True])


def pairs(size: int, log_target: bool) -> Iterator[tuple[str, Array, Array]]:
    """Pairs (input, target) of float64 of many kinds; the target as a logarithm or not."""
    rng = np.random.default_rng(size)
    uniform = rng.random(size)
    near = np.log(uniform + 1e-3)
    x = np.log(rng.random(size) + 1e-6)

    def target(logarithms: Array) -> Array:
        return logarithms if log_target else np.exp(logarithms)

    yield "uniform", x, target(np.log(uniform + 1e-6))
    for scale in (1, 3, 6, 12):
        logits = rng.normal(0, scale, size)
        t = logits - np.log(np.exp(logits).sum())
        yield f"logits of deviation {scale}", t + rng.normal(0, 0.1, size), target(t)
    yield "equal", near, target(near)
    yield "canceling", near + np.where(np.arange(size) % 2, 1e-3, -1e-3), target(near)
    wide = rng.uniform(-80, 0, size)
    yield "wide", wide / 2, target(wide)
    huge = rng.normal(0, 1, size) * 10.0 ** rng.uniform(-30, 30, size)
    yield "huge inputs", huge, target(near)
    yield "subnormal", x, target(rng.uniform(-104, -80, size))
    absent = np.where(rng.random(size) < 0.5, -np.inf, near)
    yield "absent classes", x, target(absent)
    odd_x, odd_t = x.copy(), target(near)
    for value in (np.inf, -np.inf, np.nan):
        odd_x[rng.integers(size)] = value
        odd_t[rng.integers(size)] = value
    yield "not finite", odd_x, odd_t
    yield "negative targets", x, -uniform
    yield "zeros", np.zeros(size), np.zeros(size)
    jumps = np.where(np.arange(size) % 5000 < 2500, 1.0, 1e-9)
    yield "jumps of scale", near + jumps * rng.normal(0, 1, size), target(near)


def cast(values: Array, name: str) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(narrow(values, dtype_of(name)))


def at_offset(values: Array, offset: int) -> Array:
    """Return a copy that begins so many numbers after a cache line does."""
    buffer = np.empty(values.size + 128, values.dtype)
    first = -buffer.ctypes.data % 64 // values.itemsize + offset
    buffer[first : first + values.size] = values
    return buffer[first : first + values.size]


def add(
    x: Array, t: Array, spec: pointwise.PointwiseSpec, where: Array | None, guess: Array
) -> partial_sum.Total:
    """Sum the terms; `guess` is what the loop begins with, and is left as it ends."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointwise_sum, "no_guess", lambda: guess)
        state = partial_sum.zero()
        pointwise_sum.add_block(state, x, t, spec, where)
    return partial_sum.total(state)


def check(x: Array, t: Array, spec: pointwise.PointwiseSpec, where: Any, what: Any) -> Array:
    """Hold the sum against that of the terms, which another loop computes, in big integers."""
    guess = pointwise_sum.no_guess()
    sums = add(x, t, spec, where, guess)
    terms = pointwise.block_terms(x, t, spec._replace(dtype=spec.compute_dtype))
    expected = reference.exact_sum(terms if where is None else terms[where])
    assert Fraction(sums.units, 2**1074) == expected.exact, what
    assert sums[1:4] == expected[1:4], what
    return guess


def spec_of(names: tuple[str, str], log_target: bool, zero_safe: bool) -> pointwise.PointwiseSpec:
    wide = "float64" if "float64" in names else "float32"
    return pointwise.PointwiseSpec(np.dtype(wide), log_target, zero_safe)


@by_target
@by_types
def test_every_kind_of_data(names: tuple[str, str], log_target: bool) -> None:
    for zero_safe in (False, True):
        spec = spec_of(names, log_target, zero_safe)
        for size in LENGTHS:
            for kind, *operands in pairs(size, log_target):
                x, t = map(cast, operands, names)
                check(x, t, spec, None, (kind, size))


@by_target
@by_types
def test_masks(names: tuple[str, str], log_target: bool) -> None:
    """What is excluded may be anything; it keeps no strip from the loop."""
    spec = spec_of(names, log_target, False)
    rng = np.random.default_rng(0)
    masks = {
        "scattered": rng.random(20000) < 0.7,
        "runs": np.arange(20000) // 1000 % 3 > 0,
        "nothing": np.zeros(20000, bool),
        "everything": np.ones(20000, bool),
    }
    for what, where in masks.items():
        for kind, *operands in pairs(20000, log_target):
            x, t = map(cast, operands, names)
            check(x, t, spec, where, (what, kind))
            x[~where], t[~where] = np.nan, -np.inf
            guess = check(x, t, spec, where, (what, kind))
            if kind == "uniform":
                assert (guess[FAILURES], guess[LOOPS] > 7) == (0, True), what


@by_target
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_every_offset_in_a_cache_line(name: str, log_target: bool) -> None:
    spec = spec_of((name, name), log_target, False)
    _, *operands = next(pairs(5000, log_target))
    x, t = (cast(operand, name) for operand in operands)
    for offset in range(64 // x.itemsize):
        check(at_offset(x, offset), at_offset(t, -offset % 7), spec, None, offset)


@by_target
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_any_guess_gives_the_same_sum(name: str, log_target: bool) -> None:
    """Grids that are too fine, too coarse or too few are noticed."""
    spec = spec_of((name, name), log_target, False)
    for kind, *operands in pairs(5000, log_target):
        x, t = (cast(operand, name) for operand in operands)
        expected = add(x, t, spec, None, pointwise_sum.no_guess())
        for unit in (-80, -60, -40, -20, -10, 0, 50, 100):
            for grids in (2, 3, 4 if name == "float32" else 3):
                guess = pointwise_sum.no_guess()
                guess[:2] = unit, grids
                assert add(x, t, spec, None, guess) == expected, (kind, unit, grids)


@by_target
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_what_takes_the_loop(name: str, log_target: bool) -> None:
    """Usual data fail nowhere; data of another kind in between are forgotten after some strips."""
    spec = spec_of((name, name), log_target, False)
    data = {kind: operands for kind, *operands in pairs(100_000, log_target)}
    for kind in ("uniform", "logits of deviation 1", "logits of deviation 3", "zeros"):
        x, t = (cast(operand, name) for operand in data[kind])
        guess = pointwise_sum.no_guess()
        add(x, t, spec, None, guess)
        assert (guess[FAILURES], guess[LOOPS] > 40) == (0, True), kind
    if not log_target:
        x, t = (cast(operand, name) for operand in data["absent classes"])
        guess = check(x, t, spec, None, "zeros are usual targets")
        assert guess[FAILURES] == 0
    x, t = (cast(operand, name) for operand in data["uniform"])
    x[:30000] = np.nan
    guess = check(x, t, spec, None, "not finite at first")
    assert (guess[FAILURES], guess[LOOPS] > 25) == (0, True)
    x[1::8192] = np.nan
    guess = check(x, t, spec, None, "now and then")
    assert guess[GRIDS] == 2
    assert guess[LOOPS] > 10


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86 assembly"
)
@pytest.mark.parametrize("log_target", some_slow(False, True))
@pytest.mark.parametrize("names", some_slow(*PAIRS))
def test_the_loop_has_no_call_and_no_gather(
    names: tuple[str, str], log_target: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = []

    def uncached(function: Any, signature: Any, *, cache: bool) -> Any:
        kernel = numba.njit(**jit._OPTIONS)(function)
        kernel.compile(signature)
        kernels.append(kernel)
        return kernel

    monkeypatch.setattr(jit, "_jit", uncached)
    monkeypatch.setattr(jit, "_kernels", {})
    spec = spec_of(names, log_target, False)
    x, t = (np.ones(64, dtype_of(name)) for name in names)
    pointwise_sum.add_block(partial_sum.zero(), x, t, spec)
    text = "".join(kernels[0].inspect_asm().values())
    blocks = re.split(r"^(\.LBB\w+):", text, flags=re.MULTILINE)
    loops = [
        block
        for label, block in zip(blocks[1::2], blocks[2::2], strict=True)
        if re.search(rf"\tj\w+\t{re.escape(label)}$", block, re.MULTILINE)
        and re.search(r"\tvfn?m(add|sub)\d+p[sd]\t.*%[xyz]mm", block)
    ]
    # One for each number of grids, and at least one of the careful functions.
    assert len(loops) > (3 if spec.dtype == np.float32 else 2)
    for loop in loops:
        assert not re.search(r"\tcall|gather|\tvfn?m(add|sub)\d+s[sd]\t", loop), loop
