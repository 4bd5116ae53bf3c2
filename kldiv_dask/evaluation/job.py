"""One pass over the data of two models."""

import os
from collections.abc import Hashable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import dask.base
import numpy as np
import numpy.typing as npt

from kldiv_dask import graph, labelled
from kldiv_dask.align import align, align_small, as_dask
from kldiv_dask.evaluation.errors import EvaluationError
from kldiv_dask.evaluation.progress import ProgressLine
from kldiv_dask.evaluation.result import Evaluation
from kldiv_dask.evaluation.run import Run
from kldiv_dask.functional.logits import last_axis
from kldiv_dask.options import (
    float_dtype,
    resolve_class_axis,
    resolve_dtype,
    resolve_kind,
    resolve_temperature,
)
from kldiv_dask.statistics.chunks import Plan
from kldiv_dask.storage import open_array, open_pair
from kldiv_dask.storage.chunking import Chunks
from kldiv_dask.storage.opening import token

PATHS = str, os.PathLike

# The kinds of type that are accepted of what is said of positions.
SMALL = {
    "where": ("b", "bool"),
    "groups": ("biuSU", "integers, booleans or strings"),
    "labels": ("iu", "an integer type"),
}


def evaluate(
    input: Any,
    target: Any,
    *,
    kind: Literal["logits", "log_probs", "probs"] = "logits",
    axis: int = -1,
    dim: Hashable = None,
    temperature: float = 1.0,
    where: Any = None,
    groups: Any = None,
    labels: Any = None,
    cluster_axis: int | str = 0,
    dtype: npt.DTypeLike | None = None,
    chunks: Chunks = None,
    input_key: str | None = None,
    target_key: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_interval: float | None = None,
    resume: bool = True,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
    scheduler: Any = None,
) -> Evaluation:
    r"""Evaluate a model against another: the distribution of the KL divergence over positions.

    The data are read once, slab by slab. Every statistic has the same bits for all chunkings of the
    positions, schedulers, orders and interruptions.

    Parameters
    ----------
    input, target : array_like, xarray.DataArray, str or os.PathLike
        What the model to evaluate and its teacher gave, with the classes along `axis`; or the
        paths of both, as `open_pair` takes them.
    kind : {'logits', 'log_probs', 'probs'}
        What they are: logits; log-probabilities; or log-probabilities in `input` and
        probabilities in `target`. Logits are normalised. Of probabilities that do not sum to 1 the
        divergence is ``sum(p * (log(p) - log(q)))`` as for `kl_div`, where a `target` of 0
        contributes 0.
    axis : int
        The axis of the classes. If it is cut, its chunks are joined, which may move the data.
    dim : str, optional
        Of DataArrays, the name of the dimension of the classes, in the place of `axis`.
    temperature : float
        What logits are divided by.
    where : array_like of bool or path, optional
        Which positions to include; broadcasts to them. All others count nowhere.
    groups : array_like of integers or strings or path, optional
        The name of the group that each position is in; broadcasts to them.
    labels : array_like of integers or path, optional
        The class that is right at each position, or -100 where there is none.
    cluster_axis : int or str
        The axis of the positions, or of DataArrays the dimension, along which sequences are
        counted, which are taken to be independent of each other. More than 1024 are put together
        in as many runs of neighbours.
    dtype : {None, 'float64'}
        float64 to compute in float64 what would be in float32: logits that are no float64.
    chunks : int, str, tuple, mapping or None, optional
        Of paths, what to read at a time, as in `open_pair`.
    input_key, target_key : str, optional
        Of paths, the name of the array in a file or group of many, as in `open_pair`.
    checkpoint : str or os.PathLike, optional
        A local file that is written now and then, and when the run ends or fails. A run that finds
        it takes up where the other ended, if it is of the same data and options. Data are known by
        the names of their Dask arrays; so a store that xarray or Dask has opened should not be
        changed in place meanwhile, while a change of what is given by its path is noticed.
    checkpoint_interval : float, optional
        After how many seconds it is written again: by default 60, or what
        ``kldiv.evaluate.checkpoint-interval`` of Dask's configuration says.
    resume : bool
        False to start over, in the place of the checkpoint.
    on_error : {'raise', 'skip'}
        What to do about chunks that can't be read or computed: end the run, after saving; or leave
        them out, with an `EvaluationWarning` and a note in the result for each. A run that is
        taken up again does not come back to them.
    progress : bool
        Whether to write a line to stderr: how much there is to read, then for each slab the rate,
        the time that is left, the mean and the half-width of its confidence interval.
    scheduler : str or distributed.Client, optional
        As for `dask.compute`.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        Shapes, axes, dimensions, labels or options do not fit, or the checkpoint is damaged or of
        another run.
    TypeError
        Something is not of a type that is accepted, such as a Dataset.
    EvaluationError
        A slab failed, as where a label is no class; its positions are named.

    Notes
    -----
    The divergence is that of `kl_div_with_logits`, with the same bits for logits.

    DataArrays are paired by the names of their dimensions, as in `kl_div`; the positions are those
    of `input`, then what `target` has more. Beside them, a string as `where`, `groups` or `labels`
    is the name of a coordinate of either; a file can then be given as `pathlib.Path`.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import evaluate
    >>> teacher = np.random.default_rng(0).normal(size=(4, 8, 10))
    >>> result = evaluate(1.1 * teacher, teacher, progress=False)
    >>> result.count, round(result.mean, 5), round(result.overall.top1_agreement, 2)
    (32, 0.00285, 1.0)
    """
    resolve_kind(kind, "sum", stacklevel=2)
    temperature = resolve_temperature(temperature)
    if kind != "logits" and temperature != 1:
        raise ValueError(f"temperature is {temperature} with kind={kind!r}; it is for logits")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; accepted are 'raise' and 'skip'")
    if dtype is not None and float_dtype(dtype) != np.float64:
        raise ValueError(f"dtype is {dtype!r}; accepted are None and 'float64'")
    path = None if checkpoint is None else _checked_path(checkpoint)
    described = {"input": _described(input, input_key), "target": _described(target, target_key)}
    operands, identities = _opened((input, target), (input_key, target_key), chunks)
    said = _said({"where": where, "groups": groups, "labels": labels}, operands)
    given = labelled.match(*operands, said, axis=axis, dim=dim, classes=True)
    arrays = as_dask(given.input, given.target)
    identities = identities or [array.name for array in arrays]
    wide = resolve_dtype(*arrays, None) == np.float64 or kind != "logits"
    wide = wide or dtype is not None
    computed = graph.computed_in(wide, temperature)
    classes = resolve_class_axis(given.axis, *arrays)
    whole = [last_axis(classes, array) for array in arrays]
    whole = [a if a.numblocks[-1] == 1 else a.rechunk({a.ndim - 1: -1}) for a in whole]
    pair = align(whole[0], whole[1], np.dtype(np.float64), stacklevel=2)
    shape = tuple(map(sum, pair.chunks[:-1]))
    if any(np.isnan(shape)):
        raise ValueError("input and target have unknown chunk sizes; call compute_chunk_sizes()")
    cluster_axis = _checked_cluster_axis(cluster_axis, len(shape), given.dims[:-1])
    positions = pair.chunks[:-1]
    small = {
        name: None if array is None else align_small(name, array, positions, *SMALL[name])
        for name, array in given.small.items()
    }
    plan = Plan(shape, cluster_axis, kind, temperature, computed, _tolerance(arrays))
    fingerprint = {
        "input": identities[0],
        "target": identities[1],
        **{name: None if array is None else array.name for name, array in small.items()},
        "kind": kind,
        "classes": sum(pair.chunks[-1]),
        "shape": list(shape),
        "temperature": temperature,
        "computed_in": computed.name,
        "cluster_axis": cluster_axis,
        "chunks": dask.base.tokenize(pair.chunks),
        "version": version("kldiv-dask"),
    }
    run = Run(
        graph.states(pair, small, plan),
        [_ends(lengths) for lengths in positions],
        fingerprint,
        path,
        resume=resume,
        interval=checkpoint_interval,
        skip=on_error == "skip",
        scheduler=scheduler,
    )
    total = int(np.prod(shape))
    line = _silent
    if progress:
        line = ProgressLine(total, int(pair.nbytes), run.progress.done, run.states.size)
    end = run.walk(line)
    if end.state is None:
        why = f": {end.skipped[0]['error']}" if end.skipped else ""
        raise EvaluationError(f"no position could be evaluated{why}")
    names = ("kind", "classes", "temperature", "computed_in", "cluster_axis", "version")
    provenance = described | {name: fingerprint[name] for name in names}
    provenance |= {"dtype": pair.input.dtype.name, "seconds": round(end.seconds, 3)}
    if given.dims:
        dims = list(map(str, given.dims[:-1]))
        provenance |= {"dims": dims, "cluster_axis": dims[cluster_axis] if dims else 0}
    return Evaluation(end.state, fingerprint, provenance, end.skipped)


