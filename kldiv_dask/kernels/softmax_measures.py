"""All that is measured of two softmax distributions at each position of a pair of chunks.

The divergence is that of `softmax_state`, with the same bits. The others are those of
`softmax_reverse`: for them, the weights and the differences u of all classes are kept.
"""

import numpy as np

from kldiv_dask.kernels import checks, fingerprint, softmax_reverse
from kldiv_dask.kernels.elementary import exp, log
from kldiv_dask.kernels.jit import inner_function
from kldiv_dask.kernels.llvm_hints import LANES, lane_sum, prefetch, wide_vectors
from kldiv_dask.kernels.softmax_merge import copy, largest, merge
from kldiv_dask.kernels.softmax_reverse import CENTER_HIGH, CENTER_LOW, KEPT, REVERSE
from kldiv_dask.kernels.softmax_state import (
    CLASS_BLOCK,
    DIVERGENCE,
    SUM_INPUT,
    SUM_TARGET,
    UNIT_INPUT,
    UNIT_TARGET,
    center_of,
    fill_softmax_weights,
    finish_class_block,
    is_settled,
)
from kldiv_dask.kernels.stored_floats import widen

# What is measured at a position, a row of the result for each: the divergences of a (the target)
# from b (the input) and back, that of Jensen and Shannon, what the probabilities of b and of a sum
# to (if they are not normalized here), whether both have their largest logit at the same class;
# whether b and a have a class at -inf, whether all their classes are equal, what else they look
# like, and whether the label is at their floor (all four from `checks`); the logarithms of the
# probability that b and a give to the label, and how much more b gives to it.
(
    FORWARD,
    BACKWARD,
    JENSEN_SHANNON,
    MASS_INPUT,
    MASS_TARGET,
    AGREES,
    EXCLUDES_INPUT,
    EXCLUDES_TARGET,
    CONSTANT_INPUT,
    CONSTANT_TARGET,
    RESEMBLES_INPUT,
    RESEMBLES_TARGET,
    FLOOR_INPUT,
    FLOOR_TARGET,
    LOG_INPUT,
    LOG_TARGET,
    CHANGE,
) = range(17)
MEASURES = 17

# Beside what `softmax_reverse` keeps of a block of classes, the largest logits.
MOST_INPUT, MOST_TARGET = KEPT, KEPT + 1


@inner_function
def _first_at(stored, most, like):
    """Return where a number is first met; beyond the end if nowhere."""
    wide_vectors()
    most = like.dtype.type(most)
    place = stored.size
    for i in range(stored.size):  # without an end before the end, this is done in vectors
        place = min(place, i if widen(stored[i], like[0]) == most else stored.size)
    return place


@inner_function
def _top(stored, first, classes, column, reverse_terms, like):
    """Return the first class with the largest logit."""
    most = largest(reverse_terms, column)
    for k in range(len(reverse_terms)):
        if reverse_terms[k, column] == most:
            start = first + k * CLASS_BLOCK
            class_block = stored[start : min(start + CLASS_BLOCK, first + classes)]
            return start + _first_at(class_block, most, like)
    return -1


