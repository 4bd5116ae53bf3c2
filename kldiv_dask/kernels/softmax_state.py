"""The KL divergence of two softmax distributions, straight from their logits.

A position has target logits a and input logits b over some classes. A block of its classes is
described by a *state*: the sums W of weights w = exp(a / T) and V of v = exp(b / T), each in a unit
near the largest; the logarithm r of the ratio of the masses that b and a give to the block; and the
divergence D within it. With c close to r, u = (b - a) / T - c and p = w / W,

    D = sum p (exp(u) - 1 - u) - (z - log(1 + z)),  r = c + log(1 + z),  z = sum p (exp(u) - 1).

No summand of D is negative, and z is nearly 0, so nothing cancels: tiny divergences are as accurate
as large ones. States merge by the chain rule of the divergence (Cover and Thomas, "Elements of
Information Theory", 2nd ed. 2006, theorem 2.5.3): a block takes part in the sums above as a class
does, with its masses as w and v and its r as (b - a) / T, and adds its own D times its share.

c is the logarithm of V / W, so that a far class, |u| >= 1, has p exp(u) = v / V. Differences of
logits and r are held in two numbers, so that a common offset of a model costs no accuracy.
"""

import math

import numpy as np

from kldiv_dask.kernels import softmax_terms
from kldiv_dask.kernels.elementary import EXP_NORMAL_F32, EXP_NORMAL_F64, log
from kldiv_dask.kernels.jit import inner_function
from kldiv_dask.kernels.llvm_bits import from_ordered, ordered_bits
from kldiv_dask.kernels.llvm_hints import LANES, lane_sum, prefetch, wide_vectors
from kldiv_dask.kernels.stored_floats import widen

# The classes of one state, unless fewer: their numbers, weights and terms stay in the first-level
# cache. The bits of a result depend on it.
CLASS_BLOCK = 1024

LN2 = math.log(2)

# Logits over temperature from which on they have a common offset worth subtracting.
LARGE_OFFSET = 256.0

# What a state holds. A unit is given by its logarithm times T, and `HIGH` + `LOW` is r times T:
# +inf where a gives the block no mass, else -inf where b gives it none.
UNIT_TARGET, SUM_TARGET, UNIT_INPUT, SUM_INPUT, HIGH, LOW, DIVERGENCE = range(7)
STATE_SIZE = 7

# The state of no class.
NOTHING = (-np.inf, 0.0, -np.inf, 0.0, np.inf, 0.0, 0.0)


@inner_function
def range_of(stored, like):
    """Return the smallest and the largest number as float64; one is NaN where there is a NaN."""
    wide_vectors()
    least = most = ordered_bits(widen(stored[0], like[0]))
    for i in range(like.size):
        bits = ordered_bits(widen(stored[i], like[i]))
        most = bits if bits > most else most
        least = bits if bits < least else least
    return np.float64(from_ordered(least, like[0])), np.float64(from_ordered(most, like[0]))


# Where all logits are finite and no weight is too small, faster loops give the same bits; and so do
# those that leave out a subtraction of 0 and a multiplication by 1.


@inner_function
def _most_spread(like):
    """Return how far apart logits over temperature may be for all weights to be normal."""
    return (EXP_NORMAL_F32 if like.itemsize == 4 else EXP_NORMAL_F64) - 1


@inner_function
def _unit(most, scale, like):
    """Return what to subtract from logits, and the power of two to divide their exponentials by.

    A float32 that is subtracted can cost 16 ulp of the weight of an unlikely class, a power of two
    none. But a large offset is better subtracted, which is exact for all classes within a factor
    of two of it, and the others weigh less than exp(-128).
    """
    if like.itemsize == 4 and abs(most) * scale < LARGE_OFFSET:
        return 0.0, np.ceil(most * scale / LN2)
    # Where all classes are impossible, the weight of each is to be 0.
    return (most if most > -np.inf else 0.0), 0.0


@inner_function
def _logarithm(unit, most, scale):
    """Return the logarithm of a unit times the temperature; -inf where all weights are 0."""
    return unit[0] + unit[1] * LN2 / scale if most > -np.inf else most


