"""What is seen of two arrays without an evaluation: a look at their files and at some rows."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import dask
import dask.array as da
import numpy as np

from kldiv_dask.align import Box, axis_to_end, cut, repeated_operands
from kldiv_dask.arrays import plain
from kldiv_dask.evaluation.data import Data
from kldiv_dask.evaluation.errors import EvaluationWarning
from kldiv_dask.evaluation.operands import tolerance
from kldiv_dask.evaluation.warn import warn_of_sources
from kldiv_dask.kernels import checks
from kldiv_dask.statistics import doubts

# Rows that are looked at in a place, at most, and what those of all places may take, in bytes.
ROWS, MOST_BYTES = 64, 2**24

_NAMES = {
    checks.RESEMBLES_PROBS: "resembles_probs",
    checks.RESEMBLES_LOG_PROBS: "resembles_log_probs",
    checks.OUT_OF_RANGE: "out_of_range",
}


class Inspection:
    """A look at two arrays, for what computes a number from them.

    Parameters
    ----------
    input, target : dask.array.Array
        The arrays.
    where : dask.array.Array or None
        What is included, as booleans or integers of 0 and 1: of the positions for logits, of the
        elements otherwise.
    kind : str
        As for `evaluate`.
    axis : int
        The axis of the classes.
    """

    def __init__(
        self, input: da.Array, target: da.Array, where: da.Array | None, kind: str, axis: int
    ) -> None:
        self._kind, self._where = kind, None if where is None else plain("where", where)
        ndim = max(input.ndim, target.ndim)
        self._axis = axis if axis < 0 else axis - ndim
        self._data = Data({"input": input, "target": target, "where": where})
        self._pair = [axis_to_end(self._axis, a) for a in (input, target)] if ndim else []
        found = repeated_operands(*self._pair) if kind == "logits" else []
        self.repeated = found[0] if found else None

    def warn(self, ways: Mapping[str, str], scheduler: Any) -> None:
        """Warn of what is wrong with the data as far as a few rows and all files tell.

        `ways` says of each kind how to choose it.
        """
        by_position = self._kind == "logits"
        pair = [array.shape for array in self._pair]
        shape = np.broadcast_shapes(*(s[:-1] if by_position else s for s in pair))
        axis = self._axis if by_position else None
        warn_of_sources(self._data, self._data.missing_chunks(self._where, shape, axis, scheduler))
        if not pair or not all(map(len, pair)) or 0 in np.broadcast_shapes(*pair):
            return
        counts, rows = self._look_at_rows(scheduler)
        sentence = doubts.wrong_kind(self._kind, counts, rows, ways)
        for one in [sentence] if sentence else doubts.odd_rows(self._kind, counts, rows):
            message = f"of {rows:,} rows that were looked at: {one}"
            warnings.warn(message, EvaluationWarning, stacklevel=2)

    def check_unchanged(self) -> None:
        """Raise an error if a stored array is not what it was before."""
        self._data.check_unchanged()

    def _look_at_rows(self, scheduler: Any) -> tuple[dict[str, int], int]:
        """Count what rows at the beginning, in the middle and at the end look like."""
        shape = np.broadcast_shapes(*(array.shape[:-1] for array in self._pair))
        each = sum(array.shape[-1] * array.dtype.itemsize for array in self._pair)
        counts = dict.fromkeys(doubts.applicable(self._kind, labeled=False), 0)
        taken = varied = normalized = 0
        for box in _places(shape, min(MOST_BYTES // (3 * each), ROWS)):
            parts: list[Any] = [cut(array, box, trailing=1) for array in self._pair]
            if self._where is not None:
                parts.append(cut(self._where, box, trailing=int(self._kind != "logits")))
            found = dask.compute(*parts, scheduler=scheduler)
            size = tuple(stop - start for start, stop in box)
            included = np.ones(size, bool)
            if self._where is not None:
                mask = found[2] if self._kind == "logits" else np.atleast_1d(found[2]).any(axis=-1)
                included = np.broadcast_to(mask, size)
            taken += int(included.sum())
            for name, values, holds in zip(
                ("input", "target"), found, checks.OPERANDS[self._kind], strict=False
            ):
                rows = np.broadcast_to(values, (*size, values.shape[-1]))[included]
                resembles, constant, is_one = checks.inspect(rows, holds, tolerance(values))
                varied += int((~constant).sum())
                normalized += int((is_one & ~constant).sum())
                counts[f"{name}_constant"] += int(constant.sum())
                for code, check in _NAMES.items():
                    if f"{name}_{check}" in counts:
                        counts[f"{name}_{check}"] += int((resembles == code).sum())
        if self._kind != "logits" and normalized < varied / 2:
            # The last axis is not that of the classes, as where torch has them along the second.
            counts |= {"input_constant": 0, "target_constant": 0}
        return counts, taken


def _places(shape: tuple[int, ...], most: int) -> Iterator[Box]:
    """Yield at most so many positions at the beginning, in the middle and at the end.

    They follow each other along the longest axis.
    """
    if not most:
        return
    if not shape:
        yield ()
        return
    longest = shape.index(max(shape))
    length, before = min(shape[longest], most), 0
    for start in sorted({0, (shape[longest] - length) // 2, shape[longest] - length}):
        if start >= before:  # the others overlap
            box = [(0, 1)] * len(shape)
            box[longest] = (start, start + length)
            before = start + length
            yield tuple(box)
