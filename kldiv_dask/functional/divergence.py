"""torch's `kl_div`."""

from collections.abc import Hashable, Sequence
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from kldiv_dask import graph, xarray_support
from kldiv_dask.align import Pair, align, as_dask
from kldiv_dask.graph.tree import SplitEvery
from kldiv_dask.kernels.pointwise import PointwiseSpec
from kldiv_dask.options import (
    Reduction,
    check_axis,
    resolve_axes,
    resolve_dtype,
    resolve_reduction,
)

Axis = int | tuple[int, ...] | None
Dim = Hashable | Sequence[Hashable] | None


def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
    *,
    axis: Axis = None,
    dim: Dim = None,
    keepdims: bool = False,
    where: Any = None,
    dtype: npt.DTypeLike | None = None,
    zero_safe: bool = False,
    split_every: SplitEvery = None,
) -> Any:
    r"""Kullback-Leibler divergence of chunked arrays, as `torch.nn.functional.kl_div` defines it.

    The term of each element is ``xlogy(target, target) - target * input``, or
    ``exp(target) * (target - input)`` with `log_target`: the summand of
    :math:`\mathrm{KL}(P \parallel Q) = \sum p \log(p / q)` with ``input = log q`` and
    ``target = p`` or ``log p``, in nats [1]_. The terms are summed exactly and the result is
    rounded once, so it is the same, bit for bit, for every chunking, scheduler and order of
    execution.

    Parameters
    ----------
    input : array_like of float8_e4m3fn, float8_e5m2, float16, bfloat16, float32 or float64
        Log-probabilities: a Dask array, a NumPy array, or what `dask.array.asanyarray` takes; or an
        `xarray.DataArray`, see below.
    target : array_like of float8_e4m3fn, float8_e5m2, float16, bfloat16, float32 or float64
        Probabilities, or log-probabilities with `log_target`. Broadcasts with `input`, both ways.
    size_average, reduce : bool, optional
        Deprecated, as in torch: by their truthiness they stand for, and override, a `reduction`.
    reduction : {'mean', 'batchmean', 'sum', 'none'}
        ``'mean'`` divides the sum by the number of elements, ``'batchmean'`` by
        ``input.shape[0]``, and ``'none'`` returns the terms. ``'batchmean'`` is the mean KL
        divergence of a batch of distributions.
    log_target : bool
        Whether `target` holds log-probabilities.
    axis : int or tuple of ints, optional
        Axes of the broadcast result that ``'sum'`` or ``'mean'`` reduces; by default all. Each sum
        is exact, and fastest where the axes have one chunk each; where not, every element of the
        result takes 584 bytes in each chunk on the way. Where that is more than the data, they are
        rechunked if that takes less.
    dim : str, or sequence of them, optional
        Of DataArrays, the names of the dimensions to reduce, in the place of `axis`.
    keepdims : bool
        Whether the axes that are reduced are left in the result, with length one.
    where : array_like of bool, optional
        Which elements to include, as booleans or integers of 0 and 1; broadcasts to the shape of
        the result. What is excluded counts nowhere, whatever its values: ``'mean'`` divides by the
        number of included elements, ``'batchmean'`` by that of the rows of `input` that have any,
        both give NaN where there are none, and ``'none'`` has 0 there.
    dtype : dtype_like, optional
        Floating type of the computation and the result, to which both operands are cast. By
        default the wider of the operands' types, float32 where both are float8; a 0-d operand does
        not widen an array. float8_e5m2 counts as float32, which it becomes when it is read; Dask
        arrays of it are refused, as Distributed can't move them. Terms of types narrower than
        float32 are computed in float32.
    zero_safe : bool
        Whether a zero target (0, or -inf with `log_target`) contributes 0 also where `input` is
        infinite. By default it contributes NaN there, as in torch.
    split_every : int or dict from axis to int, optional
        How many partial sums one task merges, at least 2; about 32 by default. Does not change
        the result.

    Returns
    -------
    dask.array.Array, or xarray.DataArray of one if an operand is a DataArray
        Lazy; 0-d, or with what `axis` and `keepdims` leave, or of the broadcast shape for
        ``'none'``.

    Raises
    ------
    ValueError
        `reduction` is unknown, the shapes do not broadcast together, `where` does not broadcast to
        that of the result, `axis` names one twice or comes with ``'batchmean'`` or ``'none'``,
        `keepdims` comes with ``'none'``, or chunk sizes are unknown where they are needed. Of
        DataArrays: lengths or labels of a dimension differ, `dim` names none, or a plain array or
        `axis` is ambiguous beside them.
    numpy.exceptions.AxisError
        `axis` is out of bounds.
    TypeError
        An operand is complex, integer or boolean, `dtype` is not a supported floating type,
        `where` is neither boolean nor of integers, or an operand is a Dataset.

    Warns
    -----
    UserWarning
        ``reduction='mean'`` is asked for, the default included, or a deprecated spelling is used.
    dask.array.PerformanceWarning
        The operands' chunks differ and one operand has to be rechunked; or sums along `axis` take
        more memory on the way than the operands.

    Notes
    -----
    DataArrays are paired, and with `where`, by the names of their dimensions, in any order; what
    one lacks broadcasts. The dimensions of the result are those of `input`, then what `target` has
    more; ``'batchmean'`` divides by the length of the first dimension of `input`. Labels have to
    be equal: nothing is selected or reordered to make them so. Coordinates and attributes are kept
    as in xarray's arithmetic, but for coordinates of both that are Dask arrays: those of `input`
    are kept without a look at the others. The axes of a plain array beside a DataArray are its
    last dimensions, and `axis` numbers its dimensions, where all DataArrays agree on them.

    References
    ----------
    .. [1] S. Kullback and R. A. Leibler, "On Information and Sufficiency", Ann. Math. Statist. 22
       (1951) 79-86.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from kldiv_dask import kl_div
    >>> q = da.from_array(np.log([[0.25, 0.75], [0.5, 0.5]]), chunks=(1, 2))
    >>> p = da.from_array(np.array([[0.5, 0.5], [0.5, 0.5]]), chunks=(1, 2))
    >>> print(f"{kl_div(q, p, reduction='batchmean').compute():.6f}")
    0.071921
    >>> kl_div(q, p, reduction="none").compute().round(6)
    array([[ 0.346574, -0.202733],
           [ 0.      ,  0.      ]])
    >>> kl_div(q, p, reduction="sum", axis=1).compute().round(6)
    array([0.143841, 0.      ])
    >>> print(f"{kl_div(q, p, reduction='batchmean', where=[[True], [False]]).compute():.6f}")
    0.143841

    With names:

    >>> import xarray as xr
    >>> student = xr.DataArray(q, dims=("batch", "class"), coords={"batch": ["a", "b"]})
    >>> teacher = xr.DataArray(p.T, dims=("class", "batch"))
    >>> divergence = kl_div(student, teacher, reduction="sum", dim="class")
    >>> divergence.dims, round(float(divergence.sel(batch="a")), 6)
    (('batch',), 0.143841)
    """
    return lazy_kl_div(
        input,
        target,
        resolve_reduction(size_average, reduce, reduction, stacklevel=2),
        reduction,
        log_target,
        axis=axis,
        dim=dim,
        keepdims=keepdims,
        where=where,
        dtype=dtype,
        zero_safe=zero_safe,
        split_every=split_every,
        stacklevel=2,
    )


