"""``kldiv-dask evaluate``: every statistic, from one pass that can be taken up where it ended."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Mapping
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
    in_options,
    key_option,
    one_line_errors,
    parse_chunks,
    reading_options,
    say,
)

if TYPE_CHECKING:
    from distributed import Client

    from kldiv_dask.evaluation import Evaluation
    from kldiv_dask.evaluation.request import Request

BY_POSITION = "where", "groups", "labels"


@click.command(context_settings=SETTINGS)
@click.argument("input")
@click.argument("target")
@click.option(
    "--kind",
    type=click.Choice(["logits", "log_probs", "probs", "log_probs_and_probs"]),
    help="What both hold; with the last, INPUT log-probabilities and TARGET probabilities.  "
    "[default: log_probs for base files of llama.cpp, else logits]",
)
@click.option("--axis", type=int, default=-1, show_default=True, help="The axis of the classes.")
@click.option(
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    help="What logits are divided by.",
)
@click.option(
    "--where", metavar="PATH", help="Array of booleans, or of 0 and 1: which positions to include."
)
@click.option(
    "--groups", metavar="PATH", help="Array of integers or strings: the group of each position."
)
@click.option(
    "--labels",
    metavar="PATH",
    help="Array of integers: the class that is right at each position, or -100 for none.",
)
@click.option(
    "--cluster-axis",
    metavar="N",
    type=int,
    default=0,
    show_default=True,
    help="The axis of the positions along which independent sequences are counted.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float64"]),
    help="Compute in float64; by default only float64 data are.",
)
@reading_options
@key_option("where")
@key_option("groups")
@key_option("labels", "; 'labels' in a base file of llama.cpp")
@click.option(
    "--checkpoint",
    metavar="PATH",
    help="Local file to save to now and then, and to go on from if it is there.",
)
@click.option(
    "--checkpoint-interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="How often to save.  [default: 60, or kldiv.evaluate.checkpoint-interval of Dask]",
)
@click.option("--no-resume", is_flag=True, help="Start over, in the place of the checkpoint.")
@click.option(
    "--adopt",
    is_flag=True,
    help="Go on from a checkpoint whose data were moved, copied or touched since; some of what was"
    " done is read again and compared first.",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="End at chunks that can't be read, after saving; or leave them out, with a warning.",
)
@click.option("--html", metavar="PATH", help="Write a page with charts; needs matplotlib.")
@click.option(
    "--json",
    metavar="PATH",
    help="Write all numbers as JSON; to - for the standard output, in place of what is printed.",
)
@click.option("--save", metavar="PATH", help="Write what kldiv_dask.Evaluation.load reads.")
@cluster_options
def evaluate(
    input: str,
    target: str,
    html: str | None,
    json: str | None,
    save: str | None,
    scheduler: str | None,
    workers: int | None,
    threads: int | None,
    no_resume: bool,
    adopt: bool,
    **options: Any,
) -> None:
    """Print how the KL divergence of TARGET from INPUT is distributed over positions.

    Mean and confidence interval, quantiles, agreement of the top class, the worst positions and
    groups, what labels tell, and what may be wrong with the data: all from one pass. INPUT and
    TARGET are as in `kldiv-dask compute`. The workers of a running cluster must find all arrays
    under the same names; checkpoints and results are files of this machine.

    \b
    Example:
      kldiv-dask evaluate student.zarr teacher.zarr --checkpoint run.ckpt --html report.html

    \b
    Exit codes:
      0    the result has been printed, and written
      1    the evaluation failed; with --checkpoint, what was done is kept
      2    bad arguments, files or scheduler; nothing was computed
      130  stopped by Ctrl-C (143: by SIGTERM); with --checkpoint, the same command goes on
    """  # noqa: D301 - click wants a real backspace there
    check_cluster(scheduler, workers, threads)
    if adopt and no_resume:
        raise click.UsageError("--adopt goes on from the checkpoint, --no-resume does not")
    resume = "adopt" if adopt else not no_resume
    options |= {"chunks": parse_chunks(options["chunks"]), "resume": resume}
    with one_line_errors(_hint(options["checkpoint"], no_resume)):
        with exit_on_error(BAD_INPUT):
            read = {"INPUT": input, "TARGET": target}
            read |= {
                f"--{name}": options[name] for name in BY_POSITION if options[name] is not None
            }
            written = {"--html": html, "--json": json, "--save": save}
            _check_paths(read, written | {"--checkpoint": options["checkpoint"]})
            if html is not None:
                from kldiv_dask.report import plots

                plots.require_matplotlib()
            from kldiv_dask.evaluation.request import Request

            request = Request(input=input, target=target, **options)
        with cluster(scheduler, workers, threads) as client:
            result = _run(client, request)
        _output(result, written)


def _check_paths(read: Mapping[str, str], written: Mapping[str, str | None]) -> None:
    """Refuse files that can't be written, or that are named twice."""
    from kldiv_dask.evaluation import files

    names = {os.path.realpath(path): name for name, path in read.items()}
    for name, path in written.items():
        if path is None:
            continue
        if name == "--checkpoint" and files.is_stdout(path):
            raise ValueError(f"{name} must be a file, got {path}, which is the standard output")
        files.check(path, name)
        same = "-" if files.is_stdout(path) else os.path.realpath(path)
        other = names.setdefault(same, name)
        if other != name:
            raise ValueError(f"{name} is {path}, which is {other} too")


def _run(client: "Client", request: "Request") -> "Evaluation":
    """Evaluate; show a line of progress if stderr is a terminal."""
    import dask

    from kldiv_dask.cli.warmup import warm

    is_terminal = sys.stderr.isatty()
    with contextlib.ExitStack() as stack:
        # No slab raises these, so they are about the arguments.
        about = (ValueError, TypeError, ImportError, BlockingIOError)
        stack.enter_context(exit_on_error(BAD_INPUT, errors=about))
        if is_terminal:
            stack.callback(click.echo, CLEAR, nl=False, err=True)
        say("compiling the kernels on the workers, unless they are stored from an earlier run")
        work = functools.partial(dask.compute, request.sample(), scheduler="synchronous")
        stack.enter_context(warm(client, work))
        return request.run(progress=is_terminal, scheduler=client)


def _output(result: "Evaluation", written: Mapping[str, str | None]) -> None:
    """Write a result to files and print it; raise an error at the end if a file was not written."""
    from kldiv_dask.evaluation import files

    ways: dict[str, Callable[[str], Any]] = {
        "--save": result.save,
        "--json": result.to_json,
        "--html": result.to_html,
    }
    failed, printed = [], True
    for name, write in ways.items():
        path = written[name]
        if path is None:
            continue
        printed = printed and not files.is_stdout(path)
        try:
            write(path)
        except Exception as error:
            failed.append(f"{name} {path} could not be written: {error}")
            printed = True
    if printed:
        # What a terminal can't show must not cost the result.
        encoding = sys.stdout.encoding or "utf-8"
        click.echo(in_options(str(result)).encode(encoding, "replace").decode(encoding))
    if failed:
        raise OSError("; ".join(failed))


def _hint(checkpoint: str | None, no_resume: bool) -> Callable[[], str]:
    """Return a function that says how to resume, if this run wrote its checkpoint."""

    def written() -> int | None:
        with contextlib.suppress(OSError):
            return os.stat(checkpoint).st_mtime_ns if checkpoint else None
        return None

    before = written()

    def hint() -> str:
        if written() == before:
            return ""
        again = " without --no-resume" if no_resume else ""
        return f"; run the same command again{again} to go on from {checkpoint}"

    return hint
