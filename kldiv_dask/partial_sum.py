"""The mergeable state of a sum: its layout, how two are merged, and how one becomes a number.

A *partial* is a vector of `SIZE` int64: the exact sum as limbs (see `kernels.exact_sum`), the
counts of NaN, +inf and -inf terms, the number of elements, and the number of batch rows. Partials
are merged by adding them slot by slot; the limbs are then carried into their canonical form, so
equal sums have equal partials, bit for bit.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels.exact_rounding import MAX_DIVISOR, round_quotients
from kldiv_dask.kernels.exact_sum import ACCUMULATOR_SIZE, LIMBS, NAN, NEGINF, POSINF, carry

NUMEL, ROWS = ACCUMULATOR_SIZE, ACCUMULATOR_SIZE + 1
SIZE = ACCUMULATOR_SIZE + 2

Partial = npt.NDArray[np.int64]

# The unit of the lowest limb is the smallest subnormal float64, 2**-1074.
UNITS_IN_ONE = 1 << 1074


def zero(shape: tuple[int, ...] = ()) -> Partial:
    """Return the partial of nothing, with leading axes of the given shape."""
    return np.zeros((*shape, SIZE), dtype=np.int64)


def merge(partials: Partial, axis: tuple[int, ...], keepdims: bool = False) -> Partial:
    """Merge partials along `axis`, which never includes the last."""
    merged: Partial = partials.sum(axis=axis, keepdims=keepdims)
    carry(np.moveaxis(merged, -1, 0))
    return merged


def bounds(place: int) -> tuple[int, int]:
    """Return the range, as for `range`, of what a canonical partial may have at a place."""
    if place < LIMBS - 1:
        return 0, 1 << 32
    return (-(1 << 63) if place == LIMBS - 1 else 0), 1 << 63


class Total(NamedTuple):
    """What one partial holds, as Python integers."""

    units: int
    nan: int
    posinf: int
    neginf: int
    numel: int
    rows: int


def total(partial: Partial) -> Total:
    """Unpack one canonical partial; `units` counts multiples of 2**-1074."""
    low = int.from_bytes(partial[: LIMBS - 1].astype("<u4").tobytes(), "little")
    units = low + (int(partial[LIMBS - 1]) << (32 * (LIMBS - 1)))
    return Total(units, *(int(partial[i]) for i in (NAN, POSINF, NEGINF, NUMEL, ROWS)))


def quotient(sums: Total, divisor: int, dtype: np.dtype[Any]) -> Any:
    """Return the sum divided by `divisor`, rounded once to `dtype`.

    NaN if there are NaN terms or infinities of both signs, an infinity if there are infinities of
    one sign, and NaN for a zero `divisor`, which only an empty sum can have.
    """
    if sums.nan or (sums.posinf and sums.neginf) or divisor == 0:
        return dtype.type("nan")
    if sums.posinf or sums.neginf:
        return dtype.type("inf" if sums.posinf else "-inf")
    return round_ratio(sums.units, divisor * UNITS_IN_ONE, dtype)


def quotients(
    partials: Partial, divisors: int | npt.NDArray[np.int64], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """Return what `quotient` does for each of many canonical partials, as an array.

    `divisors` has a whole number for each, or is one for all.
    """
    shape = partials.shape[:-1]
    partials = np.ascontiguousarray(partials).reshape(-1, SIZE)
    flat = np.full(shape, divisors, np.int64).reshape(-1)
    if flat.max(initial=0) <= MAX_DIVISOR:
        return round_quotients(partials, flat, dtype).reshape(shape)
    pairs = zip(partials, flat.tolist(), strict=True)
    values = [quotient(total(partial), divisor, dtype) for partial, divisor in pairs]
    return np.array(values, dtype).reshape(shape)


def round_ratio(numerator: int, denominator: int, dtype: np.dtype[Any]) -> Any:
    """Round ``numerator / denominator`` to the nearest number of `dtype`, ties to even.

    Python divides integers with one correct rounding to float64. For a narrower type that quotient
    is first rounded to odd instead, which makes the second rounding harmless because float64 has
    at least two bits more than the narrower type: Boldo and Melquiond, "Emulation of FMA and
    correctly rounded sums: proved algorithms using rounding to odd", IEEE Trans. Comput. 57 (2008).
    """
    try:
        nearest = numerator / denominator
    except OverflowError:
        return dtype.type("inf" if numerator > 0 else "-inf")
    rounded: Any = np.float64(nearest)
    if dtype != np.float64:
        exact_numerator, exact_denominator = nearest.as_integer_ratio()
        error = numerator * exact_denominator - exact_numerator * denominator
        rounded = _to_odd(rounded, error)
    with np.errstate(over="ignore", under="ignore"):
        if dtype.itemsize == 2:  # ml_dtypes would round to float32, to even, on the way
            single = np.float32(rounded)
            rounded = _to_odd(single, float(rounded) - float(single))
        return rounded.astype(dtype)


def _to_odd(rounded: Any, error: float) -> Any:
    """Return a rounded number, or its neighbor on the side of the error if that one is odd."""
    if not error or int(rounded.view(f"i{rounded.itemsize}")) & 1:
        return rounded
    return np.nextafter(rounded, rounded.dtype.type(np.inf if error > 0 else -np.inf))