@inner_function
def _fill_weights(stored, unit, scale, no_special_values, out):
    wide_vectors()
    real = out.dtype.type
    offset, scale, rounder = real(unit[0]), real(scale), softmax_terms.rounder(real(unit[1]))
    lowest = real(unit[1] * LN2 - _most_spread(out))
    if no_special_values and offset == 0 and scale == 1:
        for i in range(out.size):
            out[i] = softmax_terms.exp_scaled(widen(stored[i], out[i]), rounder)
    elif no_special_values:
        for i in range(out.size):
            out[i] = softmax_terms.exp_scaled((widen(stored[i], out[i]) - offset) * scale, rounder)
    else:
        for i in range(out.size):
            out[i] = softmax_terms.weight(
                (widen(stored[i], out[i]) - offset) * scale, rounder, lowest
            )


@inner_function
def two_diff_error(b, a, difference):
    """Return what rounding has taken from b - a: Knuth, TAOCP 2, section 4.2.2, theorem B."""
    back = difference - b
    return (b - (difference - back)) - (a + back)


@inner_function
def _fill_terms(x, t, w, v, ratio, offsets, c, scale, no_special_values):
    """Put p u in the place of w, and p (exp(u) - 1 - u) in that of v, both times W."""
    wide_vectors()
    real = w.dtype.type
    center, center_low = c
    ratio, scale = real(ratio), real(scale)
    offset_x, offset_t = real(offsets[0]), real(offsets[1])
    if no_special_values and offset_x == 0 and offset_t == 0:
        for i in range(w.size):
            b, a = widen(x[i], w[i]), widen(t[i], w[i])
            high = b - a
            u = ((high - center) + (two_diff_error(b, a, high) - center_low)) * scale
            shift = w[i] * u
            v[i] = softmax_terms.excess(u, w[i], v[i] * ratio, shift)
            w[i] = shift
    else:
        for i in range(w.size):
            b, a = widen(x[i], w[i]) - offset_x, widen(t[i], w[i]) - offset_t
            high = b - a
            low = softmax_terms.finite(two_diff_error(b, a, high))
            u = ((high - center) + (low - center_low)) * scale
            shift = softmax_terms.shift(u, w[i])
            v[i] = softmax_terms.excess(u, w[i], v[i] * ratio, shift)
            w[i] = shift


@inner_function
def combined_center(b, a, ratio, scale, like):
    """Return c times T in two numbers of a type, given T times the logarithms of the units."""
    high = b - a
    low = two_diff_error(b, a, high) - log(ratio) / scale
    center = like.dtype.type(high + low)
    return center, like.dtype.type((high - np.float64(center)) + low)


@inner_function
def finish_divergence(state, high, low, shift, excess, inner, scale):
    """Set the divergence of a state, and its r.

    Given are c in two numbers, and the sums of p u, of p (exp(u) - 1 - u) and of the divergences
    within blocks.
    """
    # Beyond, the error of c does not matter, and that of z would.
    z = excess + shift if excess < 0.5 else 0.0
    state[HIGH] = high
    state[LOW] = low + z * (1 - z * (1 / 2 - z / 3)) / scale
    divergence = excess - z * z * (1 / 2 - z * (1 / 3 - z / 4)) + inner
    state[DIVERGENCE] = 0.0 if divergence < 0 else divergence


@inner_function
def is_settled(state):
    """Whether the masses alone tell the divergence, and if so set it."""
    if state[SUM_TARGET] > 0 and state[SUM_INPUT] > 0:
        return False
    state[HIGH] = np.inf if state[SUM_TARGET] == 0 else -np.inf
    state[LOW] = 0.0
    state[DIVERGENCE] = 0.0 if state[SUM_TARGET] == 0 else np.inf
    if np.isnan(state[SUM_TARGET] + state[SUM_INPUT]):
        state[DIVERGENCE] = np.nan
    return True


