"""The exact sum of `pointwise` terms over a pair of chunks.

For `kl_div`. Strips of pairs take `pointwise_loop`, whose grids are guessed from the strips before.
A strip for which they are wrong, and what is too short for the loop, is added tile by tile by
`exact_sum`. Invariant: either way adds the same integer, so the sum depends on neither the guess
nor chunks nor layout.
"""

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import exact_sum
from kldiv_dask.kernels.jit import inlined_function, inner_function
from kldiv_dask.kernels.layout import segments
from kldiv_dask.kernels.llvm_bits import float64_bits, float64_from_bits
from kldiv_dask.kernels.llvm_hints import CACHE_LINE, address, prefetch, tile_size
from kldiv_dask.kernels.pointwise import (
    Chunk,
    Mask,
    PointwiseSpec,
    fill,
    kernel,
    padded,
    workspace,
)
from kldiv_dask.kernels.pointwise_loop import (
    FAILED,
    FEWEST_GRIDS,
    SHORTEST,
    TOO_SMALL,
    VECTOR_BYTES,
    on_four_grids,
    on_three_grids,
    on_two_grids,
)
from kldiv_dask.kernels.stored_floats import as_stored

# A guess, kept from segment to segment: the unit of the first grid is 2**UNIT; how many GRIDS, or 0
# where there is no guess; and how it fares. FAILURES in a row have the loop skip SKIP strips.
# PRESSURE grows where a strip takes one grid more. SINCE so many strips GRIDS is what it is; after
# PATIENCE one less is tried. LOOPS counts the strips that took the loop.
UNIT, GRIDS, FAILURES, SKIP, PRESSURE, SINCE, PATIENCE, LOOPS = range(8)

# Room on the first grid for terms of eight times the largest that was met.
ROOM = 3

_FIRST_PATIENCE, _LONGEST_PATIENCE = 16, 1024


def no_guess() -> npt.NDArray[np.int64]:
    """Return what to begin with."""
    guess = np.zeros(8, np.int64)
    guess[PATIENCE] = _FIRST_PATIENCE
    return guess


# Made part of its caller before it is optimized, which is then done once.
@inlined_function
def _add_tiles(x, t, mask, start, stop, accumulator, log_target, zero_target, terms, rest):
    """Add terms tile by tile; return the largest magnitude, and the smallest but zero."""
    tile = tile_size(terms)
    half = tile // 2
    most, least = 0.0, np.inf
    for begin in range(start, stop, tile):
        # A tile that would reach past the end begins earlier; what is not its own counts as 0.
        first = min(begin, x.size - tile)
        end = min(begin + tile, stop)
        prefetch(x, first + tile, half)
        prefetch(t, first + tile, half)
        fill(x, t, mask, first, terms, log_target, zero_target)
        for i in range(begin - first):
            terms[i] = 0
        for i in range(end - first, tile):
            terms[i] = 0
        prefetch(x, first + tile + half, half)
        prefetch(t, first + tile + half, half)
        highest, lowest = exact_sum.add_tile(accumulator, terms, rest)
        most = highest if not highest <= most else most
        least = min(least, lowest)
    return most, least


@inner_function
def _guess_grids(guess, most, least, fraction):
    """Guess the grids of the next strip from the range of one."""
    if most == 0:
        if guess[GRIDS] > 0:
            return
        most = 1.0  # most terms are smaller
    # A term takes less than 2**(fraction - 1) units of the first grid. All grids are to be normal.
    lowest, highest = (-80, 100) if fraction == 23 else (-970, 960)
    top = (float64_bits(most) >> 52) - 1022  # most < 2**top; infinite and NaN are above `highest`
    unit = min(max(top + ROOM - (fraction - 1), lowest), highest)
    last_place = (float64_bits(least) >> 52) - 1023 - fraction
    grids = FEWEST_GRIDS
    most_grids = 4 if fraction == 23 else 3
    while grids < most_grids and last_place < unit - fraction * (grids - 1):
        grids += 1
    guess[UNIT] = unit
    guess[GRIDS] = 0 if top > unit + fraction - 1 else grids


@inner_function
def _add_counts(accumulator, counts, grids, unit, fraction):
    """Add what a strip counts on each grid."""
    position = unit + 1074
    if fraction == 52:
        exact_sum.add_scaled(accumulator, counts[0], position)
        exact_sum.add_scaled(accumulator, counts[1], position - fraction)
        if grids > 2:
            exact_sum.add_scaled(accumulator, counts[2], position - 2 * fraction)
    else:
        both = (counts[0] << fraction) + counts[1]
        exact_sum.add_scaled(accumulator, both, position - fraction)
        if grids > 2:
            both = (counts[2] << fraction) + counts[3]
            exact_sum.add_scaled(accumulator, both, position - 3 * fraction)


