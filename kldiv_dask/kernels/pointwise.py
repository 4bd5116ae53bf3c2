"""torch's pointwise terms, and their exact sum, over one pair of chunks of any layout."""

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import exact_sum
from kldiv_dask.kernels.bits import narrow_or, oddity
from kldiv_dask.kernels.compiled import Kernel, compiled
from kldiv_dask.kernels.elementary import (
    EXP_NORMAL_F32,
    EXP_NORMAL_F64,
    exp,
    exp_normal,
    log,
    log_normal,
)
from kldiv_dask.kernels.machine import prefetch, tile_length, tile_size, wide_vectors
from kldiv_dask.kernels.stored import as_stored, narrow, widen

Chunk = npt.NDArray[np.floating]

# Elements that numpy.nditer copies at a time where operands are strided, broadcast or of another
# type: two buffers of 64 KiB in float32, which stay in a second-level cache.
BUFFER = 16384


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
    def absent(self) -> Any:
        """The target whose terms are 0 whatever the input, as the kernels take it."""
        zero = -np.inf if self.log_target else 0.0
        return self.compute_dtype.type(zero if self.zero_safe else np.nan)


def _segments(*operands: Any, flags: list[list[str]]) -> Any:
    """Iterate over broadcast operands as contiguous, aligned, native 1-d segments.

    The order is the one that suits the memory layout, which exact sums allow. Operands that are
    contiguous already come as one segment and are not copied.
    """
    # NumPy's stubs misspell the flag "contig".
    return np.nditer(  # type: ignore[call-overload]
        operands,
        flags=["external_loop", "buffered", "growinner", "zerosize_ok"],
        op_flags=[[*names, "contig", "aligned", "nbo"] for names in flags],
        order="K",
        buffersize=BUFFER,
    )


@numba.njit(nogil=True, error_model="numpy")
def _are_ordinary(stored, like):
    """Whether every number of a tile is positive, normal and finite."""
    wide_vectors()
    odd = oddity(widen(stored[0], like[0]))
    for i in range(tile_size(like)):
        odd = narrow_or(odd, oddity(widen(stored[i], like[i])))
    return odd >= 0


@numba.njit(nogil=True, error_model="numpy")
def _fill_tile(x, t, out, log_target):
    wide_vectors()
    size = tile_size(out)
    # Numba leaves out the branch that an argument of None excludes before it infers types, so a
    # kernel holds either the logarithm or the exponential. The loop of ordinary tiles and the one
    # of all others give the same bits where both apply.
    if log_target is not None:
        if exact_sum.largest(t, out) <= (EXP_NORMAL_F32 if out.itemsize == 4 else EXP_NORMAL_F64):
            for i in range(size):
                target = widen(t[i], out[i])
                out[i] = exp_normal(target) * (target - widen(x[i], out[i]))
        else:
            for i in range(size):
                target = widen(t[i], out[i])
                out[i] = exp(target) * (target - widen(x[i], out[i]))
    elif _are_ordinary(t, out):
        for i in range(size):
            target = widen(t[i], out[i])
            out[i] = target * log_normal(target) - target * widen(x[i], out[i])
    else:
        for i in range(size):
            target = widen(t[i], out[i])
            entropy = abs(target) if target == 0 else target * log(target)
            out[i] = entropy - target * widen(x[i], out[i])


@numba.njit(nogil=True, error_model="numpy")
def _clear_absent(x, t, out, absent):
    """Set the terms to 0 where the target is `absent`, unless the input is NaN."""
    wide_vectors()
    for i in range(tile_size(out)):
        is_number = widen(x[i], out[i]) == widen(x[i], out[i])
        out[i] = 0 if is_number & (widen(t[i], out[i]) == absent) else out[i]


@numba.njit(nogil=True, error_model="numpy")
def _store(terms, out):
    wide_vectors()
    for i in range(tile_size(terms)):
        out[i] = narrow(terms[i], out[i])


