"""What makes it probable that data are not what they are said to be, in sentences."""

from collections.abc import Iterator, Mapping, Sequence

from kldiv_dask import partial_sum
from kldiv_dask.kernels.checks import LOG_PROBS, LOGITS, NEARLY, OPERANDS, PROBS
from kldiv_dask.statistics import tables
from kldiv_dask.statistics.intervals import bad, finite_part, quotient
from kldiv_dask.statistics.state import CHECKS, EvaluationState

HOLDS = {LOGITS: "logits", LOG_PROBS: "log-probabilities", PROBS: "probabilities"}

# From so many rows on, they are all taken for another kind.
SHARE = 0.99

EQUAL = "input and target are equal at all positions, as if one array was given twice"

# What each check of a row says it holds.
_RESEMBLES = {"resembles_probs": PROBS, "resembles_log_probs": LOG_PROBS, "out_of_range": LOGITS}

Counts = Mapping[str, int]

WAYS = {kind: f"pass kind={kind!r}" for kind in OPERANDS}


def of_state(state: EvaluationState, kind: str) -> list[str]:
    """Say what makes the data of a state doubtful."""
    counts, positions = counts_of(state)
    if not positions:
        return ["no position is included"]
    kl = partial_sum.total(tables.merge_groups(state.totals).sums[0, 0])
    finite = positions - bad(kl)
    found = ["the divergence is NaN at all positions"] if kl.nan == positions else []
    if state.fingerprints[1] == state.fingerprints[2]:
        found.append(EQUAL)
    another = wrong_kind(kind, counts, positions)
    if another:
        found.append(another)
    else:
        found += unnormalized(kind, counts, positions, state.deviations.tolist())
        mean = quotient(finite_part(kl), finite)
        negative = negative_mean(
            mean, float(state.deviations.max()), all_finite=finite == positions
        )
        found += [negative] if negative else []
    return [*found, *odd_rows(kind, counts, positions)]


def counts_of(state: EvaluationState) -> tuple[Counts, int]:
    """Return how often each check has failed, and the number of positions."""
    failed = tables.merge_groups(state.checks)
    known = dict(zip(failed.rest.tolist(), failed.counts[:, 0].tolist(), strict=True))
    counts = {name: known.get(number, 0) for number, name in enumerate(CHECKS)}
    return counts, int(state.totals.counts[:, 0].sum())


def applicable(kind: str, labeled: bool) -> list[str]:
    """Name the checks of rows that can find something in data of a kind, but for NaN and infinity.

    Examples
    --------
    >>> applicable("logits", labeled=False)[-2:]
    ['target_constant', 'target_resembles_probs']
    """
    found = []
    for operand, holds in zip(("input", "target"), OPERANDS[kind], strict=True):
        names = ["excludes_classes", *([] if holds == LOGITS else ["not_normalized"]), "constant"]
        names += ["resembles_log_probs"] if holds == PROBS else ["resembles_probs"]
        names += [] if holds == LOGITS else ["out_of_range"]
        names += ["label_at_floor"] if labeled else []
        found += [f"{operand}_{name}" for name in names]
    return found


def kind_of_most(kind: str, counts: Counts, positions: int) -> tuple[int, ...]:
    """Return what nearly all rows of input and target look like, by what they are said to hold."""
    found = []
    for operand, holds in zip(("input", "target"), OPERANDS[kind], strict=True):
        for check, resembled in _RESEMBLES.items():
            if positions and counts.get(f"{operand}_{check}", 0) >= SHARE * positions:
                holds = resembled
        found.append(holds)
    return tuple(found)


def wrong_kind(kind: str, counts: Counts, positions: int, ways: Mapping[str, str] = WAYS) -> str:
    """Say what the data probably are, if nearly all rows look like something else; else nothing.

    `ways` says of each kind how to choose it.

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
    found = [(operand, look, holds) for operand, look, holds in operands if look != holds]
    parts = [
        f"{operand} looks like {HOLDS[look]}, not {HOLDS[holds]}" for operand, look, holds in found
    ]
    if len(found) == 2 and found[0][1:] == found[1][1:]:
        _, look, holds = found[0]
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
    """Say of how many rows it is doubtful that they are data of their kind."""
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
    """Say which operands have probabilities that nearly nowhere sum to 1, not for rounding.

    `deviations` are how far from 1 those of a row sum, at most, of input and target.
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
    """Say that a mean can't be that of divergences, if it is negative; else nothing.

    `deviation` is how far from 1 the probabilities of a row sum, at most.
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
