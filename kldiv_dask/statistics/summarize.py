"""From a state to numbers."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kldiv_dask import partial_sum
from kldiv_dask.partial_sum import UNITS_IN_ONE
from kldiv_dask.statistics import sketch, tables
from kldiv_dask.statistics import state as states
from kldiv_dask.statistics.intervals import (
    Interval,
    bad,
    cell_sums,
    clustered,
    finite_part,
    interval,
    quotient,
)
from kldiv_dask.statistics.state import (
    AGREEING,
    BIN_OFFSET,
    CHECKS,
    COLUMNS,
    LABEL_SUMS,
    LABELED,
    SUMS,
    WORST,
    EvaluationState,
    Extremes,
)
from kldiv_dask.statistics.tables import KeyedSums

FLOAT64 = np.dtype(np.float64)

PROBABILITIES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)

# A bar of the histogram takes the bins of the sketch from a power of two to the bin that has the
# square root of two of it, or from there to the next power.
OCTAVE, HALF = 128, 53

Quantiles = dict[float, float]


@dataclass(frozen=True)
class Finite:
    """A number over those positions where what it is made of is finite, and how many these are."""

    value: float
    """The number; NaN if there is no such position."""
    count: int
    """At how many positions it is finite."""
    nan: int
    """At how many it is NaN."""
    infinite: int
    """At how many it is infinite."""


@dataclass(frozen=True)
class Labels:
    """What labels tell of two models: negative log-likelihoods in nats, and probabilities.

    Means and perplexities are of all positions with a label, so that they show what is NaN or
    infinite; `finite` has them without.
    """

    count: int
    """How many positions have a label."""
    nll_input: float
    """The mean negative log-likelihood of the labels under the input."""
    nll_target: float
    """The same under the target."""
    perplexity_input: float
    """``exp(nll_input)``."""
    perplexity_target: float
    """``exp(nll_target)``."""
    perplexity_ratio: float
    """The first divided by the second."""
    log_perplexity_ratio_standard_error: float
    """Of the logarithm of ``finite["perplexity_ratio"]``, for independent positions."""
    p_change_mean: float
    """The mean of how much more probable the input takes the label to be."""
    p_change_rms: float
    """The root of the mean square of it."""
    p_change_quantiles: Quantiles
    """Its quantiles where it is not NaN, each within 0.39 % where the numbers around it have one
    sign."""
    finite: dict[str, Finite]
    """By the names of the means and perplexities above, the same over the positions where they are
    finite: for ``perplexity_ratio``, those where the likelihoods under both models are."""


@dataclass(frozen=True)
class Statistics:
    """The distribution of the divergence over positions. Divergences are in nats.

    Sums, means and extremes are of all positions, so that they show what is NaN or infinite. What
    has `finite` in its name is of the positions where it is finite, and so are standard errors and
    confidence intervals. If all is finite, both are the same. NaN also says that there is no such
    number, as of no position.
    """

    count: int
    """The number of positions."""
    nan: int
    """At how many of them the divergence is NaN."""
    infinite: int
    """At how many it is infinite."""
    sum: float
    """The exact sum of their divergences, rounded once."""
    mean: float
    """The sum divided by the count, rounded once; it shows non-finite divergences."""
    mean_of_finite: float
    """The mean over those positions whose divergence is finite."""
    standard_error: float
    """Of `mean_of_finite`, if positions are independent of each other: too small where neighbors
    are alike, as the tokens of a text are."""
    confidence_interval: Interval
    """Of it, at 95 %, if positions are independent of each other: too narrow likewise."""
    standard_error_clustered: float
    """Of it, if sequences are independent of each other, not the positions in one."""
    confidence_interval_clustered: Interval
    """Of it, at 95 %, from Student's t with ``clusters - 1`` degrees of freedom."""
    clusters: int
    """How many clusters that is from: sequences, or of more than 1024 runs of neighboring ones. Of
    positions with one axis they are runs of neighboring positions, whatever texts these are of.
    Those without a finite divergence do not count.
    """
    min: float
    """The smallest divergence."""
    max: float
    """The largest divergence."""
    quantiles: Quantiles
    """Quantiles of divergences that are not NaN by their probability, each within 0.39 % of that of
    the divergences; infinite ones are the largest."""
    histogram: dict[str, list[Any]]
    """Counts of positive, finite divergences between edges in equal steps of their logarithm."""
    worst: list[dict[str, Any]]
    """The 20 positions with the largest divergences, infinite ones first: their indices, and the
    divergence."""
    worst_finite: list[dict[str, Any]]
    """The 20 positions with the largest finite divergences."""
    top1_agreement: float
    """At which share of positions both have their largest probability at the same class; where
    there is NaN, they have not."""
    top1_agreement_standard_error: float
    """Of that, for independent positions."""
    reverse_kl: float
    """The mean divergence of the input from the target."""
    jensen_shannon: float
    """The mean Jensen-Shannon divergence, of normalized distributions."""
    finite: dict[str, Finite]
    """``sum``, ``max``, ``reverse_kl`` and ``jensen_shannon`` over the positions where they are
    finite, which are others for each of the last two."""
    by_position: list[dict[str, Any]]
    """The mean divergence along the last axis of the positions, if they have two or more, and that
    over the finite ones.

    Of more than 4096 places, and of fewer where there are many groups, neighbors are taken
    together.
    """
    checks: dict[str, int]
    """At how many positions there is what may be wrong with the data."""
    labels: Labels | None = field(default=None)
    """What labels tell, if there are any."""


