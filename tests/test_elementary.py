"""The elementary functions: accuracy, special values, and the same bits everywhere."""

import hashlib
import inspect
import os
import platform
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numba
import numpy as np
import pytest
from mpmath import mp, mpf
from numba.core.errors import TypingError

from kldiv_dask.kernels import elementary, elementary_tables
from tests.benchmarks.exhaustive_elementary import errors, loop
from tests.derivations import elementary as derivation

DTYPES = (np.float32, np.float64)
NAMES = ("exp", "exp_normal", "log", "log_normal")
REFERENCES = {
    # Beyond these limits e^x is as good as 0 or infinite, and mpmath takes long over it.
    "exp": lambda x: mp.exp(min(max(x, -2000), 2000)),
    "log": mp.log,
}
EXP_NORMAL_LIMIT = {np.float32: 87, np.float64: 708}

by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_name = pytest.mark.parametrize("name", NAMES)
on_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="reads x86 assembly"
)


def scalar(name, dtype):
    return getattr(elementary, f"{name}_f{np.finfo(dtype).bits}")


def apply(function, x):
    out = np.empty_like(x)
    loop(function)(x, out)
    return out


def bits(values):
    """Bit patterns, with one pattern for every NaN."""
    values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
    return values.view(f"u{values.itemsize}").tolist()


def specials(dtype):
    info = np.finfo(dtype)
    magnitudes = [0, info.smallest_subnormal, info.smallest_normal, 1, info.max, np.inf]
    return np.array([*magnitudes, *(-m for m in magnitudes), np.nan, -np.nan], dtype)


def stratified(dtype, count):
    """Bit patterns spread evenly: all signs and exponents, infinities, NaNs and subnormals."""
    width = np.finfo(dtype).bits
    step = 2**width // count
    jitter = np.random.default_rng(1).integers(step, size=count, dtype=np.uint64)
    patterns = np.arange(count, dtype=np.uint64) * np.uint64(step) + jitter
    return patterns.astype(f"u{width // 8}").view(dtype)


def near(value, dtype, count=600):
    """Numbers at all distances from one: as many within 2^k ulp for every k."""
    rng = np.random.default_rng(2)
    info = np.finfo(dtype)
    distances = 2 ** rng.uniform(0, info.nmant, count) * rng.choice([-1, 1], count)
    pattern = np.array([value], dtype).view(f"i{info.bits // 8}")
    return (pattern + distances.astype(pattern.dtype)).view(dtype)


def arguments(name, dtype, count):
    """Arguments of any size, in the narrower range of interest, and around every threshold."""
    info = np.finfo(dtype)
    log2 = np.log(2.0)
    if name.startswith("exp"):
        lowest, highest = (info.minexp - info.nmant - 1) * log2, info.maxexp * log2
        interesting = np.random.default_rng(3).uniform(lowest - 1, highest + 1, count)
        centers = [lowest, lowest + log2, info.minexp * log2, -1, -log2 / 2, log2 / 2, highest]
    else:
        interesting = np.random.default_rng(3).uniform(0, 2, count)
        start = float(derivation.START)
        centers = [info.smallest_normal, start / 2, start, 1, 2 * start, 4 * start, info.max]
    pieces = [stratified(dtype, count), interesting.astype(dtype), specials(dtype)]
    return np.concatenate(pieces + [near(center, dtype) for center in centers])


def usable(name, x):
    """Leave out the arguments that a shorter path is not made for."""
    with np.errstate(invalid="ignore"):
        if name == "exp_normal":
            return x[np.abs(x) <= EXP_NORMAL_LIMIT[x.dtype.type]]
        if name == "log_normal":
            return x[(x >= np.finfo(x.dtype).smallest_normal) & (x < np.inf)]
    return x


