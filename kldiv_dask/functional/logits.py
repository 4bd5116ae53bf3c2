"""KL divergence of softmax distributions from their logits."""

from collections.abc import Hashable
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from kldiv_dask import graph, xarray_support
from kldiv_dask.align import Pair, align, align_to_result, as_dask, axis_to_end, repeated_operands
from kldiv_dask.functional.summary import LazySummary, summarize
from kldiv_dask.graph.tree import SplitEvery
from kldiv_dask.options import (
    resolve_class_axis,
    resolve_logits_dtype,
    resolve_logits_reduction,
    resolve_temperature,
)


def kl_div_with_logits(
    input: Any,
    target: Any,
    *,
    axis: int = -1,
    dim: Hashable = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    where: Any = None,
    dtype: npt.DTypeLike | None = None,
    split_every: SplitEvery = None,
) -> Any:
    r"""Kullback-Leibler divergence of softmax distributions, straight from their logits.

    At each position, which is what is left of the shape without `axis`, this is
    :math:`\mathrm{KL}(P \parallel Q) = \sum p \log(p / q)` in nats [1]_ with
    ``p = softmax(target / temperature)`` and ``q = softmax(input / temperature)``. Nothing is
    rounded to probabilities on the way: it is never negative, and right for tiny divergences.
    The logits are read once.

    Parameters
    ----------
    input : array_like of float8_e4m3fn, float8_e5m2, float16, bfloat16, float32 or float64
        Logits of the distribution Q: a Dask array, a NumPy array, or what
        `dask.array.asanyarray` takes; or an `xarray.DataArray`, see below.
    target : array_like of float8_e4m3fn, float8_e5m2, float16, bfloat16, float32 or float64
        Logits of P, with as many classes. The other axes broadcast with those of `input`, but only
        one of both may be repeated along them: (8, V) with (8, 1, V), each position of one with
        every one of the other, is an error.
    axis : int
        The axis of the classes.
    dim : str, optional
        Of DataArrays, the name of the dimension of the classes, in the place of `axis`.
    temperature : float
        What the logits are divided by; positive.
    reduction : {'mean', 'batchmean', 'sum', 'none'}
        ``'none'`` returns the divergence at each position. The others sum exactly over the
        positions: ``'mean'`` divides by their number, ``'batchmean'`` by the length of their
        first axis.
    where : array_like of bool, optional
        Which positions to include, as booleans or integers of 0 and 1; broadcasts to their shape.
        What is excluded counts nowhere, whatever its logits: ``'mean'`` divides by the number of
        included positions, ``'batchmean'`` by that of the rows that have any, both give NaN where
        there are none, and ``'none'`` has 0 there.
    dtype : dtype_like, optional
        Floating type of the result. By default float64 if either operand is, else float32. With
        float64, or a `temperature` that is no power of two, the computation is in float64.
    split_every : int or dict from axis to int, optional
        How many partial results one task merges, at least 2; about 32 by default.

    Returns
    -------
    dask.array.Array, or xarray.DataArray of one if an operand is a DataArray
        Lazy; 0-d, or of the shape of the positions for ``'none'``.

    Raises
    ------
    ValueError
        `reduction` is unknown, `temperature` is not positive and finite, the shapes do not fit,
        or there are no classes. Of DataArrays: lengths or labels of a dimension differ, `dim` names
        none, or a plain array or `axis` is ambiguous beside them.
    numpy.exceptions.AxisError
        `axis` is out of bounds.
    TypeError
        An operand or `dtype` is not of a supported floating type, an operand is a Dask array of
        float8_e5m2, `axis` is not an integer, `where` is neither boolean nor of integers, or an
        operand is a Dataset.

    Warns
    -----
    dask.array.PerformanceWarning
        The operands' chunks differ and one operand has to be rechunked.

    Notes
    -----
    The relative error of a divergence is below 1e-12 if computed in float64 and below 1e-6 in
    float32, taking the logits as exact, for divergences from 1e-10 on. A class whose weight is
    below ``exp(-85)`` of the largest, or ``exp(-706)`` in float64, counts as one of weight 0, and a
    quotient of logits and temperature beyond 1e34, or 1e304, may give an infinite divergence.

    A class at -inf in both operands is impossible and contributes 0. A class at -inf in `input`
    alone makes the divergence infinite. A position with NaN or +inf, or with `target` at -inf in
    all classes, gives NaN.

    The result has the same bits for every chunking of the positions. If `axis` is split over
    chunks, its pieces are merged, and results stay within the above errors of each other;
    ``rechunk({axis: -1})`` on both operands makes the bits independent of their chunks at the
    cost of moving the data.

    DataArrays are paired by the names of their dimensions, as in `kl_div`; the result has those of
    the positions, and ``'batchmean'`` divides by the length of the first.

    References
    ----------
    .. [1] S. Kullback and R. A. Leibler, "On Information and Sufficiency", Ann. Math. Statist. 22
       (1951) 79-86.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import kl_div_with_logits
    >>> student = np.log([[0.25, 0.75], [0.5, 0.5]])
    >>> teacher = np.zeros((2, 2))
    >>> kl_div_with_logits(student, teacher, reduction="none").compute().round(6)
    array([0.143841, 0.      ])
    >>> round(float(kl_div_with_logits(student, teacher)), 6)
    0.071921

    With names:

    >>> import xarray as xr
    >>> student = xr.DataArray(student, dims=("batch", "class"), coords={"batch": ["a", "b"]})
    >>> divergence = kl_div_with_logits(student, teacher, dim="class", reduction="none")
    >>> round(float(divergence.sel(batch="a")), 6)
    0.143841
    """
    resolved = resolve_logits_reduction(reduction)
    operands = xarray_support.match(
        input, target, {"where": where}, axis=axis, dim=dim, classes=True
    )
    logits, to = prepare_logits(operands, temperature, dtype, stacklevel=2)
    if resolved.kind == "none":
        return operands.wrap(graph.divergences(logits, to, split_every), (-1,))
    pair, merged = merged_positions(logits, split_every)
    return operands.wrap(graph.finalize_scalar(merged, resolved, pair, to))


