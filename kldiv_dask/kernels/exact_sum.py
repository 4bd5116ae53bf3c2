"""The exact sum of floating-point terms: a Kulisch accumulator, fed by error-free extraction.

For all sums of the package. The accumulator is a fixed-point integer as wide as float64 (U. Kulisch
and V. Snyder, "The exact dot product as basic tool for long interval arithmetic", Computing 91
(2011) 307-313): limb ``i`` counts multiples of ``2**(32*i - 1074)``, so every finite float64 is a
whole number of units, and adding it never rounds. Limbs are int64 and hold 32 bits each, so carries
wait, as in R. Neal's "superaccumulators" (xsum; "Fast exact summation using small and large
superaccumulators", arXiv:1505.05571, 2015).

A tile of terms is not added one by one. Each term is split into its multiple of a common unit and
the rest, without a rounding error, by adding and subtracting a large constant: the extraction of
S. Rump, T. Ogita and S. Oishi ("Accurate floating-point summation part I", SIAM J. Sci. Comput. 31
(2008) 189-224), which ReproBLAS (J. Demmel and H. D. Nguyen, "Parallel reproducible summation",
IEEE Trans. Comput. 64 (2015) 2060-2070) and ExBLAS (S. Collange et al., "Numerical reproducibility
for the parallel reduction on multi- and many-core architectures", Parallel Comput. 49 (2015) 83-97)
use too. The multiples of a tile are summed as floats, which is exact while they are few, and the
sum is added to the limbs.

Invariant: the limbs, read as one integer, are the sum of all terms so far. Integer addition is
associative, so the same terms give the same accumulator in any order and grouping, once it is
carried. Terms that are not finite are counted in slots beside the limbs.
"""

from typing import Any

import numpy as np

from kldiv_dask.kernels.jit import inlined_function, inner_function
from kldiv_dask.kernels.llvm_bits import (
    float64_bits,
    float64_from_bits,
    from_magnitude,
    from_nonzero,
    magnitude_bits,
    nonzero_bits,
)
from kldiv_dask.kernels.llvm_hints import tile_size, wide_vectors
from kldiv_dask.kernels.stored_floats import widen

# 66 limbs of 32 bits span 2**-1074 ... 2**1024; two more hold the carries of 2**64 largest terms.
LIMBS = 68
NAN, POSINF, NEGINF = LIMBS, LIMBS + 1, LIMBS + 2
ACCUMULATOR_SIZE = LIMBS + 3

# How many additions leave an int64 limb far from overflow, as one changes it by less than 2**33.
# Whoever adds more must carry in between. ReproBLAS calls it endurance.
ENDURANCE = 2**28

# So few terms are added one by one in less time than as a tile: 2 take 34 ns against 53, 12 take 57
# against 56.
FEW = 12

_LIMB_BITS = np.int64(32)
_LIMB_MASK = np.int64(0xFFFFFFFF)


def carry(accumulator: Any) -> None:
    """Bring limbs along the first axis into canonical form, in place.

    Every limb but the last ends in [0, 2**32); the last carries the sign. Accumulators of equal
    sums are then equal, bit for bit. Works on a vector in compiled loops and on any array in NumPy.
    """
    for i in range(LIMBS - 1):
        accumulator[i + 1] += accumulator[i] >> _LIMB_BITS
        accumulator[i] &= _LIMB_MASK


carry_compiled = inner_function(carry)


@inner_function
def add_scaled(accumulator, integer, position):
    """Add ``integer * 2**(position - 1074)`` to `accumulator`, for ``abs(integer) < 2**62``."""
    limb = position >> 5
    shift = position & 31
    low = (integer & _LIMB_MASK) << shift
    high = (integer >> _LIMB_BITS) << shift
    accumulator[limb] += low & _LIMB_MASK
    accumulator[limb + 1] += (low >> _LIMB_BITS) + (high & _LIMB_MASK)
    accumulator[limb + 2] += high >> _LIMB_BITS


@inner_function
def add(accumulator, value):
    """Add one float64 of any kind to `accumulator`."""
    word = float64_bits(value)
    exponent = (word >> 52) & 0x7FF
    fraction = word & 0xFFFFFFFFFFFFF
    if exponent == 0x7FF:
        if fraction != 0:
            accumulator[NAN] += 1
        elif word > 0:
            accumulator[POSINF] += 1
        else:
            accumulator[NEGINF] += 1
        return
    if exponent == 0:
        exponent = 1
    else:
        fraction |= 1 << 52
    add_scaled(accumulator, -fraction if word < 0 else fraction, exponent - 1)


@inner_function
def largest(stored, like):
    """Return the largest magnitude in a tile as float64; NaN where there is one.

    Stored numbers are widened to the type of the array `like`.
    """
    wide_vectors()
    most = magnitude_bits(widen(stored[0], like[0]))
    for i in range(tile_size(like)):
        bits = magnitude_bits(widen(stored[i], like[i]))
        most = bits if bits > most else most
    return from_magnitude(most, like[0])


