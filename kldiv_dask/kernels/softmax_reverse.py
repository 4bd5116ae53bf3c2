"""The reverse divergence of two softmax distributions, and that of Jensen and Shannon.

In the words of `softmax_state`, the reverse divergence within a block is

    R = sum q log(q / p) = sum q u - log(1 + z) = (S + z) / (1 + z) - log(1 + z),
    S = sum p (1 - exp(u) + u exp(u)),

where again no summand is negative and z is nearly 0. Blocks merge by the chain rule, as there. A
part of the Jensen-Shannon divergence (J. Lin, "Divergence measures based on the Shannon entropy",
IEEE Trans. Inf. Theory 37 (1991) 145-151) is no such sum: it needs p and q themselves, and so a
second loop once the masses of all blocks of classes are known.
"""

import math

import numpy as np

from kldiv_dask.kernels import softmax_terms
from kldiv_dask.kernels.elementary import exp
from kldiv_dask.kernels.jit import inner_function
from kldiv_dask.kernels.llvm_bits import from_magnitude, magnitude_bits
from kldiv_dask.kernels.llvm_hints import LANES, lane_sum, wide_vectors
from kldiv_dask.kernels.softmax_state import (
    CLASS_BLOCK,
    HIGH,
    LOW,
    SUM_INPUT,
    SUM_TARGET,
    UNIT_INPUT,
    UNIT_TARGET,
    two_diff_error,
)
from kldiv_dask.kernels.stored_floats import widen

# What of a block is kept beside its state: c in two numbers, the largest magnitude of u, and R.
CENTER_HIGH, CENTER_LOW, WIDEST, REVERSE = range(4)
KEPT = 4


@inner_function
def _fill_differences(x, t, offsets, c, scale, no_special_values, u):
    """Fill u, as `softmax_state` has it within its loop."""
    wide_vectors()
    real = u.dtype.type
    center, center_low = c
    scale, offset_x, offset_t = real(scale), real(offsets[0]), real(offsets[1])
    if no_special_values and offset_x == 0 and offset_t == 0:
        for i in range(u.size):
            b, a = widen(x[i], u[i]), widen(t[i], u[i])
            high = b - a
            u[i] = ((high - center) + (two_diff_error(b, a, high) - center_low)) * scale
    else:
        for i in range(u.size):
            b, a = widen(x[i], u[i]) - offset_x, widen(t[i], u[i]) - offset_t
            high = b - a
            low = softmax_terms.finite(two_diff_error(b, a, high))
            u[i] = ((high - center) + (low - center_low)) * scale


@inner_function
def _fill_terms(u, w, v, ratio, no_special_values, shifts, excesses, backs):
    """Fill p u, p (exp(u) - 1 - u) and p (1 - exp(u) + u exp(u)), all times W."""
    wide_vectors()
    ratio = w.dtype.type(ratio)
    if no_special_values:
        for i in range(u.size):
            q = v[i] * ratio
            shift = w[i] * u[i]
            excesses[i], backs[i] = softmax_terms.excesses(u[i], w[i], q, shift, q * u[i])
            shifts[i] = shift
    else:
        for i in range(u.size):
            q = v[i] * ratio
            shift = softmax_terms.shift(u[i], w[i])
            back = softmax_terms.back_shift(u[i], q)
            excesses[i], backs[i] = softmax_terms.excesses(u[i], w[i], q, shift, back)
            shifts[i] = shift


@inner_function
def _largest_magnitude(u):
    """Return the largest magnitude as float64; NaN where there is one."""
    wide_vectors()
    most = magnitude_bits(u[0])
    for i in range(u.size):
        bits = magnitude_bits(u[i])
        most = bits if bits > most else most
    return from_magnitude(most, u[0])


