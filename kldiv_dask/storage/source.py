"""The handle every format hands to Dask, and the error of a region that can't be read."""

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Literal

import numpy as np

from kldiv_dask import config
from kldiv_dask.dtypes import TABLE, dtype_read
from kldiv_dask.storage.contents import Contents, in_utc
from kldiv_dask.storage.text import printable

# Both ways of copying keep times to the nanosecond.
_COPIES = (
    "; open it anew if that is meant; copies of it on several machines must keep their times"
    " (cp -p, rsync -t)"
)

_STORED_CHUNKS_AT_ONCE = 10_000


class ChunkReadError(OSError):
    """A region of a stored array could not be read.

    Parameters
    ----------
    path : str
        File, directory or URL.
    key : str or None
        Name of the array inside `path`, where the format has such names.
    region : str
        The region, as one would index the array: ``"[0:64, 0:1000]"``.
    reason : str
        The original error, which is also the ``__cause__`` in the process that met it.

    Examples
    --------
    >>> from kldiv_dask.storage import ChunkReadError
    >>> print(ChunkReadError("scores.zarr", "teacher", "[0:64, 0:9]", "RuntimeError: bad data"))
    scores.zarr:teacher [0:64, 0:9] could not be read: RuntimeError: bad data
    """

    def __init__(self, path: str, key: str | None, region: str, reason: str) -> None:
        self.path, self.key, self.region, self.reason = path, key, region, reason
        message = f"{display_name(path, key)} {region} could not be read: {printable(reason)}"
        super().__init__(message)

    # OSError would be rebuilt from its one message; an error must survive the trip from a worker.
    def __reduce__(self) -> tuple[type["ChunkReadError"], tuple[str, str | None, str, str]]:
        return type(self), (self.path, self.key, self.region, self.reason)


@dataclass(frozen=True, slots=True)
class Source(ABC):
    """Where an array is stored and how it is laid out; nothing is open and nothing is read.

    A source is what travels in a task graph, once a chunk, so it pickles in a few hundred bytes.
    Formats subclass it with the fields they need to read a region, among them whatever tells one
    content of the file from another, since the fields make up the Dask token.

    Parameters
    ----------
    path : str
        Absolute local path, or a URL.
    key : str or None
        Name of the array inside `path`.
    shape : tuple of int
        Shape of the array.
    stored_dtype : numpy.dtype
        Type in the file, in the file's byte order.
    stored_chunks : tuple of int
        The smallest region that is read whole: 1 along every axis if any region will do.
    order : {'C', 'F'}
        Whether the last or the first axis is the contiguous one.
    missing_values : tuple of float, optional
        What stands for elements without a value, and is read as NaN.
    """

    path: str
    key: str | None
    shape: tuple[int, ...]
    stored_dtype: np.dtype[Any]
    stored_chunks: tuple[int, ...]
    order: Literal["C", "F"]
    missing_values: tuple[float, ...] = field(default=(), kw_only=True)

    @property
    def read_units(self) -> tuple[tuple[int, ...], ...]:
        """Regions that chunks should be whole multiples of, the best first."""
        return (self.stored_chunks,)

    @property
    def most_elements(self) -> int:
        """How many elements to read at a time, at most.

        Libraries keep notes on each stored chunk of a read, which outgrow tiny chunks.
        """
        return _STORED_CHUNKS_AT_ONCE * math.prod(self.read_units[-1])

    @property
    def name(self) -> str:
        """Path and key, for messages."""
        return display_name(self.path, self.key)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the arrays read: the stored one in native byte order; of float8_e5m2, float32.

        Strings of any length are read as those of NumPy, as long as the longest of what is read.
        """
        if self.stored_dtype.kind in "OT":
            return np.dtype(str)
        return dtype_read(self.stored_dtype).newbyteorder("=")

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the whole array in memory, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return type(self).__qualname__, *astuple(self)

    def __getitem__(self, index: Any) -> np.ndarray[Any, np.dtype[Any]]:
        index = index if isinstance(index, tuple) else (index,)
        index += (slice(None),) * (self.ndim - len(index))
        delays = iter(config.delays("retry-delays"))
        while True:
            try:
                return self._masked(np.asarray(self.read(index), dtype=self.dtype))
            except Exception as error:
                pause = next(delays, None) if self._may_pass(error) else None
                if pause is None:
                    raise self._unreadable(index, error) from error
            time.sleep(pause)

    def _masked(self, values: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
        """Put NaN in place of the values that stand for none."""
        for missing in self.missing_values:
            is_missing = values == self.dtype.type(missing)
            if is_missing.any():
                values = np.require(values, requirements="W")  # a copy of what is a map
                values[is_missing] = np.nan
        return values

    def _may_pass(self, error: Exception) -> bool:
        """Whether another attempt may succeed where one ended in this error.

        What is not there, or not to be read, stays so. Of local files, all other errors of the
        system may pass. Clients of servers have errors of their own, and damage may have been done
        on the way.
        """
        if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            return False
        return isinstance(error, OSError) or is_url(self.path)

    def _unreadable(self, index: tuple[Any, ...], error: Exception) -> ChunkReadError:
        region = ", ".join(f"{start}:{stop}" for start, stop in spans(index, self.shape))
        reason = f"{type(error).__name__}: {error}"
        return ChunkReadError(self.path, self.key, f"[{region}]", reason)

    @abstractmethod
    def read(self, index: tuple[Any, ...]) -> Any:
        """Read a region.

        Parameters
        ----------
        index : tuple of slice or int
            One entry an axis.

        Returns
        -------
        array_like
            The region, in any byte order.
        """

    def contents(self) -> Contents:
        """Look at the files of the array, as they are now.

        Returns
        -------
        Contents
            What tells its contents from others, and which stored chunks were never written.

        Raises
        ------
        OSError
            If a file is not there, or not to be looked at.
        ValueError
            If a stored chunk is no file, or the file is damaged.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must say how to look at its files")


