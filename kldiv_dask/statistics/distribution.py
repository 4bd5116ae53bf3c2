"""Quantiles and histograms from tables of counts by bin."""

from typing import Any

import numpy as np

from kldiv_dask.statistics import sketch
from kldiv_dask.statistics.results import Quantiles
from kldiv_dask.statistics.state import BIN_OFFSET
from kldiv_dask.statistics.tables import KeyedSums

PROBABILITIES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)

# The sketch has 128 bins from a power of two to the next. The first 53 of them, up to the square
# root of two, are one bar of the histogram, and the other 75 are the next.
OCTAVE, HALF = 128, 53


def quantiles(table: KeyedSums) -> Quantiles:
    """Return quantiles of the counted values, by their probability."""
    values = sketch.quantiles(*_bins(table), np.array(PROBABILITIES))
    return dict(zip(PROBABILITIES, values.tolist(), strict=True))


def histogram(table: KeyedSums) -> dict[str, list[Any]]:
    """Count positive, finite values in bars that are a factor of sqrt(2) wide, to 0.05 %.

    The edges are edges of bins, so that the counts are exact.
    """
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


def _bins(table: KeyedSums) -> tuple[Any, Any]:
    return table.rest - BIN_OFFSET, table.counts[:, 0]


def _bars(bins: Any) -> Any:
    return 2 * (bins // OCTAVE) + (bins % OCTAVE >= HALF)
