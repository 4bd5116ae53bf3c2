"""Merging the softmax states of blocks of classes to that of all classes of a position.

States merge by the chain rule of the divergence (see `softmax_state`): a block takes part in the
sums as a class does, with its masses and the logarithm of their ratio, and adds its own divergence
times its share.
"""

import numpy as np

from kldiv_dask.kernels import softmax_terms
from kldiv_dask.kernels.elementary import exp
from kldiv_dask.kernels.jit import inner_function
from kldiv_dask.kernels.softmax_state import (
    DIVERGENCE,
    HIGH,
    LOW,
    STATE_SIZE,
    SUM_INPUT,
    SUM_TARGET,
    UNIT_INPUT,
    UNIT_TARGET,
    combined_center,
    finish_divergence,
    is_settled,
)


@inner_function
def _share(unit, total, common, scale):
    return total * exp((unit - common) * scale) if total != 0 else 0.0


@inner_function
def copy(state, other):
    """Set another state to this one."""
    for i in range(STATE_SIZE):  # assigning a slice may raise an error, for which Numba allocates
        other[i] = state[i]


@inner_function
def largest(states, column):
    """Return the largest number of a column; NaN where there is one."""
    most = -np.inf
    for i in range(len(states)):
        number = states[i, column]
        most = number if number > most or np.isnan(number) else most
    return most


@inner_function
def merge(states, scale, state):
    """Merge states to one; the sums that they hold are changed."""
    most_target, most_input = largest(states, UNIT_TARGET), largest(states, UNIT_INPUT)
    mass_target = mass_input = 0.0
    for i in range(len(states)):
        part = states[i]
        part[SUM_TARGET] = _share(part[UNIT_TARGET], part[SUM_TARGET], most_target, scale)
        part[SUM_INPUT] = _share(part[UNIT_INPUT], part[SUM_INPUT], most_input, scale)
        mass_target += part[SUM_TARGET]
        mass_input += part[SUM_INPUT]
    state[UNIT_TARGET], state[SUM_TARGET] = most_target, mass_target
    state[UNIT_INPUT], state[SUM_INPUT] = most_input, mass_input
    if is_settled(state):
        return
    ratio = mass_target / mass_input
    center, center_low = combined_center(most_input, most_target, ratio, scale, states[0])
    shift = excess = inner = 0.0
    for i in range(len(states)):
        part = states[i]
        w, v = part[SUM_TARGET], part[SUM_INPUT] * ratio
        u = ((part[HIGH] - center) + (part[LOW] - center_low)) * scale
        moved = softmax_terms.shift(u, w)
        shift += moved
        excess += softmax_terms.excess(u, w, v, moved)
        # A class that only b excludes makes it infinite however small its share is.
        inner += part[DIVERGENCE] * (w if part[DIVERGENCE] < np.inf else 1.0)
    shift, excess, inner = shift / mass_target, excess / mass_target, inner / mass_target
    finish_divergence(state, center, center_low, shift, excess, inner, scale)
