"""Sentences that say why data are probably not of the kind that was named."""

from collections.abc import Iterator, Mapping, Sequence

from kldiv_dask import partial_sum
from kldiv_dask.kernels.checks import LOG_PROBS, LOGITS, NEARLY, OPERANDS, PROBS
from kldiv_dask.statistics import tables
from kldiv_dask.statistics.intervals import bad, finite_part, quotient
from kldiv_dask.statistics.state import CHECKS, EvaluationState

HOLDS = {LOGITS: "logits", LOG_PROBS: "log-probabilities", PROBS: "probabilities"}

# If this fraction of rows looks like another kind, all rows are taken for that kind.
SHARE = 0.99

EQUAL = "input and target are equal at all positions, as if one array was given twice"

# What a row holds that fails each check.
_RESEMBLES = {"resembles_probs": PROBS, "resembles_log_probs": LOG_PROBS, "out_of_range": LOGITS}

Counts = Mapping[str, int]

# How to choose each kind.
WAYS = {kind: f"pass kind={kind!r}" for kind in OPERANDS}


def of_state(state: EvaluationState, kind: str) -> list[str]:
    """Return all sentences about the data of a state."""
    counts, positions = counts_of(state)
    if not positions:
        return ["no position is included"]
    kl = partial_sum.total(tables.merge_groups(state.totals).sums[0, 0])
    finite = positions - bad(kl)
    sentences = ["the divergence is NaN at all positions"] if kl.nan == positions else []
    if state.fingerprints[1] == state.fingerprints[2]:
        sentences.append(EQUAL)
    another = wrong_kind(kind, counts, positions)
    if another:
        sentences.append(another)
    else:
        sentences += unnormalized(kind, counts, positions, state.deviations.tolist())
        mean = quotient(finite_part(kl), finite)
        negative = negative_mean(
            mean, float(state.deviations.max()), all_finite=finite == positions
        )
        sentences += [negative] if negative else []
    return [*sentences, *odd_rows(kind, counts, positions)]


def counts_of(state: EvaluationState) -> tuple[Counts, int]:
    """Return the number of positions that fail each check, and that of all positions."""
    failed = tables.merge_groups(state.checks)
    by_number = dict(zip(failed.rest.tolist(), failed.counts[:, 0].tolist(), strict=True))
    counts = {name: by_number.get(number, 0) for number, name in enumerate(CHECKS)}
    return counts, int(state.totals.counts[:, 0].sum())


def applicable(kind: str, labeled: bool) -> list[str]:
    """Return the names of the checks that apply to data of a kind, but for NaN and infinity.

    Examples
    --------
    >>> applicable("logits", labeled=False)[-2:]
    ['target_constant', 'target_resembles_probs']
    """
    checks = []
    for operand, holds in zip(("input", "target"), OPERANDS[kind], strict=True):
        names = ["excludes_classes", *([] if holds == LOGITS else ["not_normalized"]), "constant"]
        names += ["resembles_log_probs"] if holds == PROBS else ["resembles_probs"]
        names += [] if holds == LOGITS else ["out_of_range"]
        names += ["label_at_floor"] if labeled else []
        checks += [f"{operand}_{name}" for name in names]
    return checks


def kind_of_most(kind: str, counts: Counts, positions: int) -> tuple[int, ...]:
    """Return what nearly all rows of input, and of target, look like; else what `kind` says."""
    looks = []
    for operand, holds in zip(("input", "target"), OPERANDS[kind], strict=True):
        for check, resembled in _RESEMBLES.items():
            if positions and counts.get(f"{operand}_{check}", 0) >= SHARE * positions:
                holds = resembled
        looks.append(holds)
    return tuple(looks)


def wrong_kind(kind: str, counts: Counts, positions: int, ways: Mapping[str, str] = WAYS) -> str:
    """Return what nearly all rows look like, and how to choose that kind; empty if as `kind` says.

    `ways` has for each kind how to choose it.

    Examples
    --------
    >>> counts = dict.fromkeys(applicable("logits", False), 0)
    >>> wrong_kind("logits", counts, 10)
    ''
    """
    looks = kind_of_most(kind, counts, positions)
    if looks == OPERANDS[kind]:
        return ""
    operands = zip(("input", "target"), looks, OPERANDS[kind], strict=True)
    differing = [(operand, look, holds) for operand, look, holds in operands if look != holds]
    parts = [
        f"{operand} looks like {HOLDS[look]}, not {HOLDS[holds]}"
        for operand, look, holds in differing
    ]
    if len(differing) == 2 and differing[0][1:] == differing[1][1:]:
        _, look, holds = differing[0]
        parts = [f"input and target look like {HOLDS[look]}, not {HOLDS[holds]}"]
    kinds = {holds: name for name, holds in OPERANDS.items()}
    if looks in kinds:
        remedy = ways[kinds[looks]]
    else:  # logarithms of probabilities are logits too
        probs = [
            name for name, look in zip(("input", "target"), looks, strict=True) if look == PROBS
        ]
        logarithm = f"take the logarithm of {probs[0]}, and " if probs else ""
        swap = "swap them, or " if looks == OPERANDS[kind][::-1] else ""
        remedy = swap + logarithm + ways["logits" if LOGITS in looks else "log_probs"]
    return f"{' and '.join(parts)}: if so, {remedy}"


def odd_rows(kind: str, counts: Counts, positions: int) -> Iterator[str]:
    """Yield how many rows of each operand are constant, or look like another kind."""
    looks = kind_of_most(kind, counts, positions)
    for operand, holds, look in zip(("input", "target"), OPERANDS[kind], looks, strict=True):
        constant = counts[f"{operand}_constant"]
        if constant:
            yield (
                f"{_rows(constant, operand)} constant, all classes being equal, as where data were "
                "never written"
            )
        for check, resembled in _RESEMBLES.items():
            count = counts.get(f"{operand}_{check}", 0)
            if count and look == holds:
                yield f"{_rows(count, operand)} probably no {HOLDS[holds]}, but {HOLDS[resembled]}"


def unnormalized(
    kind: str, counts: Counts, positions: int, deviations: Sequence[float]
) -> Iterator[str]:
    """Yield the operands whose probabilities sum to 1 in nearly no row, by more than rounding.

    `deviations` are the largest distances from 1 of the sum of a row, of input and target.
    """
    for operand, holds, deviation in zip(
        ("input", "target"), OPERANDS[kind], deviations, strict=True
    ):
        count = counts.get(f"{operand}_not_normalized", 0)
        if holds != LOGITS and count >= SHARE * positions and deviation > NEARLY:
            what = (
                "logarithms to another base than e, or logits" if holds == LOG_PROBS else "counts"
            )
            yield (
                f"{count:,} of {positions:,} rows of {operand} have probabilities that do not sum "
                f"to 1, by up to {deviation:.2g}, as where they are {what}"
            )


def negative_mean(mean: float, deviation: float, *, all_finite: bool = True) -> str:
    """Return why a mean is negative, which no mean divergence is; empty if it is not.

    `deviation` is the largest distance from 1 of the sum of a row's probabilities.
    """
    if not mean < 0:
        return ""
    if abs(mean) <= deviation <= NEARLY:
        why = f"rows whose probabilities sum to 1 only within {deviation:.1g} explain it"
    else:
        why = "input or target is probably of another kind, or they are swapped"
    what = "the mean divergence" if all_finite else "the mean of the finite divergences"
    return f"{what} is {mean:.4g}, and that of distributions is never negative: {why}"


def _rows(count: int, operand: str) -> str:
    return f"{count:,} row{'s' * (count != 1)} of {operand} {'are' if count != 1 else 'is'}"
