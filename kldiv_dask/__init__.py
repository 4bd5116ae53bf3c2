"""Exact, reproducible KL divergence over Dask arrays."""

from kldiv_dask.functional import KLDivLoss, KLDivSummary, kl_div, kl_div_summary
from kldiv_dask.storage import ChunkReadError, open_array, open_pair

__all__ = [
    "ChunkReadError",
    "KLDivLoss",
    "KLDivSummary",
    "kl_div",
    "kl_div_summary",
    "open_array",
    "open_pair",
]
