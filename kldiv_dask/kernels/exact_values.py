"""The exact sum of float64 numbers as they are, for divergences of positions and statistics."""

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import exact_sum
from kldiv_dask.kernels.jit import compiled
from kldiv_dask.kernels.llvm_hints import tile_length, tile_size

FLOAT64 = np.dtype(np.float64)


def _sum_values(values, accumulator, rest):
    tile = tile_size(rest)
    for start in range(0, values.size, tile):
        exact_sum.add_terms(accumulator, values[start : start + tile], rest)
        if start % exact_sum.ENDURANCE == 0:
            exact_sum.carry_compiled(accumulator)
    exact_sum.carry_compiled(accumulator)


def add_values(accumulator: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> None:
    """Add numbers to an exact sum.

    Parameters
    ----------
    accumulator : int64 array of shape (ACCUMULATOR_SIZE,)
        Changed in place, and left canonical.
    values : float64 array, 1-d
    """
    signature = (numba.float64[::1], numba.int64[::1], numba.float64[::1])
    rest = np.empty(tile_length(FLOAT64))
    compiled(_sum_values, signature)(np.ascontiguousarray(values), accumulator, rest)


def _sum_runs(values, ends, accumulators, rest):
    tile = tile_size(rest)
    start = 0
    for run in range(ends.size):
        for first in range(start, ends[run], tile):
            exact_sum.add_terms(
                accumulators[run], values[first : min(first + tile, ends[run])], rest
            )
        exact_sum.carry_compiled(accumulators[run])
        start = ends[run]


def add_runs(
    accumulators: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    ends: npt.NDArray[np.int64],
) -> None:
    """Add each run of numbers to an exact sum of its own.

    Parameters
    ----------
    accumulators : int64 array, C-contiguous, of shape (runs, ACCUMULATOR_SIZE) or wider
        Changed in place, and left canonical.
    values : float64 array, 1-d
        Fewer than `exact_sum.ENDURANCE`.
    ends : int64 array of shape (runs,)
        Where each run ends.
    """
    signature = (numba.float64[::1], numba.int64[::1], numba.int64[:, ::1], numba.float64[::1])
    rest = np.empty(tile_length(FLOAT64))
    compiled(_sum_runs, signature)(np.ascontiguousarray(values), ends, accumulators, rest)
