"""The positions with the largest values of each group."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kldiv_dask.statistics.tables import Floats, Integers


class Extremes(NamedTuple):
    """Positions with the largest values: the group, the value and the number of each position.

    Positions are numbered in C order.
    """

    groups: Integers
    values: Floats
    places: Integers


def top_k(extremes: Extremes, count: int) -> Extremes:
    """Keep the largest values of each group, and of equal ones the first."""
    order = np.lexsort((extremes.places, -extremes.values, extremes.groups))
    groups = extremes.groups[order]
    starts = np.searchsorted(groups, groups)
    top = order[np.arange(groups.size) - starts < count]
    return Extremes(extremes.groups[top], extremes.values[top], extremes.places[top])


def concatenate(parts: Sequence[Extremes]) -> Extremes:
    """Join extremes one after the other."""
    return Extremes(*map(np.concatenate, zip(*parts, strict=True)))


def regroup(extremes: Extremes, codes: Integers) -> Extremes:
    """Give each group another number: group ``i`` becomes ``codes[i]``."""
    return extremes._replace(groups=codes[extremes.groups])


def offset(extremes: Extremes, positions: int) -> Extremes:
    """Add a number to the number of each position."""
    return extremes._replace(places=extremes.places + positions)


def indices_of(extremes: Extremes, group: int, shape: tuple[int, ...]) -> list[list[int]]:
    """Return the index, an integer for each axis, of each position of a group.

    Examples
    --------
    >>> zero = np.zeros(1, np.int64)
    >>> indices_of(Extremes(zero, np.array([0.5]), np.array([4])), 0, (2, 3))
    [[1, 1]]
    """
    numbers = extremes.places[extremes.groups == group]
    return [[int(i) for i in np.unravel_index(number, shape)] for number in numbers]
