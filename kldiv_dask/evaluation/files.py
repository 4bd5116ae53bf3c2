"""Local files that are replaced in one step, and locked by one run at a time."""

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

# How many characters of a file's name are repeated in the names of its lock and its temporary file.
# A name has at most 255 bytes, and a character up to four.
_REPEATED = 40


def check(path: str | os.PathLike[str], name: str) -> None:
    """Refuse a path that `write` can't write to.

    Raises
    ------
    ValueError
        No file can have this name, or its directory does not exist; `name` is that of the argument.
    PermissionError
        The directory is not writable.
    """
    _require_posix()
    if os.fspath(path) == "-":
        return
    parent = Path(path).absolute().parent
    try:
        status = _status(path)
    except OSError as error:  # too long, or a loop of links
        raise ValueError(
            f"{name} must be a file, got {os.fspath(path)!r}: {error.strerror}"
        ) from error
    if "://" in os.fspath(path) or not parent.is_dir() or os.path.isdir(path):
        raise ValueError(
            f"{name} must be a file in a local directory that exists, got {os.fspath(path)!r}"
        )
    if (status is None or stat.S_ISREG(status.st_mode)) and not os.access(parent, os.W_OK):
        raise PermissionError(
            f"{name} is {os.fspath(path)!r}, and the directory {parent} is not writable"
        )


def _require_posix() -> None:
    if sys.platform == "win32":
        raise OSError(
            "checkpoints and results are written on Linux and macOS only; on Windows, use WSL"
        )


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file in one step, so that there is never a part of one under its name.

    The new file replaces the one before and has its permissions. A link is followed. A file that is
    not regular, such as a pipe, is appended to, and so is the standard output of this process,
    whatever its name. ``-`` is the standard output too.
    """
    _require_posix()
    status = _status(path)
    if os.fspath(path) == "-" or (status is not None and _is_stream(status)):
        _write_on(path, content)
        return
    target = Path(os.path.realpath(path))
    # A name of its own for each writer; a link of that name would not be followed.
    temporary = _beside(target, f"{secrets.token_hex(8)}.part")
    try:
        with _created(temporary) as file:
            if status is not None:
                _copy_permissions(file, status)
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


def _is_stream(status: os.stat_result) -> bool:
    """Whether to append to a file: it is not regular, or an output of this process."""
    return not stat.S_ISREG(status.st_mode) or any(_is_open_as(status, number) for number in (1, 2))


def _is_open_as(status: os.stat_result, descriptor: int) -> bool:
    """Whether this process has a file open under a descriptor, which may be closed."""
    try:
        return os.path.samestat(status, os.fstat(descriptor))
    except OSError:
        return False


def is_stdout(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the standard output: ``-``, ``/dev/stdout``, or the file it goes to.

    Examples
    --------
    >>> is_stdout("-"), is_stdout("result.json")
    (True, False)
    """
    status = _status(path)
    return os.fspath(path) == "-" or (status is not None and _is_open_as(status, 1))


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


def _copy_permissions(file: BinaryIO, status: os.stat_result) -> None:
    """Give a file the permissions of another, and its owner if that is allowed."""
    with contextlib.suppress(PermissionError):
        os.fchown(file.fileno(), status.st_uid, status.st_gid)
    os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))


def _beside(path: Path, ending: str) -> Path:
    """Return a path in the same directory, with a digest of the name that makes it unique."""
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:8]
    return path.with_name(f".{path.name[:_REPEATED]}.{digest}.{ending}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file against other runs until the context, or the process, ends.

    The lock is on another file in the same directory, which names the process that has it. It
    holds for all processes that see this directory. Temporary files of earlier writers are removed.

    Raises
    ------
    OSError
        The directory is not writable.
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
            # The run before removes its lock at the end, maybe after it was opened here.
            named = _status(lock)
            if named is not None and os.path.samestat(named, os.fstat(file)):
                break
        stack.callback(lock.unlink, missing_ok=True)  # while the lock is held
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(file, 0)
        os.pwrite(
            file, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0
        )
        for temporary in target.parent.glob(glob.escape(_beside(target, "").name) + "*.part"):
            temporary.unlink(missing_ok=True)
        yield
