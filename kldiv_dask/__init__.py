"""Exact, reproducible KL divergence over Dask arrays."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kldiv_dask.functional import (
        KLDivergence,
        KLDivLoss,
        KLDivSummary,
        kl_div,
        kl_div_summary,
        kl_div_with_logits,
        kl_div_with_logits_summary,
    )
    from kldiv_dask.storage import ChunkReadError, open_array, open_pair

__all__ = [
    "ChunkReadError",
    "KLDivLoss",
    "KLDivSummary",
    "KLDivergence",
    "kl_div",
    "kl_div_summary",
    "kl_div_with_logits",
    "kl_div_with_logits_summary",
    "open_array",
    "open_pair",
]

_STORAGE = {"ChunkReadError", "open_array", "open_pair"}


def __getattr__(name: str) -> Any:
    # Imported on first use (PEP 562): every `dask` command imports this package on account of
    # `dask kldiv`, and dask.array and Numba take half a second.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "kldiv_dask.storage" if name in _STORAGE else "kldiv_dask.functional"
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