@inner_function
def _note_success(guess, grids):
    """Keep as many grids as most strips need, and now and then try with one less."""
    guess[FAILURES] = max(guess[FAILURES] - 1, 0)
    guess[PRESSURE] = max(guess[PRESSURE] - 1, 0) if grids == guess[GRIDS] else guess[PRESSURE] + 5
    guess[SINCE] += 1
    guess[LOOPS] += 1
    if guess[PRESSURE] >= 15:
        guess[GRIDS] = grids
        guess[PRESSURE] = guess[SINCE] = 0
        guess[PATIENCE] = min(2 * guess[PATIENCE], _LONGEST_PATIENCE)
    elif guess[SINCE] >= guess[PATIENCE] and guess[GRIDS] > FEWEST_GRIDS:
        guess[GRIDS] -= 1
        guess[PRESSURE] = guess[SINCE] = 0


@inner_function
def _note_failure(guess):
    """Skip 0, 2, 6, 14, ... and at last 126 strips."""
    if guess[SKIP] > 0:
        guess[SKIP] -= 1
    elif guess[GRIDS] > 0:
        guess[FAILURES] = min(guess[FAILURES] + 2, 14)
        guess[SKIP] = (1 << (guess[FAILURES] // 2)) - 2


@inner_function
def _add_strip(x, t, mask, start, count, accumulator, log_target, terms, guess):
    """Add a strip by the loop; return whether that was possible."""
    if guess[SKIP] > 0 or guess[GRIDS] == 0:
        return False
    fraction = 23 if terms.itemsize == 4 else 52
    most_grids = 4 if fraction == 23 else 3
    unit, grids = guess[UNIT], guess[GRIDS]
    # 1.5 * 2**(fraction + unit)
    grid = terms.dtype.type(float64_from_bits(((1023 + fraction + unit) << 52) | (1 << 51)))
    if grids == 2:
        counts = on_two_grids(x, t, mask, start, count, grid, log_target)
        if counts[FAILED] == TOO_SMALL:
            grids = 3
    if grids == 3:
        counts = on_three_grids(x, t, mask, start, count, grid, log_target)
        if counts[FAILED] == TOO_SMALL and most_grids > 3:
            grids = 4
    if grids == 4:
        counts = on_four_grids(x, t, mask, start, count, grid, log_target)
    if counts[FAILED] != 0:
        return False
    _add_counts(accumulator, counts, grids, unit, fraction)
    _note_success(guess, grids)
    return True


def _sum_segment(x, t, mask, accumulator, log_target, zero_target, terms, rest, guess):
    # All are powers of two; a strip is four tiles.
    strip, width = 4 * tile_size(terms), VECTOR_BYTES // terms.itemsize
    # From here on each vector of `x` is one cache line, which is then loaded once.
    aligned = min((-address(x) // x.itemsize) % (CACHE_LINE // x.itemsize), x.size)
    # Of a plain 0 Numba would first think as a constant, and compile what takes it twice.
    start = since_carry = np.int64(0)
    while start < x.size:
        vectors = min(strip, x.size - start) // width
        is_strip = start >= aligned and vectors >= SHORTEST
        count = vectors * width if is_strip else (aligned if start < aligned else x.size) - start
        if not is_strip or not _add_strip(
            x, t, mask, start, count, accumulator, log_target, terms, guess
        ):
            most, least = _add_tiles(
                x, t, mask, start, start + count, accumulator, log_target, zero_target, terms, rest
            )
            if is_strip:
                _note_failure(guess)
                _guess_grids(guess, most, least, 23 if terms.itemsize == 4 else 52)
        start += count
        since_carry += count
        if since_carry > exact_sum.ENDURANCE - strip:
            exact_sum.carry_compiled(accumulator)
            since_carry = np.int64(0)
    exact_sum.carry_compiled(accumulator)


def add_block(
    accumulator: npt.NDArray[np.int64],
    input: Chunk,
    target: Chunk,
    spec: PointwiseSpec,
    where: Mask | None = None,
) -> None:
    """Add the terms of a pair of chunks to an exact sum.

    Parameters
    ----------
    accumulator : int64 array of shape (ACCUMULATOR_SIZE,)
        Changed in place, and left canonical.
    input, target : arrays that broadcast together
        Converted to the computation type piece by piece.
    spec : PointwiseSpec
        What a term is.
    where : bool array that broadcasts to the shape of both, optional
        Which terms to add.
    """
    operands = [as_stored(input), as_stored(target)]
    masks = [] if where is None else [where]
    no_mask = [None] * (not masks)
    work = (numba.float64[::1], numba.int64[::1])
    add = kernel(_sum_segment, [*operands, *(masks or no_mask)], (numba.int64[::1],), spec, *work)
    terms, rest = workspace(spec)
    guess = no_guess()
    for stored in segments(*operands, *masks, flags=["readonly"] * (2 + len(masks))):
        parts = padded([*stored, *no_mask], terms.size)
        add(*parts, accumulator, spec.log_target or None, spec.zero_target, terms, rest, guess)
