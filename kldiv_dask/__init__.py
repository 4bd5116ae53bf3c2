"""Exact, reproducible KL divergence over Dask arrays."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kldiv_dask import config  # noqa: F401 (puts the defaults into Dask's configuration)

if TYPE_CHECKING:
    from kldiv_dask.evaluation import (
        Comparison,
        Evaluation,
        EvaluationError,
        EvaluationWarning,
        compare,
        evaluate,
    )
    from kldiv_dask.functional import (
        KLDivergence,
        KLDivLoss,
        KLDivSummary,
        kl_div,
        kl_div_summary,
        kl_div_with_logits,
        kl_div_with_logits_summary,
    )
    from kldiv_dask.progress import ProgressUpdate
    from kldiv_dask.storage import ChunkReadError, open_array, open_pair

__all__ = [
    "ChunkReadError",
    "Comparison",
    "Evaluation",
    "EvaluationError",
    "EvaluationWarning",
    "KLDivLoss",
    "KLDivSummary",
    "KLDivergence",
    "ProgressUpdate",
    "compare",
    "evaluate",
    "kl_div",
    "kl_div_summary",
    "kl_div_with_logits",
    "kl_div_with_logits_summary",
    "open_array",
    "open_pair",
]

_LAYERS = {
    "progress": ("ProgressUpdate",),
    "storage": ("ChunkReadError", "open_array", "open_pair"),
    "evaluation": (
        "Comparison",
        "Evaluation",
        "EvaluationError",
        "EvaluationWarning",
        "compare",
        "evaluate",
    ),
}


def __getattr__(name: str) -> Any:
    # Imported on first use (PEP 562): every `dask` command imports this package on account of
    # `dask kldiv`, and dask.array and Numba take half a second.
    if name == "__version__":
        from importlib.metadata import version

        return version("kldiv-dask")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    layer = next((layer for layer, names in _LAYERS.items() if name in names), "functional")
    return getattr(import_module(f"kldiv_dask.{layer}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
