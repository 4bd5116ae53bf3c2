"""torch's terms t (log t - x), or exp(t) (t - x), of a pair of chunks.

For `kl_div`; `pointwise_sum` and `pointwise_rows` add them up. A tile of terms is computed in the
type of the result, with `elementary`'s functions. Invariant: a term depends on its two numbers and
types alone, not on its place. Special values are those of torch.nn.functional.kl_div (`xlogy` for
probabilities).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import exact_sum
from kldiv_dask.kernels.elementary import (
    EXP_NORMAL_F32,
    EXP_NORMAL_F64,
    exp,
    exp_normal,
    log,
    log_normal,
)
from kldiv_dask.kernels.jit import Kernel, compiled, inlined_function, inner_function
from kldiv_dask.kernels.layout import segments
from kldiv_dask.kernels.llvm_bits import narrow_or, nonnormal_bits
from kldiv_dask.kernels.llvm_hints import tile_length, tile_size, wide_vectors
from kldiv_dask.kernels.stored_floats import as_stored, narrow, stored_type, widen

Array = npt.NDArray[Any]
Chunk = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]


class PointwiseSpec(NamedTuple):
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
    def zero_target(self) -> Any:
        """The target whose terms are 0 whatever the input, as the kernels take it."""
        zero = -np.inf if self.log_target else 0.0
        return self.compute_dtype.type(zero if self.zero_safe else np.nan)


@inner_function
def _are_ordinary(stored, like):
    """Whether every number of a tile is positive, normal and finite."""
    wide_vectors()
    odd = nonnormal_bits(widen(stored[0], like[0]))
    for i in range(tile_size(like)):
        odd = narrow_or(odd, nonnormal_bits(widen(stored[i], like[i])))
    return odd >= 0


@inner_function
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


@inner_function
def _clear_absent(x, t, out, zero_target):
    """Set the terms to 0 where the target is `zero_target`, unless the input is NaN."""
    wide_vectors()
    for i in range(tile_size(out)):
        is_number = widen(x[i], out[i]) == widen(x[i], out[i])
        out[i] = 0 if is_number & (widen(t[i], out[i]) == zero_target) else out[i]


@inner_function
def _store(terms, out):
    wide_vectors()
    for i in range(tile_size(terms)):
        out[i] = narrow(terms[i], out[i])


@inner_function
def _clear_excluded(mask, out):
    wide_vectors()
    for i in range(tile_size(out)):
        out[i] = out[i] if mask[i] else 0


@inlined_function
def fill(x, t, mask, start, out, log_target, zero_target):
    """Fill a tile with the terms from `start` on."""
    stop = start + tile_size(out)
    _fill_tile(x[start:stop], t[start:stop], out, log_target)
    if zero_target == zero_target:
        _clear_absent(x[start:stop], t[start:stop], out, zero_target)
    if mask is not None:
        _clear_excluded(mask[start:stop], out)


def _fill_segment(x, t, mask, out, log_target, zero_target, terms):
    tile = tile_size(terms)
    for start in range(0, x.size, tile):
        # The last tile is filled from the end backwards, in part once more.
        first = min(start, x.size - tile)
        fill(x, t, mask, first, terms, log_target, zero_target)
        _store(terms, out[first : first + tile])


def kernel(
    function: Kernel,
    operands: Sequence[Array | None],
    result: tuple[Any, ...],
    spec: PointwiseSpec,
    *more: Any,
) -> Kernel:
    """Compile a function for stored operands and a kind of term.

    The function takes `x`, `t` and `mask`, which are contiguous 1-d segments of at least a tile, or
    None for no mask; what `result` holds the types of; `log_target`, True or None; `zero_target`,
    the target whose terms are 0, or NaN for none; a tile of the computation type to work in; and
    what `more` holds the types of.
    """
    work = numba.from_dtype(spec.compute_dtype)
    segments = [
        numba.types.none
        if operand is None
        else numba.types.Array(stored_type(operand), 1, "C", readonly=True)
        for operand in operands
    ]
    log_target = numba.types.boolean if spec.log_target else numba.types.none
    return compiled(function, (*segments, *result, log_target, work, work[::1], *more))


def padded(segments: Sequence[Array | None], tile: int) -> list[Any]:
    """Return segments of at least a tile; the terms of pairs of zeros that are added are 0."""
    return [
        segment if segment is None or segment.size >= tile else _padded(segment, tile)
        for segment in segments
    ]


def _padded(segment: Array, tile: int) -> Array:
    longer = np.zeros(tile, segment.dtype)
    longer[: segment.size] = segment
    return longer


def workspace(spec: PointwiseSpec) -> tuple[Array, Array]:
    """Return a tile for terms, and one for what sums leave to be added."""
    tile = tile_length(spec.compute_dtype)
    return np.empty(tile, spec.compute_dtype), np.empty(tile)


def block_terms(
    input: Chunk, target: Chunk, spec: PointwiseSpec, where: Mask | None = None
) -> Chunk:
    """Return the terms of a pair of chunks, computed as for a sum and rounded once.

    Those that `where` excludes are 0.
    """
    order: Any = "F" if np.isfortran(input) and np.isfortran(target) else "C"
    out = np.empty(np.broadcast_shapes(input.shape, target.shape), spec.dtype, order)
    stored = as_stored(out)
    operands = [as_stored(input), as_stored(target)]
    masks = [] if where is None else [where]
    no_mask = [None] * (not masks)
    result = (stored_type(stored)[::1],)
    write = kernel(_fill_segment, [*operands, *(masks or no_mask)], result, spec)
    terms, _ = workspace(spec)
    flags = [*["readonly"] * (2 + len(masks)), "writeonly"]
    with segments(*operands, *masks, stored, flags=flags) as iterator:
        for *operand_segments, segment in iterator:
            *parts, part = padded([*operand_segments, *no_mask, segment], terms.size)
            write(*parts, part, spec.log_target or None, spec.zero_target, terms)
            if part is not segment:
                segment[...] = part[: segment.size]
    return out[()]
