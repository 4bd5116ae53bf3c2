"""The KL divergence of softmax distributions at each position of a pair of chunks of logits.

For `kl_div_with_logits`. `softmax_state` has the formulas, and `softmax_merge` puts the states of
blocks of classes together.
"""

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from kldiv_dask.kernels.jit import Kernel, compiled, inner_function
from kldiv_dask.kernels.layout import row_segments
from kldiv_dask.kernels.softmax_merge import copy, merge
from kldiv_dask.kernels.softmax_state import (
    CLASS_BLOCK,
    DIVERGENCE,
    NOTHING,
    STATE_SIZE,
    SUM_TARGET,
    block_state,
)
from kldiv_dask.kernels.stored_floats import as_stored, stored_type

Chunk = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Result = npt.NDArray[np.float64]


@inner_function
def _position(x, t, first, classes, scale, work, part_states, state):
    """Fill the state of all classes of a position."""
    for k in range(len(part_states)):
        start = k * CLASS_BLOCK
        size = min(classes - start, CLASS_BLOCK)
        block_state(x, t, first + start, size, scale, work[0], work[1], part_states[k])
    if len(part_states) == 1:
        copy(part_states[0], state)
    else:
        merge(part_states, scale, state)


def _fill_states(x, t, scale, work, spaces, states, included):
    classes = x.size // len(states)
    part_states = spaces[1:]
    for row in range(len(states)):
        if included is None or included[row]:
            _position(x, t, row * classes, classes, scale, work, part_states, states[row])
        else:
            states[row] = 0


def _fill_divergences(x, t, scale, work, spaces, divergences, included):
    classes = x.size // divergences.size
    state, part_states = spaces[0], spaces[1:]
    for row in range(divergences.size):
        if included is None or included[row]:
            _position(x, t, row * classes, classes, scale, work, part_states, state)
            # Where all classes are impossible there is no distribution.
            divergences[row] = state[DIVERGENCE] if state[SUM_TARGET] != 0 else np.nan
        else:
            divergences[row] = 0


def _merge_rows(states, scale, merged):
    for row in range(len(merged)):
        merge(states[row], scale, merged[row])


def compute_dtype(wide: bool, temperature: float) -> np.dtype[Any]:
    """Return the type that weights are computed in.

    float32, unless something is `wide`, a float64, or dividing by the temperature rounds.
    """
    fraction, exponent = math.frexp(temperature)
    exact = fraction == 0.5 and abs(exponent) < 100
    return np.dtype(np.float32 if exact and not wide else np.float64)


def _kernel(
    function: Kernel, x: Chunk, t: Chunk, dtype: np.dtype[Any], included: Mask | None
) -> Kernel:
    """Compile `_fill_states` or `_fill_divergences` for stored logits.

    Both take the logits of all positions one after the other, the reciprocal of the temperature,
    space for two blocks of classes in the type of the computation, space for the state of all
    classes and for those of the blocks, what is to be filled, and which positions are included, or
    None.
    """
    matrix, vector = numba.float64[:, ::1], numba.float64[::1]
    out = matrix if function is _fill_states else vector
    segments = [_readonly(stored_type(a)) for a in (x, t)]
    mask = numba.none if included is None else _readonly(numba.boolean)
    space = numba.from_dtype(dtype)[:, ::1]
    return compiled(function, (*segments, numba.float64, space, matrix, out, mask))


def _readonly(dtype: Any) -> Any:
    return numba.types.Array(dtype, 1, "C", readonly=True)


def _run(
    function: Kernel,
    input: Chunk,
    target: Chunk,
    where: Mask | None,
    dtype: np.dtype[Any],
    temperature: float,
    out: Result,
) -> None:
    """Fill `out`, whose first axis is that of all positions, by one of the two functions above."""
    shape = np.broadcast_shapes(input.shape, target.shape)
    classes = shape[-1]
    x, t = (np.broadcast_to(as_stored(logits), shape) for logits in (input, target))
    included = None
    if where is not None:
        included = np.ascontiguousarray(np.broadcast_to(where, shape[:-1])).reshape(-1)
    kernel = _kernel(function, x, t, dtype, included)
    work, spaces = (
        np.empty((2, CLASS_BLOCK), dtype),
        np.empty((1 - (-classes // CLASS_BLOCK), STATE_SIZE)),
    )
    start = 0
    for segments in row_segments(x, t):
        stop = start + segments[0].size // classes
        masked = None if included is None else included[start:stop]
        kernel(*segments, 1 / temperature, work, spaces, out[start:stop], masked)
        start = stop


def block_divergences(
    input: Chunk, target: Chunk, where: Mask | None, dtype: np.dtype[Any], temperature: float
) -> Result:
    """Return the divergence at each position of a pair of chunks that hold all classes.

    Parameters
    ----------
    input, target : arrays of logits that broadcast together
        With the classes, at least one, along the last axis, which is equally long in both.
    where : array of bool, optional
        At which positions; 0 is returned for others. Broadcasts to them.
    dtype : numpy.dtype
        What `compute_dtype` returns.
    temperature : float
        What logits are divided by.

    Returns
    -------
    float64 array
        Of the broadcast shape without its last axis.
    """
    divergences = np.empty(np.broadcast_shapes(input.shape, target.shape)[:-1])
    _run(_fill_divergences, input, target, where, dtype, temperature, divergences.reshape(-1))
    return divergences


def block_states(
    input: Chunk, target: Chunk, where: Mask | None, dtype: np.dtype[Any], temperature: float
) -> Result:
    """Return the state of each position of a pair of chunks that hold some of the classes.

    Parameters are those of `block_divergences`; the last axis of the result is the state.
    """
    *positions, classes = np.broadcast_shapes(input.shape, target.shape)
    states = np.empty((*positions, STATE_SIZE))
    if not classes:
        states[...] = NOTHING
        return states
    _run(_fill_states, input, target, where, dtype, temperature, states.reshape(-1, STATE_SIZE))
    return states


def merge_states(states: Result, temperature: float) -> Result:
    """Merge states along the last axis but one."""
    merged = np.empty((*states.shape[:-2], STATE_SIZE))
    parts = np.array(states, order="C")  # a copy: merging changes them
    signature = (numba.float64[:, :, ::1], numba.float64, numba.float64[:, ::1])
    kernel = compiled(_merge_rows, signature)
    kernel(parts.reshape(-1, *parts.shape[-2:]), 1 / temperature, merged.reshape(-1, STATE_SIZE))
    return merged


def divergences_of(states: Result, where: Mask | None) -> Result:
    """Return the divergences that states of all classes hold, as `block_divergences` does."""
    divergences = np.where(states[..., SUM_TARGET] != 0, states[..., DIVERGENCE], np.nan)
    return divergences if where is None else np.where(where, divergences, 0.0)
