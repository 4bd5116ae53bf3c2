"""Compare `exp_f32` and `log_f32` with NumPy's float64 functions for each of the 2^32 arguments.

Run as ``python -m tests.benchmarks.exhaustive_elementary``; it takes a few minutes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import elementary

CHUNK = 2**20

FUNCTIONS = {"exp": (elementary.exp_f32, np.exp), "log": (elementary.log_f32, np.log)}


@functools.cache
def loop(function: Any) -> Callable[[npt.NDArray[Any], npt.NDArray[Any]], None]:
    """Compile the plain loop that the functions are made for."""

    @numba.njit(nogil=True)
    def run(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return run


def errors(name: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Errors in units of the last place of the float64 result.

    Infinity counts as the first power of two past the largest float32; a NaN or a negative
    infinity in one result alone makes the error NaN or infinite.
    """
    function, reference = FUNCTIONS[name]
    out = np.empty_like(x)
    loop(function)(x, out)
    with np.errstate(all="ignore"):
        exact = np.minimum(reference(x.astype(np.float64)), 2.0**128)
        result = np.minimum(out.astype(np.float64), 2.0**128)
        exponent = np.maximum(np.frexp(exact)[1] - 1, -126)
        error = np.ldexp(np.abs(result - exact), 23 - exponent)
    same = (result == exact) | (np.isnan(result) & np.isnan(exact))
    return np.where(same, 0, error)


if __name__ == "__main__":
    for name in FUNCTIONS:
        worst, where = -1.0, math.nan
        for start in range(0, 2**32, CHUNK):
            x = np.arange(start, start + CHUNK).astype(np.uint32).view(np.float32)
            error = errors(name, x)
            at = int(np.argmax(error))
            if not error[at] <= worst:
                worst, where = float(error[at]), float(x[at])
        print(f"{name}_f32: at most {worst:.4f} ulp, at {where!r}")
