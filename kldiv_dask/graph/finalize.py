"""From merged partials to numbers: finalize."""

from collections.abc import Callable
from typing import Any, Literal

import dask.array as da
import numpy as np

from kldiv_dask import partial_sum
from kldiv_dask.align import Pair
from kldiv_dask.graph.batch_rows import included_batch_rows
from kldiv_dask.graph.stages import stage
from kldiv_dask.options import Reduction


@stage("finalized")
def _finalize(
    merged: partial_sum.Partial,
    batch_rows: Any = None,
    *,
    reduction: Reduction,
    to: np.dtype[Any],
    row_multiplicity: int,
    masked: bool,
) -> Any:
    sums = partial_sum.total(merged.reshape(partial_sum.SIZE))
    divisor = reduction.divisor(sums.numel, _batch_size(sums, batch_rows, row_multiplicity, masked))
    return partial_sum.quotient(sums, divisor, to)


@stage("finalized")
def _finalize_many(merged: partial_sum.Partial, reduction: Reduction, to: np.dtype[Any]) -> Any:
    """Finalize a partial for each output, and leave an axis of length one in place of it."""
    divisors = reduction.divisor(merged[..., partial_sum.NUMEL])
    return partial_sum.quotients(merged, divisors, to)[..., None]


@stage("finalized")
def _squeeze(values: Any, axis: tuple[int, ...]) -> Any:
    return values.squeeze(axis)


@stage("finalized")
def _finalize_count(merged: partial_sum.Partial, slot: int) -> Any:
    return merged.reshape(partial_sum.SIZE)[slot]


@stage("finalized")
def _finalize_batch_size(
    merged: partial_sum.Partial, batch_rows: Any = None, *, row_multiplicity: int, masked: bool
) -> Any:
    sums = partial_sum.total(merged.reshape(partial_sum.SIZE))
    return np.int64(_batch_size(sums, batch_rows, row_multiplicity, masked))


def _batch_size(
    sums: partial_sum.Total, batch_rows: Any, row_multiplicity: int, masked: bool
) -> int:
    """Return the number of batch rows, each of which is counted in `row_multiplicity` blocks.

    With a mask, only rows that include an element count: `batch_rows`, or all if that is None.
    """
    if masked and not sums.numel:
        return 0
    return sums.rows // row_multiplicity if batch_rows is None else int(batch_rows)


def finalize_scalar(
    merged: da.Array, reduction: Reduction, pair: Pair, dtype: np.dtype[Any]
) -> da.Array:
    """Return the reduced value of a single partial, 0-d, rounded once to `dtype`."""
    batch_rows = included_batch_rows(pair) if reduction.per_batch else None
    return _single(
        _finalize,
        merged,
        batch_rows,
        dtype,
        reduction=reduction,
        to=dtype,
        row_multiplicity=pair.row_multiplicity,
        masked=pair.where is not None,
    )


def finalize_array(
    merged: da.Array,
    reduction: Reduction,
    axes: tuple[int, ...],
    dtype: np.dtype[Any],
    keepdims: bool,
) -> da.Array:
    """Return the sums or means of many outputs, each rounded once to `dtype`."""
    last = merged.ndim - 1
    finalized = da.map_blocks(
        _finalize_many,
        merged,
        reduction=reduction,
        to=dtype,
        chunks=(*merged.chunks[:last], (1,)),
        dtype=dtype,
        meta=np.empty((0,) * merged.ndim, dtype),
    )
    return squeeze(finalized, (last,) if keepdims else (*axes, last))


def squeeze(array: da.Array, axes: tuple[int, ...]) -> da.Array:
    """Drop axes of length one."""
    if not axes:
        return array
    return da.map_blocks(
        _squeeze,
        array,
        axis=axes,
        drop_axis=list(axes),
        dtype=array.dtype,
        meta=np.empty((0,) * (array.ndim - len(axes)), array.dtype),
    )


def count(merged: da.Array, what: Literal["numel", "nan", "posinf", "neginf"]) -> da.Array:
    """Return a count that a single partial holds, 0-d int64."""
    slot = getattr(partial_sum, what.upper())
    return _single(_finalize_count, merged, None, np.dtype(np.int64), slot=slot)


def batch_size(merged: da.Array, pair: Pair) -> da.Array:
    """Return what 'batchmean' divides by, 0-d int64."""
    return _single(
        _finalize_batch_size,
        merged,
        included_batch_rows(pair),
        np.dtype(np.int64),
        row_multiplicity=pair.row_multiplicity,
        masked=pair.where is not None,
    )


def _single(
    function: Callable[..., Any],
    merged: da.Array,
    batch_rows: da.Array | None,
    dtype: np.dtype[Any],
    **keywords: Any,
) -> da.Array:
    return da.map_blocks(
        function,
        merged,
        *([] if batch_rows is None else [batch_rows]),
        drop_axis=list(range(merged.ndim)),
        dtype=dtype,
        meta=np.zeros((), dtype),  # its value goes into the key
        **keywords,
    )
