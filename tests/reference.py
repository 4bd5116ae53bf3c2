"""The slow reference of `kl_div`: short, obvious code that every fast path is judged by.

Terms are computed in NumPy with correctly rounded logarithms and exponentials; sums are exact
rationals that are rounded once. Nothing here imports the library.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Every finite float of every type handled here is a whole number of these units.
UNITS_IN_ONE = 2**1074


def result_type(input: Array, target: Array) -> np.dtype[Any]:
    """The wider float of the two, where a 0-d operand does not widen an array."""
    deciding = [a.dtype for a in (input, target) if a.ndim] or [input.dtype, target.dtype]
    if {dtype.name for dtype in deciding} == {"float16", "bfloat16"}:
        return np.dtype(np.float32)
    return max(deciding, key=lambda dtype: dtype.itemsize)


def computation_type(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The type that terms are computed in, whatever narrower type the result has."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def _operands(input: Array, target: Array, dtype: npt.DTypeLike | None) -> tuple[Array, Array]:
    """The operands cast to the result's type, which matters if it is narrower, and then widened."""
    x, t = np.asarray(input), np.asarray(target)
    result = result_type(x, t) if dtype is None else np.dtype(dtype)
    work = computation_type(result)
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(result).astype(work), t.astype(result).astype(work)


def _rounded(function: Callable[[Array], Array], values: Array) -> Array:
    """`function` computed in a wider type and rounded.

    float64 has 29 bits more than float32 and x86's long double 11 more than float64, so a result
    is correctly rounded but for about one argument in 2**28 and 2**10 respectively, which are off
    by a hair more than half a unit in the last place.
    """
    wider = np.float64 if values.dtype == np.float32 else np.longdouble
    return function(values.astype(wider)).astype(values.dtype)


def pointwise(
    input: Array,
    target: Array,
    log_target: bool,
    zero_safe: bool = False,
    dtype: npt.DTypeLike | None = None,
) -> Array:
    """The terms in the type of the computation: float32, or float64 for a float64 result.

    They are *not* rounded to a narrower result type, as they are not before they are summed.
    """
    x, t = _operands(input, target, dtype)
    zero = t.dtype.type(0)
    with np.errstate(all="ignore"):
        if log_target:
            absent = t == -np.inf
            terms = _rounded(np.exp, t) * (t - x)
        else:
            absent = t == 0
            terms = np.where(absent, zero, t * _rounded(np.log, t)) - t * x
    if zero_safe:
        terms = np.where(absent & ~np.isnan(x), zero, terms)
    return terms


class Total(NamedTuple):
    """The exact sum of the finite terms, and how many terms of each other sort there were."""

    exact: Fraction
    nan: int
    posinf: int
    neginf: int
    count: int


