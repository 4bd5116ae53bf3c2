"""Base files of llama.cpp: what a language model predicts, token by token.

``llama-perplexity --save-all-logits base.kld`` writes one, and compares quantised models with it.
Numbers are little-endian::

    8 bytes  ``_logits_``
    int32    n_ctx, n_vocab, n_chunk
    int32    tokens [n_chunk, n_ctx]
    rows     [n_chunk, n_ctx - 1 - n_ctx // 2], each of
               float32  scale, minimum
               uint16   codes [n_vocab], and one more that is unused if n_vocab is odd

Only the second half of a chunk is predicted, so that there is some context: row j is computed at
position n_ctx // 2 + j and predicts the token after that. Its log-probabilities, in nats, are
scale * code + minimum. The codes span the range of the row, but no more than the 16 nats below its
maximum: whatever is less likely is raised to that floor. So rows do not quite add up to 1.

The layout is that of ``tools/perplexity/perplexity.cpp`` in https://github.com/ggml-org/llama.cpp.
"""

import os
import struct
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any, NamedTuple

import numpy as np

from kldiv_dask.storage.mapped import MappedSource
from kldiv_dask.storage.source import name_some, signature

DESCRIPTION = "a base file of llama.cpp's llama-perplexity"
_KEYS = "log_probs", "labels", "tokens"

_SIGNATURE = b"_logits_"
_FIRST_TOKEN = 20

# Decimal logarithms and exponentials are the same everywhere, those of C libraries are not.
# Beyond the range of float64 they are infinite, as there.
_DECIMAL = Context(prec=25, traps=[])


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


@dataclass(frozen=True, slots=True)
class LogProbsSource(MappedSource):
    """The log-probabilities of a base file, which are stored as codes.

    Parameters
    ----------
    renormalise : bool, optional
        Whether to subtract from each row the logarithm of the sum of its probabilities.
    """

    renormalise: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the arrays read, float32."""
        return np.dtype(np.float32)

    def read(self, index: tuple[Any, ...]) -> Any:
        """Decode a region; see `Source.read`.

        A row of zeros would give every class the probability 1. It is what a crash leaves in a
        file that had got its size but not all of its contents, and is refused.
        """
        chunks, rows, classes = (i if isinstance(i, slice) else slice(i, i + 1) for i in index)
        heads = self.view("<f4", (*self.shape[:2], 2), self.offset - 8, (*self.strides[:2], 4))
        scale, minimum = np.split(heads[chunks, rows], 2, axis=-1)
        if self.shape[-1] > 1 and ((scale == 0) & (minimum == 0)).any():
            raise ValueError("a row was never written: its scale and its minimum are 0")
        if self.renormalise:
            codes = MappedSource.read(self, (chunks, rows, slice(None)))
            values = _renormalised(codes, scale)[..., classes]
        else:
            codes = MappedSource.read(self, (chunks, rows, classes))
            values = np.multiply(codes, scale, dtype=np.float32)
            values += minimum
        return values[tuple(slice(None) if isinstance(i, slice) else 0 for i in index)]


def _renormalised(codes: Any, scale: Any) -> Any:
    """Decode whole rows so that the probabilities of each add up to 1.

    The minimum cancels out. Computed in float64, row by row, so that no bit depends on which rows
    are read together, and rounded to float32 once.
    """
    values = np.empty(codes.shape, np.float32)
    for row in np.ndindex(codes.shape[:-1]):
        step = float(scale[row][0])
        total = _exponentials(step)[codes[row]].sum()
        logarithm = float(_DECIMAL.ln(Decimal(float(total))))
        values[row] = np.multiply(codes[row], step, dtype=np.float64) - logarithm
    return values


def _exponentials(step: float) -> Any:
    """Give exp(step * code) for every code, as products of the exponentials of its bits."""
    table = np.ones(1)
    for bit in range(16):
        table = np.concatenate([table, table * float(_DECIMAL.exp(Decimal(step * 2**bit)))])
    return table


def recognises(path: str) -> bool:
    """Whether `path` is a local file that begins with the signature of a base file."""
    return signature(path) == _SIGNATURE


def open_source(path: str, key: str | None) -> MappedSource:
    """Read the header of a base file.

    Parameters
    ----------
    path : str
        Absolute local path.
    key : {None, 'log_probs', 'labels', 'tokens'}
        The log-probabilities, float32 of shape (n_chunk, rows, n_vocab), which are meant by None
        too; the token that each row predicts, int32 of shape (n_chunk, rows); or all tokens,
        int32 of shape (n_chunk, n_ctx).

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
    n_ctx, n_vocab, n_chunk = header
    rows, row_bytes = header.rows, header.row_bytes
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
        key="log_probs",
        shape=(n_chunk, rows, n_vocab),
        stored_dtype=np.dtype("<u2"),
        stored_chunks=(1, 1, n_vocab),
        order="C",
        offset=header.first_row + 8,
        strides=(rows * row_bytes, row_bytes, 2),
        **file,
    )


def _read_header(path: str) -> tuple[_Header, os.stat_result]:
    """Read the numbers that say how large everything is, and hold them against the file's size."""
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
    if size != header.file_bytes:
        raise ValueError(
            f"{path} is {'truncated' if size < header.file_bytes else 'damaged'}:"
            f" {header.n_chunk} chunks of {header.rows} rows of {header.n_vocab} classes take"
            f" {header.file_bytes} bytes with their {header.n_ctx} tokens each, the file has {size}"
        )
    return header, status