@inner_function
def fill_softmax_weights(x, t, start, size, scale, w, v, state):
    """Fill the weights of a block, `w` and `v`, and what the state says of them.

    Returns whether the faster loops will do, what to subtract from the logits of b and of a, and
    the smallest and the largest of each.
    """
    stop = start + size
    quarter = CLASS_BLOCK // 4
    b, a = x[start:stop], t[start:stop]
    padded = -(-size // LANES) * LANES
    w[size:padded] = 0
    v[size:padded] = 0
    least_target, most_target = range_of(a, w[:size])
    least_input, most_input = range_of(b, v[:size])
    no_special_values = (
        (most_target - least_target) * scale <= _most_spread(w)
        and (most_input - least_input) * scale <= _most_spread(w)
        and abs(most_input - most_target) < 2.0**127
    )
    unit_target, unit_input = _unit(most_target, scale, w), _unit(most_input, scale, w)
    prefetch(x, stop, quarter)
    prefetch(t, stop, quarter)
    _fill_weights(a, unit_target, scale, no_special_values, w[:size])
    prefetch(x, stop + quarter, quarter)
    prefetch(t, stop + quarter, quarter)
    _fill_weights(b, unit_input, scale, no_special_values, v[:size])
    prefetch(x, stop + 2 * quarter, quarter)
    prefetch(t, stop + 2 * quarter, quarter)
    state[SUM_TARGET] = np.float64(lane_sum(w[:padded]))
    state[SUM_INPUT] = np.float64(lane_sum(v[:padded]))
    state[UNIT_TARGET] = _logarithm(unit_target, most_target, scale)
    state[UNIT_INPUT] = _logarithm(unit_input, most_input, scale)
    offsets = unit_input[0], unit_target[0]
    # In float64 the two numbers that a difference is held in are exact enough, if it is finite.
    if w.itemsize == 8 and max(abs(offsets[0]), abs(offsets[1])) < 2.0**1000:
        offsets = 0.0, 0.0
    return no_special_values, offsets, (least_input, most_input), (least_target, most_target)


@inner_function
def center_of(state, offsets, scale, like):
    """Return c times T of a block, as it goes with the given offsets, in two numbers of a type."""
    ratio = state[SUM_TARGET] / state[SUM_INPUT]
    b, a = state[UNIT_INPUT] - offsets[0], state[UNIT_TARGET] - offsets[1]
    return combined_center(b, a, ratio, scale, like)


@inner_function
def finish_class_block(state, center, offsets, shifts, excesses, scale):
    """Set the divergence and r of a block, given its center and its padded terms.

    Returns c times T in two numbers, without offsets, and the sums of p u and p (exp(u) - 1 - u).
    """
    mass = state[SUM_TARGET]
    shift, excess = lane_sum(shifts) / mass, lane_sum(excesses) / mass
    high, low = np.float64(center[0]), np.float64(center[1])
    if offsets[0] != 0 or offsets[1] != 0:
        difference = offsets[0] - offsets[1]
        high, low = difference, two_diff_error(offsets[0], offsets[1], difference) + (high + low)
    finish_divergence(state, high, low, shift, excess, 0.0, scale)
    return high, low, shift, excess


@inner_function
def block_state(x, t, start, size, scale, w, v, state):
    """Fill the state of a block, in the spaces `w` and `v`."""
    stop = start + size
    quarter = CLASS_BLOCK // 4
    padded = -(-size // LANES) * LANES
    no_special_values, offsets, _, _ = fill_softmax_weights(x, t, start, size, scale, w, v, state)
    if is_settled(state):
        return
    ratio = state[SUM_TARGET] / state[SUM_INPUT]
    center = center_of(state, offsets, scale, w)
    _fill_terms(
        x[start:stop],
        t[start:stop],
        w[:size],
        v[:size],
        ratio,
        offsets,
        center,
        scale,
        no_special_values,
    )
    prefetch(x, stop + 3 * quarter, quarter)
    prefetch(t, stop + 3 * quarter, quarter)
    finish_class_block(state, center, offsets, w[:padded], v[:padded], scale)
