"""Data of a student and its teacher, and what is said of the like."""

import warnings
from typing import Any

import numpy as np

from kldiv_dask import (
    EvaluationWarning,
    evaluate,
)

T = np.random.default_rng(0).normal(size=(8, 16, 40)).astype("f4")
S = T + 0.1 * np.random.default_rng(1).normal(size=T.shape).astype("f4")
MEAN = 0.0046460813


def said(*args: Any, **options: Any) -> Any:
    """Evaluate, and return the result and what was said of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evaluate(*args, progress=False, **{"scheduler": "sync"} | options)
    assert {one.category for one in caught} <= {EvaluationWarning}
    return result, [str(one.message) for one in caught]