@inner_function
def _position_state(
    x, t, stored_x, stored_t, first, classes, scale, spaces, work, part_states, state,
    reverse_terms, sums, hashes, row,
):  # fmt: skip
    """Fill the state of a position, and keep the weights and the differences of its classes.

    Fills the hashes of what is stored of b and of a too, while it is in the cache. Returns the
    smallest and the largest logit of b, and of a.
    """
    weights, inputs, differences = spaces[0], spaces[1], spaces[2]
    extent_input = extent_target = checks.NOWHERE
    of_input, of_target = sums[0], sums[1]
    hash_input, hash_target = (
        fingerprint.start(of_input, classes),
        fingerprint.start(of_target, classes),
    )
    for k in range(len(part_states)):
        start = k * CLASS_BLOCK
        size = min(classes - start, CLASS_BLOCK)
        padded = -(-size // LANES) * LANES
        w, v = weights[start : start + padded], inputs[start : start + padded]
        u = differences[start : start + padded]
        no_special_values, offsets, range_input, range_target = fill_softmax_weights(
            x, t, first + start, size, scale, w, v, part_states[k]
        )
        extent_input = checks.union_of_ranges(extent_input, range_input)
        extent_target = checks.union_of_ranges(extent_target, range_target)
        stop = first + start + size
        hash_input = fingerprint.add_bits(hash_input, of_input, stored_x, first + start, stop)
        hash_target = fingerprint.add_bits(hash_target, of_target, stored_t, first + start, stop)
        reverse_terms[k] = 0
        reverse_terms[k, MOST_INPUT], reverse_terms[k, MOST_TARGET] = (
            range_input[1],
            range_target[1],
        )
        if is_settled(part_states[k]):
            continue
        center = center_of(part_states[k], offsets, scale, w)
        b, a = x[first + start : stop], t[first + start : stop]
        u[size:] = 0
        softmax_reverse.fill_terms(
            b,
            a,
            w,
            v,
            u[:size],
            part_states[k],
            offsets,
            center,
            scale,
            no_special_values,
            work,
            reverse_terms[k],
        )
        prefetch(x, stop + 3 * CLASS_BLOCK // 4, CLASS_BLOCK // 4)
        prefetch(t, stop + 3 * CLASS_BLOCK // 4, CLASS_BLOCK // 4)
        terms = work[:, :padded]
        high, low, shift, excess = finish_class_block(
            part_states[k], center, offsets, terms[0], terms[1], scale
        )
        back = lane_sum(terms[2]) / part_states[k, SUM_TARGET]
        reverse_terms[k, CENTER_HIGH], reverse_terms[k, CENTER_LOW] = high, low
        reverse_terms[k, REVERSE] = softmax_reverse.conclude(shift, excess, back, 0.0)
    if len(part_states) == 1:
        copy(part_states[0], state)
    else:
        merge(part_states, scale, state)
    hashes[0, row] = fingerprint.finish(hash_input, of_input)
    hashes[1, row] = fingerprint.finish(hash_target, of_target)
    return extent_input, extent_target


@inner_function
def _take_as_given(out, log_input, log_target):
    """Change divergences to those of probabilities that may not sum to 1, given their sums.

    With p = P p' and q = Q q', sum p log(p / q) = P (sum p' log(p' / q') + log(P / Q)).
    """
    out[MASS_INPUT], out[MASS_TARGET] = exp(log_input), exp(log_target)
    ratio = log_target - log_input
    out[FORWARD] = out[MASS_TARGET] * (out[FORWARD] + ratio)
    out[BACKWARD] = out[MASS_INPUT] * (out[BACKWARD] - ratio)


@inner_function
def _generalize(out):
    """Change sum p log(p / q) to sum p log(p / q) - p + q, of which no summand is negative.

    So it is right to second order of rounding where p and q are rounded: I. Csiszár, "Why least
    squares and maximum entropy?", Ann. Statist. 19 (1991) 2032-2066, calls it I-divergence.
    """
    excess = out[MASS_INPUT] - out[MASS_TARGET]
    out[FORWARD], out[BACKWARD] = out[FORWARD] + excess, out[BACKWARD] - excess
    # Where they are 0, the rounding of a sum may be left.
    out[FORWARD] = 0.0 if out[FORWARD] < 0 else out[FORWARD]
    out[BACKWARD] = 0.0 if out[BACKWARD] < 0 else out[BACKWARD]


@inner_function
def _check(stored, row, extent, holds, tolerance, label, like):
    """Return what may be wrong with one operand at a position, from where to where it is stored."""
    if holds == checks.PROBS:  # the extent is that of logarithms
        extent = checks.extent_of(stored, row, like)
    return (
        checks.is_constant(row, extent, holds, tolerance),
        checks.resemblance(stored, row, extent, holds, tolerance, like[0]),
        checks.is_at_floor(stored, row, label, extent, like[0]),
    )


def measure(
    x, t, stored_x, stored_t, scale, holds, generalized, tolerances, labels, spaces, work, states,
    reverse_terms, sums, measures, hashes,
):  # fmt: skip
    """Fill the measures and the hashes of the positions of a batch."""
    classes = x.size // measures.shape[1]
    state, part_states = states[0], states[1:]
    like = spaces[0]
    for row in range(measures.shape[1]):
        first = row * classes
        out = measures[:, row]
        extent_input, extent_target = _position_state(
            x, t, stored_x, stored_t, first, classes, scale, spaces, work, part_states, state,
            reverse_terms, sums, hashes, row,
        )  # fmt: skip
        mass_input, mass_target = state[SUM_INPUT], state[SUM_TARGET]
        out[FORWARD] = state[DIVERGENCE] if mass_target != 0 else np.nan
        out[BACKWARD] = out[JENSEN_SHANNON] = np.nan
        if mass_input > 0 and mass_target > 0:
            out[BACKWARD] = softmax_reverse.merged_reverse(part_states, state, reverse_terms, scale)
            out[JENSEN_SHANNON] = softmax_reverse.jensen_shannon(
                classes, scale, spaces, part_states, state, reverse_terms
            )
        log_input, log_target = log(mass_input), log(mass_target)
        unit_input, unit_target = state[UNIT_INPUT] * scale, state[UNIT_TARGET] * scale
        if holds[1] != checks.LOGITS:
            _take_as_given(out, unit_input + log_input, unit_target + log_target)
            log_input = log_target = unit_input = unit_target = 0.0
        if generalized:
            _generalize(out)
        out[EXCLUDES_INPUT] = extent_input[0] == -np.inf
        out[EXCLUDES_TARGET] = extent_target[0] == -np.inf
        place = first, first + classes
        out[CONSTANT_INPUT], out[RESEMBLES_INPUT], out[FLOOR_INPUT] = _check(
            stored_x, place, extent_input, holds[0], tolerances[0], labels[row], like
        )
        out[CONSTANT_TARGET], out[RESEMBLES_TARGET], out[FLOOR_TARGET] = _check(
            stored_t, place, extent_target, holds[1], tolerances[1], labels[row], like
        )
        top = _top(x, first, classes, MOST_INPUT, reverse_terms, like)
        agrees = top == _top(t, first, classes, MOST_TARGET, reverse_terms, like)
        out[AGREES] = agrees and not np.isnan(mass_input + mass_target)
        index = first + labels[row]
        b, a = np.float64(widen(x[index], like[0])), np.float64(widen(t[index], like[0]))
        out[LOG_INPUT] = b * scale - unit_input - log_input
        out[LOG_TARGET] = a * scale - unit_target - log_target
        out[CHANGE] = exp(out[LOG_INPUT]) - exp(out[LOG_TARGET])
