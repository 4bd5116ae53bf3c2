"""The judge is judged: by NumPy's casts, by Python's integers, by mpmath."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from tests import reference
from tests.helpers import cases
from tests.helpers.cases import FLOATS, dtype_of


def bits(value: np.generic) -> bytes:
    return value.tobytes()


@pytest.mark.parametrize("name", ["float16", "float32", "bfloat16"])
def test_rounding_a_float64_is_a_cast(name: str) -> None:
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    dtype, info = dtype_of(name), reference.finfo(dtype_of(name))
    rng = np.random.default_rng(1)
    exponents = rng.uniform(int(info.minexp) - 14, int(info.maxexp) + 2, 2000)
    eps, smallest = float(info.eps), float(info.smallest_subnormal)
    largest = 2.0 ** int(info.maxexp) * (1 - eps / 4)
    ties = [largest, math.nextafter(largest, 0), smallest / 2, smallest * 1.5, 1 + eps / 2, 0.0]
    values = [*np.exp2(exponents) * rng.choice([-1, 1], 2000), *ties, math.nextafter(ties[2], 1)]
    for value in values:
        # bfloat16 is cast by way of float32, which has rounded already
        wide = np.float64(cases.narrow(value, np.float32) if name == "bfloat16" else value)
        if np.isfinite(wide):
            rounded = reference.round_fraction(Fraction(float(wide)), dtype)
            assert bits(rounded) == bits(cases.narrow(wide, dtype)[()]), wide


def test_rounding_a_quotient_of_integers_is_python_division() -> None:
    rng = np.random.default_rng(2)
    for shift in range(0, 1200, 2):
        numerator, factor, divisor = (int(n) for n in rng.integers(1, 2**62, 3))
        ratio = Fraction(-numerator * factor, divisor << shift)
        wanted = ratio.numerator / ratio.denominator
        assert bits(reference.round_fraction(ratio, np.float64)) == bits(np.float64(wanted))


def test_rounding_once_differs_from_rounding_twice() -> None:
    """A value just above a tie of float16 that float64 or float32 would round to the tie."""
    tie = 1 + Fraction(1, 2**11)
    assert reference.round_fraction(tie, np.float16) == 1
    for excess in (Fraction(1, 2**40), Fraction(1, 2**90)):
        assert reference.round_fraction(tie + excess, np.float16) == 1 + 2.0**-10


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_are_exact(dtype: str, log_target: bool) -> None:
    x, t = cases.canceling(np.random.default_rng(3), 200, dtype, log_target)
    terms = reference.pointwise(x, t, log_target)
    assert np.array_equal(terms, -x)
    total = reference.exact_sum(terms)
    assert total == (0, 0, 0, 0, 200)
    assert bits(reference.quotient(total, 7, np.float64)) == bits(np.float64(0.0))
    assert float(reference.exact_sum(terms[:117]).exact) == math.fsum(terms[:117].tolist()) != 0


def test_what_is_not_finite_is_counted() -> None:
    total = reference.exact_sum(np.array([np.nan, np.inf, np.inf, -np.inf, 2.5, -0.5]))
    assert total == (2, 1, 2, 1, 6)


@pytest.mark.parametrize(
    ("terms", "reduction", "batch", "wanted"),
    [
        ([], "sum", 0, 0.0),
        ([], "mean", 0, np.nan),
        ([], "batchmean", 0, np.nan),
        ([], "batchmean", 3, 0.0),
        ([1.0, 2.0], "batchmean", None, 3.0),
        ([1.0, 2.0], "mean", 5, 1.5),
        ([1.0, np.inf], "mean", 5, np.inf),
        ([1.0, -np.inf], "sum", 5, -np.inf),
        ([np.inf, -np.inf], "sum", 5, np.nan),
        ([np.inf, np.nan], "sum", 5, np.nan),
    ],
)
def test_reductions(terms: list[float], reduction: str, batch: int | None, wanted: float) -> None:
    result = reference.reduce(np.array(terms), reduction, batch, np.float32)
    assert result.dtype == np.float32
    assert result == wanted or (np.isnan(result) and np.isnan(wanted))


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logarithms_and_exponentials_are_correctly_rounded(dtype: str, log_target: bool) -> None:
    """In terms whose other operations are exact: t log t for t = 2**n, exp(t) (t - (t - 1))."""
    rng = np.random.default_rng(4)
    if log_target:
        t = rng.integers(-40, 40, 300).astype(dtype)
        terms = reference.pointwise(t - 1, t, log_target)
        factors = zip(t, np.ones(300), strict=True)
    else:
        t = np.exp2(rng.integers(-60, 60, 300)).astype(dtype)
        terms = reference.pointwise(np.zeros_like(t), t, log_target)
        factors = zip(t, t, strict=True)
    function = mpmath.exp if log_target else mpmath.log
    with mpmath.workprec(200):
        exact = [function(float(value)) * float(factor) for value, factor in factors]
        # every number here is above 2**-130, so that all its bits are above 2**-400
        ratios = [Fraction(int(mpmath.ldexp(number, 400)), 2**400) for number in exact]
    wanted = [reference.round_fraction(ratio, dtype) for ratio in ratios]
    assert [bits(term) for term in terms] == [bits(value) for value in wanted]


def test_every_chunking_once() -> None:
    chunkings = list(cases.all_chunkings((4, 0, 3)))
    assert len(chunkings) == len(set(chunkings)) == 8 * 1 * 4
    assert all(tuple(map(sum, chunks)) == (4, 0, 3) for chunks in chunkings)
    rng = np.random.default_rng(6)
    drawn = {cases.random_chunking(rng, (4, 0, 3)) for _ in range(500)}
    assert drawn == set(chunkings)
