"""Compute `expected.json`: the divergences of the stored arrays.

Those of the `.npy` files to 50 digits, those of the whole logits in NumPy's long double.

Run as ``python -m tests.data.ocr.make_expected``.
"""

import json
from pathlib import Path

import mpmath
import numpy as np
import zarr

FOLDER = Path(__file__).parent


def log_prob_sum() -> mpmath.mpf:
    """Sum exp(target) * (target - input) over the stored log-probabilities."""
    student, teacher = (
        np.load(FOLDER / f"{model}_log_probs.npy").astype(np.float64).ravel().tolist()
        for model in ("student", "teacher")
    )
    return mpmath.fsum(
        mpmath.exp(t) * (mpmath.mpf(t) - mpmath.mpf(x))
        for x, t in zip(student, teacher, strict=True)
    )


def position_divergence(student: list[float], teacher: list[float]) -> mpmath.mpf:
    """KL(softmax(teacher) || softmax(student)) of one position."""
    teacher_powers = [mpmath.exp(value) for value in teacher]
    teacher_total = mpmath.fsum(teacher_powers)
    student_total = mpmath.fsum(mpmath.exp(value) for value in student)
    cross = mpmath.fsum(
        power * (mpmath.mpf(t) - mpmath.mpf(x))
        for power, t, x in zip(teacher_powers, teacher, student, strict=True)
    )
    return cross / teacher_total - mpmath.log(teacher_total) + mpmath.log(student_total)


def whole_logits() -> dict[str, object]:
    """Summarize the divergences of all positions."""
    group = zarr.open_group(FOLDER / "logits.zarr", mode="r")
    logits = [np.asarray(group[model]).astype(np.longdouble) for model in ("student", "teacher")]
    tops = [a.argmax(axis=-1) for a in logits]
    shifted = [a - a.max(axis=-1, keepdims=True) for a in logits]
    student, teacher = (a - np.log(np.exp(a).sum(axis=-1, keepdims=True)) for a in shifted)
    kl = (np.exp(teacher) * (teacher - student)).sum(axis=-1)
    quantiles = (0.01, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999)
    return {
        "shape": list(teacher.shape),
        "mean": float(kl.mean()),
        "worst": float(kl.max()),
        "worst_position": [int(i) for i in np.unravel_index(kl.argmax(), kl.shape)],
        "top1_agreement": float(np.mean(tops[0] == tops[1])),
        "quantiles": {str(q): float(np.quantile(kl, q)) for q in quantiles},
    }


def main() -> None:
    mpmath.mp.dps = 50
    total = log_prob_sum()
    shape = np.load(FOLDER / "teacher_log_probs.npy", mmap_mode="r").shape
    student, teacher = (
        np.load(FOLDER / f"{model}_logits.npy").astype(np.float64)
        for model in ("student", "teacher")
    )
    positions = [
        [float(position_divergence(s.tolist(), t.tolist())) for s, t in zip(*rows, strict=True)]
        for rows in zip(student, teacher, strict=True)
    ]
    worst = np.unravel_index(np.argmax(positions), np.shape(positions))
    expected = {
        "log_probs": {
            "shape": list(shape),
            "sum": float(total),
            "mean": float(total / int(np.prod(shape))),
            "batchmean": float(total / shape[0]),
        },
        "logits": {
            "shape": list(teacher.shape),
            "per_position": positions,
            "worst_position": [int(i) for i in worst],
        },
        "whole_logits": whole_logits(),
    }
    text = json.dumps(expected, indent=2)
    (FOLDER / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
