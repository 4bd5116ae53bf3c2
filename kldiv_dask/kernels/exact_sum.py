"""Exact accumulation of floating-point terms into integer limbs.

A sum is held as a fixed-point integer: limb ``i`` counts multiples of ``2**(32*i - 1074)``, so that
every finite float64 is a whole number of units and adding it never rounds. Integer addition is
associative; hence the same terms give the same state in any order and grouping.

Terms that are not finite have no place in an integer. They are counted in slots beside the limbs.
"""

import numba
import numpy as np

from kldiv_dask.kernels.bits import (
    float64_bits,
    float64_from_bits,
    from_magnitude,
    magnitude_bits,
)

# 66 limbs of 32 bits span 2**-1074 ... 2**1024; two more hold the carries of 2**64 largest terms.
LIMBS = 68
NAN, POSINF, NEGINF = LIMBS, LIMBS + 1, LIMBS + 2
STATE = LIMBS + 3

# One addition changes a limb by less than 2**33, so as many leave an int64 limb far from overflow.
# Whoever adds more must carry in between.
MAX_ADDITIONS = 2**28

_LIMB_BITS = np.int64(32)
_LIMB_MASK = np.int64(0xFFFFFFFF)


def carry(state):
    """Bring limbs along the first axis into canonical form, in place.

    Every limb but the last ends in [0, 2**32); the last carries the sign. States of equal sums are
    then equal, bit for bit. Works on a vector in compiled loops and on any array in NumPy.
    """
    for i in range(LIMBS - 1):
        state[i + 1] += state[i] >> _LIMB_BITS
        state[i] &= _LIMB_MASK


carry_compiled = numba.njit(nogil=True, error_model="numpy")(carry)


@numba.njit(nogil=True, error_model="numpy")
def add_scaled(state, integer, position):
    """Add ``integer * 2**(position - 1074)`` to `state`, for ``abs(integer) < 2**62``."""
    limb = position >> 5
    shift = position & 31
    low = (integer & _LIMB_MASK) << shift
    high = (integer >> _LIMB_BITS) << shift
    state[limb] += low & _LIMB_MASK
    state[limb + 1] += (low >> _LIMB_BITS) + (high & _LIMB_MASK)
    state[limb + 2] += high >> _LIMB_BITS


@numba.njit(nogil=True, error_model="numpy")
def add(state, value):
    """Add one float64 of any kind to `state`."""
    word = float64_bits(value)
    exponent = (word >> 52) & 0x7FF
    fraction = word & 0xFFFFFFFFFFFFF
    if exponent == 0x7FF:
        if fraction != 0:
            state[NAN] += 1
        elif word > 0:
            state[POSINF] += 1
        else:
            state[NEGINF] += 1
        return
    if exponent == 0:
        exponent = 1
    else:
        fraction |= 1 << 52
    add_scaled(state, -fraction if word < 0 else fraction, exponent - 1)


@numba.njit(nogil=True, error_model="numpy")
def _largest(terms):
    """Return the largest magnitude as float64; NaN where there is one."""
    largest = magnitude_bits(terms[0])
    for i in range(terms.size):
        bits = magnitude_bits(terms[i])
        largest = bits if bits > largest else largest
    return from_magnitude(largest, terms[0])


@numba.njit(nogil=True, error_model="numpy")
def _split(terms, rest, position, state):
    """Add what of `terms` lies on two grids of integers, and leave the remainders in `rest`.

    The first grid has the spacing ``2**(position - 1074)``, at most 2**-50 of the largest term.
    Adding ``1.5 * 2**52`` spacings to a term rounds it to the grid, and leaves the multiple in the
    low bits of the sum; the remainder is exact and at most half a spacing, 2**50 spacings of a
    second grid that is 2**51 times finer. All additions of patterns are of integers, so the
    compiler may reorder them; only their sums modulo 2**64 count.

    Returns whether any remainder is left.
    """
    coarse = max(position, 0)
    fine = max(coarse - 51, 0)
    coarse_bits = ((coarse + 1) << 52) | (1 << 51)
    fine_bits = ((fine + 1) << 52) | (1 << 51)
    coarse_shift = float64_from_bits(coarse_bits)
    fine_shift = float64_from_bits(fine_bits)
    coarse_sum = np.int64(0)
    fine_sum = np.int64(0)
    left = np.int64(0)
    for i in range(terms.size):
        term = np.float64(terms[i])
        shifted = term + coarse_shift
        coarse_sum += float64_bits(shifted)
        remainder = term - (shifted - coarse_shift)
        shifted = remainder + fine_shift
        fine_sum += float64_bits(shifted)
        remainder -= shifted - fine_shift
        rest[i] = remainder
        left |= float64_bits(remainder)
    add_scaled(state, coarse_sum - terms.size * coarse_bits, coarse)
    add_scaled(state, fine_sum - terms.size * fine_bits, fine)
    return (left << 1) != 0


@numba.njit(nogil=True, error_model="numpy")
def add_tile(state, terms, rest):
    """Add every element of `terms` to `state`.

    Parameters
    ----------
    state : int64 array of shape (STATE,)
        Changed in place.
    terms : float32 or float64 array, 1-d, contiguous, of 1 to 2048 elements
    rest : float64 array of the size of `terms`
        Scratch space.
    """
    largest = _largest(terms)
    # Beyond this the grids would overflow. NaN compares false.
    if not largest < 2.0**1021:
        for i in range(terms.size):
            add(state, np.float64(terms[i]))
        return
    # largest < 2**(position + 50 - 1074)
    position = (float64_bits(largest) >> 52) + 2
    more = _split(terms, rest, position, state)
    while more:
        position -= 102
        more = _split(rest, rest, position, state)
