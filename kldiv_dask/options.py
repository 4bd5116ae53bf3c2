"""Reductions, legacy flags and data types: many spellings in, one resolved value out."""

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Kind = Literal["none", "mean", "sum"]

REDUCTIONS = ("none", "mean", "batchmean", "sum")

_LEGACY: dict[tuple[bool, bool], Kind] = {
    (True, True): "mean",
    (False, True): "sum",
    (True, False): "none",
    (False, False): "none",
}

_FLOATS = ("float16", "bfloat16", "float32", "float64")


class Reduction(NamedTuple):
    """A reduction with its spelling resolved.

    `per_batch` divides what `kind` gives by the batch size. It stands beside `kind` because torch
    divides even the results of legacy flags when ``reduction='batchmean'`` is passed with them.
    """

    kind: Kind
    per_batch: bool


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
                "result is not the KL divergence; reduction='batchmean' divides by the batch size "
                "and is",
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
    raise ValueError(f"reduction is {reduction!r}; accepted are {accepted}")


def _check_float(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.name not in _FLOATS:
        raise TypeError(f"{name} is of dtype {dtype}; accepted are {', '.join(_FLOATS)}")


def _named_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    if dtype == "bfloat16":  # a name that NumPy knows only once ml_dtypes is imported
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError(
                'dtype bfloat16 needs the package ml_dtypes: pip install "kldiv-dask[bfloat16]"'
            ) from error
        named: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return named
    return np.dtype(dtype)


def resolve_dtype(input: Any, target: Any, dtype: npt.DTypeLike | None) -> np.dtype[Any]:
    """Check the operands' data types and return the type of the computation and its result.

    Only `dtype` and `ndim` of the operands are looked at. The wider float wins, except that a 0-d
    operand does not widen an array.
    """
    operands = {"input": input, "target": target}
    # torch looks for a complex operand before it looks for an integer one.
    for name, operand in sorted(operands.items(), key=lambda item: item[1].dtype.kind != "c"):
        _check_float(name, operand.dtype)
    if dtype is None:
        deciding = [a.dtype for a in operands.values() if a.ndim] or [input.dtype, target.dtype]
        resolved: np.dtype[Any] = max(deciding, key=lambda dtype: dtype.itemsize)
        if len({dtype.name for dtype in deciding if dtype.itemsize == resolved.itemsize}) > 1:
            resolved = np.dtype(np.float32)  # float16 and bfloat16: neither holds the other
    else:
        resolved = _named_dtype(dtype)
        _check_float("dtype", resolved)
    return resolved.newbyteorder("=")
