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
from typing import Any, NamedTuple

import numpy as np

SIGNATURE = b"_logits_"
FIRST_TOKEN = 20

LARGEST_CODE = 65535
# Nats from the maximum of a row to its floor, in llama.cpp and in ik_llama.cpp.
FLOORS = 16.0, 24.0
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


class Header(NamedTuple):
    """The numbers that say how large everything is."""

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
        return FIRST_TOKEN + 4 * self.n_chunk * self.n_ctx

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


def read_header(path: str) -> tuple[Header, os.stat_result]:
    """Read the numbers that say how large everything is."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        numbers = file.read(FIRST_TOKEN)[len(SIGNATURE) :]
    size = status.st_size
    if size < FIRST_TOKEN:
        raise ValueError(f"{path} is truncated: its header takes {FIRST_TOKEN} bytes, not {size}")
    header, swapped = (Header(*struct.unpack(f"{order}3i", numbers)) for order in "<>")
    if swapped.is_sound and swapped.file_bytes == size:
        raise ValueError(f"{path} was written by a big-endian machine; it must be little-endian")
    if not header.is_sound:
        raise ValueError(
            f"{path} is no readable base file of llama.cpp: n_ctx, n_vocab and n_chunk must be at"
            f" least 3, 1 and 1, they are {', '.join(map(str, header))}"
        )
    return header, status


def check_size(path: str, header: Header, size: int, allow_truncated: bool) -> None:
    """Hold the size of a file against its header, which is written first."""
    if size == header.file_bytes:
        return
    planned = (
        f"{header.n_chunk} chunks of {header.rows} rows of {header.n_vocab} classes take"
        f" {header.file_bytes} bytes with their {header.n_ctx} tokens each, the file has {size}"
    )
    if size > header.file_bytes:
        raise ValueError(f"{path} is damaged: {planned}")
    complete_chunks = header.whole_chunks(size)
    if not (allow_truncated and complete_chunks):
        hint = "pass allow_truncated=True to read those" if complete_chunks else "write it again"
        raise ValueError(
            f"{path} is truncated, as after a run that was killed: it has {complete_chunks} of"
            f" {header.n_chunk} chunks; {hint}. {planned}"
        )


def decode(heads: Any, codes: Any, classes: slice) -> tuple[Any, Any]:
    """Give the log-probabilities of some classes, and what the probabilities of all add up to."""
    *positions, n_vocab = codes.shape
    selected = range(n_vocab)[classes]
    values, sums = np.empty((*positions, len(selected)), np.float32), np.empty(positions)
    for block in _blocks(codes.shape):
        part, is_whole = codes[block], selected == range(n_vocab)
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


def first_damage(heads: Any, codes: Any, sums: Any) -> tuple[Any, str] | None:
    """Give the place of the first row that is damaged, and what is wrong, the end of a sentence."""
    damages = list(_damages(heads, codes, sums))
    damaged = np.argwhere(np.any([where for where, *_ in damages], axis=0))
    if not len(damaged):
        return None
    first = tuple(damaged[0])
    problem, *numbers = next(rest for where, *rest in damages if where[first])
    return first, problem.format(*(number[first] for number in numbers))


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
    span = step * LARGEST_CODE
    yield (
        ~(is_nan | (span >= 0) & (span < FLOORS[1] + _RANGE_SLACK)),
        "is damaged: its scale must be between 0 and 24 / 65535, got {}",
        step,
    )
    wanted = np.where(step == 0, 0, LARGEST_CODE)
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
    slack = rounding(step)
    at_most = sums + slack
    at_least = sums - slack - _raised(span, minimum, codes, where=sums - slack > 1)
    yield (
        is_known & ~((at_least <= 1) & (at_most >= 1)),
        "is damaged: its probabilities must add up to 1, they do to {:.6g}",
        sums,
    )


def _raised(span: Any, minimum: Any, codes: Any, where: Any) -> Any:
    """Give the probability of all classes at the floor, in rows that have one; elsewhere 0."""
    has_floor = np.any([np.abs(span - floor) < _RANGE_SLACK for floor in FLOORS], axis=0)
    raised = np.zeros(span.shape)
    for row in map(tuple, np.argwhere(where & has_floor)):
        raised[row] = codes.shape[-1] - np.count_nonzero(codes[row])
    return raised * np.exp(minimum)


def rounding(step: Any) -> Any:
    """Give the largest error of a sum of probabilities that is due to rounding."""
    return np.expm1(_CODE_SLACK * step + _HEAD_SLACK)
