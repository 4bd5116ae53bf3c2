"""The warnings of an evaluation: before it, after the first slab, and at the end."""

import warnings
from typing import Any

from kldiv_dask.evaluation.checkpoint import Progress
from kldiv_dask.evaluation.data import Data
from kldiv_dask.evaluation.errors import EvaluationWarning
from kldiv_dask.evaluation.result import Evaluation
from kldiv_dask.report.remarks import missing_chunks
from kldiv_dask.statistics import doubts


def warn_of_sources(data: Data, missing: list[dict[str, Any]]) -> list[str]:
    """Warn of equal arrays and of missing chunks, and return the sentences."""
    warned = [doubts.EQUAL] if data.are_same() else []
    warned += [missing_chunks(array) for array in missing if array["operand"] != "where"]
    for sentence in warned:
        _warn(sentence)
    return warned


class EarlyWarning:
    """Warns after the first slab if nearly all of its rows are of another kind.

    `warned` has the sentences so far.
    """

    def __init__(self, kind: str, warned: list[str]) -> None:
        self._kind = kind
        self._is_first = True
        self.warned = warned

    def __call__(self, progress: Progress) -> None:
        """Check the first slab, and no other."""
        if self._is_first and progress.state is not None:
            counts, positions = doubts.counts_of(progress.state)
            sentence = doubts.wrong_kind(self._kind, counts, positions)
            if sentence:
                self.warned.append(sentence)
                _warn(sentence)
        self._is_first = False


def warn_of_result(result: Evaluation, early: EarlyWarning) -> None:
    """Warn of the doubts of a result that nobody was warned of yet."""
    for sentence in result.doubts():
        if sentence not in early.warned:
            _warn(sentence)


def _warn(message: str) -> None:
    warnings.warn(message, EvaluationWarning, stacklevel=6)
