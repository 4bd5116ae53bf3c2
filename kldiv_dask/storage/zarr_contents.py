"""Which files or objects a Zarr array has, and what is known of them."""

import itertools
import math
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kldiv_dask.extras import require
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
from kldiv_dask.storage.source import spans

if TYPE_CHECKING:
    from kldiv_dask.storage.zarr import ZarrSource

METADATA = {2: ".zarray", 3: "zarr.json"}

# Which files there are, in words of the format: a stored chunk is a shard if there are any


def touched(source: "ZarrSource", index: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
    """Give the numbers of the stored chunks that a region lies in."""
    numbers = [
        range(start // size, -(-stop // size))
        for (start, stop), size in zip(
            spans(index, source.shape), source.stored_chunks, strict=True
        )
    ]
    return itertools.product(*numbers)


def chunk_name(source: "ZarrSource", array: Any, number: tuple[int, ...]) -> str:
    """Name the file of a stored chunk, relative to the path of the source."""
    name: str = array.metadata.encode_chunk_key(number)
    return f"{source.key}/{name}" if source.key else name


def _documents(source: "ZarrSource") -> list[str]:
    """Name the files of the metadata: format 2 may have its attributes in one of their own."""
    folder, _, name = source.metadata.rpartition("/")
    attributes = "/".join(filter(None, (folder, ".zattrs")))
    return [source.metadata, *([attributes] if name == METADATA[2] else [])]


def file_status(path: str, name: str) -> os.stat_result | None:
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


def contents_of_files(source: "ZarrSource", array: Any, most: int, fill: float) -> Contents:
    """Look at local files, one by one."""
    seen = [seen_file(source.metadata, os.stat(os.path.join(source.path, source.metadata)))]
    for name in _documents(source)[1:]:
        status = file_status(source.path, name)
        seen += [] if status is None else [seen_file(name, status)]
    counts = grid(source.shape, source.stored_chunks)
    chunks, documents = math.prod(counts), len(seen)
    looked = min(chunks, max(most - documents, 0))
    index = _shard_index(array)
    missing: list[Region] = []
    for number in sample(counts, looked):
        name = chunk_name(source, array, number)
        status = file_status(source.path, name)
        place = region(number, source.stored_chunks, source.shape)
        if status is None:
            missing.append(place)
            continue
        seen.append(seen_file(name, status))
        if index is not None and len(missing) < most:
            absent = index.absent(os.path.join(source.path, name), status.st_size)
            start = [first for first, _ in place]
            missing += unwritten(absent, index.chunks, source.shape, start)
    file_counts = None if looked == chunks else (documents + chunks, documents + looked)
    return contents_of(source, seen, file_counts=file_counts, missing=missing[:most], fill=fill)


def contents_of_objects(source: "ZarrSource", array: Any, most: int, fill: float) -> Contents:
    """Look at what a file system of fsspec tells of objects, in one listing of all of them."""
    system, root = require("fsspec.core", "zarr", source.path).url_to_fs(source.path.rstrip("/"))
    system.invalidate_cache()  # or else it may tell what it knew before
    counts = grid(source.shape, source.stored_chunks)
    documents, chunks = _documents(source), math.prod(counts)
    listing = _listing(system, root, source) if len(documents) + chunks <= most else {}
    seen, names, missing = [], [], []
    for name in documents:
        info = listing.get(name) or {}
        entry = seen_object(name, info) or seen_object(name, _info(system, f"{root}/{name}"))
        seen += [] if entry is None else [entry]
    if source.metadata not in listing:  # nor does it tell which chunks there are
        if not seen and not system.exists(f"{root}/{source.metadata}"):
            raise FileNotFoundError(f"{source.name} is not there, or not to be reached")
        file_counts = (max(len(seen), 1) + chunks, len(seen))
        return contents_of(source, seen, file_counts=file_counts, fill=fill)
    for number in sample(counts, chunks):
        name = chunk_name(source, array, number)
        if name not in listing:
            missing.append(region(number, source.stored_chunks, source.shape))
        elif (entry := seen_object(name, listing[name])) is not None:
            seen.append(entry)
        else:
            names.append(name)
    return contents_of(source, seen, names=names, missing=missing, fill=fill)


def _listing(system: Any, root: str, source: "ZarrSource") -> dict[str, dict[str, Any]]:
    """List all objects below an array, by their names relative to its path; none if that fails.

    Many servers keep to themselves what they have.
    """
    below = "/".join(filter(None, (root, source.key)))
    try:
        objects = system.find(below, detail=True)
    except Exception as error:
        if _is_refusal(error):
            return {}
        raise
    return {name.removeprefix(f"{root}/"): info for name, info in objects.items()}


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
