"""Base files of llama.cpp, written as `llama-perplexity` does, row by row."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.helpers.cases import Array

f4 = np.float32


def encode(logits: npt.ArrayLike, nats: int = 16) -> tuple[Any, Any, Array]:
    """Quantize the logits of one position; return its scale, its minimum and its codes.

    The floor is 16 nats below the largest, or 24 in ik_llama.cpp.
    """
    logits = np.asarray(logits, f4)
    largest = logits.max()
    floor = max(logits.min(), largest - f4(nats))
    log_sum = f4(np.log(np.exp(logits - largest).sum(dtype=float)))
    scale = (largest - floor) / f4(65535)
    codes = np.zeros(logits.shape, np.uint16)
    if scale:
        above = logits > floor
        codes[above] = np.rint(f4(1) / scale * (logits[above] - floor))
    return scale, floor - largest - log_sum, codes


def row_bytes(scale: float, minimum: float, codes: Array) -> bytes:
    """Give the bytes of one row."""
    padding = b"\xab\xcd" * (len(codes) % 2)  # llama.cpp leaves there what there was
    return struct.pack("<2f", scale, minimum) + np.asarray(codes, "<u2").tobytes() + padding


def header(n_ctx: int, n_vocab: int, n_chunk: int, order: str = "<") -> bytes:
    """Give the first bytes of a file."""
    return b"_logits_" + struct.pack(f"{order}3i", n_ctx, n_vocab, n_chunk)


def write(path: str | Path, logits: npt.ArrayLike, tokens: npt.ArrayLike, nats: int = 16) -> None:
    """Write a file.

    Parameters
    ----------
    path : path-like
        Where to.
    logits : array_like
        Of shape (n_chunk, n_ctx - 1 - n_ctx // 2, n_vocab).
    tokens : array_like
        Integers of shape (n_chunk, n_ctx).
    nats : int
        As of `encode`.
    """
    logits, tokens = np.asarray(logits), np.asarray(tokens)
    n_chunk, n_ctx = tokens.shape
    assert logits.shape[:2] == (n_chunk, n_ctx - 1 - n_ctx // 2)
    with open(path, "wb") as file:
        file.write(header(n_ctx, logits.shape[2], n_chunk))
        file.write(tokens.astype("<i4").tobytes())
        for row in logits.reshape(-1, logits.shape[2]):
            file.write(row_bytes(*encode(row, nats)))


def read(path: str | Path) -> tuple[list[list[tuple[float, float, list[int]]]], Array]:
    """Read a file with nothing but `struct`.

    Returns
    -------
    rows : list of list of (float, float, list of int)
        Scale, minimum and codes of every row of every chunk.
    tokens : numpy.ndarray
        Of shape (n_chunk, n_ctx).
    """
    with open(path, "rb") as file:
        assert file.read(8) == b"_logits_"
        n_ctx, n_vocab, n_chunk = struct.unpack("<3i", file.read(12))
        tokens = struct.unpack(f"<{n_chunk * n_ctx}i", file.read(4 * n_chunk * n_ctx))
        rows = []
        while row := file.read(8 + 4 * ((n_vocab + 1) // 2)):
            scale, minimum, *codes = struct.unpack(f"<2f{n_vocab}H", row[: 8 + 2 * n_vocab])
            rows.append((scale, minimum, codes))
    a_chunk = len(rows) // n_chunk
    chunks = [rows[i * a_chunk : (i + 1) * a_chunk] for i in range(n_chunk)]
    return chunks, np.reshape(tokens, (n_chunk, n_ctx))


def log_probs(path: str | Path) -> Array:
    """Read a file's log-probabilities as llama.cpp does, in float32."""
    return np.array(
        [
            [
                [f4(scale) * f4(code) + f4(minimum) for code in codes]
                for scale, minimum, codes in rows
            ]
            for rows in read(path)[0]
        ],
        f4,
    )


KINDS = "zipf", "heavy", "bulk", "wide", "peaked", "two"


def teacher(rng: np.random.Generator, kind: str, n: int) -> Array:
    """Make up the logits of one position, some of them far below the largest."""
    x = np.zeros(n)
    if kind == "zipf":
        x = -2 * np.log(np.arange(1, n + 1)) + rng.normal(0, 0.5, n)
    elif kind == "heavy":
        x = -1.5 * np.log(np.arange(1, n + 1)) + rng.normal(0, 1, n)
    else:
        likely = {"bulk": 200, "wide": 50, "peaked": 30, "two": 0}[kind]
        x = rng.normal(0, {"bulk": 2.5, "wide": 3.2, "peaked": 2.0, "two": 2.5}[kind], n)
        x[:likely] += rng.gamma(2, 3, likely)
        if kind == "peaked":
            x[0] = x[1:].max() + rng.uniform(2, 9)
        elif kind == "two":
            x[0] = x.max() + rng.uniform(4, 7)
            x[1] = x[0] - rng.uniform(0, 0.5)
    return rng.permutation(x).astype(f4)


def student(rng: np.random.Generator, logits: Array, error: float) -> Array:
    """Add errors to logits, larger ones to those of less likely classes."""
    depth = logits.max() - logits
    noise = rng.normal(0, error, logits.size) * (1 + depth / 16)
    return np.asarray(logits + noise + error * rng.normal() * 0.3 * depth / 8, f4)
