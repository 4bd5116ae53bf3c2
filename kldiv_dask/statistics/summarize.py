"""From a state to the statistics of a group."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from kldiv_dask import partial_sum
from kldiv_dask.partial_sum import UNITS_IN_ONE
from kldiv_dask.statistics import distribution, extremes, tables
from kldiv_dask.statistics.extremes import Extremes
from kldiv_dask.statistics.intervals import (
    bad,
    cell_sums,
    clustered,
    finite_part,
    interval,
    quotient,
)
from kldiv_dask.statistics.moments import Moments, ratio
from kldiv_dask.statistics.results import Finite, Labels, Statistics
from kldiv_dask.statistics.state import (
    AGREEING,
    CHECKS,
    COLUMNS,
    LABEL_SUMS,
    LABELED,
    SUMS,
    WORST,
    EvaluationState,
)
from kldiv_dask.statistics.tables import KeyedSums


def summarize(state: EvaluationState, code: int, shape: tuple[int, ...]) -> Statistics:
    """Return the statistics of the group with a number; `shape` is that of all positions."""
    moments = _moments(_of_group(state.totals, code))
    kl, count = moments.totals["kl"], moments.count
    finite = moments.finite("kl")
    error = math.sqrt(moments.variance_of_mean(kl.units, "kl_squared", finite))
    counts, sums = cell_sums(_of_group(state.cells, code))
    _, cluster_error = clustered(counts, sums)
    agreement = moments.counts[AGREEING] / count if count else math.nan
    bins = _of_group(state.bins, code)
    largest = extremes.top_k(extremes.concatenate([state.worst, state.infinite]), WORST)
    worst, worst_finite = (_worst(part, code, shape) for part in (largest, state.worst))
    max_finite = worst_finite[0]["kl"] if worst_finite else math.nan
    has_labels = "nll_input" in moments.totals
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
        quantiles=distribution.quantiles(bins),
        histogram=distribution.histogram(bins),
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
            "max": replace(finite, value=max_finite),
            "reverse_kl": moments.finite("reverse_kl"),
            "jensen_shannon": moments.finite("jensen_shannon"),
        },
        by_position=_by_position(_of_group(state.group_columns, code), shape),
        checks=_checks(_of_group(state.checks, code)),
        labels=_labels(moments, _of_group(state.label_bins, code)) if has_labels else None,
    )


def _of_group(table: KeyedSums, code: int) -> KeyedSums:
    """Return the rows of a group."""
    start, stop = np.searchsorted(table.keys, [code << tables.WIDTH, code + 1 << tables.WIDTH])
    keys, counts, sums = (column[start:stop] for column in table[:3])
    return table._replace(keys=keys, counts=counts, sums=sums)


def _moments(totals: KeyedSums) -> Moments:
    """Return the moments of a group; of none of its positions if it has no row."""
    names = SUMS + LABEL_SUMS if totals.sums.shape[1] > len(SUMS) else SUMS
    if totals.keys.size:
        return Moments(totals.counts[0], totals.sums[0], names)
    return Moments(np.zeros(3, np.int64), partial_sum.zero((len(names),)), names)


def _worst(largest: Extremes, code: int, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the index and the divergence of each position of a group."""
    indices = extremes.indices_of(largest, code, shape)
    values = largest.values[largest.groups == code].tolist()
    return [{"index": index, "kl": value} for index, value in zip(indices, values, strict=True)]


def _by_position(columns: KeyedSums, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the mean of each run along the last axis."""
    length = shape[-1] if shape else 1
    step = -(-length // COLUMNS) << columns.halvings
    means = []
    for run, count, sums in zip(
        columns.rest.tolist(), columns.counts[:, 0].tolist(), columns.sums, strict=True
    ):
        kl = partial_sum.total(sums[0])
        mean = quotient(kl, count)
        means.append(
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
    return means


def _checks(table: KeyedSums) -> dict[str, int]:
    """Return the number of positions that fail each check."""
    counts = dict(zip(table.rest.tolist(), table.counts[:, 0].tolist(), strict=True))
    return {name: counts.get(kind, 0) for kind, name in enumerate(CHECKS)}


def _labels(moments: Moments, bins: KeyedSums) -> Labels:
    """Return the statistics of labels, of the moments and the counts of `p_change` by bin."""
    count = moments.counts[LABELED]
    nll_input, nll_target = (moments.mean(name, count) for name in ("nll_input", "nll_target"))
    names = ("nll_input", "nll_target", "p_change", "p_change_squared")
    finite = {name: moments.finite(name, count) for name in names}
    perplexity_ratio, variance = _perplexity_ratio(moments, count)
    all_finite = math.isfinite(nll_input - nll_target)
    return Labels(
        count=count,
        nll_input=nll_input,
        nll_target=nll_target,
        perplexity_input=_exp(nll_input),
        perplexity_target=_exp(nll_target),
        perplexity_ratio=perplexity_ratio.value if all_finite else _exp(nll_input - nll_target),
        log_perplexity_ratio_standard_error=math.sqrt(variance),
        p_change_mean=moments.mean("p_change", count),
        p_change_rms=math.sqrt(moments.mean("p_change_squared", count)),
        p_change_quantiles=distribution.quantiles(bins),
        finite={
            "nll_input": finite["nll_input"],
            "nll_target": finite["nll_target"],
            "perplexity_input": _map(_exp, finite["nll_input"]),
            "perplexity_target": _map(_exp, finite["nll_target"]),
            "perplexity_ratio": perplexity_ratio,
            "p_change_mean": finite["p_change"],
            "p_change_rms": _map(math.sqrt, finite["p_change_squared"]),
        },
    )


def _perplexity_ratio(moments: Moments, count: int) -> tuple[Finite, float]:
    """Return the ratio where both likelihoods are finite, and the variance of its logarithm."""
    totals = moments.totals
    unpaired, squares = totals["nll_unpaired"], totals["nll_change_squared"]
    change = totals["nll_input"].units - totals["nll_target"].units - unpaired.units
    # `unpaired` is NaN where both are not finite: these positions are counted twice before.
    left_out = bad(totals["nll_input"]) + bad(totals["nll_target"]) - bad(unpaired)
    paired = count - left_out
    mean = ratio(change, paired * UNITS_IN_ONE) if paired > 0 else math.nan
    finite = Finite(_exp(mean), paired, squares.nan, left_out - squares.nan)
    return finite, moments.variance_of_mean(change, "nll_change_squared", finite)


def _map(function: Callable[[float], float], finite: Finite) -> Finite:
    """Apply a function to the value."""
    return replace(finite, value=function(finite.value))


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))