def _opened(
    operands: tuple[Any, Any], keys: tuple[str | None, str | None], chunks: Chunks
) -> tuple[tuple[Any, Any], list[str] | None]:
    """Open what is given by its path; of two files, return also what tells each from all others."""
    for name, key, operand in zip(("input", "target"), keys, operands, strict=True):
        if key is not None and not isinstance(operand, PATHS):
            raise ValueError(f"{name}_key is {key!r}, and {name} is no path")
    if all(isinstance(operand, PATHS) for operand in operands):
        pair = open_pair(*operands, chunks=chunks, input_key=keys[0], target_key=keys[1])
        return pair, [token(*both) for both in zip(operands, keys, strict=True)]
    input, target = (
        open_array(operand, chunks=chunks, key=key) if isinstance(operand, PATHS) else operand
        for operand, key in zip(operands, keys, strict=True)
    )
    return (input, target), None


def _silent(*_: Any) -> None:
    pass


def _described(operand: Any, key: str | None) -> str:
    if isinstance(operand, PATHS):
        return os.fspath(operand) + (f":{key}" if key else "")
    shape = " x ".join(map(str, getattr(operand, "shape", ())))
    return f"{type(operand).__name__} of {shape} {getattr(operand, 'dtype', '')}".strip()


def _checked_path(checkpoint: str | os.PathLike[str]) -> Path:
    path = Path(checkpoint).absolute()
    if "://" in os.fspath(checkpoint) or not path.parent.is_dir() or path.is_dir():
        raise ValueError(
            f"checkpoint is {os.fspath(checkpoint)!r}; accepted is a file in a local directory that"
            " exists"
        )
    return path


