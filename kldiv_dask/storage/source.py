"""The handle every format hands to Dask, and the error of a region that can't be read."""

import importlib
import math
import os
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np

REAL_FLOATS = ("float16", "bfloat16", "float32", "float64")


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
    region [0:64, 0:9] of scores.zarr, key 'teacher', could not be read: RuntimeError: bad data
    """

    def __init__(self, path: str, key: str | None, region: str, reason: str) -> None:
        self.path, self.key, self.region, self.reason = path, key, region, reason
        name = path if key is None else f"{path}, key {key!r},"
        super().__init__(f"region {region} of {name} could not be read: {reason}")

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
    """

    path: str
    key: str | None
    shape: tuple[int, ...]
    stored_dtype: np.dtype[Any]
    stored_chunks: tuple[int, ...]
    order: Literal["C", "F"]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the arrays read: the stored one in native byte order."""
        return self.stored_dtype.newbyteorder("=")

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
        try:
            return np.asarray(self.read(index), dtype=self.dtype)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ChunkReadError(self.path, self.key, self._region(index), reason) from error

    def _region(self, index: tuple[Any, ...]) -> str:
        spans = [
            "{}:{}".format(*i.indices(n)) if isinstance(i, slice) else str(i)
            for i, n in zip(index, self.shape, strict=True)
        ]
        return f"[{', '.join(spans)}]"

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


def is_url(path: str) -> bool:
    """Whether `path` is a URL rather than a local path."""
    return "://" in path


def normalise_path(path: str | os.PathLike[str]) -> str:
    """Spell `path` so that it means the same in every process: absolute, unless it is a URL.

    Parameters
    ----------
    path : str or os.PathLike
        Local path, or a URL; ``file://`` is the local path behind it.

    Returns
    -------
    str
        Absolute local path, or the URL as it was.
    """
    path = os.fspath(path).removeprefix("file://")
    return path if is_url(path) else os.path.abspath(path)


def check_dtype(dtype: np.dtype[Any], path: str) -> None:
    """Refuse what is not boolean, integer or real floating point.

    Parameters
    ----------
    dtype : numpy.dtype
        Type found in the file.
    path : str
        The file, for the message.

    Raises
    ------
    TypeError
        If arrays of this type can't be opened.
    """
    if dtype.kind not in "biuf" and dtype.name not in REAL_FLOATS:
        hint = ""
        if dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None:
            hint = " (bfloat16 loses its name in this format: save it as float32)"
        raise TypeError(
            f"{path} has dtype {dtype}{hint}; boolean, integer and real floating arrays can be read"
        )


def require(module: str, extra: str) -> Any:
    """Import an optional package where it is used.

    Parameters
    ----------
    module : str
        Name of the package.
    extra : str
        Extra of this distribution that installs it.

    Returns
    -------
    module
        The imported package.

    Raises
    ------
    ImportError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'this file needs the package {module}: pip install "kldiv-dask[{extra}]"'
        ) from error