def spans(index: tuple[Any, ...], shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Give the first and one past the last position of a forward basic index on each axis."""
    return [
        i.indices(n)[:2] if isinstance(i, slice) else (i, i + 1)
        for i, n in zip(index, shape, strict=True)
    ]


def display_name(path: str, key: str | None) -> str:
    r"""Name an array in a message: its path, and its key after a colon.

    Examples
    --------
    >>> print(display_name("scores.h5", "red\x1b[31m"))
    scores.h5:red\x1b[31m
    """
    return printable(path if key is None else f"{path}:{key}")


def check_shape(shape: Sequence[int], dtype: np.dtype[Any], name: str) -> None:
    """Raise ValueError, naming the array, unless an array of this shape can be."""
    # NumPy leaves axes of length 0 out of account too.
    if min(shape, default=0) < 0 or math.prod(n or 1 for n in shape) * dtype.itemsize >= 2**63:
        raise ValueError(
            f"{name} must have lengths from 0 on and less than 2**63 bytes, got the shape"
            f" {tuple(shape)} of {dtype}: its metadata are damaged"
        )


def is_url(path: str) -> bool:
    """Whether `path` is a URL rather than a local path."""
    return "://" in path


def require_local(path: str, kind: str) -> None:
    """Raise ValueError, naming the kind of file, if `path` is a URL."""
    if is_url(path):
        raise ValueError(f"{path} is a URL; {kind} is mapped into memory, so it must be local")


def magic_bytes(path: str) -> bytes:
    """Read the first 8 bytes of a local file; nothing of what is no file."""
    if not os.path.isfile(path):
        return b""
    with open(path, "rb") as file:
        return file.read(8)


def check_unchanged(status: os.stat_result, size: int, mtime_ns: int) -> None:
    """Raise ValueError if a file is not what it was when it was opened."""
    if status.st_size != size:
        raise ValueError(
            f"the file has {status.st_size} bytes, it had {size} when it was opened{_COPIES}"
        )
    if status.st_mtime_ns != mtime_ns:
        raise ValueError(
            f"the file was written at {in_utc(status.st_mtime_ns)},"
            f" before it was opened it was at {in_utc(mtime_ns)}{_COPIES}"
        )


def name_some(names: Sequence[str]) -> str:
    """List the keys that could have been meant, up to ten of them, as the end of a message."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"pass key=, one of {', '.join(map(repr, names[:10]))}{more}"


def normalize_path(path: str | os.PathLike[str]) -> str:
    """Spell `path` alike for every process: absolute, and without ``file://``, or else a URL."""
    path = os.fspath(path).removeprefix("file://")
    return path if is_url(path) else os.path.abspath(path)


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Raise TypeError, naming the array, unless `dtype` is of numbers, booleans or strings."""
    if dtype.kind in "biufSUT" or dtype.name in TABLE:
        return
    # What NumPy's own format makes of the types of ml_dtypes.
    others = (row for row in TABLE.values() if not row.in_numpy and row.bits == 8 * dtype.itemsize)
    lost = next(others, None) if dtype.kind == "V" and dtype.names is None else None
    hint = f" ({lost.name} loses its name in this format: save it as float32)" if lost else ""
    raise TypeError(
        f"{name} has dtype {dtype}{hint}; boolean, integer, real floating and string arrays can be"
        " read"
    )
