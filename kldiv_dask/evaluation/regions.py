"""Which positions are done: boxes of them, which depend on no chunks.

A box has the first and one past the last position along each axis. Positions without axes are one
box of no spans.
"""

import math
from collections.abc import Iterable, Sequence

from kldiv_dask.align import Box


def whole(shape: Sequence[int]) -> Box:
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
    """Write a box as one would index an array.

    Examples
    --------
    >>> text(((0, 2), (1, 4)))
    '[0:2, 1:4]'
    """
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"


def left_over(box: Box, done: Iterable[Box]) -> list[Box]:
    """Return what of a box is not done, as boxes that share no position, in C order.

    Examples
    --------
    >>> left_over(((0, 4), (0, 5)), [((0, 1), (0, 5)), ((1, 2), (0, 3))])
    [((1, 2), (3, 5)), ((2, 4), (0, 5))]
    """
    left = [box]
    for gone in done:
        left = [part for one in left for part in _without(one, gone)]
    return sorted(left)


def _without(box: Box, gone: Box) -> list[Box]:
    """Return what is left of one box without another."""
    if box == gone:
        return []
    if not all(max(a, c) < min(b, d) for (a, b), (c, d) in zip(box, gone, strict=True)):
        return [box]
    left: list[Box] = []
    inner = list(box)
    for axis, (start, stop) in enumerate(gone):
        first, last = inner[axis]
        beside = ((first, min(start, last)), (max(stop, first), last))
        left += [(*inner[:axis], span, *inner[axis + 1 :]) for span in beside if span[0] < span[1]]
        inner[axis] = (max(start, first), min(stop, last))
    return left


def joined(done: Sequence[Box], box: Box) -> list[Box]:
    """Add a box to others, and make one of those that lie side by side.

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
    """Whether two boxes have the same spans but along one axis, where one begins as one ends."""
    differing = [spans for spans in zip(box, other, strict=True) if spans[0] != spans[1]]
    if len(differing) != 1:
        return False
    (first, second) = differing[0]
    return first[1] == second[0] or second[1] == first[0]
