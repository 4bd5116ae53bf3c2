"""From files to lazily read Dask arrays."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import dask.array as da
import dask.base
import numpy as np

from kldiv_dask.dtypes import OPERANDS
from kldiv_dask.storage import hdf5, llama, npy, safetensors, zarr
from kldiv_dask.storage.chunking import Chunks, NormalizedChunks, chunks_for, plan_chunks
from kldiv_dask.storage.source import Source, is_url, normalize_path
from kldiv_dask.storage.sources import remember
from kldiv_dask.storage.text import printable_errors

PathLike = str | os.PathLike[str]


class Format(Protocol):
    """What a format's module provides."""

    DESCRIPTION: str

    def can_open(self, path: str) -> bool:
        """Whether this format is the one to open `path` with."""

    def open_source(self, path: str, key: str | None) -> Source:
        """Read what is needed to know the array, not the array."""


# In the order in which they are asked: those that go by the name, then those that look inside.
FORMATS: tuple[Format, ...] = (npy, safetensors, zarr, hdf5, llama)


@printable_errors()
def open_array(
    path: PathLike, *, chunks: Chunks = None, key: str | None = None, allow_truncated: bool = False
) -> da.Array:
    """Open a stored array lazily.

    Parameters
    ----------
    path : str or os.PathLike
        What is stored, under a name by which workers find it too:

        - a ``.npy`` file;
        - a ``.safetensors`` file;
        - a Zarr array or group (format 2 or 3): a local directory or any fsspec URL, such as
          ``s3://bucket/scores.zarr``;
        - an HDF5 file, whose name ends in ``.h5``, ``.hdf5`` or ``.he5`` or which begins with the
          signature of HDF5;
        - a base file of llama.cpp, from ``llama-perplexity --save-all-logits``, under any name.
    chunks : int, str, tuple, mapping or None, optional
        Chunks to read. By default about 128 MiB each, or what ``kldiv.chunk-size`` of Dask's
        configuration says (of arrays below 8 GiB less: a 64th, but at least 8 MiB), whole multiples
        of the shards where these fit, else of the stored chunks, leading axes split before the last
        one; a stored chunk that is larger is read whole. In a Fortran-ordered ``.npy`` file
        trailing axes are split first. A size such as ``'64 MiB'`` sets another limit; anything else
        is as in `dask.array.from_array`.
    key : str, optional
        Path of the array within a Zarr group or an HDF5 file, or name of the tensor; where an HDF5
        or ``.safetensors`` file holds only one, it can be left out. Of a base file of llama.cpp,
        ``'log_probs'``, the default: float32 log-probabilities of shape (chunk, row, class), with
        whole rows as stored chunks; ``'labels'``: the token that each row predicts, int32 of shape
        (chunk, row); or ``'tokens'``: all tokens, int32 of shape (chunk, position).
    allow_truncated : bool, optional
        Whether to open a base file of llama.cpp that is shorter than its header says, as after a
        run that was killed, up to its last whole chunk.

    Returns
    -------
    dask.array.Array
        Array of the stored shape and dtype, in native byte order; of float8_e5m2, which Distributed
        can't move, float32. Chunks of ``.npy`` and
        ``.safetensors`` files are read-only views of a map of the file. Opening the same file again
        gives the same keys; writing the file, or Zarr metadata, gives new ones, as long as the time
        of writing is another. Of floating arrays in Zarr and HDF5, what their CF attributes
        ``_FillValue`` and ``missing_value`` say has no value is NaN.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If the format is not recognized, the file is damaged or truncated, `key` does not name an
        array or is needed, its numbers are packed (the CF attributes ``scale_factor`` and
        ``add_offset``, which xarray applies), `chunks` does not suit the shape, or
        `allow_truncated` the format.
    TypeError
        If the dtype is not boolean, integer, real floating point or of strings.
    ImportError
        If a package that the format needs is not installed.
    BlockingIOError
        If another process has an HDF5 file open for writing.
    ChunkReadError
        At compute time, if a chunk can't be read: its file is damaged, or has changed or gone.

    Warns
    -----
    UserWarning
        Stored chunks are more than twice as large as chunks should be.

    Notes
    -----
    A file that is mapped is looked at before each chunk, and by the functions of this package after
    they used it: that it changed is an error. Other functions of Dask may mix old and new contents.
    If it is cut short, or its disk fails, during the use, the system kills the process (SIGBUS).
    Where that may be, set ``kldiv.map-files`` of Dask's configuration to False before opening, or
    ``DASK_KLDIV__MAP_FILES=false`` for a command: chunks are read into memory, and it is an error.

    llama.cpp stores log-probabilities in 16 bits, and none less than 16 nats below the largest of
    its row: what is less likely is raised to that floor. ik_llama.cpp writes the same format with a
    floor of 24 nats, which is better for this purpose: write base files with it where you can.
    Rows are read as they are stored, so they add up to 1 only nearly. `evaluate` therefore computes
    ``sum(p * log(p / q) - p + q)``. Of known rows of 32,000 classes, of whose mass up to 0.36 % was
    raised, mean divergences from 1e-5 on had a root mean square error of 0.6 to 1.4 % (5 % at
    worst, where models differ below the floor), smaller ones of 2 %, and perplexities of 0.02 %. Of
    128,256 classes, with 1.3 % raised, it was 0.9 % from 1e-3 on, 5 % below that, and 0.06 %.
    `kl_div` with ``log_target`` leaves out the excess: it is as good from 1e-3 on (2 % off with
    128,256 classes), misses smaller divergences by 27 % and more, and is negative for models that
    are nearly the same. `kl_div_with_logits` normalizes the rows: its errors are up to twice those
    of `evaluate`, perplexities of such rows are 0.2 to 0.9 % off. With the floor of 24 nats,
    `evaluate` is within 0.7 % from 1e-5 on.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from kldiv_dask.storage import open_array
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = os.path.join(folder, "scores.npy")
    ...     np.save(file, np.arange(6.0).reshape(3, 2))
    ...     scores = open_array(file, chunks=(2, -1))
    ...     scores.chunks, float(scores.sum().compute())
    (((2, 1), (2,)), 15.0)
    """
    (source,) = _open_sources([(path, key)], allow_truncated)
    return _to_dask(source, plan_chunks([source], chunks))


