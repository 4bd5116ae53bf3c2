"""A fingerprint of rows of numbers: from their stored bits alone, in any order and grouping.

A row has a hash h. Some rows, at positions i of a whole, have the fingerprint sum h_i r^i modulo
the prime P = 2^61 - 1: a polynomial hash (R. Karp and M. Rabin, "Efficient randomized
pattern-matching algorithms", IBM J. Res. Dev. 31 (1987) 249-260), so that fingerprints of parts
add up to that of the whole, rows that change places change it, and n positions more in front
multiply it by r^n.

The hash of a row is made of two sums for each of some interleaved lanes, of the bits and of the
sums so far, as in J. Fletcher, "An arithmetic checksum for serial transmissions", IEEE Trans.
Commun. 30 (1982) 247-252; each lane counts times a constant of its own. Sums wrap around. It
changes with every change of one number and with every exchange of two unless their difference is a
multiple of a large power of two. It is a fingerprint, and no proof: who wants to can make two rows
with one hash.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kldiv_dask.kernels.jit import compiled, inner_function
from kldiv_dask.kernels.llvm_hints import wide_vectors

Built = tuple[Any, Callable[..., Any]]

P = 2**61 - 1

# r, and what the hash of a row is multiplied by: numbers without a pattern, of the digits of pi.
RADIX = 0x243F6A8885A308D3 % P
_FACTOR = np.uint64(0x13198A2E03707345)
_MIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of SplitMix64

# Bytes of a step: with two sums for each lane, as many vectors as AVX2 has registers for.
_STEP = 128

_INT64 = ir.IntType(64)
_INT128 = ir.IntType(128)


def _constants(count: int) -> list[int]:
    """Return odd numbers of 64 bits: SplitMix64 (G. Steele et al., OOPSLA 2014)."""
    numbers = []
    for index in range(1, count + 1):
        z = index * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        numbers.append((z ^ z >> 31) | 1)
    return numbers


# How many words of 64 bits the sums of all lanes take.
SUMS = 2 * _STEP // 8
_CONSTANTS = np.array(_constants(SUMS), np.uint64)


@intrinsic
def _lanes(context: Any, array: Any) -> Built:
    """Return how many numbers make a step, as a constant."""
    count = _STEP // (array.dtype.bitwidth // 8)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, count)

    return types.intp(array), build


@intrinsic
def _add_steps(context: Any, sums: Any, array: Any, start: Any, count: Any) -> Built:
    """Add whole steps of a contiguous array to the sums of its lanes, held in any type.

    It takes a place rather than a slice, as counting references to slices cost as much as the sums.
    """
    width = array.dtype.bitwidth
    lanes = _STEP // (width // 8)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        sums_view, array_view = (
            context.make_array(kind)(context, builder, arg)
            for kind, arg in zip(signature.args[:2], args[:2], strict=True)
        )
        data = builder.gep(array_view.data, [args[2]])
        pointer_type = ir.VectorType(ir.IntType(width), lanes).as_pointer()
        first = builder.bitcast(sums_view.data, pointer_type)
        pointers = [first, builder.gep(first, [ir.IntType(32)(1)])]
        total, total_of_sums = (
            cgutils.alloca_once_value(builder, builder.load(pointer, align=1))
            for pointer in pointers
        )
        step = context.get_constant(types.intp, lanes)
        with cgutils.for_range_slice(builder, step.type(0), args[3], step) as (index, _):
            address = builder.bitcast(builder.gep(data, [index]), pointer_type)
            loaded = builder.load(address, align=width // 8)
            builder.store(builder.add(builder.load(total), loaded), total)
            added = builder.add(builder.load(total_of_sums), builder.load(total))
            builder.store(added, total_of_sums)
        for pointer, variable in zip(pointers, (total, total_of_sums), strict=True):
            builder.store(builder.load(variable), pointer, align=1)
        return context.get_dummy_value()

    return types.void(sums, array, types.intp, types.intp), build


@intrinsic
def _pattern(context: Any, number: Any) -> Built:
    """Return the bits of a stored number as uint64."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = builder.bitcast(args[0], ir.IntType(number.bitwidth))
        return word if number.bitwidth == 64 else builder.zext(word, _INT64)

    return types.uint64(number), build