@inner_function
def fill_terms(x, t, w, v, u, state, offsets, c, scale, no_special_values, work, reverse_terms):
    """Fill u and, in the spaces of `work`, the terms; `w` and `v` are left as they are."""
    size, padded = u.size, w.size
    _fill_differences(x, t, offsets, c, scale, no_special_values, u)
    ratio = state[SUM_TARGET] / state[SUM_INPUT]
    work[:, size:padded] = 0
    plain = no_special_values and offsets[0] == 0 and offsets[1] == 0
    shifts, excesses, backs = work[0][:size], work[1][:size], work[2][:size]
    _fill_terms(u, w[:size], v[:size], ratio, plain, shifts, excesses, backs)
    reverse_terms[WIDEST] = _largest_magnitude(u)


@inner_function
def conclude(shift, excess, back, inner):
    """Return R from sums of p u, of the other terms, and of the divergences within blocks."""
    z = excess + shift if excess < 0.5 else 0.0
    reverse = back * (1 - z * (1 - z)) - z * z * (1 / 2 - z * (2 / 3 - z * 3 / 4)) + inner
    return 0.0 if reverse < 0 else reverse


@inner_function
def merged_reverse(part_states, state, reverse_terms, scale):
    """Return R of a position, given its merged state."""
    shift = excess = back = inner = 0.0
    for k in range(len(part_states)):
        part = part_states[k]
        p, q = part[SUM_TARGET] / state[SUM_TARGET], part[SUM_INPUT] / state[SUM_INPUT]
        u = ((part[HIGH] - state[HIGH]) + (part[LOW] - state[LOW])) * scale
        moved = softmax_terms.shift(u, p)
        forward, reverse = softmax_terms.excesses(u, p, q, moved, softmax_terms.back_shift(u, q))
        shift += moved
        excess += forward
        back += reverse
        # A class that only a excludes makes it infinite however small its share is.
        inner += reverse_terms[k, REVERSE] * (q if reverse_terms[k, REVERSE] < np.inf else 1.0)
    return conclude(shift, excess, back, inner)


@inner_function
def _fill_jensen(w, v, u, share_target, share_input, shift, near):
    """Put the parts of the Jensen-Shannon divergence in the place of w."""
    wide_vectors()
    real = w.dtype.type
    share_target, share_input, shift = real(share_target), real(share_input), real(shift)
    if near:
        for i in range(w.size):
            p, q = w[i] * share_target, v[i] * share_input
            w[i] = softmax_terms.jensen_shannon_near(p, q, u[i] + shift)
        return
    for i in range(w.size):
        w[i] = softmax_terms.jensen(w[i] * share_target, v[i] * share_input, u[i] + shift)


@inner_function
def _share(unit, total, common, scale):
    """Return what weights in a unit are to be multiplied by to be probabilities."""
    return exp((unit - common) * scale) / total if unit > -np.inf else 0.0


@inner_function
def jensen_shannon(size, scale, spaces, part_states, state, reverse_terms):
    """Return the Jensen-Shannon divergence of a position of so many classes.

    Given are the weights and differences of all, the states of its blocks, and their merged state.
    """
    total = 0.0
    for k in range(len(part_states)):
        part = part_states[k]
        start = k * CLASS_BLOCK
        stop = start + -(-min(size - start, CLASS_BLOCK) // LANES) * LANES
        w, v = spaces[0, start:stop], spaces[1, start:stop]
        share_target = _share(part[UNIT_TARGET], state[SUM_TARGET], state[UNIT_TARGET], scale)
        share_input = _share(part[UNIT_INPUT], state[SUM_INPUT], state[UNIT_INPUT], scale)
        if not (part[SUM_TARGET] > 0 and part[SUM_INPUT] > 0):
            only_target = np.float64(lane_sum(w)) * share_target
            only_input = np.float64(lane_sum(v)) * share_input
            total += 0.5 * math.log(2.0) * (only_target + only_input)
            continue
        high, low = (
            reverse_terms[k, CENTER_HIGH] - state[HIGH],
            reverse_terms[k, CENTER_LOW] - state[LOW],
        )
        shift = (high + low) * scale
        # The same bits in two thirds of the time; NaN compares false.
        near = reverse_terms[k, WIDEST] + abs(shift) < 0.99 * softmax_terms.JENSEN_NEAR
        _fill_jensen(w, v, spaces[2, start:stop], share_target, share_input, shift, near)
        total += np.float64(lane_sum(w))
    return total