def exact_sum(terms: Array) -> Total:
    terms = np.asarray(terms, np.float64)
    ratios = map(float.as_integer_ratio, terms[np.isfinite(terms)].tolist())
    units = sum(numerator * (UNITS_IN_ONE // denominator) for numerator, denominator in ratios)
    nan, posinf, neginf = np.isnan(terms), terms == np.inf, terms == -np.inf
    return Total(
        Fraction(units, UNITS_IN_ONE), int(nan.sum()), int(posinf.sum()), int(neginf.sum()),
        terms.size,
    )  # fmt: skip


def finfo(dtype: npt.DTypeLike) -> Any:
    """`numpy.finfo` that knows bfloat16 too."""
    if np.dtype(dtype).name == "bfloat16":
        import ml_dtypes

        return ml_dtypes.finfo(dtype)
    return np.finfo(dtype)


def round_fraction(value: Fraction, dtype: npt.DTypeLike) -> np.generic:
    """The nearest number of a floating-point type, ties to even.

    Subnormals are spaced evenly below the smallest normal number, and from the largest number plus
    half a spacing on the result is infinite. A negative value that rounds to zero gives -0.0, and
    zero itself gives +0.0.
    """
    dtype, info = np.dtype(dtype), finfo(dtype)
    if value == 0:
        return dtype.type(0.0)
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    spacing = Fraction(2) ** (max(exponent, int(info.minexp)) - int(info.nmant))
    rounded = round(size / spacing) * spacing
    overflows = rounded >= Fraction(2) ** int(info.maxexp)
    return dtype.type(
        math.copysign(math.inf if overflows else float(rounded), 1 if value > 0 else -1)
    )


def quotient(total: Total, divisor: int, dtype: npt.DTypeLike) -> np.generic:
    """A sum divided by a whole number and rounded once. Anything divided by 0 is NaN."""
    dtype = np.dtype(dtype)
    if total.nan or (total.posinf and total.neginf) or divisor == 0:
        return dtype.type(math.nan)
    if total.posinf or total.neginf:
        return dtype.type(math.inf if total.posinf else -math.inf)
    return round_fraction(total.exact / divisor, dtype)


def reduce(terms: Array, reduction: str, batch: int | None, dtype: npt.DTypeLike) -> Array:
    """Reduce given terms to an array. `batch` is ``input.shape[0]``, or None for a 0-d `input`.

    Elementwise results are rounded to `dtype` too; for everything else the terms should be those
    of the computation type.
    """
    if reduction == "none":
        with np.errstate(all="ignore"):
            return np.asarray(terms).astype(dtype)
    total = exact_sum(terms)
    divisors = {"sum": 1, "mean": total.count, "batchmean": 1 if batch is None else batch}
    return np.asarray(quotient(total, divisors[reduction], dtype))


def reduce_along(
    terms: Array,
    mask: Array,
    reduction: str,
    axis: int | tuple[int, ...] | None,
    keepdims: bool,
    dtype: npt.DTypeLike,
) -> Array:
    """Reduce those of the given terms that a mask of the same shape includes: sum or mean."""
    axes = range(terms.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(number % terms.ndim for number in axes)
    last = range(-len(axes), 0)
    terms, mask = np.moveaxis(terms, axes, last), np.moveaxis(mask, axes, last)
    out = np.empty(terms.shape[: terms.ndim - len(axes)], dtype)
    for index in np.ndindex(out.shape):
        total = exact_sum(terms[index][mask[index]])
        out[index] = quotient(total, total.count if reduction == "mean" else 1, dtype)
    return np.expand_dims(out, axes) if keepdims else out


def included_batch_rows(input: Array, mask: Array) -> int:
    """How many rows along axis 0 of `input` have an element that a mask of the result includes."""
    if input.ndim == 0 or input.shape[0] == 1:
        return int(mask.any())
    place = mask.ndim - input.ndim
    return int(mask.any(axis=tuple(i for i in range(mask.ndim) if i != place)).sum())


def reduce_included(
    terms: Array,
    input: Array,
    reduction: str,
    dtype: npt.DTypeLike,
    *,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    where: Any = True,
) -> Array:
    """Reduce given terms, of the computation type, as `kl_div` does with a mask."""
    mask = np.broadcast_to(np.asarray(where), terms.shape)
    if reduction == "none":
        return reduce(np.where(mask, terms, terms.dtype.type(0)), reduction, None, dtype)
    if reduction != "batchmean":
        return reduce_along(terms, mask, reduction, axis, keepdims, dtype)
    result = reduce(terms[mask], reduction, included_batch_rows(input, mask), dtype)
    return np.expand_dims(result, tuple(range(terms.ndim))) if keepdims else result


def kl_div(
    input: Array,
    target: Array,
    reduction: str = "mean",
    log_target: bool = False,
    *,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
    where: Any = None,
    dtype: npt.DTypeLike | None = None,
    zero_safe: bool = False,
) -> Array:
    """All of it, but for the legacy flags and the warnings."""
    x, t = np.asarray(input), np.asarray(target)
    terms = pointwise(x, t, log_target, zero_safe, dtype)
    result = result_type(x, t) if dtype is None else dtype
    if where is not None or axis is not None or keepdims:
        options: dict[str, Any] = {"axis": axis, "keepdims": keepdims}
        mask = True if where is None else where
        return reduce_included(terms, x, reduction, result, where=mask, **options)
    return reduce(terms, reduction, x.shape[0] if x.ndim else None, result)
