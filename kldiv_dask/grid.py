"""Cutting a shape into slices of a limited size, in C order."""

import itertools
from collections.abc import Iterator, Sequence

Slices = tuple[slice, ...]


def grid_slices(shape: Sequence[int], limit: int) -> Iterator[Slices]:
    """Cut a shape into boxes of at most `limit` elements, each of which is a run in C order."""
    cuts = [
        [slice(start, start + step) for start in range(0, length, step)]
        for length, step in zip(shape, grid_step(shape, limit), strict=True)
    ]
    return itertools.product(*cuts)


def grid_step(shape: Sequence[int], limit: int) -> tuple[int, ...]:
    """Return the shape of the first box that `grid_slices` cuts.

    Examples
    --------
    >>> grid_step((4, 3, 2), 7)
    (1, 3, 2)
    """
    steps = []
    for length in reversed(shape):
        steps.append(max(min(length, limit), 1))
        limit //= max(length, 1)
    return tuple(reversed(steps))
