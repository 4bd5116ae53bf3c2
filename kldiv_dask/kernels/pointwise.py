"""torch's pointwise terms, and their exact sum, over one pair of chunks of any layout."""

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import exact_sum

Chunk = npt.NDArray[np.floating]

# Elements that numpy.nditer copies at a time where operands are strided, broadcast or of another
# type: two buffers of 64 KiB in float32, which stay in a second-level cache.
BUFFER = 16384

# Elements that go through the stages of a sum together; they stay in the first-level cache.
TILE = 1024


class Term(NamedTuple):
    """What a pointwise term is.

    `dtype` is the promoted type of the operands and of the result; `log_target` and `zero_safe`
    are `kl_div`'s.
    """

    dtype: np.dtype[Any]
    log_target: bool
    zero_safe: bool

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        """The type that terms are computed in."""
        return np.dtype(np.float64 if self.dtype == np.float64 else np.float32)


def _segments(*operands: Any, flags: list[list[str]], dtypes: list[Any]) -> Any:
    """Iterate over broadcast operands as contiguous, aligned, native 1-d segments.

    The order is the one that suits the memory layout, which exact sums allow. Operands that are
    contiguous already come as one segment and are not copied.
    """
    # NumPy's stubs misspell the flag "contig".
    return np.nditer(  # type: ignore[call-overload]
        operands,
        flags=["external_loop", "buffered", "growinner", "zerosize_ok"],
        op_flags=[[*names, "contig", "aligned", "nbo"] for names in flags],
        op_dtypes=dtypes,
        order="K",
        casting="same_kind",
        buffersize=BUFFER,
    )


@numba.njit(nogil=True, error_model="numpy")
def _fill_terms(x, t, out, log_target, zero_safe):
    for i in range(out.size):
        if log_target:
            zero = zero_safe and t[i] == -np.inf and x[i] == x[i]
            out[i] = 0 if zero else math.exp(t[i]) * (t[i] - x[i])
        elif t[i] == 0:
            out[i] = 0 if zero_safe and x[i] == x[i] else -t[i] * x[i]
        else:
            out[i] = t[i] * math.log(t[i]) - t[i] * x[i]


@numba.njit(nogil=True, error_model="numpy")
def _sum_terms(x, t, state, log_target, zero_safe):
    terms = np.empty(TILE, x.dtype)
    for start in range(0, x.size, TILE):
        stop = min(start + TILE, x.size)
        tile = terms[: stop - start]
        _fill_terms(x[start:stop], t[start:stop], tile, log_target, zero_safe)
        exact_sum.add_terms(state, tile.astype(np.float64))


def add_block(state: npt.NDArray[np.int64], input: Chunk, target: Chunk, term: Term) -> None:
    """Add the terms of a pair of chunks to an exact sum.

    Parameters
    ----------
    state : int64 array of shape (STATE,)
        Changed in place, and left canonical.
    input, target : arrays that broadcast together
        Converted to the computation type piece by piece.
    term : Term
        What a term is.
    """
    flags = [["readonly"], ["readonly"]]
    for x, t in _segments(input, target, flags=flags, dtypes=[term.compute_dtype] * 2):
        for start in range(0, x.size, exact_sum.MAX_ADDITIONS):
            piece = slice(start, start + exact_sum.MAX_ADDITIONS)
            _sum_terms(x[piece], t[piece], state, term.log_target, term.zero_safe)
            exact_sum.carry(state)


def block_terms(input: Chunk, target: Chunk, term: Term) -> Chunk:
    """Return the terms of a pair of chunks, computed as for a sum and rounded once."""
    out = np.empty(np.broadcast_shapes(input.shape, target.shape), term.dtype)
    flags = [["readonly"], ["readonly"], ["writeonly"]]
    iterator = _segments(input, target, out, flags=flags, dtypes=[term.compute_dtype] * 3)
    with np.errstate(over="ignore", under="ignore"), iterator:
        for x, t, terms in iterator:
            _fill_terms(x, t, terms, term.log_target, term.zero_safe)
    return out[()]