class Moments:
    """The count, exact sums and cells of one group."""

    def __init__(self, counts: Any, sums: Any, names: tuple[str, ...]) -> None:
        self.count = int(counts[0])
        self.counts = [int(number) for number in counts]
        self.totals = {name: partial_sum.total(one) for name, one in zip(names, sums, strict=True)}

    def mean(self, name: str, count: int | None = None) -> float:
        """Return the mean of what is summed under a name."""
        return quotient(self.totals[name], self.count if count is None else count)

    def finite(self, name: str, count: int | None = None) -> Finite:
        """Return the mean of what is summed under a name where it is finite."""
        total = self.totals[name]
        finite = (self.count if count is None else count) - bad(total)
        mean = quotient(finite_part(total), finite)
        return Finite(mean, finite, total.nan, total.posinf + total.neginf)

    def variance_of_mean(self, first: int, squares: str, finite: Finite) -> float:
        """Return the variance of the mean of finite numbers that have a given sum, in units."""
        square, count = self.totals[squares], finite.count
        # Squares of finite numbers may be beyond float64.
        if count < 2 or bad(square) > finite.nan + finite.infinite:
            return math.nan
        spread = count * square.units * UNITS_IN_ONE - first * first
        # Squares are rounded, so of equal numbers the spread may be a little below 0.
        return _ratio(max(spread, 0), count * count * (count - 1) * UNITS_IN_ONE**2)


def _ratio(numerator: int, denominator: int) -> float:
    """Return a quotient, rounded once; an infinity if it is beyond float64."""
    return float(partial_sum.round_ratio(numerator, denominator, FLOAT64))


def _bins(table: KeyedSums) -> tuple[Any, Any]:
    return table.rest - BIN_OFFSET, table.counts[:, 0]


def _quantiles(table: KeyedSums) -> Quantiles:
    values = sketch.quantiles(*_bins(table), np.array(PROBABILITIES))
    return dict(zip(PROBABILITIES, values.tolist(), strict=True))


