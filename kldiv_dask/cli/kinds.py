"""The operands of ``kldiv-dask compute``, by what they hold."""

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kldiv_dask.cli.common import parse_chunks

if TYPE_CHECKING:
    from kldiv_dask.evaluation.inspection import Inspection
    from kldiv_dask.functional.summary import KLDivSummary, LazySummary

KINDS = "log_probs_and_probs", "log_probs", "logits"

# How to choose each kind.
WAYS = {kind: f"pass --kind {kind}" for kind in KINDS} | {
    "probs": "use `kldiv-dask evaluate --kind probs`"
}


class ComputeOperands(NamedTuple):
    """The summary of two arrays, and their checks.

    `sample` is the summary of arrays of one element, with the same types and options.
    `logits_options` are the axis and the temperature of logits; `bytes_read` is the size of both
    arrays.
    """

    summary: "LazySummary"
    sample: "LazySummary"
    inspection: "Inspection"
    logits_options: dict[str, Any]
    bytes_read: int


def check_kind(kind: str, zero_safe: bool, axis: int | None, temperature: float | None) -> None:
    """Refuse options that are for another kind."""
    if kind == "logits" and zero_safe:
        raise click.UsageError("--zero-safe is not for --kind logits")
    if kind != "logits" and (axis is not None or temperature is not None):
        raise click.UsageError("--axis and --temperature are for --kind logits")


def open_operands(
    input: str,
    target: str,
    kind: str,
    zero_safe: bool,
    axis: int | None,
    temperature: float | None,
    where: str | None,
    where_key: str | None,
    dtype: str | None,
    chunks: str | None,
    **reading: Any,
) -> ComputeOperands:
    """Open the arrays."""
    import numpy as np

    from kldiv_dask.evaluation.inspection import Inspection
    from kldiv_dask.functional import kl_div_summary, kl_div_with_logits_summary
    from kldiv_dask.storage import open_array, open_pair, source_of

    pair = open_pair(input, target, chunks=parse_chunks(chunks), **reading)
    is_rounded = getattr(source_of(pair[1]), "is_rounded", False)
    if kind == "log_probs_and_probs" and is_rounded:
        raise ValueError(
            f"{target} is a base file of llama.cpp and holds log-probabilities: pass --kind "
            "log_probs"
        )
    if where is None and where_key is not None:
        raise ValueError(f"where_key is {where_key!r}, and there is no --where")
    masks = {} if where is None else {"where": open_array(where, key=where_key)}
    axis = -1 if axis is None else axis
    logits_options: dict[str, Any] = {}
    summary: Any = kl_div_summary
    options: dict[str, Any] = {"log_target": kind == "log_probs", "zero_safe": zero_safe}
    if kind == "logits":
        summary = kl_div_with_logits_summary
        temperature = 1.0 if temperature is None else temperature
        options = logits_options = {"axis": axis, "temperature": temperature}
    samples = [np.zeros((1,) * array.ndim, array.dtype) for array in (*pair, *masks.values())]
    sample_masks = dict(zip(masks, samples[2:], strict=True))
    return ComputeOperands(
        summary=summary(*pair, **masks, dtype=dtype, **options),
        sample=summary(*samples[:2], **sample_masks, dtype=dtype, **options),
        inspection=Inspection(*pair, masks.get("where"), kind, axis),
        logits_options=logits_options,
        # Array expressions have no nbytes.
        bytes_read=sum(math.prod(a.shape) * a.dtype.itemsize for a in pair),
    )


def warn_of_summary(summary: "KLDivSummary", reduction: str, kind: str, zero_safe: bool) -> None:
    """Warn of terms that are not finite, of a negative sum, and of the mean over elements."""
    from kldiv_dask.options import resolve_reduction

    if kind != "logits":
        resolve_reduction(None, None, reduction, stacklevel=2)
    if summary.nan_count or summary.posinf_count or summary.neginf_count:
        message = (
            f"of {summary.numel} {'positions' if kind == 'logits' else 'terms'}"
            f" {summary.nan_count} are NaN, {summary.posinf_count} +inf and"
            f" {summary.neginf_count} -inf"
        )
        if summary.nan_count and not zero_safe and kind != "logits":
            message += "; --zero-safe counts zero targets as 0 where INPUT is infinite"
            if kind == "log_probs_and_probs":
                message += ", and negative ones want --kind log_probs, or --kind logits for logits"
        warnings.warn(message, stacklevel=2)
    if summary.sum < 0:
        warnings.warn(
            f"the sum is {summary.sum}, and that of divergences of distributions is never negative,"
            " but for rounding: INPUT or TARGET is probably of another kind, or they are swapped",
            stacklevel=2,
        )