def lazy_kl_div(
    input: Any,
    target: Any,
    resolved: Reduction,
    reduction: str,
    log_target: bool,
    *,
    axis: Axis,
    dim: Dim,
    keepdims: bool,
    where: Any,
    dtype: npt.DTypeLike | None,
    zero_safe: bool,
    split_every: SplitEvery,
    stacklevel: int,
) -> Any:
    """Return what `kl_div` does; errors name the reduction as it was given."""
    check_axis(axis, keepdims, resolved)
    if dim is not None and (resolved.kind == "none" or resolved.per_batch):
        raise ValueError(f"dim is {dim!r} with reduction={reduction!r}; it is for 'sum' and 'mean'")
    operands = xarray_support.match(input, target, {"where": where}, axis=axis, dim=dim)
    pair, spec = prepare(operands, log_target, dtype, zero_safe, stacklevel=stacklevel + 1)
    result = _resolved(
        pair,
        spec,
        resolved,
        operands.axis,
        bool(keepdims),
        split_every,
        stacklevel=stacklevel + 1,
    )
    return operands.wrap(result, () if resolved.kind == "none" else operands.axis)


def prepare(
    operands: xarray_support.Operands,
    log_target: bool,
    dtype: npt.DTypeLike | None,
    zero_safe: bool,
    *,
    stacklevel: int,
) -> tuple[Pair, PointwiseSpec]:
    """Resolve the operands and options that say what the terms are."""
    input, target = as_dask(operands.input, operands.target)
    resolved = resolve_dtype(input, target, dtype)
    pair = align(
        input, target, resolved, operands.position_args["where"], stacklevel=stacklevel + 1
    )
    return pair, PointwiseSpec(resolved, bool(log_target), bool(zero_safe))


def _resolved(
    pair: Pair,
    spec: PointwiseSpec,
    reduction: Reduction,
    axis: Axis,
    keepdims: bool,
    split_every: SplitEvery,
    *,
    stacklevel: int,
) -> da.Array:
    """Return the result of `kl_div` for an aligned pair."""
    if reduction.kind == "none":
        return _elementwise(pair, spec, reduction)
    axes = resolve_axes(axis, pair.ndim)
    if len(axes) < pair.ndim:
        pair = graph.gathered(pair, axes, stacklevel=stacklevel + 1)
    if len(axes) < pair.ndim and all(len(pair.chunks[axis]) == 1 for axis in axes):
        graph.fan_in(split_every, (1,) * pair.ndim)  # checks it, though nothing is merged
        sums = graph.sums(pair, spec, axes, reduction)
        return sums if keepdims else graph.squeeze(sums, axes)
    merged = graph.tree_reduce(graph.partials(pair, spec, axes), split_every, axes)
    if len(axes) == pair.ndim:
        value = graph.finalize_scalar(merged, reduction, pair, spec.dtype)
        return value[(np.newaxis,) * pair.ndim] if keepdims else value
    return graph.finalize_array(merged, reduction, axes, spec.dtype, keepdims)


def _elementwise(pair: Pair, spec: PointwiseSpec, reduction: Reduction) -> da.Array:
    if not reduction.per_batch or not pair.input.ndim:
        return graph.terms(pair, spec)
    batch_size = pair.input.shape[0]
    if np.isnan(batch_size):
        raise ValueError(
            "input.shape[0], the batch size, is unknown; call compute_chunk_sizes() on input first"
        )
    wide = spec._replace(dtype=spec.compute_dtype)
    return (graph.terms(pair, wide) / int(batch_size)).astype(spec.dtype)
