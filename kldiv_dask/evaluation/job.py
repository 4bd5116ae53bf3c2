"""The function `evaluate`: all statistics of two models, from one pass over their data."""

import os
from collections.abc import Hashable
from typing import Any, Literal

import numpy.typing as npt

from kldiv_dask.evaluation.request import Request
from kldiv_dask.evaluation.result import Evaluation
from kldiv_dask.progress import ProgressOption
from kldiv_dask.storage.chunking import Chunks


def evaluate(
    input: Any,
    target: Any,
    *,
    kind: Literal["logits", "log_probs", "probs", "log_probs_and_probs"] | None = None,
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
    where_key: str | None = None,
    groups_key: str | None = None,
    labels_key: str | None = None,
    allow_truncated: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_interval: float | None = None,
    resume: bool | Literal["adopt"] = True,
    on_error: Literal["raise", "skip"] = "raise",
    progress: ProgressOption = None,
    scheduler: Any = None,
) -> Evaluation:
    r"""Evaluate a model against another: the distribution of the KL divergence over positions.

    The data are read once, slab by slab. Every statistic has the same bits for all chunkings of the
    positions, schedulers, orders and interruptions.

    Parameters
    ----------
    input, target : array_like, xarray.DataArray, str or os.PathLike
        The outputs of the model to evaluate and of its teacher, with the classes along `axis`; or
        the paths of both, as `open_pair` takes them.
    kind : {'logits', 'log_probs', 'probs', 'log_probs_and_probs'}, optional
        What both hold: logits, log-probabilities, probabilities, or with the last, which is what
        `kl_div` takes, log-probabilities in `input` and probabilities in `target`. The default is
        'log_probs' if one is of a base file of llama.cpp, else 'logits'. Logits are normalized. Of
        probabilities that do not sum to 1 the divergence is ``sum(p * (log(p) - log(q)))`` as for
        `kl_div`, where a `target` of 0 contributes 0; of base files, whose rows are rounded,
        ``sum(p * (log(p) - log(q)) - p + q)``, of which no summand is negative.
    axis : int
        The axis of the classes. If it is cut, its chunks are joined, which may move the data.
    dim : str, optional
        Of DataArrays, the name of the dimension of the classes, in the place of `axis`.
    temperature : float
        What logits are divided by.
    where : array_like of bool or path, optional
        Which positions to include, as booleans or integers of 0 and 1; broadcasts to them. All
        others count nowhere.
    groups : array_like of integers or strings or path, optional
        The name of the group that each position is in; broadcasts to them. Bytes are read as
        UTF-8.
    labels : array_like of integers or path, optional
        The class that is right at each position, or -100 where there is none.
    cluster_axis : int or str
        The axis of the positions, or of DataArrays the dimension, along which sequences are
        counted, which are taken to be independent of each other. More than 1024 are put together
        in as many runs of neighbors at most, which the result names. Where positions have one axis,
        it can't be known which of them are of one text: give them the axes (text, token).
    dtype : {None, 'float64'}
        float64 to compute in float64 what would be in float32: logits that are no float64.
    chunks : int, str, tuple, mapping or None, optional
        Of paths, what to read at a time, as in `open_pair`.
    input_key, target_key, where_key, groups_key, labels_key : str, optional
        Of paths, the name of the array in a file or group of many, as in `open_pair`; 'labels' of a
        base file of llama.cpp is the right class at each position.
    allow_truncated : bool
        Of paths, whether to read a base file of llama.cpp that was cut short, as in `open_pair`.
    checkpoint : str or os.PathLike, optional
        A local file that is written at intervals, and when the run ends or fails. If it exists, the
        run computes only what is left. The data and options must be the same; chunks, threads and
        scheduler may differ. The identity of the data depends on how they are given. Paths, and
        arrays from `open_array` and `open_pair`: the path, and the names, sizes and times of up to
        ``kldiv.files-checked`` files. Other Dask arrays: their names, and the known files that they
        are read from. Arrays in memory: their content. So do not change a store in place that Dask
        or xarray has opened. Arrays of zarr and h5py are refused.
    checkpoint_interval : float, optional
        Seconds from one checkpoint to the next: by default 60, or what
        ``kldiv.evaluate.checkpoint-interval`` of Dask's configuration says.
    resume : bool or 'adopt'
        False to start over, and replace the checkpoint. 'adopt' to go on from it although paths,
        times or names of the data differ, as after they were moved, copied or touched. Up to three
        slabs that were done are then computed again; it is an error if one differs, or if there is
        none.
    on_error : {'raise', 'skip'}
        What to do about chunks that can't be read or computed: end the run, after saving; or leave
        them out, with an `EvaluationWarning` and a note in the result for each. A run that resumes
        does not try them again.
    progress : bool, callable or None
        None to show a line on stderr if that is a terminal or the output of a notebook, True to
        show it in any case, False for none. The line has the size of what is left to read; then,
        after each slab, the fraction that is done, the rate, the time that is left, and the mean
        with the half-width of its confidence interval. A callable is called instead with each
        `ProgressUpdate`: ``done`` and ``total`` positions, the ``unit`` ``'positions'``, and the
        line as ``text``.
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
        A slab failed, as where a label is no class; its positions are named. Or a stored array was
        changed while it was read.
    ImportError
        A worker has another version of kldiv_dask, NumPy or Numba, where that matters.

    Warns
    -----
    EvaluationWarning
        Positions were left out, or the data are probably not of the kind that was named.

    Notes
    -----
    The divergence is that of `kl_div_with_logits`, with the same bits for logits.

    What may be wrong with the data, and what happens then; positions that `where` excludes are not
    looked at:

    ====================================  ========================================================
    Data                                  What happens
    ====================================  ========================================================
    NaN, infinite divergences             counted in ``checks``
    stored chunks that are not there      a warning, of ``where`` a remark; and ``missing``
    a row of equal numbers                a warning, counted in ``checks``; none of uniform
                                          distributions
    input and target are equal            a warning
    no position is included, or all NaN   a warning
    probabilities for logits              a warning, early if 99 % of the first slab look so
    log-probabilities for probabilities   the same, and the other way round
    a positive log-probability            the same: probably logits
    a probability that is negative        the same: probably logits
    rows that do not sum to 1             counted in ``checks``; a warning if nearly all do not, by
                                          more than 0.1
    a negative mean                       a warning
    a label at the floor of its row       counted in ``checks``: its probability is not known
    both repeated along positions         ValueError
    base files over different texts       ValueError, or a warning if only parts are read
    a chunk that is damaged, or no file   EvaluationError, or left out with ``on_error='skip'``
    a file that changes during the run    EvaluationError
    a checkpoint of other data            ValueError
    ====================================  ========================================================

    ``Evaluation.fingerprints`` tell contents apart that differ in more than what a checksum of 61
    bits can see; they cost about 2 % of the time.

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
    request = Request(
        input=input,
        target=target,
        kind=kind,
        axis=axis,
        dim=dim,
        temperature=temperature,
        where=where,
        groups=groups,
        labels=labels,
        cluster_axis=cluster_axis,
        dtype=dtype,
        chunks=chunks,
        input_key=input_key,
        target_key=target_key,
        where_key=where_key,
        groups_key=groups_key,
        labels_key=labels_key,
        allow_truncated=allow_truncated,
        checkpoint=checkpoint,
        checkpoint_interval=checkpoint_interval,
        resume=resume,
        on_error=on_error,
    )
    return request.run(progress=progress, scheduler=scheduler)