def _checked_cluster_axis(axis: Any, ndim: int, dims: labelled.Dims) -> int:
    if dims and isinstance(axis, str):
        if axis not in dims:
            known = ", ".join(map(repr, dims))
            raise ValueError(f"cluster_axis is {axis!r}; the positions have {known}")
        return dims.index(axis)
    if not isinstance(axis, int | np.integer) or isinstance(axis, bool):
        raise TypeError(f"cluster_axis is {axis!r}; accepted is an integer")
    if ndim and not -ndim <= axis < ndim:
        raise ValueError(f"cluster_axis is {axis}; the positions have {ndim} axes")
    return int(axis) % max(ndim, 1)


def _said(small: dict[str, Any], operands: tuple[Any, Any]) -> dict[str, Any]:
    """Open what is said of positions by a path, or by a coordinate of the operands."""
    meant = {name: labelled.coordinate(name, array, *operands) for name, array in small.items()}
    return {
        n: open_array(array) if isinstance(array, PATHS) else array for n, array in meant.items()
    }


def _tolerance(arrays: Any) -> float:
    """Return how far from 1 rounded probabilities may sum: 64 units in the last place."""
    coarsest = min(arrays, key=lambda array: array.dtype.itemsize).dtype
    digits = {"bfloat16": 7, "float16": 10, "float32": 23, "float64": 52}[coarsest.name]
    return max(64 * 2.0**-digits, 1e-6)


def _ends(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    stops = np.cumsum(lengths).tolist()
    return [(stop - length, stop) for stop, length in zip(stops, lengths, strict=True)]
