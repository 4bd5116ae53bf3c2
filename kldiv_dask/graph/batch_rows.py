"""The number of batch rows in which a mask includes an element: a reduction of the mask alone."""

from typing import Any

import dask.array as da
import numpy as np

from kldiv_dask.align import Pair
from kldiv_dask.graph.stages import stage


@stage("rows")
def _any(masks: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return np.any(masks, axis=axis, keepdims=keepdims)


@stage("rows")
def _count(counts: Any, axis: tuple[int, ...], keepdims: bool) -> Any:
    return np.sum(counts, axis=axis, keepdims=keepdims, dtype=np.int64)


def included_batch_rows(pair: Pair) -> da.Array | None:
    """Return how many rows of `input` have an element that is included, 0-d int64.

    None where the mask does not tell rows apart: then all of them have one, or there is none.
    """
    where, row_axis = pair.where, -pair.input.ndim
    if where is None or row_axis not in pair.masked or pair.input.shape[0] == 1:
        return None
    others = tuple(axis for axis in range(where.ndim) if axis != where.ndim + row_axis)
    if others:
        where = da.reduction(where, _any, _any, axis=others, dtype=bool)
    return da.reduction(where, _count, _count, dtype=np.int64)
