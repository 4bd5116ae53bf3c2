"""The slow reference of `kl_div_with_logits`, in many digits. Nothing here imports the library."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from mpmath import mp, mpf

# Terms as large as 1 cancel to divergences of 1e-40 with 50 digits left.
DIGITS = 100


def _special(b: npt.NDArray[np.float64], a: npt.NDArray[np.float64]) -> float | None:
    """What -inf, +inf and NaN make of the divergence, or None."""
    if not (b < np.inf).all() or not (a < np.inf).all() or not (a > -np.inf).any():
        return math.nan
    return math.inf if ((b == -np.inf) & (a > -np.inf)).any() else None


def divergence(input_row: Any, target_row: Any, temperature: float = 1.0) -> Any:
    """KL(softmax(target / T) || softmax(input / T)) in nats of the numbers as they are stored.

    A class that the target excludes, with a logit of -inf, contributes nothing; one that the input
    alone excludes makes the divergence infinite. NaN and +inf spoil it, and so does a target
    without any class.

    Parameters
    ----------
    input_row, target_row : 1-d arrays, equally long
    temperature : float

    Returns
    -------
    mpmath.mpf
    """
    b, a = (np.asarray(row).astype(np.float64) for row in (input_row, target_row))
    special = _special(b, a)
    if special is not None:
        return mpf(special)
    largest = max(float(np.abs(row[row > -np.inf]).max()) for row in (b, a))
    digits = DIGITS + max(math.ceil(math.log10(max(largest, 1)) - math.log10(temperature)), 0)
    with mp.workdps(digits):
        weights, logarithms = zip(*(_softmax(row, temperature) for row in (b, a)), strict=True)
        (_, w), (logs_b, logs_a) = weights, logarithms
        terms = zip(w, logs_a, logs_b, strict=True)
        return mp.fsum(p * (log_p - log_q) for p, log_p, log_q in terms if p)


def _softmax(row: npt.NDArray[np.float64], temperature: float) -> tuple[list[Any], list[Any]]:
    """Return the probabilities of a row and their logarithms."""
    logits = [mpf(logit) / mpf(temperature) for logit in row.tolist()]
    most = max(logits)
    logits = [logit - most for logit in logits]
    exponentials = [mp.exp(logit) if logit > -mp.inf else mpf(0) for logit in logits]
    total = mp.fsum(exponentials)
    log_total = mp.log(total)
    return [w / total for w in exponentials], [logit - log_total for logit in logits]


def fast_divergence(input_row: Any, target_row: Any, temperature: float = 1.0) -> float:
    """The same for many classes of finite logits of moderate size, within about 1e-15.

    With d = log q - log p, terms are p (exp(d) - 1 - d), none of which is negative.
    """
    rows = (np.asarray(row).astype(np.longdouble) / temperature for row in (input_row, target_row))
    log_q, log_p = (row - row.max() for row in rows)
    log_q, log_p = (row - np.log(math.fsum(np.exp(row))) for row in (log_q, log_p))
    d = log_q - log_p
    near = d * d * (0.5 + d * (1 / np.longdouble(6) + d * (1 / np.longdouble(24) + d / 120)))
    far = np.expm1(d) - d
    return math.fsum(np.exp(log_p) * np.where(np.abs(d) < 1e-4, near, far))
