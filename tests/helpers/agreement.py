"""When a result agrees with torch's: types, shapes, what is not finite, and a derived tolerance."""

from typing import Any

import numpy as np

from tests import reference
from tests.helpers.cases import Array

# torch rounds up to four intermediates, each by half an eps of `magnitudes`, its logarithm and
# exponential err by up to 1 ulp more, and it rounds sums as it goes. The worst of the goldens
# differ from correctly rounded terms and exact sums by 1.3 eps.
ROUNDINGS = 4


def resolve(options: dict[str, Any]) -> tuple[str, bool]:
    """What torch's `kl_div` does for these options: reduce, and then divide by the batch size?"""
    size_average, reduce = options.get("size_average"), options.get("reduce")
    reduction = options["reduction"]
    if size_average is None and reduce is None:
        return ("mean" if reduction == "elementwise_mean" else reduction), False
    if reduce is not None and not reduce:
        return "none", reduction == "batchmean"
    return ("mean" if size_average is None or size_average else "sum"), reduction == "batchmean"


def expected(input: Array, target: Array, options: dict[str, Any], module: bool) -> Array:
    """The reference's result for a call that may have legacy flags."""
    reduction, per_batch = resolve(options)
    result = reference.kl_div(input, target, reduction, options["log_target"])
    if per_batch and input.ndim and not module:
        return np.asarray(result / result.dtype.type(input.shape[0])).astype(result.dtype)
    return result


def magnitudes(input: Array, target: Array, log_target: bool) -> tuple[Array, Array]:
    """What the rounding errors of a term are proportional to, and what its underflow is.

    Two products are subtracted for a probability target, so a term is known to a few eps of the
    larger product, however small their difference; a log target has one product. Where the
    exponential underflows, half the smallest number is multiplied by what follows.
    """
    dtype = reference.result_type(input, target)
    x, t = np.float64(input), np.float64(target)
    with np.errstate(all="ignore"):
        if log_target:
            size, underflow = np.abs(np.exp(t) * (t - x)), 2 + np.abs(t - x)
            if {input.dtype, target.dtype} != {dtype} and not (input.ndim and target.ndim):
                # a 0-d operand of a wider type is rounded before the subtraction
                size = size + np.exp(t) * (np.abs(x) + np.abs(t))
        else:
            size = np.where(t == 0, 0, np.abs(t * np.log(t))) + np.abs(t * x)
            underflow = np.full_like(size, 2)
    return np.where(np.isfinite(size), size, 0), np.where(np.isfinite(underflow), underflow, 0)


def tolerance(input: Array, target: Array, options: dict[str, Any]) -> Array:
    """How far torch's result may be from the exact one."""
    # torch takes the logarithm or exponential in the target's own type
    types = {target.dtype, reference.result_type(input, target)}
    eps = max(float(reference.finfo(dtype).eps) for dtype in types)
    smallest = max(float(reference.finfo(dtype).smallest_subnormal) for dtype in types)
    size, underflow = magnitudes(input, target, options["log_target"])
    error = ROUNDINGS * eps * size + smallest * underflow
    reduction, _ = resolve(options)
    if reduction == "none":
        return error
    divisors = {"sum": 1, "mean": error.size, "batchmean": input.shape[0] if input.ndim else 1}
    return np.asarray(error.sum() / max(divisors[reduction], 1) + smallest)


def difference(got: Array, wanted: Array, tolerance: Array) -> str:
    """How two results differ, in words; nothing if they agree. The sign of zero is not compared."""
    if got.dtype != wanted.dtype:
        return f"dtype {got.dtype}, not {wanted.dtype}"
    if got.shape != wanted.shape:
        return f"shape {got.shape}, not {wanted.shape}"
    a, b = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    with np.errstate(invalid="ignore"):
        close = np.where(np.isfinite(a) & np.isfinite(b), np.abs(a - b) <= tolerance, a == b)
    agree = close | (np.isnan(a) & np.isnan(b))
    if agree.all():
        return ""
    place = np.unravel_index(np.argmin(agree), agree.shape)
    allowed = np.broadcast_to(tolerance, agree.shape)[place]
    where = f" at {tuple(map(int, place))}" if place else ""
    return f"{a[place]!r}{where}, not {b[place]!r} to within {allowed:.2g}"
