"""Fingerprints of rows: what they are, that they add up, and what they see."""

import itertools

import numba
import numpy as np
import pytest

from kldiv_dask.kernels import fingerprint
from kldiv_dask.kernels.fingerprint import RADIX, P
from kldiv_dask.kernels.stored_floats import as_stored

WORD = 2**64
CONSTANTS = [int(number) for number in fingerprint._CONSTANTS]
FACTOR = int(fingerprint._FACTOR)


@numba.njit
def _hash(stored, cuts):
    sums = np.empty(fingerprint.SUMS, np.uint64)
    hash = fingerprint.start(sums, stored.size)
    for i in range(len(cuts) - 1):
        hash = fingerprint.add_bits(hash, sums, stored, cuts[i], cuts[i + 1])
    return fingerprint.finish(hash, sums)


def hash_of(row, piece=1024):
    cuts = np.array([*range(0, row.size, piece), row.size])
    return int(_hash(as_stored(np.ascontiguousarray(row)), cuts))


def expected(row, piece=1024):
    """Hash a row with nothing but Python's integers."""
    width = row.dtype.itemsize
    lanes = 128 // width
    patterns = [int.from_bytes(row[i : i + 1].tobytes(), "little") for i in range(row.size)]
    sums, sums_of_sums = [0] * lanes, [0] * lanes
    hash = (row.size + FACTOR) * FACTOR % WORD
    for start in range(0, row.size, piece):
        some = patterns[start : start + piece]
        whole = len(some) // lanes * lanes
        for i, pattern in enumerate(some[:whole]):
            lane = i % lanes
            sums[lane] = (sums[lane] + pattern) % 256**width
            sums_of_sums[lane] = (sums_of_sums[lane] + sums[lane]) % 256**width
        for pattern in some[whole:]:
            hash = (hash + pattern) * FACTOR % WORD
            hash ^= hash >> 32
    data = b"".join(number.to_bytes(width, "little") for number in sums + sums_of_sums)
    for i, constant in enumerate(CONSTANTS):
        hash = (hash + int.from_bytes(data[8 * i : 8 * i + 8], "little") * constant) % WORD
    hash = (hash ^ hash >> 30) * 0xBF58476D1CE4E5B9 % WORD
    hash = (hash ^ hash >> 27) * 0x94D049BB133111EB % WORD
    return (hash ^ hash >> 31) % P


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 64, 100, 1024, 1025, 3000])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_hashes_against_integers(dtype, size):
    row = np.random.default_rng(size).normal(size=size).astype(dtype)
    assert hash_of(row) == expected(row) < P


def test_hashes_see_any_one_number_and_any_exchange():
    row = np.random.default_rng(0).normal(size=200).astype("f4")
    found = {hash_of(row)}
    others = []
    for i in range(row.size):
        other = row.copy()
        other[i] = np.nextafter(other[i], np.float32(9))
        others.append(other)
    for i, j in itertools.combinations(range(0, 200, 3), 2):
        other = row.copy()
        other[[i, j]] = row[[j, i]]
        others.append(other)
    others += [row[:i] for i in range(1, 200)] + [np.zeros(i, "f4") for i in range(1, 200)]
    found |= {hash_of(other) for other in others}
    assert len(found) == 1 + len(others)


@pytest.mark.parametrize("seed", range(5))
def test_fingerprints_of_parts_add_up(seed):
    r = np.random.default_rng(seed)
    places = np.sort(r.choice(10**12, 500, replace=False))
    places[100:300] = np.arange(200) + places[99] + 1  # a run, among scattered ones
    hashes = r.integers(0, P, (2, 500)).astype(np.uint64)
    powers = [pow(RADIX, int(place), P) for place in places]
    wanted = [sum(powers) % P] + [
        sum(int(h) * power for h, power in zip(row, powers, strict=True)) % P for row in hashes
    ]
    whole = fingerprint.of_rows(places, hashes)
    assert whole.tolist() == wanted
    cuts = np.sort(r.choice(500, 7, replace=False))
    parts = [
        fingerprint.of_rows(*part)
        for part in zip(np.split(places, cuts), np.split(hashes, cuts, axis=1), strict=True)
    ]
    r.shuffle(parts)
    assert fingerprint.merge(np.stack(parts)).tolist() == wanted
    moved = fingerprint.moved(whole, 12_345)
    assert moved.tolist() == fingerprint.of_rows(places + 12_345, hashes).tolist()
