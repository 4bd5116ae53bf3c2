"""An evaluation of many slabs, whose reads may fail, and what its checkpoint holds."""

import math
from typing import Any

import dask.array as da
import numpy as np

from kldiv_dask import evaluate
from kldiv_dask.evaluation import checkpoint

SHAPE = (24, 3, 5)
VALUES = np.random.default_rng(0).normal(size=(2, *SHAPE))
LABELS = np.random.default_rng(1).integers(0, 5, SHAPE[:2])
GROUPS = np.arange(24)[:, None] // 5


class Rows:
    """A stored array whose reads may fail."""

    def __init__(self, values: Any, before: Any = lambda: None) -> None:
        self.values, self.before = values, before
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __getitem__(self, index: Any) -> Any:
        self.before()
        return self.values[index]


def go(path: Any = None, *, before: Any = lambda: None, chunks: int = 1, **options: Any) -> Any:
    """Evaluate row by row, in slabs that are as small as can be."""
    rows = [Rows(VALUES[0], before), Rows(VALUES[1])]
    pair = [
        da.from_array(one, chunks=(chunks, 3, 5), name=name)
        for one, name in zip(rows, ("student", "teacher"), strict=True)
    ]
    given: dict[str, Any] = {
        "labels": LABELS,
        "groups": GROUPS,
        "scheduler": "sync",
        "progress": False,
    }
    return evaluate(*pair, checkpoint=path, **given | {"checkpoint_interval": 0} | options)


def load(path: Any) -> Any:
    """Read a checkpoint, whatever run it is of; ValueError if it is damaged."""
    return checkpoint.loads(path.read_bytes(), str(path))


def positions_of(header: Any) -> Any:
    """Count the positions that a checkpoint has done."""
    return sum(math.prod(stop - start for start, stop in box) for box in header["done"])


class Countdown:
    """Raises an error at one of the next calls."""

    def __init__(self, calls: Any, error: Any) -> None:
        self.left, self.error = calls, error

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error
