"""torch's pointwise terms, and their exact sum, over one pair of chunks of any layout."""

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import exact_sum
from kldiv_dask.kernels.bits import oddity
from kldiv_dask.kernels.compiled import Kernel, compiled
from kldiv_dask.kernels.elementary import exp, log, log_normal
from kldiv_dask.kernels.load import as_stored, load

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

    @property
    def absent(self) -> np.floating:
        """The target whose terms are 0 whatever the input, as the kernels take it."""
        zero = -np.inf if self.log_target else 0.0
        return self.compute_dtype.type(zero if self.zero_safe else np.nan)


def _segments(*operands: Any, flags: list[list[str]], dtypes: Any = None) -> Any:
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
def _is_ordinary(t):
    """Whether every element is positive, normal and finite."""
    odd = oddity(t[0])
    for i in range(t.size):
        odd |= oddity(t[i])
    return odd >= 0


@numba.njit(nogil=True, error_model="numpy")
def _fill_tile(x, t, out, log_target):
    # Numba leaves out the branch that an argument of None excludes before it infers types, so a
    # kernel holds either the logarithm or the exponential.
    if log_target is not None:
        for i in range(out.size):
            out[i] = exp(t[i]) * (t[i] - x[i])
    elif _is_ordinary(t):
        for i in range(out.size):
            out[i] = t[i] * log_normal(t[i]) - t[i] * x[i]
    else:
        for i in range(out.size):
            out[i] = (abs(t[i]) if t[i] == 0 else t[i] * log(t[i])) - t[i] * x[i]


@numba.njit(nogil=True, error_model="numpy")
def _clear_absent(x, t, out, absent):
    """Set the terms to 0 where the target is `absent`, unless the input is NaN."""
    for i in range(out.size):
        out[i] = 0 if (t[i] == absent) & (x[i] == x[i]) else out[i]


@numba.njit(nogil=True, error_model="numpy")
def _fill(x, t, out, log_target, absent, scratch):
    x = load(x, scratch[0])
    t = load(t, scratch[1])
    _fill_tile(x, t, out, log_target)
    if absent == absent:
        _clear_absent(x, t, out, absent)


def _fill_segment(x, t, out, log_target, absent, scratch):
    for start in range(0, x.size, TILE):
        stop = min(start + TILE, x.size)
        _fill(x[start:stop], t[start:stop], out[start:stop], log_target, absent, scratch)


def _sum_segment(x, t, state, log_target, absent, scratch, rest):
    for begin in range(0, x.size, exact_sum.MAX_ADDITIONS):
        end = min(begin + exact_sum.MAX_ADDITIONS, x.size)
        for start in range(begin, end, TILE):
            stop = min(start + TILE, end)
            terms = scratch[2][: stop - start]
            _fill(x[start:stop], t[start:stop], terms, log_target, absent, scratch)
            exact_sum.add_tile(state, terms, rest[: stop - start])
        exact_sum.carry_compiled(state)


def _kernel(function: Kernel, x: Chunk, t: Chunk, out: numba.types.Type, term: Term) -> Kernel:
    """Compile `_fill_segment` or `_sum_segment` for stored arrays and a kind of term.

    Both take `x` and `t`, contiguous 1-d segments of stored numbers; `out`, as long, or the state
    of an exact sum; `log_target`, True or None; `absent`, the target whose terms are 0, or NaN for
    none; and `scratch`, of shape (3, TILE) in the computation type. `_sum_segment` takes one more
    tile of float64.
    """
    work = numba.from_dtype(term.compute_dtype)
    segments = [
        numba.types.Array(numba.from_dtype(a.dtype.newbyteorder("=")), 1, "C", readonly=True)
        for a in (x, t)
    ]
    log_target = numba.types.boolean if term.log_target else numba.types.none
    signature = (*segments, out, log_target, work, work[:, ::1])
    if function is _sum_segment:
        signature += (numba.float64[::1],)
    return compiled(function, signature)


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
    x, t = as_stored(input), as_stored(target)
    kernel = _kernel(_sum_segment, x, t, numba.int64[::1], term)
    scratch = np.empty((3, TILE), term.compute_dtype)
    rest = np.empty(TILE)
    for segments in _segments(x, t, flags=[["readonly"]] * 2):
        kernel(*segments, state, term.log_target or None, term.absent, scratch, rest)


def block_terms(input: Chunk, target: Chunk, term: Term) -> Chunk:
    """Return the terms of a pair of chunks, computed as for a sum and rounded once."""
    x, t = as_stored(input), as_stored(target)
    kernel = _kernel(_fill_segment, x, t, numba.from_dtype(term.compute_dtype)[::1], term)
    scratch = np.empty((3, TILE), term.compute_dtype)
    order: Any = "F" if np.isfortran(input) and np.isfortran(target) else "C"
    out = np.empty(np.broadcast_shapes(input.shape, target.shape), term.dtype, order)
    iterator = _segments(
        x,
        t,
        out,
        flags=[["readonly"], ["readonly"], ["writeonly"]],
        dtypes=[None, None, term.compute_dtype],
    )
    with np.errstate(over="ignore", under="ignore"), iterator:
        for segments in iterator:
            kernel(*segments, term.log_target or None, term.absent, scratch)
    return out[()]
