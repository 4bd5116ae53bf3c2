"""Datasets of HDF5 files."""

import importlib
import itertools
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from kldiv_dask import config
from kldiv_dask.extras import require
from kldiv_dask.storage.attributes import NAMES, missing_values, refuse_packed
from kldiv_dask.storage.contents import (
    Contents,
    Region,
    contents_of,
    grid,
    region,
    seen_file,
)
from kldiv_dask.storage.source import (
    Source,
    check_dtype,
    check_shape,
    check_unchanged,
    display_name,
    magic_bytes,
    name_some,
)
from kldiv_dask.storage.text import printable_errors

DESCRIPTION = "an HDF5 file"

_SUFFIXES = (".h5", ".hdf5", ".he5")
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Hdf5Source(Source):
    """A dataset of an HDF5 file.

    Parameters
    ----------
    size : int
        Size of the file when it was opened, in bytes.
    mtime_ns : int
        When the file was last written, in nanoseconds since the epoch.
    is_chunked : bool
        Whether there are stored chunks.
    """

    size: int
    mtime_ns: int
    is_chunked: bool

    @property
    def most_elements(self) -> int:
        """No bound where there are no stored chunks; see `Source.most_elements`."""
        # slots=True replaces the class, which super() without arguments would look for.
        return super(Hdf5Source, self).most_elements if self.is_chunked else sys.maxsize

    def read(self, index: tuple[Any, ...]) -> Any:
        """Open the file, read and decode a region, and close the file; see `Source.read`.

        Opening takes 0.4 ms. A file that stayed open would keep its lock, and could not be written
        anew for as long as the process runs.
        """
        check_unchanged(os.stat(self.path), self.size, self.mtime_ns)
        with _opened(self.path) as file:
            dataset = file[self.key]
            _require_filters(dataset, self.name)
            return (dataset.asstr() if self.stored_dtype.kind == "O" else dataset)[index]

    @printable_errors()
    def contents(self) -> Contents:
        """Look at the file and at the index of stored chunks in it; see `Source.contents`."""
        seen = seen_file(os.path.basename(self.path), os.stat(self.path))
        most = config.count("files-checked")
        with _opened(self.path) as file:
            dataset = file[self.key]
            missing = list(itertools.islice(_unwritten(dataset), most))
            fill = float(dataset.fillvalue) if dataset.dtype.kind in "biuf" else 0.0
        if fill in self.missing_values:
            fill = math.nan
        return contents_of(self, [seen], missing=missing, fill=fill)


