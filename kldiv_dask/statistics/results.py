"""The statistics of a result, as dataclasses."""

from dataclasses import dataclass, field
from typing import Any

from kldiv_dask.statistics.intervals import Interval

Quantiles = dict[float, float]


@dataclass(frozen=True)
class Finite:
    """A number over the positions where all that it is computed from is finite."""

    value: float
    """The number; NaN if there is no such position."""
    count: int
    """Number of these positions."""
    nan: int
    """Number of positions left out for NaN."""
    infinite: int
    """Number of positions left out for an infinity."""


@dataclass(frozen=True)
class Labels:
    """How probable both models take the labels to be: negative log-likelihoods are in nats.

    Means and perplexities are over all positions with a label, so they are NaN or infinite if one
    position is. `finite` has the same over the finite positions.
    """

    count: int
    """Number of positions with a label."""
    nll_input: float
    """Mean negative log-likelihood of the labels under the input."""
    nll_target: float
    """Mean negative log-likelihood of the labels under the target."""
    perplexity_input: float
    """``exp(nll_input)``."""
    perplexity_target: float
    """``exp(nll_target)``."""
    perplexity_ratio: float
    """``perplexity_input / perplexity_target``."""
    log_perplexity_ratio_standard_error: float
    """Standard error of the logarithm of ``finite["perplexity_ratio"]``, if positions are
    independent."""
    p_change_mean: float
    """Mean of P_input(label) - P_target(label)."""
    p_change_rms: float
    """Root mean square of P_input(label) - P_target(label)."""
    p_change_quantiles: Quantiles
    """Quantiles of P_input(label) - P_target(label) where it is not NaN, by their probability. Each
    is within 0.39 % if the numbers next to it have one sign."""
    finite: dict[str, Finite]
    """Each mean and perplexity above, by its name, over the positions where it is finite. For
    ``perplexity_ratio`` these are the positions where both likelihoods are finite."""


@dataclass(frozen=True)
class Statistics:
    """The distribution of the divergence over positions. Divergences are in nats.

    Sums, means and extremes are over all positions, so they are NaN or infinite if one position is.
    Fields with `finite` in their name, standard errors and confidence intervals are over the
    positions with a finite divergence. NaN also stands for a number that does not exist, such as
    the mean of no position.
    """

    count: int
    """Number of positions."""
    nan: int
    """Number of positions where the divergence is NaN."""
    infinite: int
    """Number of positions where the divergence is infinite."""
    sum: float
    """Exact sum of the divergences, rounded once."""
    mean: float
    """``sum / count``, rounded once from the exact sum."""
    mean_of_finite: float
    """Mean over the positions with a finite divergence."""
    standard_error: float
    """Standard error of `mean_of_finite`, if positions are independent. It is too small if
    neighbors are alike, as the tokens of a text are."""
    confidence_interval: Interval
    """95 % confidence interval of `mean_of_finite`, if positions are independent. It is too narrow
    if neighbors are alike."""
    standard_error_clustered: float
    """Standard error of `mean_of_finite`, if sequences are independent and their positions are
    not."""
    confidence_interval_clustered: Interval
    """95 % confidence interval of `mean_of_finite`, if sequences are independent, from Student's t
    with ``clusters - 1`` degrees of freedom."""
    clusters: int
    """Number of clusters with a finite divergence. A cluster is a sequence; of more than 1024
    sequences, a run of neighboring ones. If the positions have one axis, a cluster is a run of
    neighboring positions, whatever texts they are from."""
    min: float
    """Smallest divergence."""
    max: float
    """Largest divergence."""
    quantiles: Quantiles
    """Quantiles of the divergences that are not NaN, by their probability. Each is within 0.39 % of
    the exact quantile; infinite divergences are the largest."""
    histogram: dict[str, list[Any]]
    """Counts of positive, finite divergences between edges in equal steps of their logarithm."""
    worst: list[dict[str, Any]]
    """Index and divergence of the 20 positions with the largest divergences, infinite ones
    first."""
    worst_finite: list[dict[str, Any]]
    """Index and divergence of the 20 positions with the largest finite divergences."""
    top1_agreement: float
    """Fraction of positions where both have the same top-1 class; positions with NaN do not."""
    top1_agreement_standard_error: float
    """Standard error of `top1_agreement`, if positions are independent."""
    reverse_kl: float
    """Mean of KL(input ‖ target); `mean` is that of KL(target ‖ input)."""
    jensen_shannon: float
    """Mean Jensen-Shannon divergence of input and target, each normalized to sum 1."""
    finite: dict[str, Finite]
    """``sum``, ``max``, ``reverse_kl`` and ``jensen_shannon``, each over the positions where that
    divergence is finite."""
    by_position: list[dict[str, Any]]
    """Mean divergence in runs along the last axis of the positions, and that over the positions
    with a finite divergence; empty if the positions have one axis.

    A run is one position along that axis. Of more than 4096, or fewer if there are many groups,
    neighboring ones are joined.
    """
    checks: dict[str, int]
    """Number of positions that fail each data check."""
    labels: Labels | None = field(default=None)
    """How probable both models take the labels to be; None if there are no labels."""
