"""The public functions: their contracts, and a few lines of orchestration."""

from kldiv_dask.functional.accumulator import KLDivergence
from kldiv_dask.functional.divergence import kl_div
from kldiv_dask.functional.logits import kl_div_with_logits, kl_div_with_logits_summary
from kldiv_dask.functional.loss import KLDivLoss
from kldiv_dask.functional.summary import KLDivSummary, kl_div_summary

__all__ = [
    "KLDivLoss",
    "KLDivSummary",
    "KLDivergence",
    "kl_div",
    "kl_div_summary",
    "kl_div_with_logits",
    "kl_div_with_logits_summary",
]
