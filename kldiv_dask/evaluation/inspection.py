"""Checks of two arrays without an evaluation: of their files, and of some rows."""

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

# The most rows that are checked in each of three places, and the most bytes of all of them.
MAX_ROWS, MAX_BYTES = 64, 2**24

_NAMES = {
    checks.RESEMBLES_PROBS: "resembles_probs",
    checks.RESEMBLES_LOG_PROBS: "resembles_log_probs",
    checks.OUT_OF_RANGE: "out_of_range",
}


class Inspection:
    """The checks of two arrays that a number is computed from.

    Parameters
    ----------
    input, target : dask.array.Array
        The arrays.
    where : dask.array.Array or None
        Which positions of logits, or elements of other kinds, to include: booleans or integers of
        0 and 1.
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
        repeated = repeated_operands(*self._pair) if kind == "logits" else []
        self.repeated = repeated[0] if repeated else None

    def warn(self, ways: Mapping[str, str], scheduler: Any) -> None:
        """Warn of what a few rows, and the files, show to be wrong.

        `ways` has for each kind how to choose it.
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
        sentences = [sentence] if sentence else doubts.odd_rows(self._kind, counts, rows)
        for doubt in sentences:
            message = f"of {rows:,} rows that were looked at: {doubt}"
            warnings.warn(message, EvaluationWarning, stacklevel=2)

    def check_unchanged(self) -> None:
        """Raise an error if a stored array was changed."""
        self._data.check_unchanged()

    def _look_at_rows(self, scheduler: Any) -> tuple[dict[str, int], int]:
        """Return how many rows fail each check, and how many were checked."""
        shape = np.broadcast_shapes(*(array.shape[:-1] for array in self._pair))
        each = sum(array.shape[-1] * array.dtype.itemsize for array in self._pair)
        counts = dict.fromkeys(doubts.applicable(self._kind, labeled=False), 0)
        checked = varied = normalized = 0
        for box in _boxes(shape, min(MAX_BYTES // (3 * each), MAX_ROWS)):
            parts: list[Any] = [cut(array, box, trailing=1) for array in self._pair]
            if self._where is not None:
                parts.append(cut(self._where, box, trailing=int(self._kind != "logits")))
            computed = dask.compute(*parts, scheduler=scheduler)
            size = tuple(stop - start for start, stop in box)
            included = np.ones(size, bool)
            if self._where is not None:
                mask = computed[2]
                if self._kind != "logits":
                    mask = np.atleast_1d(mask).any(axis=-1)
                included = np.broadcast_to(mask, size)
            checked += int(included.sum())
            for name, values, holds in zip(
                ("input", "target"), computed, checks.OPERANDS[self._kind], strict=False
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
        return counts, checked


def _boxes(shape: tuple[int, ...], max_positions: int) -> Iterator[Box]:
    """Yield boxes at the beginning, in the middle and at the end of the longest axis.

    Each has at most `max_positions` positions, and no two share one.
    """
    if not max_positions:
        return
    if not shape:
        yield ()
        return
    longest = shape.index(max(shape))
    length, before = min(shape[longest], max_positions), 0
    for start in sorted({0, (shape[longest] - length) // 2, shape[longest] - length}):
        if start >= before:  # the others overlap
            box = [(0, 1)] * len(shape)
            box[longest] = (start, start + length)
            before = start + length
            yield tuple(box)
