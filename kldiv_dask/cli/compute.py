"""``kldiv-dask compute``: one number."""

import contextlib
import functools
import json
import math
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click

from kldiv_dask.cli.common import (
    BAD_INPUT,
    CLEAR,
    SETTINGS,
    check_cluster,
    cluster,
    cluster_options,
    exit_on_error,
    key_option,
    one_line_errors,
    reading_options,
    say,
)
from kldiv_dask.cli.kinds import KINDS, WAYS, check_kind, open_operands, warn_of_summary
from kldiv_dask.dtypes import RESULTS

if TYPE_CHECKING:
    from distributed import Client

    from kldiv_dask.functional.summary import KLDivSummary, LazySummary
    from kldiv_dask.progress import ProgressUpdate


@click.command(context_settings=SETTINGS)
@click.argument("input")
@click.argument("target")
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="log_probs_and_probs",
    show_default=True,
    help="What both hold: with the first, INPUT log-probabilities and TARGET probabilities. With"
    " logits, what is summed is the KL divergence of their softmax at each position, and mean"
    " divides by the number of positions.",
)
@click.option(
    "--axis", type=int, help="With --kind logits, the axis of the classes.  [default: -1]"
)
@click.option(
    "--temperature",
    type=float,
    help="With --kind logits, what they are divided by.  [default: 1]",
)
@click.option(
    "--where",
    metavar="PATH",
    help="Array of booleans, or of 0 and 1: what to include of the elements, or with --kind"
    " logits of the positions.",
)
@key_option("where")
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
    type=click.Choice(RESULTS),
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
    kind: str,
    scheduler: str | None,
    workers: int | None,
    threads: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print the KL divergence of TARGET from INPUT, in nats.

    INPUT and TARGET hold what --kind says. Each is a .npy, HDF5, safetensors or llama.cpp base
    file, or a Zarr array or group: a directory or an fsspec URL. The workers of a running cluster
    must find them under the same names.

    \b
    Example:
      kldiv-dask compute student.zarr teacher.zarr --reduction batchmean
      kldiv-dask compute student.zarr teacher.zarr --kind logits --where tokens.npy

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
    check_kind(kind, options["zero_safe"], options["axis"], options["temperature"])
    with one_line_errors():
        with exit_on_error(BAD_INPUT):
            operands = open_operands(input, target, kind, **options)
        with cluster(scheduler, workers, threads) as client:
            start = time.perf_counter()
            with _name_worker():
                operands.inspection.warn(WAYS, scheduler=client)
                summary = _run(client, operands.summary, operands.sample)
            operands.inspection.check_unchanged()
            seconds = time.perf_counter() - start
            warn_of_summary(summary, reduction, kind, options["zero_safe"])
    value = getattr(summary, reduction)
    if not as_json:
        click.echo(value)
        return
    fields = {
        "value": value,
        "reduction": reduction,
        **summary._asdict(),
        "kind": kind,
        **options,
        **operands.logits_options,
        "dtype": value.dtype.name,
        "seconds": round(seconds, 3),
        "bytes_read": operands.bytes_read,
        "input": input,
        "target": target,
        "repeated": operands.inspection.repeated,
        "version": version("kldiv-dask"),
    }
    plain = {name: _plain(field) for name, field in fields.items()}
    click.echo(json.dumps(plain, allow_nan=False))


def _run(client: "Client", lazy: "LazySummary", sample: "LazySummary") -> "KLDivSummary":
    """Compute all fields of a summary at once; show a progress bar if stderr is a terminal."""
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
def _name_worker() -> Iterator[None]:
    """Say in errors of reading that they are from a worker."""
    from kldiv_dask.storage import ChunkReadError

    try:
        yield
    except ChunkReadError as error:
        raise OSError(f"on a worker, {error}") from error


def _walk(client: "Client", lazy: "LazySummary") -> "KLDivSummary":
    """Compute a summary of too many pairs of chunks for one graph; show a bar likewise."""
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=lazy.pairs, file=sys.stderr, hidden=hidden) as bar:

        def show(update: "ProgressUpdate") -> None:
            bar.update(update.done - bar.pos)

        return lazy.compute(scheduler=client, progress=show)


def _plain(field: Any) -> Any:
    """Return a NumPy scalar as a number or string for JSON, with the digits of its own type."""
    if not hasattr(field, "dtype"):
        return field
    digits = str(field)
    return json.loads(digits) if math.isfinite(field) else digits
