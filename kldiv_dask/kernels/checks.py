"""Whether a row of an operand can be the logits, or the probabilities, that it is said to be.

For the data checks of `evaluate`. They go by the range of the row, which the other kernels have
anyway, and read the row again only if it is within [0, 1], or below 0 where probabilities are
expected.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels.elementary import exp
from kldiv_dask.kernels.jit import compiled, inner_function
from kldiv_dask.kernels.softmax_state import CLASS_BLOCK, range_of
from kldiv_dask.kernels.stored_floats import as_stored, stored_type, widen

# What an operand may hold.
LOGITS, LOG_PROBS, PROBS = range(3)

# Of each kind of evaluation, what the input and the target hold.
OPERANDS = {
    "logits": (LOGITS, LOGITS),
    "log_probs": (LOG_PROBS, LOG_PROBS),
    "probs": (PROBS, PROBS),
    "log_probs_and_probs": (LOG_PROBS, PROBS),
}

# The extent of no number.
NOWHERE = (np.inf, -np.inf)

# How far from 1 rounding makes probabilities of any type sum.
NEARLY = 0.1

# What a row resembles more than what it is said to be.
FITS, RESEMBLES_PROBS, RESEMBLES_LOG_PROBS, OUT_OF_RANGE = range(4)


@inner_function
def _sums_to_one(stored, row, like, logarithms, tolerance):
    """Whether the numbers of a row, or their exponentials, sum to 1."""
    total = 0.0
    for i in range(row[0], row[1]):
        number = np.float64(widen(stored[i], like))
        total += exp(number) if logarithms else number
    return abs(total - 1) <= tolerance


@inner_function
def resemblance(stored, row, extent, holds, tolerance, like):
    """Return what a row resembles, given where it is stored, and its smallest and largest number.

    A NaN fits everything: it is counted as such. One class alone says nothing of logits.
    """
    least, most = extent
    if np.isnan(least) or np.isnan(most) or row[1] - row[0] < 2:
        return FITS
    unit = least >= 0 and most <= 1 + tolerance
    if holds == LOGITS:
        probs = unit and _sums_to_one(stored, row, like, False, tolerance)
        return RESEMBLES_PROBS if probs else FITS
    if holds == LOG_PROBS:
        if most <= tolerance and not (least >= 0 and most > 0):
            return FITS
        probs = unit and _sums_to_one(stored, row, like, False, tolerance)
        return RESEMBLES_PROBS if probs else OUT_OF_RANGE
    if unit:
        return FITS
    log_probs = most <= tolerance and _sums_to_one(stored, row, like, True, tolerance)
    return RESEMBLES_LOG_PROBS if log_probs else OUT_OF_RANGE


@inner_function
def is_constant(row, extent, holds, tolerance):
    """Whether all classes are equal, where there are several, and this is no uniform distribution.

    Equal logits are one, but no model gives them.
    """
    classes = row[1] - row[0]
    if classes < 2 or extent[0] != extent[1]:
        return False
    if holds == LOGITS:
        return True
    each = exp(extent[0]) if holds == LOG_PROBS else extent[0]
    return not abs(classes * each - 1) <= tolerance


@inner_function
def is_at_floor(stored, row, label, extent, like):
    """Whether the label shares the smallest number of its row with another class.

    So it is where small logits were raised to a floor, as in base files of llama.cpp.
    """
    least = extent[0]
    place = row[0] + label
    if not -np.inf < least < extent[1] or np.float64(widen(stored[place], like)) != least:
        return False
    others = 0
    for i in range(row[0], row[1]):
        others += i != place and np.float64(widen(stored[i], like)) == least
    return others > 0


@inner_function
def extent_of(stored, row, like):
    """Return the smallest and the largest number of a row; NaN where there is one."""
    extent = NOWHERE
    for start in range(row[0], row[1], CLASS_BLOCK):
        class_block = stored[start : min(start + CLASS_BLOCK, row[1])]
        extent = union_of_ranges(extent, range_of(class_block, like[: class_block.size]))
    return extent


@inner_function
def union_of_ranges(extent, other):
    """Return the smallest and the largest of two ranges; NaN where there is one."""
    (least, most), (low, high) = extent, other
    return (
        low if low < least or np.isnan(low) else least,
        high if high > most or np.isnan(high) else most,
    )


def _fill_resemblances(stored, holds, tolerance, like, resembles, constant, normalized):
    classes = stored.size // resembles.size
    for i in range(resembles.size):
        row = i * classes, (i + 1) * classes
        extent = extent_of(stored, row, like)
        resembles[i] = resemblance(stored, row, extent, holds, tolerance, like[0])
        constant[i] = is_constant(row, extent, holds, tolerance)
        normalized[i] = _sums_to_one(stored, row, like[0], holds == LOG_PROBS, NEARLY)


def inspect(
    rows: npt.NDArray[Any], holds: int, tolerance: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return what each row of a matrix resembles.

    And whether it is constant, and whether its probabilities sum to 1 at least nearly.

    Parameters
    ----------
    rows : array of floats, 2-d
    holds : int
        What they are said to be: `LOGITS`, `LOG_PROBS` or `PROBS`.
    tolerance : float
        How far from 1 the probabilities of a row may sum.
    """
    stored = as_stored(np.ascontiguousarray(rows, rows.dtype.newbyteorder("=")))
    like = np.empty(CLASS_BLOCK, np.float64 if stored.dtype.itemsize == 8 else np.float32)
    resembles, constant = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_)
    normalized = np.zeros(len(rows), np.bool_)
    signature = (
        numba.types.Array(stored_type(stored), 1, "C", readonly=True),
        numba.int64,
        numba.float64,
        numba.from_dtype(like.dtype)[::1],
        numba.int64[::1],
        numba.boolean[::1],
        numba.boolean[::1],
    )
    fill = compiled(_fill_resemblances, signature)
    fill(stored.reshape(-1), holds, tolerance, like, resembles, constant, normalized)
    return resembles, constant, normalized
