"""Measuring the positions of a pair of chunks, batch by batch: see `softmax_measures` for what."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import checks, fingerprint
from kldiv_dask.kernels.elementary import log
from kldiv_dask.kernels.jit import compiled
from kldiv_dask.kernels.layout import row_segments
from kldiv_dask.kernels.softmax_measures import MEASURES, MOST_TARGET, measure
from kldiv_dask.kernels.softmax_state import CLASS_BLOCK, STATE_SIZE
from kldiv_dask.kernels.stored_floats import as_stored, stored_type, widen

Chunk = npt.NDArray[np.floating]

# Positions that are measured at a time.
POSITIONS = 16384


def _fill_logarithms(probabilities, logarithms):
    for i in range(probabilities.size):
        logarithms[i] = log(np.float64(widen(probabilities[i], logarithms[0])))


class Batch(NamedTuple):
    """What was measured at some positions that follow each other in C order."""

    start: int
    measures: npt.NDArray[np.float64]
    hashes: npt.NDArray[np.uint64]


class _Logarithms:
    """Takes the logarithms of an operand that holds probabilities."""

    def __init__(self, stored: Any, holds: int) -> None:
        self.wanted = holds == checks.PROBS
        self.type = _readonly(numba.float64 if self.wanted else stored_type(stored))
        if self.wanted:
            signature = (_readonly(stored_type(stored)), numba.float64[::1])
            self._fill = compiled(_fill_logarithms, signature)

    def __call__(self, segment: Any) -> Any:
        if not self.wanted:
            return segment
        logarithms = np.empty(segment.size)
        self._fill(segment, logarithms)
        return logarithms


def _readonly(dtype: Any) -> Any:
    return numba.types.Array(dtype, 1, "C", readonly=True)


def measured(
    input: Chunk,
    target: Chunk,
    labels: npt.NDArray[np.int64],
    dtype: np.dtype[Any],
    temperature: float,
    kind: str,
    tolerances: tuple[float, float],
    generalized: bool,
) -> Iterator[Batch]:
    """Measure the positions of a pair of chunks, whose last axis is that of all classes.

    Parameters
    ----------
    input, target : arrays that broadcast together
        What `kind` says.
    labels : int64 array, 1-d, contiguous
        A class for each position.
    dtype : numpy.dtype
        What `softmax_kl.compute_dtype` returns.
    temperature : float
        What logits are divided by.
    kind : {'logits', 'log_probs', 'probs', 'log_probs_and_probs'}
        Logits are normalized. Log-probabilities are taken as they are even if they do not sum to 1,
        and so are probabilities, whose logarithms are taken in float64.
    tolerances : tuple of float
        How far from 1 the probabilities of the input, and of the target, may sum.
    generalized : bool
        Whether to add - p + q to each summand p log(p / q), for rows that do not sum to 1.

    Yields
    ------
    Batch
        With an array of shape ``(MEASURES, positions)``; what is not defined is NaN.
    """
    shape = np.broadcast_shapes(input.shape, target.shape)
    classes = shape[-1]
    pair = [np.broadcast_to(as_stored(a), shape) for a in (input, target)]
    holds = checks.OPERANDS[kind]
    logarithms = [_Logarithms(a, holding) for a, holding in zip(pair, holds, strict=True)]
    two = numba.types.UniTuple
    space, matrix = numba.from_dtype(dtype)[:, ::1], numba.float64[:, ::1]
    signature = (
        *(one.type for one in logarithms),
        *(_readonly(stored_type(a)) for a in pair),
        numba.float64,
        two(numba.int64, 2),
        numba.boolean,
        two(numba.float64, 2),
        _readonly(numba.int64),
        space,
        space,
        matrix,
        matrix,
        numba.uint64[:, ::1],
        matrix,
        numba.uint64[:, ::1],
    )
    kernel = compiled(measure, signature)
    count = -(-classes // CLASS_BLOCK)
    spaces, work = np.empty((3, count * CLASS_BLOCK), dtype), np.empty((3, CLASS_BLOCK), dtype)
    states, reverse_terms = np.empty((1 + count, STATE_SIZE)), np.empty((count, MOST_TARGET + 1))
    sums = np.empty((2, fingerprint.SUMS), np.uint64)
    done = 0
    for segments in row_segments(*pair):
        rows = segments[0].size // classes
        for start in range(0, rows, POSITIONS):
            size = min(POSITIONS, rows - start)
            parts = tuple(
                segment[start * classes : (start + size) * classes] for segment in segments
            )
            b, a = (take(part) for take, part in zip(logarithms, parts, strict=True))
            measures = np.full((MEASURES, size), np.nan)
            hashes = np.empty((2, size), np.uint64)
            first = done + start
            chosen = labels[first : first + size]
            kernel(
                b, a, *parts, 1 / temperature, holds, generalized, tolerances, chosen, spaces, work,
                states, reverse_terms, sums, measures, hashes,
            )  # fmt: skip
            yield Batch(first, measures, hashes)
        done += rows