def _unwritten(dataset: Any) -> Iterator[Region]:
    """Give the positions of the stored chunks of a dataset that were never written.

    A dataset that is not chunked gets its place in the file when some of it is written. One that
    is small lies beside its name, from the beginning.
    """
    h5d = require("h5py", "hdf5", dataset.file.filename).h5d
    if not dataset.size:
        return
    if dataset.chunks is None:
        contiguous = dataset.id.get_create_plist().get_layout() == h5d.CONTIGUOUS
        if contiguous and dataset.id.get_offset() is None:
            yield tuple((0, n) for n in dataset.shape)
        return
    counts = grid(dataset.shape, dataset.chunks)
    total = math.prod(counts)
    if dataset.id.get_num_chunks() == total:
        return
    starts = np.array(_starts(dataset.id), np.int64).reshape(-1, dataset.ndim)
    written = np.sort(np.ravel_multi_index(tuple((starts // dataset.chunks).T), counts))
    # There may be many more chunks than there is memory, so what lies between the written ones is
    # counted through.
    before = np.concatenate(([-1], written))
    after = np.concatenate((written, [total]))
    gaps = after - before > 1
    for last, following in zip(before[gaps].tolist(), after[gaps].tolist(), strict=True):
        for flat in range(last + 1, following):
            number = [int(i) for i in np.unravel_index(flat, counts)]
            yield region(number, dataset.chunks, dataset.shape)


def _starts(dataset: Any) -> list[tuple[int, ...]]:
    """List where the stored chunks of a dataset begin that are in the file."""
    starts: list[tuple[int, ...]] = []
    if hasattr(dataset, "chunk_iter"):  # from HDF5 1.12.3 on
        dataset.chunk_iter(lambda chunk: starts.append(chunk.chunk_offset))
        return starts
    numbers = range(dataset.get_num_chunks())
    return [dataset.get_chunk_info(number).chunk_offset for number in numbers]


# Registered with the HDF Group, where files do not say it themselves.
_FILTERS = {
    4: "szip",
    307: "bzip2",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
}


def _require_filters(dataset: Any, name: str) -> None:
    """Raise ImportError unless the filters of a dataset are there, in the package hdf5plugin too.

    To import it registers what it has, in each process that reads.
    """
    filters = dataset.id.get_create_plist()
    is_available = require("h5py", "hdf5", dataset.file.filename).h5z.filter_avail
    codes = [filters.get_filter(number)[0] for number in range(filters.get_nfilters())]
    if all(map(is_available, codes)):
        return
    try:
        importlib.import_module("hdf5plugin")
    except ImportError:
        has_plugins = False
    else:
        has_plugins = True
    for code in codes:
        if not is_available(code):
            spelled = f"{code} ({_FILTERS[code]})" if code in _FILTERS else str(code)
            hint = (
                "which the package hdf5plugin lacks: put its library into a folder that"
                " HDF5_PLUGIN_PATH names"
                if has_plugins
                else "which is not installed: pip install hdf5plugin"
            )
            raise ImportError(
                f"{name} needs the HDF5 filter {spelled} to be read, {hint}, wherever it is read,"
                " or write the file again with gzip (h5repack -f GZIP=4)"
            )


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a file for as long as it takes to read from it."""
    h5py = require("h5py", "hdf5", path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{path} is locked: another process has it open for writing, and must close it first"
        ) from error
    except (KeyError, OSError, RuntimeError) as error:
        # Errors of the system have a number, and may pass. The others are about the contents.
        if getattr(error, "errno", None) is not None:
            raise
        raise ValueError(f"{path} is damaged or no HDF5 file: {error}") from error


def can_open(path: str) -> bool:
    """Whether `path` ends as the names of HDF5 files do, or begins with their signature."""
    return path.lower().endswith(_SUFFIXES) or magic_bytes(path) == _SIGNATURE


def open_source(path: str, key: str | None) -> Hdf5Source:
    """Find a dataset and read what describes it.

    Parameters
    ----------
    path : str
        Absolute local path.
    key : str or None
        Path of the dataset within the file; it can be left out if there is only one.

    Returns
    -------
    Hdf5Source
        The handle of the dataset.

    Raises
    ------
    ValueError
        If `key` does not name a dataset, there is none or a choice of them without a key, its
        data are in other files or packed, or the file is damaged or truncated.
    TypeError
        If the data type can't be read.
    BlockingIOError
        If another process has the file open for writing.
    ImportError
        If h5py, or a filter that the data went through, is not installed.
    """
    status = os.stat(path)
    with _opened(path) as file:
        key = (key or "").strip("/") or _only_key(file, path)
        name = display_name(path, key)
        dataset = file.get(key)
        if not hasattr(dataset, "shape"):
            what = "does not exist" if dataset is None else "is not a dataset"
            raise ValueError(f"{name} {what}; {_contents(_keys(file))}")
        if dataset.shape is None:
            raise ValueError(f"{name} has a type but neither a shape nor elements")
        if dataset.is_virtual or dataset.external or dataset.file.filename != file.filename:
            # What is missing there would be read as fill values, and rewriting it goes unnoticed.
            raise ValueError(f"{name} has its data in other files; open those instead")
        attributes = {
            attribute: dataset.attrs[attribute] for attribute in NAMES if attribute in dataset.attrs
        }
        refuse_packed(attributes, path, key, "open_dataset")
        if require("h5py", "hdf5", path).check_string_dtype(dataset.dtype) is None:
            check_dtype(dataset.dtype, name)
        check_shape(dataset.shape, dataset.dtype, name)
        _require_filters(dataset, name)
        return Hdf5Source(
            path=path,
            key=key,
            shape=dataset.shape,
            stored_dtype=np.dtype(dataset.dtype.str),  # without the names of an enumeration
            stored_chunks=dataset.chunks or (1,) * dataset.ndim,
            order="C",
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            is_chunked=dataset.chunks is not None,
            missing_values=missing_values(attributes, dataset.dtype, name),
        )


def _only_key(file: Any, path: str) -> str:
    """Give the name of the only dataset."""
    keys = _keys(file)
    if len(keys) != 1:
        raise ValueError(f"{path} holds {len(keys)} datasets; {_contents(keys)}")
    return keys[0]


def _keys(file: Any) -> list[str]:
    """Name all datasets of a file, in alphabetical order."""
    keys: list[str] = []
    file.visititems(lambda key, node: keys.append(key) if hasattr(node, "shape") else None)
    return keys


def _contents(keys: list[str]) -> str:
    """Say what a file holds, as the end of an error message."""
    return name_some(keys) if keys else "it holds no datasets"
