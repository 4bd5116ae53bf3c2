"""Local files that are written whole, and by one run at a time."""

import contextlib
import glob
import hashlib
import os
import secrets
import socket
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from kldiv_dask.evaluation.errors import EvaluationWarning

# The most characters of a file's name that those beside it repeat: names end at 255 bytes, and a
# character has up to four.
_REPEATED = 40


def check(path: str | os.PathLike[str], name: str) -> None:
    """Refuse what `write` can't write, before there is anything to write.

    Raises
    ------
    ValueError
        No file can have this name, or its directory does not exist; `name` says whose it is.
    PermissionError
        The directory is not writable.
    """
    _require_posix()
    if os.fspath(path) == "-":
        return
    parent = Path(path).absolute().parent
    try:
        known = _status(path)
    except OSError as error:  # too long, or a loop of links
        raise ValueError(
            f"{name} must be a file, got {os.fspath(path)!r}: {error.strerror}"
        ) from error
    if "://" in os.fspath(path) or not parent.is_dir() or os.path.isdir(path):
        raise ValueError(
            f"{name} must be a file in a local directory that exists, got {os.fspath(path)!r}"
        )
    if (known is None or stat.S_ISREG(known.st_mode)) and not os.access(parent, os.W_OK):
        raise PermissionError(
            f"{name} is {os.fspath(path)!r}, and the directory {parent} is not writable"
        )


def _require_posix() -> None:
    if sys.platform == "win32":
        raise OSError(
            "checkpoints and results are written on Linux and macOS only; on Windows, use WSL"
        )


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file so that under its name there is always a whole one, or none.

    The new file takes the place of the one before, with its permissions; where the name is a link,
    the link stays. What is no regular file, such as a pipe, is written to, and so is the standard
    output of this process, whatever its name. ``-`` is the standard output too.
    """
    _require_posix()
    known = _status(path)
    if os.fspath(path) == "-" or (known is not None and _is_stream(known)):
        _write_on(path, content)
        return
    target = Path(os.path.realpath(path))
    # A name of its own for each writer; a link of that name would not be followed.
    temporary = _beside(target, f"{secrets.token_hex(8)}.part")
    try:
        with _created(temporary) as file:
            if known is not None:
                _permit_as(file, known)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _status(path: str | os.PathLike[str]) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_stream(known: os.stat_result) -> bool:
    """Whether a file is not to be replaced: it is no regular one, or an output of this process."""
    return not stat.S_ISREG(known.st_mode) or any(_is_open_as(known, number) for number in (1, 2))


def _is_open_as(known: os.stat_result, descriptor: int) -> bool:
    """Whether a file is what this process has open under a number; it may have nothing there."""
    try:
        return os.path.samestat(known, os.fstat(descriptor))
    except OSError:
        return False


def is_stdout(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of the standard output: ``-``, ``/dev/stdout``, or where it goes to.

    Examples
    --------
    >>> is_stdout("-"), is_stdout("result.json")
    (True, False)
    """
    known = _status(path)
    return os.fspath(path) == "-" or (known is not None and _is_open_as(known, 1))


def _write_on(path: str | os.PathLike[str], content: bytes) -> None:
    if is_stdout(path):
        sys.stdout.flush()  # what was printed before comes first
        with open(os.dup(sys.stdout.fileno()), "wb") as file:
            file.write(content)
    else:
        with open(path, "ab") as file:
            file.write(content)


def _created(path: Path) -> BinaryIO:
    """Create a file that is not there yet, with the permissions of any new file."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
    return open(os.open(path, flags, 0o666), "wb")


def _permit_as(file: BinaryIO, known: os.stat_result) -> None:
    """Give a new file the permissions of the one before, and its owner if that is allowed."""
    with contextlib.suppress(PermissionError):
        os.fchown(file.fileno(), known.st_uid, known.st_gid)
    os.fchmod(file.fileno(), stat.S_IMODE(known.st_mode))


def _beside(path: Path, ending: str) -> Path:
    """Return a name beside a file that no other file has one like; the digest tells them apart."""
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:8]
    return path.with_name(f".{path.name[:_REPEATED]}.{digest}.{ending}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep all other runs from a file, until the context ends or the process does.

    The lock is on another file beside it, in which who has it is named, and is known to all
    processes that see the same directory. What earlier writers of the file have left behind is
    removed.

    Raises
    ------
    OSError
        Nothing can be written in the directory.
    BlockingIOError
        Another run has the lock.
    """
    import fcntl

    target = Path(os.path.realpath(path))
    lock = _beside(target, "lock")
    with contextlib.ExitStack() as stack:
        while True:
            file = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
            stack.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
                raise BlockingIOError(
                    f"{path} is in use by {holder}; wait until it ends, or name another file"
                ) from error
            except OSError as error:  # a file system without locks
                warnings.warn(
                    f"{path} could not be locked ({error}); no other run may use it meanwhile",
                    EvaluationWarning,
                    stacklevel=4,
                )
            # Whoever had it before has removed it when done, maybe after it was opened here.
            named = _status(lock)
            if named is not None and os.path.samestat(named, os.fstat(file)):
                break
        stack.callback(lock.unlink, missing_ok=True)  # while the lock is held
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(file, 0)
        os.pwrite(
            file, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0
        )
        for left in target.parent.glob(glob.escape(_beside(target, "").name) + "*.part"):
            left.unlink(missing_ok=True)
        yield
