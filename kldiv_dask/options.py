"""Reductions, legacy flags and data types: many spellings in, one resolved value out."""

import math
import operator
import sys
import warnings
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
import numpy.typing as npt
from numpy.exceptions import AxisError

from kldiv_dask.dtypes import OPERANDS, RESULTS, named_dtype

Kind = Literal["none", "mean", "sum"]

REDUCTIONS = ("none", "mean", "batchmean", "sum")

_LEGACY: dict[tuple[bool, bool], Kind] = {
    (True, True): "mean",
    (False, True): "sum",
    (True, False): "none",
    (False, False): "none",
}


class Reduction(NamedTuple):
    """A reduction with its spelling resolved.

    `per_batch` divides what `kind` gives by the batch size. It stands beside `kind` because torch
    divides even the results of legacy flags when ``reduction='batchmean'`` is passed with them.
    """

    kind: Kind
    per_batch: bool

    @property
    def divides_by_numel(self) -> bool:
        """Whether the number of terms matters to `divisor`."""
        return self.kind == "mean"

    def divisor(self, numel: Any, rows: Any = 1) -> Any:
        """Return what a sum of `numel` terms over `rows` batch rows is divided by.

        Of many sums, these are arrays of counts, or one count for all; so is what is returned.
        """
        return (numel if self.divides_by_numel else 1) * (rows if self.per_batch else 1)


def legacy_reduction(size_average: Any, reduce: Any, *, stacklevel: int) -> Kind:
    """Translate torch's legacy flags, by their truthiness, and warn that they are deprecated."""
    kind = _LEGACY[size_average is None or bool(size_average), reduce is None or bool(reduce)]
    warnings.warn(
        f"size_average and reduce are deprecated; use reduction={kind!r} instead",
        UserWarning,
        stacklevel=stacklevel + 1,
    )
    return kind


def resolve_reduction(
    size_average: Any, reduce: Any, reduction: str, *, stacklevel: int
) -> Reduction:
    """Resolve a reduction and the legacy flags that override it, with torch's warnings."""
    if size_average is not None or reduce is not None:
        kind = legacy_reduction(size_average, reduce, stacklevel=stacklevel + 1)
        return Reduction(kind, reduction == "batchmean")
    match reduction:
        case "none":
            return Reduction("none", False)
        case "sum":
            return Reduction("sum", False)
        case "batchmean":
            return Reduction("sum", True)
        case "mean":
            warnings.warn(
                "reduction='mean' divides by the number of elements, classes included, so the "
                "result is not the mean KL divergence; that is the sum divided by the number of "
                "distributions, which reduction='batchmean' gives if each row of the first axis "
                "is one",
                UserWarning,
                stacklevel=stacklevel + 1,
            )
            return Reduction("mean", False)
        case "elementwise_mean":
            warnings.warn(
                "reduction='elementwise_mean' is deprecated; use reduction='mean' instead",
                UserWarning,
                stacklevel=stacklevel + 1,
            )
            return Reduction("mean", False)
    accepted = ", ".join(map(repr, REDUCTIONS))
    raise ValueError(f"reduction must be one of {accepted}, got {reduction!r}")


def check_axis(axis: Any, keepdims: bool, reduction: Reduction) -> None:
    """Refuse an axis, or keeping it, where the reduction has none to choose."""
    if axis is not None and (reduction.kind == "none" or reduction.per_batch):
        name = "batchmean" if reduction.per_batch else "none"
        raise ValueError(
            f"axis must be None with reduction={name!r}, got {axis!r}; use 'sum' or 'mean'"
        )
    if keepdims and reduction.kind == "none":
        raise ValueError("keepdims is True with reduction='none', which reduces nothing")


def resolve_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes that are reduced, from 0 on and in order, with NumPy's errors."""
    if axis is None:
        return tuple(range(ndim))
    numbers = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(number, SupportsIndex) for number in numbers):
        raise TypeError(f"axis must be an integer, a tuple of integers or None, got {axis!r}")
    axes = [operator.index(number) for number in numbers]
    for number in axes:
        if not -ndim <= number < ndim:
            raise AxisError(number, ndim, "axis")
    resolved = sorted(number % ndim for number in axes)
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"axis must name each axis once, got {axis!r}")
    return tuple(resolved)


def _check_float(name: str, dtype: np.dtype[Any]) -> None:
    accepted = RESULTS if name == "dtype" else OPERANDS
    if dtype.name not in accepted:
        what = "dtype" if name == "dtype" else f"the dtype of {name}"
        hint = f"; convert it, as {name}.astype('float32') does" if dtype.kind == "O" else ""
        raise TypeError(f"{what} must be one of {', '.join(accepted)}, got {dtype}{hint}")


def check_floats(input: Any, target: Any) -> None:
    """Refuse operands that are not of a supported floating type."""
    operands = {"input": input, "target": target}
    # torch looks for a complex operand before it looks for an integer one.
    for name, operand in sorted(operands.items(), key=lambda item: item[1].dtype.kind != "c"):
        _check_float(name, operand.dtype)


