"""What tells a stored array from what it was before a change, and what of it was never written."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import numpy as np

from kldiv_dask.storage.text import printable

Region = tuple[tuple[int, int], ...]
"""The first and one past the last position on each axis."""

# What file systems of fsspec call the digest, or the version, of what an object holds.
_TAGS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "Content-MD5", "crc32c", "CRC")
# And when it was last written.
_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified")
_CREATED = ("created",)


class Seen(NamedTuple):
    """A file or an object that was looked at, not read."""

    name: str
    """Relative to the path of the array."""
    size: int
    """In bytes."""
    time: int | None = None
    """When it was last written, in nanoseconds since the epoch, where that is known."""
    tag: str = ""
    """Its ETag or the like, where it has one: that tells contents apart even without a time."""


class Contents(NamedTuple):
    """What is known of a stored array's contents without reading them.

    All but the last two fields are in `to_dict`, and ``Contents(**to_dict())`` has them again.
    """

    path: str
    """Absolute local path, or a URL."""
    key: str | None
    """Name of the array inside `path`."""
    shape: list[int]
    """Shape of the array."""
    dtype: str
    """Name of the type of the arrays read."""
    files: int
    """How many files or objects hold it, its metadata included.

    Where not all could be looked at, how many there are if every chunk was written.
    """
    checked: int
    """How many of them were looked at: fewer than `files` if there are more than
    ``kldiv.files-checked``, or the file system neither lists them nor says when they were written.
    """
    nbytes: int
    """Size of those that were looked at, in bytes, as stored."""
    newest: str
    """Name of the one written last, relative to `path`; '' if it is not known."""
    written: str
    """When that was, ISO 8601 in UTC; '' if it is not known."""
    digest: str
    """Of the names, sizes, and ETags or times of writing of those that were looked at."""
    missing: tuple[Region, ...] = ()
    """Stored chunks, of those that were looked at, that were never written: up to
    ``kldiv.files-checked`` of them.
    """
    fill: float | None = None
    """What these read as; None if there can't be any."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields but `missing` and `fill`, as JSON has them."""
        named = self._asdict()
        del named["missing"], named["fill"]
        return named


def contents_of(
    source: Any,
    seen: Sequence[Seen],
    *,
    names: Iterable[str] = (),
    file_counts: tuple[int, int] | None = None,
    missing: Iterable[Region] = (),
    fill: float | None = None,
) -> Contents:
    """Sum up what was seen of the files of an array.

    Parameters
    ----------
    source : Source
        The array.
    seen : sequence of Seen
        What was looked at.
    names : iterable of str, optional
        What exists too, but nothing more is known of it.
    file_counts : tuple of int, optional
        How many files there may be, and how many of these were looked at, if not all.
    missing, fill
        As in `Contents`.
    """
    names = list(names)
    files, looked = file_counts or (len(seen) + len(names), len(seen))
    # A size alone does not tell one content from another.
    checked = looked - sum(file.time is None and not file.tag for file in seen)
    dated = [(file.time, file.name) for file in seen if file.time is not None]
    time, newest = max(dated, key=lambda entry: entry[0], default=(None, ""))
    identities = [(file.name, file.size, file.tag or file.time) for file in seen]
    return Contents(
        path=source.path,
        key=source.key,
        shape=list(map(int, source.shape)),
        dtype=source.dtype.name,
        files=files,
        checked=checked,
        nbytes=sum(file.size for file in seen),
        newest=newest,
        written="" if time is None else in_utc(time),
        digest=hashlib.blake2b(repr((identities, names)).encode(), digest_size=16).hexdigest(),
        missing=tuple(missing),
        fill=fill,
    )


def change(was: dict[str, Any], now: dict[str, Any]) -> str:
    """Say how an array differs from what it was.

    Parameters
    ----------
    was, now : dict
        Of `Contents.to_dict`, also by way of JSON.

    Returns
    -------
    str
        A sentence that begins with its name; '' if it is the same array with the same contents.
    """
    old, new = Contents(**was), Contents(**now)
    name, before = (_name(contents) for contents in (new, old))
    if name != before:
        return f"it is {name}, it was {before}"
    for field in "shape", "dtype":
        if now[field] != was[field]:
            return f"{name} has changed: its {field} is {now[field]}, it was {was[field]}"
    complete = all(contents.checked == contents.files for contents in (old, new))
    if complete and new.files != old.files:
        return f"{name} has changed: it has {new.files} files, it had {old.files}"
    if not complete and new.checked != old.checked:
        return (
            f"{name} can't be held against what it was: {new.checked} of its {new.files} files were"
            f" looked at, before it was {old.checked}; set kldiv.files-checked to what it was then"
        )
    if new.digest == old.digest:
        return ""
    return f"{name} has changed: {_difference(old, new)}"