def _bars(bins: Any) -> Any:
    return 2 * (bins // OCTAVE) + (bins % OCTAVE >= HALF)


def histogram(table: KeyedSums) -> dict[str, list[Any]]:
    """Return counts in bars that are a factor of the square root of two wide, to 0.05 %."""
    bins, counts = _bins(table)
    finite = (bins > 0) & (bins < sketch.INFINITY)
    bars, counts = _bars(bins[finite]), counts[finite]
    if not bars.size:
        return {"edges": [], "counts": []}
    first, last = int(bars[0]), int(bars[-1])
    heights = np.zeros(last - first + 1, np.int64)
    np.add.at(heights, bars - first, counts)
    bounds = np.arange(first, last + 2)
    edges = sketch.edges(bounds // 2 * OCTAVE + bounds % 2 * HALF)
    return {"edges": edges.tolist(), "counts": heights.tolist()}


def _of_group(table: KeyedSums, code: int) -> KeyedSums:
    start, stop = np.searchsorted(table.keys, [code << tables.WIDTH, code + 1 << tables.WIDTH])
    keys, counts, sums = (column[start:stop] for column in table[:3])
    return table._replace(keys=keys, counts=counts, sums=sums)


def statistics(state: EvaluationState, code: int, shape: tuple[int, ...]) -> Statistics:
    """Return the statistics of a group."""
    totals = _of_group(state.totals, code)
    names = SUMS + LABEL_SUMS if state.totals.sums.shape[1] > len(SUMS) else SUMS
    if totals.keys.size:
        moments = Moments(totals.counts[0], totals.sums[0], names)
    else:
        nothing = partial_sum.zero((len(names),))
        moments = Moments(np.zeros(3, np.int64), nothing, names)
    kl, count = moments.totals["kl"], moments.count
    finite = moments.finite("kl")
    error = math.sqrt(moments.variance_of_mean(kl.units, "kl_squared", finite))
    counts, sums = cell_sums(_of_group(state.cells, code))
    _, cluster_error = clustered(counts, sums)
    agreement = moments.counts[AGREEING] / count if count else math.nan
    bins = _of_group(state.bins, code)
    largest = states.top_k(states.concatenated([state.worst, state.infinite]), WORST)
    worst, worst_finite = (_places(one, code, shape) for one in (largest, state.worst))
    most = worst_finite[0]["kl"] if worst_finite else math.nan
    return Statistics(
        count=count,
        nan=finite.nan,
        infinite=finite.infinite,
        sum=quotient(kl, 1) if count else 0.0,
        mean=moments.mean("kl"),
        mean_of_finite=finite.value,
        standard_error=error,
        confidence_interval=interval(finite.value, error, finite.count - 1),
        standard_error_clustered=cluster_error,
        confidence_interval_clustered=interval(finite.value, cluster_error, len(counts) - 1),
        clusters=len(counts),
        min=float(state.lowest[code]) if worst else math.nan,
        max=worst[0]["kl"] if worst else math.nan,
        quantiles=_quantiles(bins),
        histogram=histogram(bins),
        worst=worst,
        worst_finite=worst_finite,
        top1_agreement=agreement,
        top1_agreement_standard_error=(
            math.sqrt(agreement * (1 - agreement) / count) if count else math.nan
        ),
        reverse_kl=moments.mean("reverse_kl"),
        jensen_shannon=moments.mean("jensen_shannon"),
        finite={
            "sum": replace(finite, value=quotient(finite_part(kl), 1)),
            "max": replace(finite, value=most),
            "reverse_kl": moments.finite("reverse_kl"),
            "jensen_shannon": moments.finite("jensen_shannon"),
        },
        by_position=_by_position(_of_group(state.group_columns, code), shape),
        checks=_checks(_of_group(state.checks, code)),
        labels=_labels(moments, _of_group(state.label_bins, code)) if len(names) > 4 else None,
    )


def _places(extremes: Extremes, code: int, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    chosen = extremes.groups == code
    return [
        {"index": [int(i) for i in np.unravel_index(index, shape)], "kl": float(value)}
        for value, index in zip(extremes.values[chosen], extremes.places[chosen], strict=True)
    ]


def _by_position(runs: KeyedSums, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    length = shape[-1] if shape else 1
    step = -(-length // COLUMNS) << runs.halvings
    found = []
    for run, count, sums in zip(
        runs.rest.tolist(), runs.counts[:, 0].tolist(), runs.sums, strict=True
    ):
        kl = partial_sum.total(sums[0])
        mean = quotient(kl, count)
        found.append(
            {
                "start": run * step,
                "stop": min((run + 1) * step, length),
                "count": count,
                "nan": kl.nan,
                "infinite": kl.posinf + kl.neginf,
                "mean": mean,
                "mean_of_finite": quotient(finite_part(kl), count - bad(kl)) if bad(kl) else mean,
            }
        )
    return found


def _checks(table: KeyedSums) -> dict[str, int]:
    counts = dict(zip(table.rest.tolist(), table.counts[:, 0].tolist(), strict=True))
    return {name: counts.get(kind, 0) for kind, name in enumerate(CHECKS)}


def _labels(moments: Moments, bins: KeyedSums) -> Labels:
    count = moments.counts[LABELED]
    totals = moments.totals
    nll_input, nll_target = (moments.mean(name, count) for name in ("nll_input", "nll_target"))
    names = ("nll_input", "nll_target", "p_change", "p_change_squared")
    ours, theirs, p_change, p_change_squared = (moments.finite(name, count) for name in names)
    unpaired, squares = totals["nll_unpaired"], totals["nll_change_squared"]
    change = totals["nll_input"].units - totals["nll_target"].units - unpaired.units
    either = bad(totals["nll_input"]) + bad(totals["nll_target"]) - bad(unpaired)
    mean = _ratio(change, (count - either) * UNITS_IN_ONE) if count > either else math.nan
    both = Finite(_exp(mean), count - either, squares.nan, either - squares.nan)
    variance = moments.variance_of_mean(change, "nll_change_squared", both)
    all_finite = math.isfinite(nll_input - nll_target)
    return Labels(
        count=count,
        nll_input=nll_input,
        nll_target=nll_target,
        perplexity_input=_exp(nll_input),
        perplexity_target=_exp(nll_target),
        perplexity_ratio=both.value if all_finite else _exp(nll_input - nll_target),
        log_perplexity_ratio_standard_error=math.sqrt(variance),
        p_change_mean=moments.mean("p_change", count),
        p_change_rms=math.sqrt(moments.mean("p_change_squared", count)),
        p_change_quantiles=_quantiles(bins),
        finite={
            "nll_input": ours,
            "nll_target": theirs,
            "perplexity_input": replace(ours, value=_exp(ours.value)),
            "perplexity_target": replace(theirs, value=_exp(theirs.value)),
            "perplexity_ratio": both,
            "p_change_mean": p_change,
            "p_change_rms": replace(p_change_squared, value=math.sqrt(p_change_squared.value)),
        },
    )


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
