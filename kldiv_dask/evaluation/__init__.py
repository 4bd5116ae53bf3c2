"""Evaluation jobs: one pass over the data, every statistic, resumable."""

from kldiv_dask.evaluation.comparison import Comparison, compare
from kldiv_dask.evaluation.errors import EvaluationError, EvaluationWarning
from kldiv_dask.evaluation.job import evaluate
from kldiv_dask.evaluation.result import Evaluation
from kldiv_dask.statistics.results import Statistics

__all__ = [
    "Comparison",
    "Evaluation",
    "EvaluationError",
    "EvaluationWarning",
    "Statistics",
    "compare",
    "evaluate",
]
