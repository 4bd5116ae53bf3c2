"""Base files of llama.cpp: what a language model predicts, token by token.

``llama-perplexity --save-all-logits base.kld`` writes one, and compares quantized models with it.
Numbers are little-endian::

    8 bytes  ``_logits_``
    int32    n_ctx, n_vocab, n_chunk
    int32    tokens [n_chunk, n_ctx]
    rows     [n_chunk, n_ctx - 1 - n_ctx // 2], each of
               float32  scale, minimum
               uint16   codes [n_vocab], and one more that is unused if n_vocab is odd

Only the second half of a chunk is predicted, so that there is some context: row j is computed at
position n_ctx // 2 + j and predicts the token after that. Its log-probabilities, in nats, are
scale * code + minimum, rounded to half a step. The largest code is that of the likeliest class,
whose log-probability is exact. The codes span the range of the row, but no more than the 16 nats
(24 in ik_llama.cpp, which is better for this purpose) below its maximum: whatever is less likely is
raised to that floor, and has code 0. So the probabilities of a row do not quite add up to 1: each
is off by up to half a step, and each at the floor is too large by up to 1.1e-7.

The layout is that of ``tools/perplexity/perplexity.cpp`` in https://github.com/ggml-org/llama.cpp.
"""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from kldiv_dask.storage.mapped import MappedSource
from kldiv_dask.storage.source import Source, magic_bytes, name_some

DESCRIPTION = "a base file of llama.cpp's llama-perplexity"
_KEYS = "log_probs", "labels", "tokens"

_SIGNATURE = b"_logits_"
_FIRST_TOKEN = 20

_LARGEST_CODE = 65535
# Nats from the maximum of a row to its floor, in llama.cpp and in ik_llama.cpp.
_FLOORS = 16.0, 24.0
# By how much a range may miss the floor: maximum - 16 is rounded to float32, by 1e-3 where logits
# are near -16,000.
_RANGE_SLACK = 1e-3
# Error of a log-probability beyond that of its code: float32 rounding of scale and minimum, three
# times at numbers up to 36, of their product and sum, and of expf.
_HEAD_SLACK = 1e-5
# Error of a code: half of one, and the rounding of 1 / scale in float32.
_CODE_SLACK = 0.52

# Numbers at a time, or those of one row if they are more, so that they stay in the cache.
_BLOCK = 2**16


