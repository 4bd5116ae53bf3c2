"""Zarr arrays, format 2 or 3, in a local directory or behind any fsspec URL."""

import functools
import itertools
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask.base
import numpy as np

from kldiv_dask import config
from kldiv_dask.extras import require
from kldiv_dask.storage.attributes import missing_values, refuse_packed
from kldiv_dask.storage.contents import (
    Contents,
    Region,
    contents_of,
    grid,
    region,
    sample,
    seen_file,
    seen_object,
    unwritten,
)
from kldiv_dask.storage.source import (
    Source,
    check_dtype,
    check_shape,
    display_name,
    is_url,
    name_some,
    spans,
)
from kldiv_dask.storage.text import printable_errors

DESCRIPTION = "a Zarr array or group (a directory or an fsspec URL)"

_METADATA = {2: ".zarray", 3: "zarr.json"}
_MARKERS = ("zarr.json", ".zarray", ".zgroup")


@dataclass(frozen=True, slots=True)
class ZarrSource(Source):
    """A Zarr array.

    Parameters
    ----------
    metadata : str
        Name of the array's metadata document, relative to `path`.
    version : str
        Digest of what the metadata says and when it was last written. Chunks that are rewritten
        in place leave it as it was.
    inner_chunks : tuple of int
        Shape of the chunks in a shard, which can be read by themselves; without shards, of the
        stored chunks.
    """

    metadata: str
    version: str
    inner_chunks: tuple[int, ...]

    @property
    def read_units(self) -> tuple[tuple[int, ...], ...]:
        """Shards, which are files, and what is in them; see `Source.read_units`."""
        return self.stored_chunks, self.inner_chunks

    def read(self, index: tuple[Any, ...]) -> Any:
        """Read and decode a region; see `Source.read`.

        A chunk that was never written reads as the fill value. On a local disk, three kinds of
        damage would read as fill values too, and are refused here: a store that has gone since it
        was opened, a chunk that is a link to nothing or no file, and a shard that a crash or a full
        disk left with no bytes in it. Looking takes 3 µs a stored chunk.
        """
        array = _opened(self)
        if not is_url(self.path):
            os.stat(os.path.join(self.path, self.metadata))
            for number in _touched(self, index):
                name = _chunk_name(self, array, number)
                status = _status(self.path, name)
                if array.shards is not None and status is not None and status.st_size == 0:
                    raise ValueError(f"the shard {name} is empty")
        found = array[index]
        # NumPy turns strings of any length into its own by way of objects alone.
        return found.astype(object) if self.stored_dtype.kind == "T" else found

    @printable_errors()
    def contents(self) -> Contents:
        """Look at the files or objects of the array; see `Source.contents`.

        Local ones are looked at one by one, and the inner chunks of shards are looked up in the
        index of each. Of a store behind a URL its listing has to do, where there is one.
        """
        array = _opened(self)
        most = config.count("files-checked")
        # Zarr's choice where the metadata says none.
        fill = 0.0 if self.dtype.kind in "SU" else float(array.fill_value or 0)
        if fill in self.missing_values:
            fill = math.nan
        if is_url(self.path):
            return _contents_of_objects(self, array, most, fill)
        return _contents_of_files(self, array, most, fill)


@functools.lru_cache(maxsize=64)
def _opened(source: ZarrSource) -> Any:
    """Open the array behind a source, once a process."""
    array = _node(source.path, source.key)
    found = (array.shape, array.dtype)
    if found != (source.shape, source.stored_dtype):
        raise ValueError(
            f"its shape and dtype are {found},"
            f" they were {(source.shape, source.stored_dtype)} when it was opened"
        )
    return array


# Which files there are, in words of the format: a stored chunk is a shard if there are any


