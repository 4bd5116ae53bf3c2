"""Exact, reproducible KL divergence over Dask arrays."""

from kldiv_dask.functional import KLDivLoss, KLDivSummary, kl_div, kl_div_summary

__all__ = ["KLDivLoss", "KLDivSummary", "kl_div", "kl_div_summary"]