class _Header(NamedTuple):
    n_ctx: int
    n_vocab: int
    n_chunk: int

    @property
    def rows(self) -> int:
        """Number of rows of a chunk."""
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return 8 + 4 * -(-self.n_vocab // 2)

    @property
    def first_row(self) -> int:
        """Where the rows begin, in bytes."""
        return _FIRST_TOKEN + 4 * self.n_chunk * self.n_ctx

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self.first_row + self.n_chunk * self.rows * self.row_bytes

    @property
    def is_sound(self) -> bool:
        """Whether there is a row, and a class in it."""
        return min(self.rows, self.n_vocab, self.n_chunk) > 0

    def whole_chunks(self, size: int) -> int:
        """Count the chunks of which a file of `size` bytes has all rows."""
        return max(0, min(self.n_chunk, (size - self.first_row) // (self.rows * self.row_bytes)))


@dataclass(frozen=True, slots=True)
class LogProbsSource(MappedSource):
    """The log-probabilities of a base file, which are stored as codes.

    They are scale * code + minimum in float32, as llama.cpp reads them. Each row is checked,
    whichever of its classes are asked for.

    Notes
    -----
    Known rows of 32,000 classes were stored with a floor of 16 nats, which raised 0.03 to 0.36 % of
    their mass: Zipf's, heavy-tailed, peaked, and with two likely classes; students had errors that
    grew with the depth of a class. Root mean square error of the mean divergence, in percent:

    ===============  ==================  ================  ====================
    true divergence  sum p log(p / q)    the same, -p + q  of normalized rows
    ===============  ==================  ================  ====================
    below 1e-5       384                 2                 2
    1e-5 to 1e-3     27                  0.8               0.9
    1e-3 to 0.1      0.6                 0.6               0.7
    more than 0.1    1.3                 1.4               1.5
    perplexity       0.02                0.02              0.17
    ===============  ==================  ================  ====================

    The first, which is that of `kl_div`, is negative for students that are nearly the same. The
    second is that of `evaluate`. The last, that of `kl_div_with_logits`, moves what the floor has
    too much to all classes. Of 128,256 classes, with 1.3 % raised, the second misses divergences
    below 1e-3 by 5 %, others by 0.9 % and perplexities by 0.06 %; the first by 24 % and more, 2 %
    and 0.06 %; the last by 6, 1.6 and 0.9 %. Two other ways to give the classes at the floor the
    mass that the others leave were worse below 1e-3, as the rounding of all codes adds up there.

    What the floor hides is the largest error: where models differ mostly in classes below it, as
    they may in peaked rows, means of eight rows were up to 5 % too small. With a floor of 24 nats,
    `evaluate` has errors of 0.2 % from 1e-5 to 1e-3 and of less than 0.05 % above, 0.7 % at worst.
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the arrays read, float32."""
        return np.dtype(np.float32)

    @property
    def is_rounded(self) -> bool:
        """Whether rows only nearly add up to 1, so that `evaluate` adds - p + q to p log(p / q)."""
        return True

    @property
    def tolerance(self) -> float:
        """By how much the probabilities of a sound row may miss the sum of 1.

        Each may be half a step off, and every class may be raised to the floor.
        """
        raised = self.shape[-1] * math.exp(-_FLOORS[0])
        return float(_rounding(_FLOORS[1] / _LARGEST_CODE)) + raised

    def read(self, index: tuple[Any, ...]) -> Any:
        """Decode a region; see `Source.read`.

        Raises
        ------
        ValueError
            If one of its rows can't have been written by llama.cpp, as after a crash, which may
            leave zeros in a file that had got its size but not all of its contents.
        """
        chunks, rows, classes = (i if isinstance(i, slice) else slice(i, i + 1) for i in index)
        heads = self.region(
            *("<f4", (*self.shape[:2], 2), self.offset - 8, (*self.strides[:2], 4)),
            (chunks, rows, slice(None)),
        )
        codes = MappedSource.read(self, (chunks, rows, slice(None)))
        with np.errstate(over="ignore", invalid="ignore"):  # as there may be in damaged rows
            values, sums = _decode(heads, codes, classes)
            damage = _first_damage(heads, codes, sums)
        self.check_unchanged()
        if damage is not None:
            (chunk, row), found = damage
            n_chunk, n_row, _ = self.shape
            place = [range(n_chunk)[chunks][chunk], range(n_row)[rows][row]]
            raise ValueError(f"row {place} {found}")
        return values[tuple(slice(None) if isinstance(i, slice) else 0 for i in index)]


def _decode(heads: Any, codes: Any, classes: slice) -> tuple[Any, Any]:
    """Give the log-probabilities of some classes, and what the probabilities of all add up to."""
    *positions, n_vocab = codes.shape
    kept = range(n_vocab)[classes]
    values, sums = np.empty((*positions, len(kept)), np.float32), np.empty(positions)
    for block in _blocks(codes.shape):
        part, is_whole = codes[block], kept == range(n_vocab)
        decoded = values[block] if is_whole else np.empty(part.shape, np.float32)
        decoded[...] = part
        decoded *= heads[block][..., :1]
        decoded += heads[block][..., 1:]
        if not is_whole:
            values[block] = decoded[..., classes]
        sums[block] = np.exp(decoded).sum(-1, dtype=np.float64)
    return values, sums


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Divide chunks and rows into blocks of about `_BLOCK` numbers."""
    n_chunk, n_row, n_vocab = shape
    rows = max(1, _BLOCK // n_vocab)
    chunks = max(1, rows // max(1, n_row))
    for chunk in range(0, n_chunk, chunks):
        for row in range(0, n_row, rows):
            yield slice(chunk, chunk + chunks), slice(row, row + rows)


def _first_damage(heads: Any, codes: Any, sums: Any) -> tuple[Any, str] | None:
    """Give the place of the first row that is damaged, and what is wrong, the end of a sentence."""
    damages = list(_damages(heads, codes, sums))
    places = np.argwhere(np.any([where for where, *_ in damages], axis=0))
    if not len(places):
        return None
    first = tuple(places[0])
    found, *numbers = next(rest for where, *rest in damages if where[first])
    return first, found.format(*(number[first] for number in numbers))


def _damages(heads: Any, codes: Any, sums: Any) -> Iterator[tuple[Any, ...]]:
    """Say where there is each damage, with a sentence, and the numbers in it."""
    step, minimum = np.moveaxis(heads.astype(float), -1, 0)
    n_vocab = codes.shape[-1]
    is_nan = np.isnan(step)  # as llama.cpp makes them of logits that are NaN or infinite
    is_known = ~np.isnan(minimum)
    least, largest = codes.min(-1), codes.max(-1)
    yield (
        (step == 0) & (minimum == 0) & (n_vocab > 1),
        "was never written: its scale and its minimum are 0",
    )
    yield (
        is_nan & (is_known | (largest != 0)),
        "is damaged: its scale is NaN, its minimum or one of its codes not",
    )
    span = step * _LARGEST_CODE
    yield (
        ~(is_nan | (span >= 0) & (span < _FLOORS[1] + _RANGE_SLACK)),
        "is damaged: its scale must be between 0 and 24 / 65535, got {}",
        step,
    )
    wanted = np.where(step == 0, 0, _LARGEST_CODE)
    yield (
        ~is_nan & ((least != 0) | (largest != wanted)),
        "is damaged: its codes must be from 0 to {} for a scale of {}, got {} to {}",
        *(wanted, step, least, largest),
    )
    top, lowest = minimum + span, -math.log(n_vocab)
    yield (
        is_known & ~((top >= lowest - _HEAD_SLACK) & (top <= _HEAD_SLACK)),
        f"is damaged: its largest log-probability must be between {lowest:.6g}, of {n_vocab} equal"
        " ones, and 0, got {:.6g}",
        top,
    )
    slack = _rounding(step)
    at_most = sums + slack
    at_least = sums - slack - _raised(span, minimum, codes, where=sums - slack > 1)
    yield (
        is_known & ~((at_least <= 1) & (at_most >= 1)),
        "is damaged: its probabilities must add up to 1, they do to {:.6g}",
        sums,
    )


def _raised(span: Any, minimum: Any, codes: Any, where: Any) -> Any:
    """Give the probability of all classes at the floor, in rows that have one; elsewhere 0."""
    has_floor = np.any([np.abs(span - floor) < _RANGE_SLACK for floor in _FLOORS], axis=0)
    raised = np.zeros(span.shape)
    for row in map(tuple, np.argwhere(where & has_floor)):
        raised[row] = codes.shape[-1] - np.count_nonzero(codes[row])
    return raised * np.exp(minimum)


def _rounding(step: Any) -> Any:
    """Give the largest error of a sum of probabilities that is due to rounding."""
    return np.expm1(_CODE_SLACK * step + _HEAD_SLACK)


def can_open(path: str) -> bool:
    """Whether `path` is a local file that begins with the signature of a base file."""
    return magic_bytes(path) == _SIGNATURE


def open_source(path: str, key: str | None, allow_truncated: bool = False) -> MappedSource:
    """Read the header of a base file.

    Parameters
    ----------
    path : str
        Absolute local path.
    key : {None, 'log_probs', 'labels', 'tokens'}
        The log-probabilities, float32 of shape (n_chunk, rows, n_vocab), which are meant by None
        too; the token that each row predicts, int32 of shape (n_chunk, rows); or all tokens, int32
        of shape (n_chunk, n_ctx).
    allow_truncated : bool, optional
        Whether to open a file that is shorter than its header says, up to its last whole chunk.

    Returns
    -------
    MappedSource
        The handle of the array.

    Raises
    ------
    ValueError
        If `key` is another, the numbers in the header can't be, or the file has another size than
        they say, as after an interrupted write.
    """
    if key not in (None, *_KEYS):
        raise ValueError(f"{path} is {DESCRIPTION} and holds no {key!r}; {name_some(_KEYS)}")
    header, status = _read_header(path)
    _check_size(path, header, status.st_size, allow_truncated)
    n_chunk = header.whole_chunks(status.st_size)
    n_ctx, n_vocab, rows, row_bytes = header.n_ctx, header.n_vocab, header.rows, header.row_bytes
    file: dict[str, Any] = {"path": path, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    if key in ("labels", "tokens"):
        skipped = n_ctx - rows if key == "labels" else 0
        return MappedSource(
            key=key,
            shape=(n_chunk, n_ctx - skipped),
            stored_dtype=np.dtype("<i4"),
            stored_chunks=(1, 1),
            order="C",
            offset=_FIRST_TOKEN + 4 * skipped,
            strides=(4 * n_ctx, 4),
            **file,
        )
    return LogProbsSource(
        key=key or "log_probs",
        shape=(n_chunk, rows, n_vocab),
        stored_dtype=np.dtype("<u2"),
        stored_chunks=(1, 1, n_vocab),
        order="C",
        offset=header.first_row + 8,
        strides=(rows * row_bytes, row_bytes, 2),
        **file,
    )


def align(input: LogProbsSource, target: LogProbsSource) -> tuple[LogProbsSource, LogProbsSource]:
    """Check that two base files are of the same text.

    Parameters
    ----------
    input, target : LogProbsSource
        What the two models predict.

    Returns
    -------
    input, target : LogProbsSource
        The same, up to the last chunk that both have, where one is of a truncated file.

    Raises
    ------
    ValueError
        If their headers or their tokens differ.
    """
    differs = other_text(input, target)
    if differs:
        raise ValueError(differs)
    n_chunk = min(input.shape[0], target.shape[0])
    return (
        replace(input, shape=(n_chunk, *input.shape[1:])),
        replace(target, shape=(n_chunk, *target.shape[1:])),
    )


def other_text(first: Source, second: Source, *, whole: bool = True) -> str:
    """Say how the texts of two arrays of base files differ.

    Parameters
    ----------
    first, second : Source
        Any arrays.
    whole : bool, optional
        Whether they are meant from beginning to end. If not, only the chunks that both have must
        be of one text.

    Returns
    -------
    str
        A sentence; '' if the texts are the same, or one of the arrays is of no base file.
    """
    if first.path == second.path or not all(map(_is_of_base_file, (first, second))):
        return ""
    found = _difference(first, second, whole)
    return found and (
        f"{first.path} and {second.path} must be of the same text, got {found}, in this order;"
        " write both with the same -f, -c and --chunks, by models of the same vocabulary"
    )


def _is_of_base_file(source: Source) -> bool:
    return isinstance(source, MappedSource) and source.key in _KEYS and can_open(source.path)


def _difference(first: Source, second: Source, whole: bool) -> str:
    headers = (_read_header(source.path)[0] for source in (first, second))
    names = "tokens a chunk", "classes", "chunks"
    for name, *numbers in zip(names, *headers, strict=True):
        if numbers[0] != numbers[1] and (whole or name != "chunks"):
            return f"{numbers[0]} and {numbers[1]} {name}"
    n_chunk = min(first.shape[0], second.shape[0])
    mine, others = (
        open_source(source.path, "tokens", allow_truncated=True).read((slice(n_chunk), slice(None)))
        for source in (first, second)
    )
    if np.array_equal(mine, others):
        return ""
    place = tuple(np.argwhere(mine != others)[0].tolist())
    return f"token {place[1]} of chunk {place[0]} is {mine[place]} and {others[place]}"


def _read_header(path: str) -> tuple[_Header, os.stat_result]:
    """Read the numbers that say how large everything is."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        numbers = file.read(_FIRST_TOKEN)[len(_SIGNATURE) :]
    size = status.st_size
    if size < _FIRST_TOKEN:
        raise ValueError(f"{path} is truncated: its header takes {_FIRST_TOKEN} bytes, not {size}")
    header, swapped = (_Header(*struct.unpack(f"{order}3i", numbers)) for order in "<>")
    if swapped.is_sound and swapped.file_bytes == size:
        raise ValueError(f"{path} was written by a big-endian machine; it must be little-endian")
    if not header.is_sound:
        raise ValueError(
            f"{path} is no readable base file of llama.cpp: n_ctx, n_vocab and n_chunk must be at"
            f" least 3, 1 and 1, they are {', '.join(map(str, header))}"
        )
    return header, status


def _check_size(path: str, header: _Header, size: int, allow_truncated: bool) -> None:
    """Hold the size of a file against its header, which is written first."""
    if size == header.file_bytes:
        return
    planned = (
        f"{header.n_chunk} chunks of {header.rows} rows of {header.n_vocab} classes take"
        f" {header.file_bytes} bytes with their {header.n_ctx} tokens each, the file has {size}"
    )
    if size > header.file_bytes:
        raise ValueError(f"{path} is damaged: {planned}")
    whole = header.whole_chunks(size)
    if not (allow_truncated and whole):
        hint = "pass allow_truncated=True to read those" if whole else "write it again"
        raise ValueError(
            f"{path} is truncated, as after a run that was killed: it has {whole} of"
            f" {header.n_chunk} chunks; {hint}. {planned}"
        )