def ulps(result, exact, dtype):
    """Error in units of the last place of the exact result; infinity counts as 2^maxexp."""
    info = np.finfo(dtype)
    largest = mpf(2) ** info.maxexp
    result, exact = min(mpf(float(result)), largest), min(exact, largest)
    exponent = max(mp.frexp(exact)[1] - 1, info.minexp) if exact else info.minexp
    return float(abs(result - exact) / mpf(2) ** (exponent - info.nmant))


@by_dtype
def test_constants_are_the_derived_ones(dtype):
    form = next(f for f in derivation.FORMATS if f.name == np.dtype(dtype).name.upper())
    source, polynomial_errors = derivation.derive(form)
    assert f"\n{source}\n" in Path(elementary_tables.__file__).read_text()
    # The excess has 40 ulp to spare in what it is for, and terms cost time.
    ulps = {"exp": 0.07, "log": 0.07, "excess": 4, "jensen": 3, "mixture": 0.4}
    for name, error in polynomial_errors.items():
        assert error * 2**form.precision < ulps[name]


@by_dtype
@pytest.mark.parametrize("name", REFERENCES)
def test_error_against_mpmath(name, dtype):
    x = arguments(name, dtype, 3000)
    x = x[np.isfinite(x) & ((x > 0) | (name == "exp"))]
    result = apply(scalar(name, dtype), x)
    with mp.workprec(160):
        pairs = zip(result, x, strict=True)
        error = np.array([ulps(y, REFERENCES[name](mpf(float(v))), dtype) for y, v in pairs])
    assert 0.5 < error.max() < 0.8
    normal = np.abs(result) >= np.finfo(dtype).smallest_normal
    assert error[normal].max() < (0.7 if name == "exp" else 0.8)


@pytest.mark.parametrize("name", REFERENCES)
def test_error_against_float64(name):
    error = errors(name, arguments(name, np.float32, 2**20))
    assert 0.5 < error.max() < 0.8


@by_dtype
def test_special_values_of_exp(dtype):
    info = np.finfo(dtype)
    inf, nan = np.inf, np.nan
    x = np.array([0, -0.0, inf, -inf, info.max, -info.max, info.tiny, -info.tiny, nan], dtype)
    expected = np.array([1, 1, inf, 0, inf, 0, 1, 1, nan], dtype)
    assert bits(apply(scalar("exp", dtype), x)) == bits(expected)