@numba.njit(nogil=True, error_model="numpy")
def _fill(x, t, start, out, log_target, absent):
    """Fill a tile with the terms from `start` on."""
    stop = start + tile_size(out)
    _fill_tile(x[start:stop], t[start:stop], out, log_target)
    if absent == absent:
        _clear_absent(x[start:stop], t[start:stop], out, absent)


def _fill_segment(x, t, out, log_target, absent, terms):
    tile = tile_size(terms)
    for start in range(0, x.size, tile):
        # The last tile is filled from the end backwards, in part once more.
        first = min(start, x.size - tile)
        _fill(x, t, first, terms, log_target, absent)
        _store(terms, out[first : first + tile])


def _sum_segment(x, t, state, log_target, absent, terms, rest):
    tile = tile_size(terms)
    half = tile // 2
    for start in range(0, x.size, tile):
        # The last tile ends at the end; what it has in common with the one before counts once.
        first = min(start, x.size - tile)
        prefetch(x, first + tile, half)
        prefetch(t, first + tile, half)
        _fill(x, t, first, terms, log_target, absent)
        terms[: start - first] = 0
        prefetch(x, first + tile + half, half)
        prefetch(t, first + tile + half, half)
        exact_sum.add_tile(state, terms, rest)
        if start % exact_sum.MAX_ADDITIONS == 0:
            exact_sum.carry_compiled(state)
    exact_sum.carry_compiled(state)


def _kernel(function: Kernel, x: Chunk, t: Chunk, out: Any, term: Term) -> Kernel:
    """Compile `_fill_segment` or `_sum_segment` for stored arrays and a kind of term.

    Both take `x` and `t`, contiguous 1-d segments of stored numbers, at least a tile; `out`, as
    long, or the state of an exact sum; `log_target`, True or None; `absent`, the target whose terms
    are 0, or NaN for none; and a tile of the computation type to work in. `_sum_segment` takes one
    more tile of float64.
    """
    work = numba.from_dtype(term.compute_dtype)
    segments = [numba.types.Array(_stored_type(a), 1, "C", readonly=True) for a in (x, t)]
    log_target = numba.types.boolean if term.log_target else numba.types.none
    if function is _fill_segment:
        signature = (*segments, _stored_type(out)[::1], log_target, work, work[::1])
    else:
        signature = (*segments, numba.int64[::1], log_target, work, work[::1], numba.float64[::1])
    return compiled(function, signature)


def _stored_type(array: Chunk) -> Any:
    return numba.from_dtype(array.dtype.newbyteorder("="))


def _padded(segment: Chunk, tile: int) -> Chunk:
    """Return a segment of at least a tile; the terms of pairs of zeros that are added are 0."""
    if segment.size >= tile:
        return segment
    padded = np.zeros(tile, segment.dtype)
    padded[: segment.size] = segment
    return padded


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
    kernel = _kernel(_sum_segment, x, t, state, term)
    tile = tile_length(term.compute_dtype)
    terms, rest = np.empty(tile, term.compute_dtype), np.empty(tile)
    for segments in _segments(x, t, flags=[["readonly"]] * 2):
        padded = [_padded(segment, tile) for segment in segments]
        kernel(*padded, state, term.log_target or None, term.absent, terms, rest)


def block_terms(input: Chunk, target: Chunk, term: Term) -> Chunk:
    """Return the terms of a pair of chunks, computed as for a sum and rounded once."""
    order: Any = "F" if np.isfortran(input) and np.isfortran(target) else "C"
    out = np.empty(np.broadcast_shapes(input.shape, target.shape), term.dtype, order)
    operands = as_stored(input), as_stored(target), as_stored(out)
    kernel = _kernel(_fill_segment, *operands, term)
    tile = tile_length(term.compute_dtype)
    work = np.empty(tile, term.compute_dtype)
    with _segments(*operands, flags=[["readonly"], ["readonly"], ["writeonly"]]) as iterator:
        for segments in iterator:
            padded = [_padded(segment, tile) for segment in segments]
            kernel(*padded, term.log_target or None, term.absent, work)
            if padded[-1] is not segments[-1]:
                segments[-1][...] = padded[-1][: segments[-1].size]
    return out[()]
