"""Base files of llama.cpp: their log-probabilities and their tokens as arrays.

`llama_format` says how they are laid out.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kldiv_dask.storage.llama_format import (
    FIRST_TOKEN,
    FLOORS,
    LARGEST_CODE,
    SIGNATURE,
    check_size,
    decode,
    first_damage,
    read_header,
    rounding,
)
from kldiv_dask.storage.mapped import MappedSource
from kldiv_dask.storage.source import Source, magic_bytes, name_some

DESCRIPTION = "a base file of llama.cpp's llama-perplexity"
_KEYS = "log_probs", "labels", "tokens"


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
        raised = self.shape[-1] * math.exp(-FLOORS[0])
        return float(rounding(FLOORS[1] / LARGEST_CODE)) + raised

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
            values, sums = decode(heads, codes, classes)
            damage = first_damage(heads, codes, sums)
        self.check_unchanged()
        if damage is not None:
            (chunk, row), problem = damage
            n_chunk, n_row, _ = self.shape
            place = [range(n_chunk)[chunks][chunk], range(n_row)[rows][row]]
            raise ValueError(f"row {place} {problem}")
        return values[tuple(slice(None) if isinstance(i, slice) else 0 for i in index)]


def can_open(path: str) -> bool:
    """Whether `path` is a local file that begins with the signature of a base file."""
    return magic_bytes(path) == SIGNATURE


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
    header, status = read_header(path)
    check_size(path, header, status.st_size, allow_truncated)
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
            offset=FIRST_TOKEN + 4 * skipped,
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


def other_text(first: Source, second: Source, *, is_whole: bool = True) -> str:
    """Say how the texts of two arrays of base files differ.

    Parameters
    ----------
    first, second : Source
        Any arrays.
    is_whole : bool, optional
        Whether they are meant from beginning to end. If not, only the chunks that both have must
        be of one text.

    Returns
    -------
    str
        A sentence; '' if the texts are the same, or one of the arrays is of no base file.
    """
    if first.path == second.path or not all(map(_is_of_base_file, (first, second))):
        return ""
    difference = _difference(first, second, is_whole)
    return difference and (
        f"{first.path} and {second.path} must be of the same text, got {difference}, in this order;"
        " write both with the same -f, -c and --chunks, by models of the same vocabulary"
    )


def _is_of_base_file(source: Source) -> bool:
    return isinstance(source, MappedSource) and source.key in _KEYS and can_open(source.path)


def _difference(first: Source, second: Source, is_whole: bool) -> str:
    headers = (read_header(source.path)[0] for source in (first, second))
    names = "tokens a chunk", "classes", "chunks"
    for name, *numbers in zip(names, *headers, strict=True):
        if numbers[0] != numbers[1] and (is_whole or name != "chunks"):
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
