"""What one operand at a position looks like: whether it can be what it is said to be."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels.compiled import compiled
from kldiv_dask.kernels.elementary import exp
from kldiv_dask.kernels.states import PIECE, range_of
from kldiv_dask.kernels.stored import as_stored, stored_type, widen

# What an operand may hold.
LOGITS, LOG_PROBS, PROBS = range(3)

# Of each kind of evaluation, what the input and the target hold.
OPERANDS = {
    "logits": (LOGITS, LOGITS),
    "log_probs": (LOG_PROBS, LOG_PROBS),
    "probs": (PROBS, PROBS),
    "log_probs_and_probs": (LOG_PROBS, PROBS),
}

# What a row resembles more than what it is said to be.
FITS, RESEMBLES_PROBS, RESEMBLES_LOG_PROBS, OUT_OF_RANGE = range(4)


@numba.njit(nogil=True, error_model="numpy")
def _sums_to_one(row, like, logarithms, tolerance):
    """Whether the numbers of a row, or their exponentials, sum to 1."""
    total = 0.0
    for i in range(row.size):
        number = np.float64(widen(row[i], like))
        total += exp(number) if logarithms else number
    return abs(total - 1) <= tolerance


@numba.njit(nogil=True, error_model="numpy")
def resemblance(row, extent, holds, tolerance, like):
    """Return what a row of stored numbers resembles, given its smallest and largest.

    A NaN fits everything: it is counted as such. One class alone says nothing of logits.
    """
    least, most = extent
    if np.isnan(least) or np.isnan(most) or row.size < 2:
        return FITS
    unit = least >= 0 and most <= 1 + tolerance
    if holds == LOGITS:
        probs = unit and _sums_to_one(row, like, False, tolerance)
        return RESEMBLES_PROBS if probs else FITS
    if holds == LOG_PROBS:
        if most <= tolerance:
            return FITS
        probs = unit and _sums_to_one(row, like, False, tolerance)
        return RESEMBLES_PROBS if probs else OUT_OF_RANGE
    if unit:
        return FITS
    log_probs = most <= tolerance and _sums_to_one(row, like, True, tolerance)
    return RESEMBLES_LOG_PROBS if log_probs else OUT_OF_RANGE


@numba.njit(nogil=True, error_model="numpy")
def is_constant(extent, size):
    """Whether all classes are equal, where there are several."""
    return size > 1 and extent[0] == extent[1]


@numba.njit(nogil=True, error_model="numpy")
def is_at_floor(row, label, extent, like):
    """Whether the label shares the smallest number of its row with another class.

    So it is where small logits were raised to a floor, as in base files of llama.cpp.
    """
    least = extent[0]
    if not -np.inf < least < extent[1] or np.float64(widen(row[label], like)) != least:
        return False
    others = 0
    for i in range(row.size):
        others += i != label and np.float64(widen(row[i], like)) == least
    return others > 0


@numba.njit(nogil=True, error_model="numpy")
def extent_of(row, like):
    """Return the smallest and the largest number of a row of any length; NaN where there is one."""
    least, most = range_of(row[: like.size], like[: row.size])
    for start in range(like.size, row.size, like.size):
        piece = row[start : start + like.size]
        low, high = range_of(piece, like[: piece.size])
        least, most = wider((least, most), (low, high))
    return least, most


@numba.njit(nogil=True, error_model="numpy")
def wider(extent, other):
    """Return the smallest and the largest of two ranges; NaN where there is one."""
    (least, most), (low, high) = extent, other
    return (
        low if low < least or np.isnan(low) else least,
        high if high > most or np.isnan(high) else most,
    )


def _fill_resemblances(stored, holds, tolerance, like, resembles, constant):
    classes = stored.size // resembles.size
    for row in range(resembles.size):
        numbers = stored[row * classes : (row + 1) * classes]
        extent = extent_of(numbers, like)
        resembles[row] = resemblance(numbers, extent, holds, tolerance, like[0])
        constant[row] = is_constant(extent, classes)


def inspect(
    rows: npt.NDArray[Any], holds: int, tolerance: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return what each row of a matrix resembles, and whether its classes are all equal.

    Parameters
    ----------
    rows : array of floats, 2-d
    holds : int
        What they are said to be: `LOGITS`, `LOG_PROBS` or `PROBS`.
    tolerance : float
        How far from 1 the probabilities of a row may sum.
    """
    stored = as_stored(np.ascontiguousarray(rows, rows.dtype.newbyteorder("=")))
    like = np.empty(PIECE, np.float64 if stored.dtype.itemsize == 8 else np.float32)
    resembles, constant = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_)
    signature = (
        numba.types.Array(stored_type(stored), 1, "C", readonly=True),
        numba.int64,
        numba.float64,
        numba.from_dtype(like.dtype)[::1],
        numba.int64[::1],
        numba.boolean[::1],
    )
    fill = compiled(_fill_resemblances, signature)
    fill(stored.reshape(-1), holds, tolerance, like, resembles, constant)
    return resembles, constant