@by_dtype
def test_special_values_of_log(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    inf, nan = np.inf, np.nan
    x = np.array([0, -0.0, 1, inf, -inf, -1, -tiny, nan, -nan], dtype)
    expected = np.array([-inf, -inf, 0, inf, nan, nan, nan, nan, nan], dtype)
    assert bits(apply(scalar("log", dtype), x)) == bits(expected)


@by_dtype
def test_exp_underflows_gradually_and_overflows_at_the_end(dtype):
    info = np.finfo(dtype)
    log2 = np.log(2.0)
    first, last = (info.minexp - info.nmant - 1) * log2, info.maxexp * log2
    x = np.array([first - 0.01, first + 0.01, last - 0.01, last + 0.01], dtype)
    result = apply(scalar("exp", dtype), x)
    assert bits(result[:2]) == bits(np.array([0, info.smallest_subnormal], dtype))
    assert result[2] < result[3] == np.inf


@by_dtype
@by_name
def test_bits_do_not_depend_on_the_place(name, dtype):
    function = scalar(name, dtype)
    x = usable(name, arguments(name, dtype, 300))
    x = np.random.default_rng(4).permutation(x)[:200]
    expected = bits(np.array([function(value) for value in x], dtype))
    for length in range(1, 71):
        for start in (0, 1, 2, 3, 5, 8, 13, 64, 128):
            stop = start + length
            assert bits(apply(function, x[start:stop])) == expected[start:stop]
    assert bits(apply(function, x[::3])) == expected[::3]


@by_dtype
@pytest.mark.parametrize("name", REFERENCES)
def test_shorter_paths_give_the_same_bits(name, dtype):
    x = usable(f"{name}_normal", arguments(name, dtype, 2**17))
    assert x.size > 2**17
    shorter = apply(scalar(f"{name}_normal", dtype), x)
    assert bits(shorter) == bits(apply(scalar(name, dtype), x))


@by_dtype
@by_name
def test_functions_without_a_type_go_by_the_argument(name, dtype):
    x = usable(name, arguments(name, dtype, 300))
    generic = getattr(elementary, name)
    assert bits(apply(generic, x)) == bits(apply(scalar(name, dtype), x))
    assert generic(x[0]) == scalar(name, dtype)(x[0])
    with pytest.raises(TypeError, match="x must be a float32 or float64 scalar, not int64"):
        generic(1)
    with pytest.raises(TypingError):
        loop(generic)(np.ones(1, np.int64), np.ones(1))


@by_dtype
def test_fma_rounds_once(dtype):
    fma = {np.float32: elementary.fma_f32, np.float64: elementary.fma_f64}[dtype]

    @numba.njit
    def remainders(x, y, product, out):
        for i in range(x.size):
            out[i] = fma(x[i], y[i], -product[i])

    x, y = np.random.default_rng(5).uniform(-2, 2, (2, 1000)).astype(dtype)
    out = np.empty_like(x)
    remainders(x, y, x * y, out)
    exact = [
        Fraction(float(a)) * Fraction(float(b)) - Fraction(float(a * b))
        for a, b in zip(x, y, strict=True)
    ]
    assert [Fraction(float(value)) for value in out] == exact
    assert np.count_nonzero(out) > 900
    with pytest.raises(TypingError):
        remainders(x, y.astype(np.int64), x, out)


def digest():
    """Fingerprint of all functions' results, and whether the processor's own fma was used."""
    sha, assembly = hashlib.sha256(), ""
    for dtype in DTYPES:
        for name in NAMES:
            x = usable(name, arguments(name, dtype, 2**15))
            result = apply(scalar(name, dtype), x)
            sha.update(np.where(np.isnan(result), dtype(np.nan), result).tobytes())
            assembly += "".join(loop(scalar(name, dtype)).inspect_asm().values())
    return f"{sha.hexdigest()} {'vfmadd' in assembly}"


@on_x86
def test_bits_do_not_depend_on_the_processor():
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    code = "from tests.test_elementary import digest; print(digest())"
    generic = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    sha, own_fma = generic.stdout.split()
    assert own_fma == "False"
    assert sha == digest().split()[0]


def plain(name, dtype):
    return loop(scalar(name, dtype))


def terms(name, dtype):
    """The loop over torch's terms that a function is there for."""
    function = scalar(name, dtype)

    @numba.njit(nogil=True)
    def log_target(t, x, out):
        for i in range(t.size):
            out[i] = function(t[i]) * (t[i] - x[i])

    @numba.njit(nogil=True)
    def probability(t, x, out):
        for i in range(t.size):
            out[i] = t[i] * function(t[i]) - t[i] * x[i]

    return log_target if name.startswith("exp") else probability


@on_x86
@by_dtype
@by_name
@pytest.mark.parametrize("make", [plain, terms])
def test_loops_are_vectorized(make, name, dtype):
    run = make(name, dtype)
    arrays = (numba.typeof(np.ones(1, dtype)),) * len(inspect.signature(run.py_func).parameters)
    run.compile(arrays)
    assembly = run.inspect_asm(arrays)
    fused = re.findall(r"\tvfn?m(?:add|sub)\d+([ps][sd])\s.*%([xyz]mm)", assembly)
    if not fused:
        pytest.skip("the processor has no fused multiply-add")
    letter = "s" if dtype is np.float32 else "d"
    assert {operation[1] for operation, _ in fused} == {letter}
    # One iteration of the vector loop alone has as many.
    assert sum(fused.count((f"p{letter}", width)) for width in ("ymm", "zmm")) >= 8