@printable_errors()
def open_pair(
    input: PathLike,
    target: PathLike,
    *,
    chunks: Chunks = None,
    input_key: str | None = None,
    target_key: str | None = None,
    allow_truncated: bool = False,
) -> tuple[da.Array, da.Array]:
    """Open two stored arrays lazily, chunked alike, so that each pair of chunks is one task.

    Parameters
    ----------
    input, target : str or os.PathLike
        As `path` of `open_array`; the formats may differ. The shapes must broadcast. Two base files
        of llama.cpp must be of the same text.
    chunks : int, str, tuple, mapping or None, optional
        As in `open_array`, said of the broadcast shape. By default a common multiple of both
        arrays' stored chunks, of about 128 MiB in the wider dtype; where the least common multiple
        is larger than that, a multiple of the larger stored chunks.
    input_key, target_key : str, optional
        As `key` of `open_array`, for each array.
    allow_truncated : bool, optional
        As in `open_array`, for whichever array is of llama.cpp, or both: then up to the last whole
        chunk of the shorter one.

    Returns
    -------
    input, target : dask.array.Array
        The arrays. Along every axis that both have, other than broadcast ones of length 1, their
        chunks are the same.

    Raises
    ------
    TypeError
        If either dtype is not floating, of 8 (float8_e4m3fn or float8_e5m2) to 64 bits.
    ValueError
        If the shapes do not broadcast, two base files of llama.cpp differ in their tokens or in the
        numbers of their chunks, contexts or classes, or for the reasons in `open_array`.
    FileNotFoundError, ImportError, BlockingIOError, ChunkReadError
        As in `open_array`.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from kldiv_dask.storage import open_pair
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     student, teacher = (os.path.join(folder, f"{name}.npy") for name in ("q", "p"))
    ...     np.save(student, np.zeros((4, 2), "f4"))
    ...     np.save(teacher, np.ones((4, 2), "f8"))
    ...     x, t = open_pair(student, teacher, chunks=(2, -1))
    ...     x.chunks == t.chunks, float((t - x).sum().compute())
    (True, 8.0)
    """
    paths = [(input, input_key), (target, target_key)]
    sources = _open_sources(paths, allow_truncated, ("input_key", "target_key"))
    for source in sources:
        if source.dtype.name not in OPERANDS:
            accepted = ", ".join(OPERANDS)
            raise TypeError(f"{source.name} must be of dtype {accepted}, got {source.dtype}")
    x, t = sources
    if isinstance(x, llama.LogProbsSource) and isinstance(t, llama.LogProbsSource):
        x, t = llama.align(x, t)
    try:
        np.broadcast_shapes(x.shape, t.shape)
    except ValueError as error:
        message = (
            f"the shapes of input, {x.shape} in {x.name}, and target, {t.shape} in {t.name},"
            " do not broadcast"
        )
        if x.shape[:-1] == t.shape[:-1]:
            fewer = min(x.shape[-1], t.shape[-1])
            message += (
                f": they have {x.shape[-1]:,} and {t.shape[-1]:,} classes; if one is padded, open"
                f" it by open_array in Python and cut it: array[..., :{fewer}]"
            )
        raise ValueError(message) from error
    planned = plan_chunks([x, t], chunks)
    return _to_dask(x, planned), _to_dask(t, planned)


