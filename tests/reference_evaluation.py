"""The slow reference of `evaluate`, in long doubles. Nothing here imports the library."""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import logsumexp

NO_LABEL = -100


class Measured(NamedTuple):
    """What is measured at each position."""

    kl: Any
    reverse_kl: Any
    jensen_shannon: Any
    agrees: Any
    nll_input: Any
    nll_target: Any
    p_change: Any


def measure(
    input: Any, target: Any, kind: str = "logits", temperature: float = 1.0, labels: Any = None
) -> Measured:
    """Measure positions whose classes lie along the last axis of both arrays."""
    x, t = (np.asarray(a).astype(np.float64).astype(np.longdouble) for a in (input, target))
    x, t = np.broadcast_arrays(x, t)
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind in ("probs", "log_probs_and_probs"):
            t = np.log(t)
        if kind == "probs":
            x = np.log(x)
        if kind == "logits":
            x, t = (a / temperature for a in (x, t))
            log_q, log_p = normalized(x), normalized(t)
        else:
            log_q, log_p = x, t
        kl, reverse = divergence(log_p, log_q), divergence(log_q, log_p)
        jensen = jensen_shannon(normalized(log_p), normalized(log_q))
    ordered = ~(np.isnan(x).any(axis=-1) | np.isnan(t).any(axis=-1))
    agrees = ordered & (x.argmax(axis=-1) == t.argmax(axis=-1))
    nll_input = nll_target = change = None
    if labels is not None:
        chosen = np.broadcast_to(np.where(labels == NO_LABEL, 0, labels), kl.shape)[..., None]
        nll_input, nll_target = (-np.take_along_axis(a, chosen, -1)[..., 0] for a in (log_q, log_p))
        change = np.exp(-nll_input) - np.exp(-nll_target)
    return Measured(kl, reverse, jensen, agrees, nll_input, nll_target, change)


def normalized(logits: Any) -> Any:
    """Return logarithms of probabilities that sum to 1."""
    return logits - logsumexp(logits, axis=-1, keepdims=True)


def divergence(log_p: Any, log_q: Any) -> Any:
    """Return sum p log(p / q), where p = 0 contributes 0."""
    terms = np.where(log_p == -np.inf, 0, np.exp(log_p) * (log_p - log_q))
    return np.where(np.isnan(log_q).any(axis=-1), np.nan, terms.sum(axis=-1))


def jensen_shannon(log_p: Any, log_q: Any) -> Any:
    """Return the mean divergence of both from what lies between them."""
    middle = np.logaddexp(log_p, log_q) - np.log(np.longdouble(2))
    return (divergence(log_p, middle) + divergence(log_q, middle)) / 2


def clustered(values: Any, sequences: Any) -> tuple[float, int]:
    """Return the standard error of the mean of clusters of values, and how many there are."""
    names = np.unique(sequences)
    mean = values.mean()
    residuals = [(values[sequences == name] - mean).sum() for name in names]
    n = len(names)
    if n < 2:
        return math.nan, n
    variance = n / (n - 1) * math.fsum(float(r) ** 2 for r in residuals)
    return math.sqrt(variance) / values.size, n


