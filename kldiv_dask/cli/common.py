"""What all commands share: options, a cluster, and how they fail, stop and warn."""

import contextlib
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kldiv_dask.cli.cluster import SIGNALS, connect, handled_by

if TYPE_CHECKING:
    from distributed import Client

# Exit codes of a computation that failed, and of one that never began.
FAILED, BAD_INPUT = 1, 2

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

# What clears the line of a terminal that a progress bar was on.
CLEAR = "\r\33[2K"


def key_option(argument: str, addition: str = "") -> Callable[[Any], Any]:
    """Return the option for the name of an array in its file."""
    help = f"Name of the array in a file or group of many{addition}."
    return click.option(f"--{argument}-key", metavar="KEY", help=help)


_READING = (
    key_option("input"),
    key_option("target"),
    click.option(
        "--chunks",
        metavar="SIZE",
        help="What to read at a time: a size ('64 MiB') or a length for each axis ('1000,-1').  "
        "[default: 8 to 128 MiB, by the size of the arrays, in whole stored chunks]",
    ),
    click.option(
        "--allow-truncated",
        is_flag=True,
        help="Read a base file of llama.cpp that was cut short, up to its last whole chunk.",
    ),
)

# How messages of the library name arguments, and the options that these are in the command.
_FLAGS = (
    (re.compile(r"\bresume=False\b"), "--no-resume"),
    (re.compile(r"\bresume='adopt'"), "--adopt"),
    (re.compile(r"\ballow_truncated=True\b"), "--allow-truncated"),
)
_NAMES = (
    r"(kind|axis|temperature|where|groups|labels|cluster_axis|dtype|chunks|checkpoint|on_error"
    r"|reduction|(?:input|target|where|groups|labels)_key)"
)
_ARGUMENT_VALUE = re.compile(rf"\b{_NAMES}=('[^']*'|\([^)]*\)|[^\s;:,)]*)")
_SUBJECT = re.compile(rf"^{_NAMES}(?=:| (?:is|are|must|has|have|of|does|was|were)\b)")
_OPERAND = re.compile(r"(?:^|(?<=^the dtype of ))(input|target)(?= (?:is|must|has|have|of|was)\b)")

_CLUSTER = (
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Running cluster to use, as tcp://host:8786, or tls://host:8786 with the certificates"
        " of Dask's configuration.",
    ),
    click.option(
        "--workers",
        metavar="N",
        type=click.IntRange(min=1),
        help="Processes to start instead.  [default: one for every 4 CPUs]",
    ),
    click.option(
        "--threads",
        metavar="N",
        type=click.IntRange(min=1),
        help="Threads in each process.  [default: together as many as there are CPUs]",
    ),
)


def reading_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for reading the two arrays."""
    return _with_options(_READING, command)


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `cluster`."""
    return _with_options(_CLUSTER, command)


def _with_options(options: Any, command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(options):  # as decorators are applied
        command = option(command)
    return command


def parse_chunks(text: str | None) -> Any:
    """Read ``1000,-1`` as a tuple of lengths and ``1000`` as a length; leave sizes as they are."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    chunks = [int(part) if part.removeprefix("-").isdecimal() else part for part in parts]
    return chunks[0] if len(chunks) == 1 else tuple(chunks)


def in_options(message: str) -> str:
    """Replace the arguments in a message of the library by the options of the command.

    Examples
    --------
    >>> in_options("if so, pass kind='probs'")
    'if so, pass --kind probs'
    >>> in_options("cluster_axis must be an integer, got 1.5")
    '--cluster-axis must be an integer, got 1.5'
    """
    for argument, option in _FLAGS:
        message = argument.sub(option, message)
    message = _ARGUMENT_VALUE.sub(
        lambda m: f"{_option(m[1])} {m[2].strip(_QUOTES)}".rstrip(), message
    )
    message = _SUBJECT.sub(lambda m: _option(m[1]), message)
    return _OPERAND.sub(lambda m: m[1].upper(), message)


_QUOTES = "'\""


def _option(argument: str) -> str:
    return "--" + argument.replace("_", "-")


def say(doing: str) -> None:
    """Show what the command does, on the line that its progress will replace."""
    if sys.stderr.isatty():
        click.echo(f"{CLEAR}{doing} ...", nl=False, err=True)


def check_cluster(scheduler: str | None, workers: int | None, threads: int | None) -> None:
    """Refuse options that contradict each other."""
    if scheduler and (workers or threads):
        raise click.UsageError(
            "--scheduler uses a running cluster; --workers and --threads are for one started here"
        )


@contextlib.contextmanager
def cluster(scheduler: str | None, workers: int | None, threads: int | None) -> Iterator["Client"]:
    """Connect to a running cluster, or to one that is started for the time of the context."""
    with contextlib.ExitStack() as stack:
        if scheduler:
            say("connecting to the cluster")
            with exit_on_error(BAD_INPUT, f"--scheduler {scheduler}: "):
                client = stack.enter_context(connect(scheduler))
        else:
            say("starting a cluster")
            with exit_on_error(FAILED, "no cluster could be started: "):
                client = stack.enter_context(connect(workers=workers, threads=threads))
        for number in SIGNALS:  # on the way out; a second one would cut the cleaning up short
            stack.callback(signal.signal, number, signal.SIG_IGN)
        yield client


@contextlib.contextmanager
def one_line_errors(hint: Callable[[], str] = str) -> Iterator[None]:
    """Write each error, stop and warning in one line, and end with the exit code for it.

    The line of an error or a stop ends with what `hint` returns then.
    """
    with exit_on_error(FAILED, hint=hint), _stoppable(hint), warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        yield


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning in one line, without the place in the code that it arose at."""
    click.echo(f"{_clear_line()}warning: {_in_one_line(message)}", err=True)


def _clear_line() -> str:
    """Return what clears the line that something may be on that is no message."""
    return CLEAR if sys.stderr.isatty() else ""


def _in_one_line(message: object) -> str:
    """Write a message in one line, in the words of the command, as a terminal may show it."""
    from kldiv_dask.storage.text import printable

    return printable(in_options(" ".join(str(message).split())))


@contextlib.contextmanager
def exit_on_error(
    exit_code: int,
    where: str = "",
    errors: tuple[type[Exception], ...] = (Exception,),
    hint: Callable[[], str] = str,
) -> Iterator[None]:
    """Turn an exception into a line of text and an exit code."""
    try:
        yield
    except errors as error:
        # The names of everyday exceptions, and of ours, say nothing that their messages don't.
        is_everyday = isinstance(error, ValueError | TypeError | OSError | ImportError)
        is_everyday |= type(error).__module__.startswith("kldiv_dask.")
        kind = "" if is_everyday and str(error) else f"{type(error).__name__}: "
        _exit(f"{where}{kind}{error}{hint()}", exit_code)


@contextlib.contextmanager
def _stoppable(hint: Callable[[], str]) -> Iterator[None]:
    """Let a signal unwind the stack, so that no process and no file is left behind."""
    received = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        say("stopping")  # it may take seconds until all processes have ended
        raise KeyboardInterrupt

    with handled_by(stop):
        try:
            yield
        except KeyboardInterrupt:
            number = received[0]
            _exit(f"stopped by {signal.Signals(number).name}{hint()}", 128 + number)


def _exit(message: str, exit_code: int) -> NoReturn:
    """End the command with one line on stderr."""
    click.echo(f"{_clear_line()}Error: {_in_one_line(message)}", err=True)
    raise SystemExit(exit_code)