def _name(contents: Contents) -> str:
    return printable(contents.path if contents.key is None else f"{contents.path}:{contents.key}")


def _difference(old: Contents, new: Contents) -> str:
    """Say what differs of as many files, as the end of a sentence."""
    times = [contents.written for contents in (new, old)]
    # Seconds are enough for people, where they differ.
    seconds = [f"{time[:19]}Z" if time else "at an unknown time" for time in times]
    now, then = seconds if seconds[0] != seconds[1] else times
    if (new.files, new.nbytes) == (1, old.nbytes):
        return f"it was written {now}, before it was {then}"
    if new.files == 1:
        return (
            f"it has {new.nbytes} bytes and was written {now},"
            f" before it had {old.nbytes} and was written {then}"
        )
    if (new.newest, new.written) != (old.newest, old.written):
        name, before = printable(new.newest), printable(old.newest)
        if name == before:
            return f"its newest file, {name}, was written {now}, before that it was {then}"
        return f"its newest file is now {name}, of {now}; before it was {before}, of {then}"
    return "names, sizes or times of its files are others"


# What there is to look at


def grid(shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """Count the stored chunks along each axis."""
    return tuple(-(-n // max(size, 1)) for n, size in zip(shape, chunks, strict=True))


def sample(counts: Sequence[int], most: int) -> Iterator[tuple[int, ...]]:
    """Give the numbers of all chunks of a grid; of more than `most`, so many, evenly spaced."""
    total = math.prod(counts)
    if total <= most:
        yield from itertools.product(*map(range, counts))
        return
    for i in range(most):
        flat, number = i * total // most, []
        for count in reversed(counts):
            flat, last = divmod(flat, count)
            number.append(last)
        yield tuple(reversed(number))


def region(
    number: Sequence[int], chunks: Sequence[int], shape: Sequence[int], start: Sequence[int] = ()
) -> Region:
    """Give the positions of a chunk in the array; its grid begins at `start`, or else at 0."""
    start = start or (0,) * len(shape)
    return tuple(
        (int(first + i * size), int(min(first + (i + 1) * size, n)))
        for i, size, n, first in zip(number, chunks, shape, start, strict=True)
    )


def unwritten(
    absent: Any, chunks: Sequence[int], shape: Sequence[int], start: Sequence[int] = ()
) -> Iterator[Region]:
    """Give the positions of those chunks of a grid that are marked as absent.

    Chunks that lie beyond the shape, at the end of the last shards, are none of the array.
    """
    for number in np.argwhere(absent).tolist():
        positions = region(number, chunks, shape, start)
        if all(first < stop for first, stop in positions):
            yield positions


# What is known of it


def seen_file(name: str, status: Any) -> Seen:
    """Keep what tells one content of a local file from another."""
    return Seen(name, status.st_size, status.st_mtime_ns)


def seen_object(name: str, info: dict[str, Any]) -> Seen | None:
    """Keep what tells one content of an object from another; None if nothing does.

    Parameters
    ----------
    name : str
        Relative to the path of the array.
    info : dict
        What a file system of fsspec tells of it, which is different for each of them.
    """
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
    times = (_nanoseconds(info.get(name)) for name in (*_TIMES, *_CREATED))
    time = next((time for time in times if time is not None), None)
    size = info.get("size")
    if size is None and not tag and time is None:
        return None
    return Seen(name, int(size or 0), time, tag)


def _nanoseconds(value: Any) -> int | None:
    """Translate a time, in whichever form, to nanoseconds since the epoch; None if it is none."""
    try:
        if isinstance(value, str):
            parse = parsedate_to_datetime if "," in value else datetime.fromisoformat
            value = parse(value)
        if isinstance(value, datetime):
            # Those without a zone are in UTC, as of all stores that are reached through a network.
            value = value.replace(tzinfo=value.tzinfo or UTC).timestamp()
        return None if value is None or isinstance(value, bool) else round(float(value) * 1e9)
    except (TypeError, ValueError, OverflowError):
        return None


def in_utc(time: int) -> str:
    """Spell a time in nanoseconds since the epoch as ISO 8601 in UTC, without zeros at its end."""
    seconds, rest = divmod(time, 10**9)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"