@inlined_function
def _range(terms, size):
    """Return the largest magnitude in a tile and the smallest but zero, as float64."""
    wide_vectors()
    most = magnitude_bits(terms[0])
    least = nonzero_bits(terms[0])
    for i in range(size):
        bits = magnitude_bits(terms[i])
        most = bits if bits > most else most
        nonzero = nonzero_bits(terms[i])
        least = nonzero if nonzero < least else least
    return from_magnitude(most, terms[0]), from_nonzero(least, terms[0])


@inner_function
def _grid(position):
    """Return what rounds to multiples of ``2**(position - 1074)``, and its pattern.

    Adding ``1.5 * 2**52`` spacings to a number of at most 2**50 spacings rounds it to a multiple,
    and leaves that in the low bits of the sum.
    """
    bits = ((position + 1) << 52) | (1 << 51)
    return float64_from_bits(bits), bits


@inner_function
def _split(terms, size, coarse, fine, accumulator, rest):
    """Add what of `terms` lies on two grids, and leave the remainders in `rest`.

    The remainder of the first is exact and at most half a spacing; the second grid is up to 2**51
    times finer. The patterns are added as integers, so the compiler may reorder them, and only
    their sums modulo 2**64 count. Returns whether a remainder is left.
    """
    wide_vectors()
    coarse_shift, coarse_bits = _grid(coarse)
    fine_shift, fine_bits = _grid(fine)
    coarse_sum = np.int64(0)
    fine_sum = np.int64(0)
    left = np.int64(0)
    for i in range(size):
        term = np.float64(terms[i])
        shifted = term + coarse_shift
        coarse_sum += float64_bits(shifted)
        remainder = term - (shifted - coarse_shift)
        shifted = remainder + fine_shift
        fine_sum += float64_bits(shifted)
        remainder -= shifted - fine_shift
        rest[i] = remainder
        left |= float64_bits(remainder)
    add_scaled(accumulator, coarse_sum - size * coarse_bits, coarse)
    add_scaled(accumulator, fine_sum - size * fine_bits, fine)
    return (left << 1) != 0


@inlined_function
def _split_whole(terms, size, coarse, fine, accumulator):
    """Do what `_split` does where no remainder is left, in two thirds of the time."""
    wide_vectors()
    coarse_shift, coarse_bits = _grid(coarse)
    fine_shift, fine_bits = _grid(fine)
    coarse_sum = np.int64(0)
    fine_sum = np.int64(0)
    for i in range(size):
        term = np.float64(terms[i])
        shifted = term + coarse_shift
        coarse_sum += float64_bits(shifted)
        fine_sum += float64_bits((term - (shifted - coarse_shift)) + fine_shift)
    add_scaled(accumulator, coarse_sum - size * coarse_bits, coarse)
    add_scaled(accumulator, fine_sum - size * fine_bits, fine)


@inner_function
def add_tile(accumulator, terms, rest):
    """Add every element of `terms` to `accumulator`.

    Parameters
    ----------
    accumulator : int64 array of shape (ACCUMULATOR_SIZE,)
        Changed in place.
    terms : float32 or float64 array, 1-d, contiguous, of exactly a tile
    rest : float64 array, as long
        Scratch space.

    Returns
    -------
    tuple of float64
        The largest magnitude, NaN where there is one, and the smallest but zero, or 0.
    """
    most, least = _range(terms, tile_size(terms))
    _add_many(accumulator, terms, tile_size(terms), rest, most, least)
    return most, least


@inner_function
def add_terms(accumulator, terms, rest):
    """Do what `add_tile` does with at most a tile."""
    if terms.size == tile_size(terms):
        add_tile(accumulator, terms, rest)
    elif terms.size > FEW:
        most, least = _range(terms, terms.size)
        _add_many(accumulator, terms, terms.size, rest, most, least)
    else:
        for i in range(terms.size):
            add(accumulator, np.float64(terms[i]))


@inlined_function
def _add_many(accumulator, terms, size, rest, most, least):
    # Beyond this the grids would overflow. NaN compares false.
    if not most < 2.0**1021:
        for i in range(size):
            add(accumulator, np.float64(terms[i]))
        return
    # most < 2**(coarse + 50 - 1074)
    coarse = (float64_bits(most) >> 52) + 2
    fine = max(coarse - 51, 0)
    # Terms are multiples of the last place of the smallest, the last but 29 of float64 in float32.
    last_place = (float64_bits(least) >> 52) - 1 + (29 if terms.itemsize == 4 else 0)
    if last_place >= fine:
        _split_whole(terms, size, coarse, fine, accumulator)
        return
    more = _split(terms, size, coarse, fine, accumulator, rest)
    while more:
        coarse = max(fine - 51, 0)
        fine = max(coarse - 51, 0)
        more = _split(rest, size, coarse, fine, accumulator, rest)