@inner_function
def start(sums, size):
    """Forget the row before, and return what the hash of one of so many numbers begins with."""
    sums[:] = 0
    return (np.uint64(size) + _FACTOR) * _FACTOR


@inner_function
def add_bits(hash, sums, stored, start, stop):
    """Take up more numbers of a row, as they are stored; whole steps of them but at its end."""
    wide_vectors()
    in_steps = (stop - start) // _lanes(stored) * _lanes(stored)
    _add_steps(sums, stored, start, in_steps)
    for i in range(start + in_steps, stop):
        hash = (hash + _pattern(stored[i])) * _FACTOR
        hash ^= hash >> np.uint64(32)
    return hash


@inner_function
def finish(hash, sums):
    """Return the hash of a row, well mixed and below P."""
    for i in range(sums.size):
        hash += sums[i] * _CONSTANTS[i]
    hash = (hash ^ (hash >> np.uint64(30))) * _MIX[0]
    hash = (hash ^ (hash >> np.uint64(27))) * _MIX[1]
    hash ^= hash >> np.uint64(31)
    hash = (hash & np.uint64(P)) + (hash >> np.uint64(61))
    return hash - np.uint64(P) if hash >= np.uint64(P) else hash


@intrinsic
def _times(context: Any, a: Any, b: Any) -> Built:
    """Multiply two numbers below P modulo P."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prime = _INT64(P)
        product = builder.mul(*(builder.zext(arg, _INT128) for arg in args))
        # 2^61 is 1 modulo P.
        low = builder.and_(builder.trunc(product, _INT64), prime)
        high = builder.trunc(builder.lshr(product, _INT128(61)), _INT64)
        return _reduced(builder, builder.add(low, high))

    return types.uint64(types.uint64, types.uint64), build


@intrinsic
def _plus(context: Any, a: Any, b: Any) -> Built:
    """Add two numbers below P modulo P."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _reduced(builder, builder.add(*args))

    return types.uint64(types.uint64, types.uint64), build


def _reduced(builder: Any, number: Any) -> Any:
    beyond = builder.icmp_unsigned(">=", number, _INT64(P))
    return builder.select(beyond, builder.sub(number, _INT64(P)), number)


def _sum_rows(positions, hashes, powers, sums):
    power = np.uint64(1)
    for row in range(positions.size):
        if row and positions[row] == positions[row - 1] + 1:
            power = _times(power, powers[0])
        else:
            power, left, bit = np.uint64(1), positions[row], 0
            while left:
                if left & 1:
                    power = _times(power, powers[bit])
                left >>= 1
                bit += 1
        sums[0] = _plus(sums[0], power)
        for operand in range(len(hashes)):
            sums[1 + operand] = _plus(sums[1 + operand], _times(hashes[operand, row], power))


_POWERS = np.array([pow(RADIX, 2**bit, P) for bit in range(63)], np.uint64)


def of_rows(
    positions: npt.NDArray[np.int64], hashes: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """Return the fingerprint of the positions, and of each operand there.

    Parameters
    ----------
    positions : int64 array, 1-d
        The numbers of the positions, of which none is negative.
    hashes : uint64 array of shape (operands, positions)
        From `finish`.

    Returns
    -------
    int64 array of shape (1 + operands,)
        First that of positions which all have the hash 1.
    """
    sums = np.zeros(1 + len(hashes), np.uint64)
    signature = (numba.int64[::1], numba.uint64[:, ::1], numba.uint64[::1], numba.uint64[::1])
    kernel = compiled(_sum_rows, signature)
    kernel(np.ascontiguousarray(positions), np.ascontiguousarray(hashes), _POWERS, sums)
    return sums.astype(np.int64)


def merge(fingerprints: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the fingerprint of all rows, given those of parts along the first axis."""
    total = np.zeros(fingerprints.shape[1], np.int64)
    for part in fingerprints:
        total = (total + part) % P  # below 2^62
    return total


def moved(fingerprints: npt.NDArray[np.int64], positions: int) -> npt.NDArray[np.int64]:
    """Return the fingerprints of the same rows behind so many other positions."""
    factor = pow(RADIX, positions, P)
    return np.array([number * factor % P for number in fingerprints.tolist()], np.int64)