def _touched(source: ZarrSource, index: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
    """Give the numbers of the stored chunks that a region lies in."""
    numbers = [
        range(start // size, -(-stop // size))
        for (start, stop), size in zip(
            spans(index, source.shape), source.stored_chunks, strict=True
        )
    ]
    return itertools.product(*numbers)


def _chunk_name(source: ZarrSource, array: Any, number: tuple[int, ...]) -> str:
    """Name the file of a stored chunk, relative to the path of the source."""
    name: str = array.metadata.encode_chunk_key(number)
    return f"{source.key}/{name}" if source.key else name


def _documents(source: ZarrSource) -> list[str]:
    """Name the files of the metadata: format 2 may have its attributes in one of their own."""
    folder, _, name = source.metadata.rpartition("/")
    attributes = "/".join(filter(None, (folder, ".zattrs")))
    return [source.metadata, *([attributes] if name == _METADATA[2] else [])]


def _status(path: str, name: str) -> os.stat_result | None:
    """Look at the file of a stored chunk, or of attributes; None if it was never written."""
    file = os.path.join(path, name)
    try:
        status = os.stat(file)
    except FileNotFoundError:
        # What is missing may be what a link points to: the chunk, or a folder that it is in.
        for end in (i for i, letter in enumerate(f"{name}/") if letter == "/"):
            part = os.path.join(path, name[:end])
            if os.path.islink(part) and not os.path.exists(part):
                raise ValueError(f"{file} must be a file, got a link to nothing: {part}") from None
        return None
    except NotADirectoryError as error:
        raise ValueError(f"{file} must be a file, got a file in place of its folder") from error
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{file} must be a file, got a directory or a device")
    return status


# What is known of them


def _contents_of_files(source: ZarrSource, array: Any, most: int, fill: float) -> Contents:
    """Look at local files, one by one."""
    seen = [seen_file(source.metadata, os.stat(os.path.join(source.path, source.metadata)))]
    for name in _documents(source)[1:]:
        status = _status(source.path, name)
        seen += [] if status is None else [seen_file(name, status)]
    counts = grid(source.shape, source.stored_chunks)
    chunks, documents = math.prod(counts), len(seen)
    looked = min(chunks, max(most - documents, 0))
    index = _shard_index(array)
    missing: list[Region] = []
    for number in sample(counts, looked):
        name = _chunk_name(source, array, number)
        status = _status(source.path, name)
        place = region(number, source.stored_chunks, source.shape)
        if status is None:
            missing.append(place)
            continue
        seen.append(seen_file(name, status))
        if index is not None and len(missing) < most:
            absent = index.absent(os.path.join(source.path, name), status.st_size)
            start = [first for first, _ in place]
            missing += unwritten(absent, index.chunks, source.shape, start)
    places = None if looked == chunks else (documents + chunks, documents + looked)
    return contents_of(source, seen, places=places, missing=missing[:most], fill=fill)


def _contents_of_objects(source: ZarrSource, array: Any, most: int, fill: float) -> Contents:
    """Look at what a file system of fsspec tells of objects, in one listing of all of them."""
    system, root = require("fsspec.core", "zarr", source.path).url_to_fs(source.path.rstrip("/"))
    system.invalidate_cache()  # or else it may tell what it knew before
    counts = grid(source.shape, source.stored_chunks)
    documents, chunks = _documents(source), math.prod(counts)
    listing = _listing(system, root, source) if len(documents) + chunks <= most else {}
    seen, names, missing = [], [], []
    for name in documents:
        info = listing.get(name) or {}
        found = seen_object(name, info) or seen_object(name, _info(system, f"{root}/{name}"))
        seen += [] if found is None else [found]
    if source.metadata not in listing:  # nor does it tell which chunks there are
        if not seen and not system.exists(f"{root}/{source.metadata}"):
            raise FileNotFoundError(f"{source.name} is not there, or not to be reached")
        places = (max(len(seen), 1) + chunks, len(seen))
        return contents_of(source, seen, places=places, fill=fill)
    for number in sample(counts, chunks):
        name = _chunk_name(source, array, number)
        if name not in listing:
            missing.append(region(number, source.stored_chunks, source.shape))
        elif (found := seen_object(name, listing[name])) is not None:
            seen.append(found)
        else:
            names.append(name)
    return contents_of(source, seen, names=names, missing=missing, fill=fill)


def _listing(system: Any, root: str, source: ZarrSource) -> dict[str, dict[str, Any]]:
    """List all objects below an array, by their names relative to its path; none if that fails.

    Many servers keep to themselves what they have.
    """
    below = "/".join(filter(None, (root, source.key)))
    try:
        found = system.find(below, detail=True)
    except Exception as error:
        if _is_refusal(error):
            return {}
        raise
    return {name.removeprefix(f"{root}/"): info for name, info in found.items()}


def _info(system: Any, name: str) -> dict[str, Any]:
    """Ask for one object; nothing if it is not there, or the file system can't tell."""
    try:
        return dict(system.info(name))
    except Exception as error:
        if _is_refusal(error):
            return {}
        raise


def _is_refusal(error: Exception) -> bool:
    """Whether a file system answered that there is nothing, or that it won't or can't tell."""
    kinds = (FileNotFoundError, NotADirectoryError, NotImplementedError, PermissionError)
    status = getattr(error, "status", None)  # of HTTP, in errors of aiohttp
    return isinstance(error, kinds) or (isinstance(status, int) and 400 <= status < 500)


class _ShardIndex(NamedTuple):
    """Where the index of a shard is: for each inner chunk, its offset and its length."""

    chunks: tuple[int, ...]
    """Shape of an inner chunk."""
    counts: tuple[int, ...]
    """How many of them a shard has along each axis."""
    checksum: int
    """Size of the checksum behind it, in bytes."""
    at_end: bool
    """Whether it is at the end of the shard, or else at its start."""

    def absent(self, path: str, size: int) -> Any:
        """Read which inner chunks were never written; none if the file has no room for an index.

        That is damage, and reading the shard says so.
        """
        length = 16 * math.prod(self.counts)
        if size < length + self.checksum:
            return ()
        with open(path, "rb", buffering=0) as file:
            file.seek(size - length - self.checksum if self.at_end else 0)
            data = file.read(length)
        if len(data) < length:
            return ()
        entries = np.frombuffer(data, "<u8").reshape(*self.counts, 2)
        return (entries == 2**64 - 1).all(axis=-1)


def _shard_index(array: Any) -> _ShardIndex | None:
    """Find out where shards have their index; None without shards, or if it is itself encoded.

    Zarr writes it as little-endian numbers with a checksum. Nothing is known to write it otherwise,
    and then inner chunks count as written.
    """
    if array.shards is None:
        return None
    codec = array.metadata.to_dict()["codecs"][0]["configuration"]
    first, *others = codec["index_codecs"]
    checksum = {(): 0, ("crc32c",): 4}.get(tuple(other["name"] for other in others))
    little = first.get("configuration", {}).get("endian") == "little"
    if first["name"] != "bytes" or not little or checksum is None:
        return None
    chunks = tuple(codec["chunk_shape"])
    counts = tuple(size // n for size, n in zip(array.shards, chunks, strict=True))
    return _ShardIndex(chunks, counts, checksum, codec.get("index_location", "end") == "end")


# How an array is found


def can_open(path: str) -> bool:
    """Whether `path` is a URL, ends in ``.zarr``, or is a directory with Zarr metadata."""
    return (
        is_url(path)
        or path.lower().endswith(".zarr")
        or any(os.path.isfile(os.path.join(path, name)) for name in _MARKERS)
    )


def open_source(path: str, key: str | None) -> ZarrSource:
    """Read the metadata of a Zarr array.

    Parameters
    ----------
    path : str
        Absolute local path, or an fsspec URL. Credentials and other storage options come from
        fsspec's own configuration.
    key : str or None
        Path of the array within the group at `path`.

    Returns
    -------
    ZarrSource
        The handle of the array.

    Raises
    ------
    FileNotFoundError
        If there is neither an array nor a group at `path`.
    ValueError
        If `path` is a group and `key` does not name an array in it, `path` is an array and a key
        is given, its numbers are packed, or the metadata is damaged.
    TypeError
        If the data type can't be read.
    ImportError
        If zarr, or for a URL fsspec or the package behind its protocol, is not installed.
    """
    key = (key or "").strip("/") or None
    name = display_name(path, key)
    try:
        array = _node(path, key)
    except FileNotFoundError as error:
        if key is None:
            raise
        raise ValueError(f"{name} does not exist{_contents(path)}") from error
    if not hasattr(array, "shape"):
        raise ValueError(f"{name} is a Zarr group, not an array{_contents(path)}")
    attributes = dict(array.attrs)
    refuse_packed(attributes, path, key, "open_zarr")
    check_dtype(array.dtype, name)
    check_shape(array.shape, array.dtype, name)
    metadata = "/".join(filter(None, (key, _METADATA[array.metadata.zarr_format])))
    return ZarrSource(
        path=path,
        key=key,
        shape=array.shape,
        stored_dtype=array.dtype,
        stored_chunks=array.shards or array.chunks,
        order="C",
        metadata=metadata,
        version=dask.base.tokenize(array.metadata.to_dict(), _modified(path, metadata)),
        inner_chunks=array.chunks,
        missing_values=missing_values(attributes | _of_xarray(array), array.dtype, name),
    )


def _of_xarray(array: Any) -> dict[str, Any]:
    """Give the attribute that xarray writes as the fill value, in format 2.

    Others write a fill value there for chunks that are not stored, which is no sign of no value.
    """
    kept = array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in array.attrs
    return {"_FillValue": array.fill_value} if kept and array.fill_value is not None else {}


def _node(path: str, key: str | None) -> Any:
    """Open the array or group at `key`."""
    zarr = require("zarr", "zarr", path)
    if is_url(path):
        require("fsspec", "zarr", path)
    try:
        return zarr.open(path, mode="r", path=key or "")
    except FileNotFoundError as error:
        hint = "; files of other formats must be local" if is_url(path) else ""
        name = display_name(path, key)
        raise FileNotFoundError(f"{name} is no Zarr array or group{hint}") from error
    except (ImportError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} could not be opened as Zarr: {reason}") from error


def _contents(path: str) -> str:
    """Say what a group holds, as the end of an error message."""
    group = _node(path, None)
    if not hasattr(group, "members"):
        return "; it is itself an array, so leave key out"
    names = [name for name, node in group.members(max_depth=None) if hasattr(node, "shape")]
    if not names:
        return "; it holds no arrays"
    return f"; {name_some(names)}"


def _modified(path: str, metadata: str) -> Any:
    """When the metadata document was last written, if the file system can tell."""
    if not is_url(path):
        return os.stat(os.path.join(path, metadata)).st_mtime_ns
    system, root = require("fsspec.core", "zarr", path).url_to_fs(path)
    try:
        return system.modified(f"{root}/{metadata}")
    except NotImplementedError:
        return None
