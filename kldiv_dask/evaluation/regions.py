"""Boxes of positions, which do not depend on chunks.

A box has a span for each axis: the first index and the one past the last. Positions without axes
are one box without spans.
"""

import math
from collections.abc import Iterable, Sequence

from kldiv_dask.align import Box


def box_of(shape: Sequence[int]) -> Box:
    """Return the box of all positions."""
    return tuple((0, size) for size in shape)


def size(box: Box) -> int:
    """Count the positions of a box.

    Examples
    --------
    >>> size(((0, 2), (1, 4)))
    6
    """
    return math.prod(stop - start for start, stop in box)


def text(box: Iterable[Sequence[int]]) -> str:
    """Write a box like the index of an array.

    Examples
    --------
    >>> text(((0, 2), (1, 4)))
    '[0:2, 1:4]'
    """
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"


def left_over(box: Box, done: Iterable[Box]) -> list[Box]:
    """Return the part of a box that is not done, as disjoint boxes in C order.

    Examples
    --------
    >>> left_over(((0, 4), (0, 5)), [((0, 1), (0, 5)), ((1, 2), (0, 3))])
    [((1, 2), (3, 5)), ((2, 4), (0, 5))]
    """
    parts = [box]
    for done_box in done:
        parts = [rest for part in parts for rest in _without(part, done_box)]
    return sorted(parts)


def _without(box: Box, removed: Box) -> list[Box]:
    """Return the rest of a box without another, as disjoint boxes."""
    if box == removed:
        return []
    if not all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(box, removed, strict=True)):
        return [box]
    rest: list[Box] = []
    inner = list(box)
    for axis, (start, stop) in enumerate(removed):
        first, last = inner[axis]
        beside = ((first, min(start, last)), (max(stop, first), last))
        rest += [(*inner[:axis], span, *inner[axis + 1 :]) for span in beside if span[0] < span[1]]
        inner[axis] = (max(start, first), min(stop, last))
    return rest


def joined(done: Sequence[Box], box: Box) -> list[Box]:
    """Add a box to others, and join boxes that lie side by side.

    Examples
    --------
    >>> joined([((0, 2), (0, 3)), ((2, 3), (0, 1))], ((2, 3), (1, 3)))
    [((0, 3), (0, 3))]
    """
    others = list(done)
    neighbor = next((other for other in others if _side_by_side(other, box)), None)
    if neighbor is None:
        return sorted([*others, box])
    others.remove(neighbor)
    spans = zip(neighbor, box, strict=True)
    return joined(others, tuple((min(a, c), max(b, d)) for (a, b), (c, d) in spans))


def _side_by_side(box: Box, other: Box) -> bool:
    """Whether two boxes differ along one axis only, where one begins at the end of the other."""
    differing = [spans for spans in zip(box, other, strict=True) if spans[0] != spans[1]]
    if len(differing) != 1:
        return False
    (first, second) = differing[0]
    return first[1] == second[0] or second[1] == first[0]