def kl_div_with_logits_summary(
    input: Any,
    target: Any,
    *,
    axis: int = -1,
    dim: Hashable = None,
    temperature: float = 1.0,
    where: Any = None,
    dtype: npt.DTypeLike | None = None,
    split_every: SplitEvery = None,
) -> LazySummary:
    """Return every reduction of `kl_div_with_logits`, and counts, from one pass.

    Parameters
    ----------
    input, target, axis, dim, temperature, where, dtype, split_every
        As for `kl_div_with_logits`.

    Returns
    -------
    LazySummary
        As of `kl_div_summary`. What `KLDivSummary` calls terms and elements are positions here.

    Raises
    ------
    ValueError, TypeError, numpy.exceptions.AxisError
        As for `kl_div_with_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import kl_div_with_logits_summary
    >>> summary = kl_div_with_logits_summary(np.zeros((4, 2)), np.zeros((4, 2))).compute()
    >>> float(summary.sum), int(summary.numel)
    (0.0, 4)
    """
    operands = xarray_support.match(
        input, target, {"where": where}, axis=axis, dim=dim, classes=True
    )
    logits, to = prepare_logits(operands, temperature, dtype, stacklevel=2)
    positions, blocks = graph.position_partials(logits, split_every)
    return summarize(blocks, positions, to, split_every)


def prepare_logits(
    operands: xarray_support.Operands,
    temperature: float,
    dtype: npt.DTypeLike | None,
    *,
    stacklevel: int,
) -> tuple[graph.LogitsSpec, np.dtype[Any]]:
    """Align the operands, the classes last, and resolve the type of the result."""
    temperature = resolve_temperature(temperature)
    input, target = as_dask(operands.input, operands.target)
    to, wide = resolve_logits_dtype(input, target, dtype)
    classes = resolve_class_axis(operands.axis, input, target)
    input, target = (axis_to_end(classes, logits) for logits in (input, target))
    repeated_operands(input, target)
    # Narrowing would change logits, which are taken as exact.
    pair = align(input, target, np.dtype(np.float64), stacklevel=stacklevel + 1)
    if operands.position_args["where"] is not None:
        pair = graph.mask_positions(
            pair, align_to_result("where", operands.position_args["where"], pair.chunks[:-1])
        )
    return graph.LogitsSpec(pair, temperature, graph.compute_dtype(wide, temperature)), to


def merged_positions(logits: graph.LogitsSpec, split_every: SplitEvery) -> tuple[Pair, da.Array]:
    """Return what stands for the positions, and their merged partial."""
    positions, blocks = graph.position_partials(logits, split_every)
    return positions, graph.tree_reduce(blocks, split_every, positions.axes)