def interval(mean: float, error: float, dof: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean."""
    half = stats.t.ppf(0.975, dof) * error if dof > 0 else math.nan
    return mean - half, mean + half


@np.errstate(invalid="ignore")
def statistics(
    measured: Measured,
    taken: npt.NDArray[np.bool_],
    sequences: npt.NDArray[np.int64],
    labeled: npt.NDArray[np.bool_] | None = None,
    probabilities: Any = (),
) -> dict[str, Any]:
    """Return the statistics of the positions that are taken, under the names of the library."""
    kl, count = measured.kl[taken], int(taken.sum())
    ordered, usable = kl[~np.isnan(kl)], taken & np.isfinite(measured.kl)
    finite = measured.kl[usable]
    mean, n = finite_mean(finite)["value"], finite.size
    error = float(finite.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    cluster_error, clusters = clustered(finite, sequences[usable]) if n else (math.nan, 0)
    agreement = measured.agrees[taken].mean() if count else math.nan
    quantiles = [
        float(np.quantile(ordered, p)) if ordered.size else math.nan for p in probabilities
    ]
    if ordered.size:  # NumPy has NaN beside an infinity
        quantiles = [math.inf if math.isnan(one) else one for one in quantiles]
    kept = finite_mean(kl)
    found: dict[str, Any] = {
        "count": count,
        "sum": float(kl.sum()),
        "nan": kept["nan"],
        "infinite": kept["infinite"],
        "mean": float(kl.mean()) if count else math.nan,
        "mean_of_finite": mean,
        "standard_error": error,
        "confidence_interval": interval(mean, error, n - 1),
        "standard_error_clustered": cluster_error,
        "confidence_interval_clustered": interval(mean, cluster_error, clusters - 1),
        "clusters": clusters,
        "min": float(ordered.min()) if ordered.size else math.nan,
        "max": float(ordered.max()) if ordered.size else math.nan,
        "quantiles": quantiles,
        "worst": largest(measured.kl, taken & ~np.isnan(measured.kl)),
        "worst_finite": largest(measured.kl, usable),
        "top1_agreement": agreement,
        "top1_agreement_standard_error": math.sqrt(agreement * (1 - agreement) / count)
        if count
        else math.nan,
        "reverse_kl": float(measured.reverse_kl[taken].mean()) if count else math.nan,
        "jensen_shannon": float(measured.jensen_shannon[taken].mean()) if count else math.nan,
        "finite": {
            "sum": kept | {"value": float(finite.sum())},
            "max": kept | {"value": float(finite.max()) if n else math.nan},
            "reverse_kl": finite_mean(measured.reverse_kl[taken]),
            "jensen_shannon": finite_mean(measured.jensen_shannon[taken]),
        },
    }
    if labeled is not None:
        found["labels"] = label_statistics(measured, taken & labeled, probabilities)
    return found


def largest(kl: Any, among: Any) -> list[list[int]]:
    """Return the indices of the 20 largest of some."""
    places = np.flatnonzero(among)
    order = np.lexsort((places, -kl.ravel()[places]))[:20]
    return [[int(i) for i in np.unravel_index(place, kl.shape)] for place in places[order]]


def finite_mean(values: Any) -> dict[str, Any]:
    """Return the mean of those that are finite, and how many are and are not."""
    finite, nan = values[np.isfinite(values)], int(np.isnan(values).sum())
    mean = float(finite.mean()) if finite.size else math.nan
    infinite = values.size - finite.size - nan
    return {"value": mean, "count": finite.size, "nan": nan, "infinite": infinite}


@np.errstate(invalid="ignore")
def label_statistics(measured: Measured, taken: Any, probabilities: Any) -> dict[str, Any]:
    """Return what labels tell."""
    count = int(taken.sum())
    ours, theirs, change = (a[taken] for a in measured[4:])
    nll_input, nll_target = float(ours.mean()), float(theirs.mean())
    differences = finite_mean(ours - theirs)
    kept = {"nll_input": finite_mean(ours), "nll_target": finite_mean(theirs)}
    means = {"input": kept["nll_input"], "target": kept["nll_target"], "ratio": differences}
    kept |= {f"perplexity_{n}": m | {"value": math.exp(m["value"])} for n, m in means.items()}
    rms = finite_mean(change**2)
    kept["p_change_mean"] = finite_mean(change)
    kept["p_change_rms"] = rms | {"value": math.sqrt(rms["value"])}
    both = (ours - theirs)[np.isfinite(ours - theirs)]
    error = float(both.std(ddof=1)) / math.sqrt(both.size) if both.size > 1 else math.nan
    change_known = change[~np.isnan(change)]
    return {
        "count": count,
        "nll_input": nll_input,
        "nll_target": nll_target,
        "perplexity_input": math.exp(nll_input),
        "perplexity_target": math.exp(nll_target),
        "perplexity_ratio": math.exp(nll_input - nll_target),
        "log_perplexity_ratio_standard_error": error,
        "p_change_mean": float(change.mean()),
        "p_change_rms": math.sqrt((change**2).mean()),
        "p_change_quantiles": [float(np.quantile(change_known, p)) for p in probabilities],
        "finite": kept,
    }
