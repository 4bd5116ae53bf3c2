"""Base files of llama.cpp with random logits, and what is computed of rows."""

from pathlib import Path
from typing import Any

import numpy as np

from kldiv_dask import evaluate
from tests.helpers import llama_base

RNG = np.random.default_rng(7)
REAL = Path(__file__).parents[1] / "data" / "llama"
SHAPES = [(2, 9, 6), (3, 8, 7), (1, 3, 1), (1, 4, 2), (2, 17, 300)]  # n_chunk, n_ctx, n_vocab


def make(path: Any, n_chunk: int = 3, n_ctx: int = 8, n_vocab: int = 7, spread: float = 5.0) -> Any:
    """Write random logits, some of them far below the largest; return the path."""
    logits = RNG.standard_normal((n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab)) * spread
    tokens = RNG.integers(0, n_vocab, (n_chunk, n_ctx))
    llama_base.write(path, logits, tokens)
    return path


def bits(x: Any) -> Any:
    return x.dtype, x.shape, x.tobytes()


def kl(log_q: Any, log_p: Any) -> Any:
    """Divergence of each row, in float64."""
    log_q, log_p = (np.asarray(x, float) for x in (log_q, log_p))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def run(input: Any, target: Any, **options: Any) -> Any:
    return evaluate(input, target, progress=False, scheduler="sync", **options)


def replace_row(path: Any, *row: Any) -> None:
    """Write row 2 of chunk 1 of 3 x 3."""
    data = llama_base.row_bytes(*row)
    with open(path, "r+b") as file:
        file.seek(20 + 4 * 3 * 8 + 5 * len(data))
        file.write(data)
