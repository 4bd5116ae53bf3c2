"""Exact accumulation of floating-point terms into integer limbs.

A sum is held as a fixed-point integer: limb ``i`` counts multiples of ``2**(32*i - 1074)``, so that
every finite float64 is a whole number of units and adding it never rounds. Integer addition is
associative; hence the same terms give the same state in any order and grouping.

Terms that are not finite have no place in an integer. They are counted in slots beside the limbs.
"""

import numba
import numpy as np
import numpy.typing as npt

# 66 limbs of 32 bits span 2**-1074 ... 2**1024; two more hold the carries of 2**64 largest terms.
LIMBS = 68
NAN, POSINF, NEGINF = LIMBS, LIMBS + 1, LIMBS + 2
STATE = LIMBS + 3

# One addition changes a limb by less than 2**33, so 2**29 of them leave an int64 limb far from
# overflow. Whoever adds more must carry in between.
MAX_ADDITIONS = 2**29

_LIMB_BITS = np.int64(32)
_LIMB_MASK = np.int64(0xFFFFFFFF)


def carry(state: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Bring the limbs along the last axis into canonical form, in place, and return the state.

    Every limb but the last ends in [0, 2**32); the last carries the sign. States of equal sums are
    then equal, bit for bit.
    """
    for i in range(LIMBS - 1):
        state[..., i + 1] += state[..., i] >> _LIMB_BITS
        state[..., i] &= _LIMB_MASK
    return state


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
def add_terms(state, terms):
    """Add every element of the float64 array `terms` to `state`, one by one."""
    bits = terms.view(np.int64)
    for i in range(bits.size):
        word = bits[i]
        exponent = (word >> 52) & 0x7FF
        fraction = word & 0xFFFFFFFFFFFFF
        if exponent == 0x7FF:
            if fraction != 0:
                state[NAN] += 1
            elif word > 0:
                state[POSINF] += 1
            else:
                state[NEGINF] += 1
        else:
            if exponent == 0:
                exponent = 1
            else:
                fraction |= 1 << 52
            add_scaled(state, -fraction if word < 0 else fraction, exponent - 1)
