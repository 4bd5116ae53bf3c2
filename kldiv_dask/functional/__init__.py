"""The public functions: their contracts, and a few lines of orchestration."""

from kldiv_dask.functional.divergence import KLDivLoss, kl_div
from kldiv_dask.functional.summary import KLDivSummary, kl_div_summary

__all__ = ["KLDivLoss", "KLDivSummary", "kl_div", "kl_div_summary"]
