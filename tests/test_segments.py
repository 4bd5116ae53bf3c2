"""Chunks of every layout, cut into contiguous segments."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from kldiv_dask.grid import grid_slices
from kldiv_dask.kernels.layout import BUFFER, row_segments
from tests.helpers.cases import Array, Shape
from tests.test_bits import LAYOUTS

SHAPES: list[Shape] = [
    (7,),
    (40_000,),
    (5, 7),
    (3, 4, 1),
    (50_000, 2),
    (2, 40_000),
    (3, 700, 11),
    (300, 1, 170),
    (1, 1),
    (3, 0),
    (0, 3),
    (2, 0, 3),
]
VIEWS = {
    **{name: layout for name, layout in LAYOUTS.items() if "columns" not in name},
    "one row": lambda array: np.broadcast_to(array[..., :1, :][:1], array.shape),
    "one column": lambda array: np.broadcast_to(array[..., :1], array.shape),
}


def values(shape: Shape) -> Array:
    return np.arange(math.prod(shape), dtype="f8").reshape(shape)


def reversed_everywhere(array: Array) -> Array:
    return np.flip(np.flip(array).copy())


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_every_layout(shape: Shape) -> None:
    views = {"reversed": reversed_everywhere} | VIEWS
    if len(shape) < 2 or 0 in shape:
        views = {"C": np.ascontiguousarray, "reversed": reversed_everywhere}
    array, row = values(shape), max(shape[-1], 1)
    for first, second in itertools.product(views, repeat=2):
        operands = views[first](array), views[second](array)
        seen: list[tuple[Array, ...]] = []
        for segments in row_segments(*operands):
            for segment in segments:
                assert segment.flags.c_contiguous
                assert segment.flags.aligned
                assert segment.dtype == np.dtype("f8")
                assert segment.shape == segments[0].shape
            assert segments[0].size % row == 0
            assert segments[0].size > 0
            seen.append(tuple(segment.copy() for segment in segments))
        for operand, parts in zip(operands, zip(*seen, strict=True), strict=bool(array.size)):
            assert np.concatenate(parts).tobytes() == operand.astype("f8").tobytes()


def test_contiguous_rows_are_one_segment_and_not_copied() -> None:
    x, t = values((300, 500)), values((300, 500))
    ((a, b),) = row_segments(x, t)
    assert np.shares_memory(a, x)
    assert np.shares_memory(b, t)


def test_one_contiguous_operand_is_not_copied() -> None:
    x, t = values((3000, 50)), np.broadcast_to(np.ones(50), (3000, 50))
    sizes = [a.size for a, _ in row_segments(x, t) if np.shares_memory(a, x)]
    assert sum(sizes) == x.size
    assert max(sizes) <= BUFFER


@pytest.mark.parametrize("shape", [(2**21, 1), (2048, 1024), (4, 2**19)])
def test_buffers_are_small(shape: Shape) -> None:
    x = values(shape)
    operands = np.asfortranarray(x), x.astype(">f8")
    tracemalloc.start()
    try:
        assert sum(a.size for a, _ in row_segments(*operands)) == x.size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Other threads of the process, such as those of a client, allocate a little too.
    assert peak < max(2**20, 2 * 8 * shape[-1] + 2**19)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (3, 1, 4), (2, 3, 2, 2), (0,), (2, 0)])
@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 7, 100])
def test_pieces_are_runs_in_order(shape: Shape, most: int) -> None:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    runs = [numbers[piece].ravel().tolist() for piece in grid_slices(shape, most)]
    assert list(itertools.chain(*runs)) == numbers.ravel().tolist()
    assert all(1 <= len(run) <= most for run in runs)