def _open_source(path: PathLike, key: str | None) -> Source:
    """Find the format of `path` and open it."""
    path = normalize_path(path)
    if not is_url(path) and not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist")
    for module in FORMATS:
        if module.can_open(path):
            return module.open_source(path, key)
    *descriptions, last = (module.DESCRIPTION for module in FORMATS)
    raise ValueError(
        f"{path} is of no format that can be read; it must be {', '.join(descriptions)} or {last}"
    )


def _open_sources(
    paths: Sequence[tuple[PathLike, str | None]],
    allow_truncated: bool,
    arguments: Sequence[str] = ("key",),
) -> list[Source]:
    """Open paths with keys, given as `arguments`; base files of llama.cpp maybe truncated."""
    of_llama = [allow_truncated and _may_be_truncated(path) for path, _ in paths]
    sources: list[Source] = []
    for (path, key), argument, is_llama in zip(paths, arguments, of_llama, strict=True):
        with key_called(argument):
            sources.append(
                llama.open_source(normalize_path(path), key, allow_truncated=True)
                if is_llama
                else _open_source(path, key)
            )
    if allow_truncated and not any(of_llama):
        names = " and ".join(source.name for source in sources)
        raise ValueError(
            f"allow_truncated=True is for base files of llama.cpp, got {names}; leave it out"
        )
    return sources


def _may_be_truncated(path: PathLike) -> bool:
    return llama.can_open(normalize_path(path))


def open_beside(path: PathLike, *, key: str | None, allow_truncated: bool) -> da.Array:
    """Open an array as `open_array` does; `allow_truncated` is said of this array or of others."""
    return open_array(path, key=key, allow_truncated=allow_truncated and _may_be_truncated(path))


@contextlib.contextmanager
def key_called(argument: str) -> Iterator[None]:
    """Have errors about a ``key`` call it by the name of the argument that it was given as."""
    try:
        yield
    except ValueError as error:
        message = re.sub(r"\bkey=", f"{argument}=", str(error))
        if message == str(error):
            raise
        raise ValueError(message) from error


def _to_dask(source: Source, planned: NormalizedChunks) -> da.Array:
    """Wrap a source, with its part of the planned chunks."""
    chunks = chunks_for(planned, source.shape)
    array = da.from_array(
        source,
        chunks=chunks,
        name=f"kl-div-read-{dask.base.tokenize(source, chunks)}",
        # The handle goes into each read task, so that reads fuse with the work on them.
        inline_array=True,
        # Lists and arrays of positions are applied to chunks that are already in memory.
        fancy=False,
        meta=np.empty((0,) * source.ndim, source.dtype),
    )
    remember(array.name, source)
    return array