def float_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the data type of a name, and refuse one that results can't have."""
    named = named_dtype(dtype)
    _check_float("dtype", named)
    return named.newbyteorder("=")


def resolve_dtype(input: Any, target: Any, dtype: npt.DTypeLike | None) -> np.dtype[Any]:
    """Check the operands' data types and return the type of the computation and its result.

    Only `dtype` and `ndim` of the operands are looked at. The wider float wins, except that a 0-d
    operand does not widen an array. It is float32 where results can't have the wider.
    """
    check_floats(input, target)
    if dtype is None:
        deciding = [a.dtype for a in (input, target) if a.ndim] or [input.dtype, target.dtype]
        resolved: np.dtype[Any] = max(deciding, key=lambda dtype: dtype.itemsize)
        widest = {dtype.name for dtype in deciding if dtype.itemsize == resolved.itemsize}
        # Of float16 and bfloat16, neither holds the other.
        if len(widest) > 1 or not widest <= {*RESULTS}:
            resolved = np.dtype(np.float32)
    else:
        resolved = float_dtype(dtype)
    return resolved.newbyteorder("=")


# Of batches. What `evaluate` takes has one more, of two arrays of probabilities.
_KINDS = ("log_probs_and_probs", "log_probs", "logits")


def resolve_kind(kind: str, reduction: str, *, stacklevel: int) -> Reduction:
    """Check what a batch is, and resolve the reduction of many of them."""
    if kind not in _KINDS:
        hint = ""
        if kind == "probs":
            hint = "; of two arrays of probabilities, give the logarithm of input"
        raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}{hint}")
    old = reduction == "elementwise_mean" and kind != "logits"
    if reduction not in REDUCTIONS[1:] and not old:
        accepted = ", ".join(map(repr, REDUCTIONS[1:]))
        raise ValueError(f"reduction must be one of {accepted}, got {reduction!r}")
    if kind == "logits":
        return resolve_logits_reduction(reduction)
    return resolve_reduction(None, None, reduction, stacklevel=stacklevel + 1)


def resolve_logits_reduction(reduction: str) -> Reduction:
    """Resolve a reduction over positions, whose mean is what people expect of it."""
    if reduction not in REDUCTIONS:
        accepted = ", ".join(map(repr, REDUCTIONS))
        raise ValueError(f"reduction must be one of {accepted}, got {reduction!r}")
    if reduction == "batchmean":
        return Reduction("sum", True)
    kind: Any = reduction
    return Reduction(kind, False)


def resolve_logits_dtype(
    input: Any, target: Any, dtype: npt.DTypeLike | None
) -> tuple[np.dtype[Any], bool]:
    """Return the type of the divergences of logits, and whether it takes float64 to compute."""
    wide = resolve_dtype(input, target, None) == np.float64
    default = np.float64 if wide else np.float32
    to = float_dtype(default if dtype is None else dtype)
    return to, wide or to == np.float64


def resolve_integer_axis(axis: Any) -> int:
    """Return the axis of the classes as it was given."""
    if not isinstance(axis, SupportsIndex):
        raise TypeError(f"axis must be an integer, the axis of the classes, got {axis!r}")
    return operator.index(axis)


def resolve_class_axis(axis: Any, input: Any, target: Any) -> int:
    """Return the axis of the classes, counted from the last, after checking it and its lengths."""
    ndim: int = max(input.ndim, target.ndim)
    number = resolve_integer_axis(axis)
    if not -ndim <= number < ndim:
        raise AxisError(number, ndim, "axis")
    resolved = number % ndim - ndim
    for name, logits in (("input", input), ("target", target)):
        if logits.ndim < -resolved:
            raise ValueError(f"{name} of shape {logits.shape} has no axis {resolved} of classes")
    left, right = input.shape[resolved], target.shape[resolved]
    if left == 0 or (left != right and not (math.isnan(left) or math.isnan(right))):
        raise ValueError(
            f"input and target must have as many classes along axis {resolved}, at least 1, got "
            f"{left} and {right} in shapes {input.shape} and {target.shape}"
        )
    return resolved


def resolve_temperature(temperature: Any) -> float:
    """Return what logits are divided by, after checking that this and its reciprocal are finite."""
    wanted = "temperature must be a positive finite number"
    if isinstance(temperature, bool | np.bool) or not isinstance(
        temperature, int | float | np.integer | np.floating
    ):
        raise TypeError(f"{wanted}, got {temperature!r}")
    most = sys.float_info.max
    if isinstance(temperature, int) and temperature > most:  # which can be too long to be shown
        raise ValueError(f"{wanted}, got one beyond float64")
    # The reciprocal of less is infinite.
    if not sys.float_info.min <= temperature <= most:
        raise ValueError(f"{wanted}, got {temperature!r}")
    return float(temperature)
