"""``kldiv-dask compute``: one number."""

import contextlib
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kldiv_dask.cli.common import (
    BAD_INPUT,
    CLEAR,
    SETTINGS,
    check_cluster,
    cluster,
    cluster_options,
    exit_on_error,
    one_line_errors,
    parse_chunks,
    reading_options,
    say,
)

if TYPE_CHECKING:
    from distributed import Client

    from kldiv_dask.evaluation.inspection import Inspection
    from kldiv_dask.functional.summary import KLDivSummary, LazySummary
    from kldiv_dask.progress import ProgressUpdate


@click.command(context_settings=SETTINGS)
@click.argument("input")
@click.argument("target")
@click.option("--log-target", is_flag=True, help="TARGET holds log-probabilities.")
@click.option(
    "--logits",
    is_flag=True,
    help="Both hold logits. What is summed is then the KL divergence of their softmax at each"
    " position, and mean divides by the number of positions.",
)
@click.option(
    "--axis",
    type=int,
    help="With --logits, the axis of the classes.  [default: -1]",
)
@click.option(
    "--temperature",
    type=float,
    help="With --logits, what they are divided by.  [default: 1]",
)
@click.option(
    "--where",
    metavar="PATH",
    help="Array of booleans, or of 0 and 1: what to include of the elements, or with --logits of"
    " the positions.",
)
@click.option("--where-key", metavar="KEY", help="Name of the array in a file or group of many.")
@click.option(
    "--reduction",
    type=click.Choice(["mean", "batchmean", "sum"]),
    default="mean",
    show_default=True,
    help="As in torch: mean divides the sum of the terms by their number, batchmean by the length"
    " of the first axis of INPUT.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32", "float64"]),
    help="Type of the computation and the result.  [default: the wider of the arrays' types]",
)
@click.option(
    "--zero-safe",
    is_flag=True,
    help="Count a zero target as 0, not NaN, also where INPUT is infinite.",
)
@reading_options
@cluster_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, as described above.")
def compute(
    input: str,
    target: str,
    reduction: str,
    logits: bool,
    scheduler: str | None,
    workers: int | None,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print the KL divergence of TARGET from INPUT, in nats.

    INPUT holds log-probabilities and TARGET probabilities, but for --log-target and --logits. Each
    is a .npy, HDF5, safetensors or llama.cpp base file, or a Zarr array or group: a directory or an
    fsspec URL. The workers of a running cluster must find them under the same names.

    \b
    Example:
      kldiv-dask compute student.zarr teacher.zarr --reduction batchmean
      kldiv-dask compute student.zarr teacher.zarr --logits --where tokens.npy

    With --json, one line holds an object with the value, the reduction, all of sum, mean,
    batchmean, numel, batch_size, nan_count, posinf_count and neginf_count, the dtype, the seconds
    that the computation took, bytes_read (of both arrays, decoded), the arguments, which of both
    arrays is repeated along positions if one is, and the version.
    A number has the digits that tell it from all others of its dtype; "nan", "inf" and "-inf" are
    strings.

    \b
    Exit codes:
      0    the value has been printed
      1    the computation failed
      2    bad arguments, files or scheduler; nothing was computed
      130  stopped by Ctrl-C (143: by SIGTERM)
    """  # noqa: D301 - click wants a real backspace there
    check_cluster(scheduler, workers, threads)
    _check_kind(logits, **options)
    with one_line_errors():
        with exit_on_error(BAD_INPUT):
            opened = _open(input, target, logits, **options)
        with cluster(scheduler, workers, threads) as client:
            start = time.perf_counter()
            with _on_a_worker():
                opened.inspection.warn(_WAYS, scheduler=client)
                summary = _run(client, opened.summary, opened.sample)
            opened.inspection.check_unchanged()
            seconds = time.perf_counter() - start
            _warn(summary, reduction, logits, options["log_target"], options["zero_safe"])
    value = getattr(summary, reduction)
    if not as_json:
        click.echo(value)
        return
    report = {
        "value": value,
        "reduction": reduction,
        **summary._asdict(),
        "logits": logits,
        **options,
        **({"axis": opened.axis, "temperature": opened.temperature} if logits else {}),
        "dtype": value.dtype.name,
        "seconds": round(seconds, 3),
        "bytes_read": opened.bytes_read,
        "input": input,
        "target": target,
        "repeated": opened.inspection.repeated,
        "version": version("kldiv-dask"),
    }
    plain = {name: _plain(field) for name, field in report.items()}
    click.echo(json.dumps(plain, allow_nan=False))


def _check_kind(logits: bool, log_target: bool, zero_safe: bool, **others: Any) -> None:
    """Refuse options that say nothing about the kind of data."""
    if logits and (log_target or zero_safe):
        raise click.UsageError("--log-target and --zero-safe are for what is not --logits")
    if not logits and (others["axis"] is not None or others["temperature"] is not None):
        raise click.UsageError("--axis and --temperature are for --logits")


# How to say what both arrays hold.
_WAYS = {
    "logits": "pass --logits",
    "log_probs": "pass --log-target",
    "log_probs_and_probs": "pass neither --logits nor --log-target",
    "probs": "use `kldiv-dask evaluate --kind probs`",
}


class _Opened(NamedTuple):
    """What is to be computed, the same of arrays with one element, and what is known of the data.

    `axis` and `temperature` are for logits; `bytes_read` is what will be read of the two large
    arrays.
    """

    summary: "LazySummary"
    sample: "LazySummary"
    inspection: "Inspection"
    axis: int
    temperature: float
    bytes_read: int


def _open(
    input: str,
    target: str,
    logits: bool,
    log_target: bool,
    zero_safe: bool,
    axis: int | None,
    temperature: float | None,
    where: str | None,
    where_key: str | None,
    dtype: str | None,
    chunks: str | None,
    **reading: Any,
) -> _Opened:
    """Open the arrays."""
    import numpy as np

    from kldiv_dask.evaluation.inspection import Inspection
    from kldiv_dask.functional import kl_div_summary, kl_div_with_logits_summary
    from kldiv_dask.storage import open_array, open_pair, source_of

    pair = open_pair(input, target, chunks=parse_chunks(chunks), **reading)
    if not (logits or log_target) and getattr(source_of(pair[1]), "is_rounded", False):
        raise ValueError(
            f"{target} is a base file of llama.cpp and holds log-probabilities: pass --log-target"
        )
    if where is None and where_key is not None:
        raise ValueError(f"where_key is {where_key!r}, and there is no --where")
    masks = {} if where is None else {"where": open_array(where, key=where_key)}
    summary: Any
    axis = -1 if axis is None else axis
    temperature = 1.0 if temperature is None else temperature
    if logits:
        summary = kl_div_with_logits_summary
        options = {"axis": axis, "temperature": temperature}
    else:
        summary, options = kl_div_summary, {"log_target": log_target, "zero_safe": zero_safe}
    samples = [np.zeros((1,) * array.ndim, array.dtype) for array in (*pair, *masks.values())]
    lazy = summary(*pair, **masks, dtype=dtype, **options)
    sample = summary(
        *samples[:2], **dict(zip(masks, samples[2:], strict=True)), dtype=dtype, **options
    )
    kind = "logits" if logits else "log_probs" if log_target else "log_probs_and_probs"
    inspection = Inspection(*pair, masks.get("where"), kind, axis)
    # Array expressions have no nbytes.
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in pair)
    return _Opened(lazy, sample, inspection, axis, temperature, size)


def _run(client: "Client", lazy: "LazySummary", sample: "LazySummary") -> "KLDivSummary":
    """Compute all fields of a summary at once, with a progress bar if somebody can see it."""
    from distributed import progress

    from kldiv_dask.cli.warmup import warm

    say("compiling the kernels on the workers, unless they are stored from an earlier run")
    with warm(client, functools.partial(sample.compute, progress=False, scheduler="synchronous")):
        if lazy.is_large:
            return _walk(client, lazy)
        future = client.compute(lazy)
        if sys.stderr.isatty():
            try:
                with client.as_current(), contextlib.redirect_stdout(sys.stderr):
                    progress(future, notebook=False)
            finally:  # the bar clears its line only where it comes to its end
                click.echo(CLEAR, nl=False, err=True)
        summary: KLDivSummary = future.result()
        return summary


@contextlib.contextmanager
def _on_a_worker() -> Iterator[None]:
    """Say of what can't be read that it is a worker that can't."""
    from kldiv_dask.storage import ChunkReadError

    try:
        yield
    except ChunkReadError as error:
        raise OSError(f"on a worker, {error}") from error


def _walk(client: "Client", lazy: "LazySummary") -> "KLDivSummary":
    """Do what `_run` does with more pairs of chunks than a scheduler should be given at once."""
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=lazy.pairs, file=sys.stderr, hidden=hidden) as bar:

        def show(update: "ProgressUpdate") -> None:
            bar.update(update.done - bar.pos)

        return lazy.compute(scheduler=client, progress=show)


def _warn(
    summary: "KLDivSummary", reduction: str, logits: bool, log_target: bool, zero_safe: bool
) -> None:
    """Warn of what the value is or hides."""
    from kldiv_dask.options import resolve_reduction

    if not logits:
        resolve_reduction(None, None, reduction, stacklevel=2)
    if summary.nan_count or summary.posinf_count or summary.neginf_count:
        message = (
            f"of {summary.numel} {'positions' if logits else 'terms'} {summary.nan_count} are NaN,"
            f" {summary.posinf_count} +inf and {summary.neginf_count} -inf"
        )
        if summary.nan_count and not (zero_safe or logits):
            message += "; --zero-safe counts zero targets as 0 where INPUT is infinite"
            if not log_target:
                message += ", and negative ones want --log-target, or --logits for logits"
        warnings.warn(message, stacklevel=2)
    if summary.sum < 0:
        warnings.warn(
            f"the sum is {summary.sum}, and that of divergences of distributions is never negative,"
            " but for rounding: INPUT or TARGET is probably of another kind, or they are swapped",
            stacklevel=2,
        )


def _plain(field: Any) -> Any:
    """Turn a NumPy scalar into what JSON has, with the digits of its own type."""
    if not hasattr(field, "dtype"):
        return field
    digits = str(field)
    return json.loads(digits) if math.isfinite(field) else digits
