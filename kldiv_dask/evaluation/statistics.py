"""From a state to numbers."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kldiv_dask import partial
from kldiv_dask.evaluation.intervals import t_quantile
from kldiv_dask.partial import UNITS_IN_ONE, Total
from kldiv_dask.statistics import sketch, tables
from kldiv_dask.statistics.state import (
    AGREEING,
    BIN_OFFSET,
    CHECKS,
    COLUMNS,
    LABEL_SUMS,
    LABELLED,
    SUMS,
    State,
)
from kldiv_dask.statistics.tables import Table

FLOAT64 = np.dtype(np.float64)

CONFIDENCE = 0.95

PROBABILITIES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)

# A bar of the histogram takes the bins of the sketch from a power of two to the bin that has the
# square root of two of it, or from there to the next power.
OCTAVE, HALF = 128, 53

Interval = tuple[float, float]
Quantiles = dict[float, float]


@dataclass(frozen=True)
class Labels:
    """What labels tell of two models: negative log-likelihoods in nats, and probabilities."""

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
    """Of the logarithm of that, for independent positions."""
    p_change_mean: float
    """The mean of how much more probable the input takes the label to be."""
    p_change_rms: float
    """The root of the mean square of it."""
    p_change_quantiles: Quantiles
    """Its quantiles, each within 0.39 % where the numbers around it have one sign."""


@dataclass(frozen=True)
class Statistics:
    """The distribution of the divergence over positions. Divergences are in nats.

    NaN says that there is no such number, as of no position.
    """

    count: int
    """The number of positions."""
    sum: float
    """The exact sum of their divergences, rounded once."""
    mean: float
    """The sum divided by the count, rounded once; it shows non-finite divergences."""
    mean_of_finite: float
    """The mean over those positions whose divergence is finite."""
    standard_error: float
    """Of the mean, if positions are independent of each other: too small where neighbors are alike,
    as the tokens of a text are."""
    confidence_interval: Interval
    """Of the mean, at 95 %, if positions are independent of each other: too narrow likewise."""
    standard_error_clustered: float
    """Of the mean, if sequences are independent of each other, not the positions in one."""
    confidence_interval_clustered: Interval
    """Of the mean, at 95 %, from Student's t with ``clusters - 1`` degrees of freedom."""
    clusters: int
    """How many clusters that is from: sequences, or of more than 1024 runs of neighboring ones. Of
    positions with one axis they are runs of neighboring positions, whatever texts these are of.
    """
    min: float
    """The smallest divergence."""
    max: float
    """The largest divergence."""
    quantiles: Quantiles
    """Quantiles by their probability, each within 0.39 % of that of the divergences."""
    histogram: dict[str, list[Any]]
    """Counts of positive, finite divergences between edges in equal steps of their logarithm."""
    worst: list[dict[str, Any]]
    """The 20 positions with the largest divergences: their indices, and the divergence."""
    top1_agreement: float
    """At which share of positions both have their largest probability at the same class."""
    top1_agreement_standard_error: float
    """Of that, for independent positions."""
    reverse_kl: float
    """The mean divergence of the input from the target."""
    jensen_shannon: float
    """The mean Jensen-Shannon divergence, of normalised distributions."""
    by_position: list[dict[str, Any]]
    """The mean divergence along the last axis of the positions, if they have two or more.

    Of more than 4096 places, and of fewer where there are many groups, neighbours are taken
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
        self.totals = {name: partial.total(one) for name, one in zip(names, sums, strict=True)}

    def mean(self, name: str, count: int | None = None) -> float:
        """Return the mean of what is summed under a name."""
        return quotient(self.totals[name], self.count if count is None else count)

    def variance_of_mean(self, first: int, squares: str, count: int) -> float:
        """Return the variance of the mean of numbers that have a given sum, in units."""
        square = self.totals[squares]
        if count < 2 or square.nan or square.posinf:
            return math.nan
        spread = count * square.units * UNITS_IN_ONE - first * first
        # Squares are rounded, so of equal numbers the spread may be a little below 0.
        return _ratio(max(spread, 0), count * count * (count - 1) * UNITS_IN_ONE**2)


def quotient(total: Total, count: int) -> float:
    """Return an exact sum divided by a count, rounded once to float64."""
    return float(partial.quotient(total, count, FLOAT64))


def _ratio(numerator: int, denominator: int) -> float:
    """Return a quotient, rounded once; an infinity if it is beyond float64."""
    return float(partial.round_ratio(numerator, denominator, FLOAT64))


def clustered(counts: Any, sums: Any) -> tuple[float, float]:
    """Return the mean of clusters of positions, and its standard error.

    Notes
    -----
    The variance of a ratio of sums over independent clusters: W. Cochran, "Sampling Techniques",
    3rd ed. (1977), section 6.3; with runs of clusters, K. Wolter's random groups ("Introduction to
    Variance Estimation", 2nd ed. 2007, chapter 2).
    """
    clusters, positions = len(counts), int(np.sum(counts))
    if not positions:
        return math.nan, math.nan
    # Squares and sums of numbers beyond 2**480 are computed in a unit, a power of two.
    largest = max(map(abs, sums))
    unit = 2.0 ** max(math.frexp(largest)[1] - 480, 0) if math.isfinite(largest) else 1.0
    sums = [one / unit for one in sums]
    mean = math.fsum(sums) / positions if math.isfinite(sum(sums)) else sum(sums)
    if clusters < 2 or not math.isfinite(mean):
        return mean * unit, math.nan
    residuals = math.fsum(
        (one - count * mean) ** 2 for one, count in zip(sums, counts, strict=True)
    )
    error = math.sqrt(residuals * clusters / (clusters - 1)) / positions
    return mean * unit, error * unit


def interval(mean: float, error: float, freedom: int) -> Interval:
    """Return the confidence interval of a mean."""
    if not math.isfinite(error) or freedom < 1:
        return math.nan, math.nan
    half = t_quantile(CONFIDENCE, freedom) * error
    return mean - half, mean + half


def cell_sums(cells: Table) -> tuple[list[int], list[float]]:
    """Return how many positions each cell has, and the sum of their divergences, rounded."""
    counts = cells.counts[:, 0].tolist()
    return counts, [quotient(partial.total(one[0]), 1) for one in cells.sums]


def _bins(table: Table) -> tuple[Any, Any]:
    return table.rest - BIN_OFFSET, table.counts[:, 0]


def _quantiles(table: Table) -> Quantiles:
    values = sketch.quantiles(*_bins(table), np.array(PROBABILITIES))
    return dict(zip(PROBABILITIES, values.tolist(), strict=True))


def _bars(bins: Any) -> Any:
    return 2 * (bins // OCTAVE) + (bins % OCTAVE >= HALF)


def histogram(table: Table) -> dict[str, list[Any]]:
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


def _of_group(table: Table, code: int) -> Table:
    start, stop = np.searchsorted(table.keys, [code << tables.WIDTH, code + 1 << tables.WIDTH])
    keys, counts, sums = (column[start:stop] for column in table[:3])
    return table._replace(keys=keys, counts=counts, sums=sums)


def statistics(state: State, code: int, shape: tuple[int, ...]) -> Statistics:
    """Return the statistics of a group."""
    totals = _of_group(state.totals, code)
    names = SUMS + LABEL_SUMS if state.totals.sums.shape[1] > len(SUMS) else SUMS
    if totals.keys.size:
        moments = Moments(totals.counts[0], totals.sums[0], names)
    else:
        nothing = partial.zero((len(names),))
        moments = Moments(np.zeros(3, np.int64), nothing, names)
    kl, count = moments.totals["kl"], moments.count
    finite = count - kl.nan - kl.posinf - kl.neginf
    mean = moments.mean("kl")
    error = math.nan
    if finite == count:
        error = math.sqrt(moments.variance_of_mean(kl.units, "kl_squared", count))
    cells = _of_group(state.cells, code)
    _, cluster_error = clustered(*cell_sums(cells))
    agreement = moments.counts[AGREEING] / count if count else math.nan
    bins = _of_group(state.bins, code)
    chosen = state.worst.groups == code
    worst: list[dict[str, Any]] = [
        {"index": [int(i) for i in np.unravel_index(index, shape)], "kl": float(value)}
        for value, index in zip(state.worst.values[chosen], state.worst.places[chosen], strict=True)
    ]
    return Statistics(
        count=count,
        sum=quotient(kl, 1) if count else 0.0,
        mean=mean,
        mean_of_finite=quotient(kl._replace(nan=0, posinf=0, neginf=0), finite),
        standard_error=error,
        confidence_interval=interval(mean, error, count - 1),
        standard_error_clustered=cluster_error,
        confidence_interval_clustered=interval(mean, cluster_error, cells.keys.size - 1),
        clusters=int(cells.keys.size),
        min=float(state.lowest[code]) if worst else math.nan,
        max=worst[0]["kl"] if worst else math.nan,
        quantiles=_quantiles(bins),
        histogram=histogram(bins),
        worst=worst,
        top1_agreement=agreement,
        top1_agreement_standard_error=(
            math.sqrt(agreement * (1 - agreement) / count) if count else math.nan
        ),
        reverse_kl=moments.mean("reverse_kl"),
        jensen_shannon=moments.mean("jensen_shannon"),
        by_position=_by_position(_of_group(state.group_columns, code), shape),
        checks=_checks(_of_group(state.checks, code)),
        labels=_labels(moments, _of_group(state.label_bins, code)) if len(names) > 4 else None,
    )


def _by_position(runs: Table, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    length = shape[-1] if shape else 1
    step = -(-length // COLUMNS) << runs.halvings
    rows = zip(runs.rest.tolist(), runs.counts[:, 0].tolist(), runs.sums, strict=True)
    return [
        {
            "start": run * step,
            "stop": min((run + 1) * step, length),
            "count": count,
            "mean": quotient(partial.total(sums[0]), count),
        }
        for run, count, sums in rows
    ]


def _checks(table: Table) -> dict[str, int]:
    counts = dict(zip(table.rest.tolist(), table.counts[:, 0].tolist(), strict=True))
    return {name: counts.get(kind, 0) for kind, name in enumerate(CHECKS)}


def _labels(moments: Moments, bins: Table) -> Labels:
    count = moments.counts[LABELLED]
    totals = moments.totals
    nll_input, nll_target = (moments.mean(name, count) for name in ("nll_input", "nll_target"))
    change = totals["nll_input"].units - totals["nll_target"].units
    ratio = _ratio(change, count * UNITS_IN_ONE) if count else math.nan
    if not math.isfinite(nll_input - nll_target):
        ratio = nll_input - nll_target
    variance = moments.variance_of_mean(change, "nll_change_squared", count)
    return Labels(
        count=count,
        nll_input=nll_input,
        nll_target=nll_target,
        perplexity_input=_exp(nll_input),
        perplexity_target=_exp(nll_target),
        perplexity_ratio=_exp(ratio),
        log_perplexity_ratio_standard_error=math.sqrt(variance),
        p_change_mean=moments.mean("p_change", count),
        p_change_rms=math.sqrt(moments.mean("p_change_squared", count)),
        p_change_quantiles=_quantiles(bins),
    )


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
