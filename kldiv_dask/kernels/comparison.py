"""All that is measured of two softmax distributions at each position of a pair of chunks.

The divergence is that of `states`, with the same bits; the others are those of `both_ways`, for
which the weights and the differences u of all classes of a position are kept.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels import both_ways
from kldiv_dask.kernels.both_ways import CENTER_HIGH, CENTER_LOW, KEPT, REVERSE
from kldiv_dask.kernels.compiled import compiled
from kldiv_dask.kernels.elementary import exp, log
from kldiv_dask.kernels.machine import LANES, lane_sum, prefetch, wide_vectors
from kldiv_dask.kernels.segments import row_segments
from kldiv_dask.kernels.states import (
    DIVERGENCE,
    PIECE,
    STATE,
    SUM_INPUT,
    SUM_TARGET,
    UNIT_INPUT,
    UNIT_TARGET,
    center_of,
    conclude_piece,
    is_settled,
    merge,
    weigh,
)
from kldiv_dask.kernels.stored import as_stored, stored_type, widen

Chunk = npt.NDArray[np.floating]

# What is measured at a position, a row of the result for each: the divergences of a (the target)
# from b (the input) and back, that of Jensen and Shannon, what the probabilities of b and of a sum
# to (if they are not normalised here), whether both have their largest logit at the same class,
# whether b and a have a class at -inf, the logarithms of the probability that b and a give to the
# label, and how much more b gives to it.
(
    FORWARD,
    BACKWARD,
    JENSEN_SHANNON,
    MASS_INPUT,
    MASS_TARGET,
    AGREES,
    EXCLUDES_INPUT,
    EXCLUDES_TARGET,
    LOG_INPUT,
    LOG_TARGET,
    CHANGE,
) = range(11)
MEASURES = 11

# Positions that are measured at a time.
POSITIONS = 16384

# Beside what `both_ways` keeps of a piece, the largest logits.
MOST_INPUT, MOST_TARGET = KEPT, KEPT + 1


@numba.njit(nogil=True, error_model="numpy")
def _first_at(stored, most, like):
    """Return where a number is first met; beyond the end if nowhere."""
    wide_vectors()
    most = like.dtype.type(most)
    place = stored.size
    for i in range(stored.size):  # without an end before the end, this is done in vectors
        place = min(place, i if widen(stored[i], like[0]) == most else stored.size)
    return place


@numba.njit(nogil=True, error_model="numpy")
def _top(stored, first, classes, column, kept, like):
    """Return the first class with the largest logit."""
    most = kept[:, column].max()
    for k in range(len(kept)):
        if kept[k, column] == most:
            start = first + k * PIECE
            piece = stored[start : min(start + PIECE, first + classes)]
            return start + _first_at(piece, most, like)
    return -1


@numba.njit(nogil=True, error_model="numpy")
def _describe(x, t, first, classes, scale, spaces, work, pieces, state, kept):
    """Fill the state of a position, and keep the weights and the differences of its classes."""
    weights, inputs, differences = spaces[0], spaces[1], spaces[2]
    excluded_input = excluded_target = False
    for k in range(len(pieces)):
        start = k * PIECE
        size = min(classes - start, PIECE)
        padded = -(-size // LANES) * LANES
        w, v = weights[start : start + padded], inputs[start : start + padded]
        u = differences[start : start + padded]
        ordinary, offsets, most_input, most_target, no_input, no_target = weigh(
            x, t, first + start, size, scale, w, v, pieces[k]
        )
        excluded_input |= no_input
        excluded_target |= no_target
        kept[k] = 0
        kept[k, MOST_INPUT], kept[k, MOST_TARGET] = most_input, most_target
        if is_settled(pieces[k]):
            continue
        center = center_of(pieces[k], offsets, scale, w)
        stop = first + start + size
        b, a = x[first + start : stop], t[first + start : stop]
        u[size:] = 0
        both_ways.fill_terms(
            b, a, w, v, u[:size], pieces[k], offsets, center, scale, ordinary, work, kept[k]
        )
        prefetch(x, stop + 3 * PIECE // 4, PIECE // 4)
        prefetch(t, stop + 3 * PIECE // 4, PIECE // 4)
        terms = work[:, :padded]
        high, low, shift, excess = conclude_piece(
            pieces[k], center, offsets, terms[0], terms[1], scale
        )
        back = lane_sum(terms[2]) / pieces[k, SUM_TARGET]
        kept[k, CENTER_HIGH], kept[k, CENTER_LOW] = high, low
        kept[k, REVERSE] = both_ways.conclude(shift, excess, back, 0.0)
    if len(pieces) == 1:
        state[:] = pieces[0]
    else:
        merge(pieces, scale, state)
    return excluded_input, excluded_target


@numba.njit(nogil=True, error_model="numpy")
def _take_as_given(out, log_input, log_target):
    """Change divergences to those of probabilities that may not sum to 1, given their sums.

    With p = P p' and q = Q q', sum p log(p / q) = P (sum p' log(p' / q') + log(P / Q)).
    """
    out[MASS_INPUT], out[MASS_TARGET] = exp(log_input), exp(log_target)
    ratio = log_target - log_input
    out[FORWARD] = out[MASS_TARGET] * (out[FORWARD] + ratio)
    out[BACKWARD] = out[MASS_INPUT] * (out[BACKWARD] - ratio)


def _measure(x, t, scale, given, labels, spaces, work, pieces, kept, measures):
    classes = x.size // measures.shape[1]
    state = np.empty(STATE)
    like = spaces[0]
    for row in range(measures.shape[1]):
        first = row * classes
        out = measures[:, row]
        no_input, no_target = _describe(
            x, t, first, classes, scale, spaces, work, pieces, state, kept
        )
        mass_input, mass_target = state[SUM_INPUT], state[SUM_TARGET]
        out[FORWARD] = state[DIVERGENCE] if mass_target != 0 else np.nan
        out[BACKWARD] = out[JENSEN_SHANNON] = np.nan
        if mass_input > 0 and mass_target > 0:
            out[BACKWARD] = both_ways.merged_reverse(pieces, state, kept, scale)
            out[JENSEN_SHANNON] = both_ways.jensen_shannon(
                classes, scale, spaces, pieces, state, kept
            )
        log_input, log_target = log(mass_input), log(mass_target)
        unit_input, unit_target = state[UNIT_INPUT] * scale, state[UNIT_TARGET] * scale
        if given:
            _take_as_given(out, unit_input + log_input, unit_target + log_target)
            log_input = log_target = unit_input = unit_target = 0.0
        out[EXCLUDES_INPUT], out[EXCLUDES_TARGET] = no_input, no_target
        top = _top(x, first, classes, MOST_INPUT, kept, like)
        agrees = top == _top(t, first, classes, MOST_TARGET, kept, like)
        out[AGREES] = agrees and not np.isnan(mass_input + mass_target)
        index = first + labels[row]
        b, a = np.float64(widen(x[index], like[0])), np.float64(widen(t[index], like[0]))
        out[LOG_INPUT] = b * scale - unit_input - log_input
        out[LOG_TARGET] = a * scale - unit_target - log_target
        out[CHANGE] = exp(out[LOG_INPUT]) - exp(out[LOG_TARGET])


def _fill_logarithms(probabilities, logarithms):
    for i in range(probabilities.size):
        logarithms[i] = log(np.float64(widen(probabilities[i], logarithms[0])))


class Batch(NamedTuple):
    """What was measured at some positions that follow each other in C order."""

    start: int
    measures: npt.NDArray[np.float64]


def measured(
    input: Chunk,
    target: Chunk,
    labels: npt.NDArray[np.int64],
    dtype: np.dtype[Any],
    temperature: float,
    kind: str,
) -> Iterator[Batch]:
    """Measure the positions of a pair of chunks, whose last axis is that of all classes.

    Parameters
    ----------
    input, target : arrays that broadcast together
        What `kind` says.
    labels : int64 array, 1-d, contiguous
        A class for each position.
    dtype : numpy.dtype
        What `softmax.computed_in` returns.
    temperature : float
        What logits are divided by.
    kind : {'logits', 'log_probs', 'probs'}
        Logits are normalised. Otherwise `input` has log-probabilities, which are taken as they are
        even if they do not sum to 1, and so has `target`, or probabilities, whose logarithms are
        then taken in float64.

    Yields
    ------
    Batch
        With an array of shape ``(MEASURES, positions)``; what is not defined is NaN.
    """
    shape = np.broadcast_shapes(input.shape, target.shape)
    classes = shape[-1]
    x, t = (np.broadcast_to(as_stored(a), shape) for a in (input, target))
    probabilities = kind == "probs"
    readonly = [numba.types.Array(stored_type(a), 1, "C", readonly=True) for a in (x, t)]
    if probabilities:
        logarithms = compiled(_fill_logarithms, (readonly[1], numba.float64[::1]))
        readonly[1] = numba.types.Array(numba.float64, 1, "C", readonly=True)
    space = numba.from_dtype(dtype)[:, ::1]
    names = numba.types.Array(numba.int64, 1, "C", readonly=True)
    matrix = numba.float64[:, ::1]
    signature = (
        *readonly,
        numba.float64,
        numba.boolean,
        names,
        space,
        space,
        matrix,
        matrix,
        matrix,
    )
    kernel = compiled(_measure, signature)
    count = -(-classes // PIECE)
    spaces, work = np.empty((3, count * PIECE), dtype), np.empty((3, PIECE), dtype)
    pieces, kept = np.empty((count, STATE)), np.empty((count, MOST_TARGET + 1))
    done = 0
    for segments in row_segments(x, t):
        rows = segments[0].size // classes
        for start in range(0, rows, POSITIONS):
            size = min(POSITIONS, rows - start)
            b, a = (segment[start * classes : (start + size) * classes] for segment in segments)
            if probabilities:
                stored, a = a, np.empty(a.size)
                logarithms(stored, a)
            measures = np.full((MEASURES, size), np.nan)
            first = done + start
            chosen = labels[first : first + size]
            given = kind != "logits"
            kernel(b, a, 1 / temperature, given, chosen, spaces, work, pieces, kept, measures)
            yield Batch(first, measures)
        done += rows
