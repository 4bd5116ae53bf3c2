"""torch's `KLDivLoss`."""

from typing import Any

import numpy.typing as npt

from kldiv_dask.functional.divergence import Axis, Dim, lazy_kl_div
from kldiv_dask.graph.tree import SplitEvery
from kldiv_dask.options import legacy_reduction, resolve_reduction


class KLDivLoss:
    """`kl_div` with its options fixed, as `torch.nn.KLDivLoss`.

    Parameters
    ----------
    size_average, reduce, reduction, log_target
        As for `kl_div`. The deprecated flags are resolved here, once, to a plain `reduction`.
    axis, dim, keepdims
        As for `kl_div`: what ``'sum'`` or ``'mean'`` reduces, and whether it stays in the result.
    dtype, zero_safe, split_every
        As for `kl_div`.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import KLDivLoss
    >>> loss = KLDivLoss(reduction="batchmean")
    >>> loss
    KLDivLoss(reduction='batchmean', log_target=False)
    >>> float(loss(np.log([[0.5, 0.5]]), np.array([[0.5, 0.5]])))
    0.0
    >>> rows = KLDivLoss(reduction="sum", axis=1)
    >>> rows(np.log([[0.25, 0.75], [0.5, 0.5]]), np.full((2, 2), 0.5)).compute().round(6)
    array([0.143841, 0.      ])
    """

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
        *,
        axis: Axis = None,
        dim: Dim = None,
        keepdims: bool = False,
        dtype: npt.DTypeLike | None = None,
        zero_safe: bool = False,
        split_every: SplitEvery = None,
    ) -> None:
        if size_average is not None or reduce is not None:
            reduction = legacy_reduction(size_average, reduce, stacklevel=2)
        self.reduction = reduction
        self.log_target = log_target
        self.axis = axis
        self.dim = dim
        self.keepdims = keepdims
        self.dtype = dtype
        self.zero_safe = zero_safe
        self.split_every = split_every

    def __call__(self, input: Any, target: Any, where: Any = None) -> Any:
        """Return `kl_div` of a pair, of the elements that `where` includes; see there."""
        return lazy_kl_div(
            input,
            target,
            resolve_reduction(None, None, self.reduction, stacklevel=2),
            self.reduction,
            self.log_target,
            axis=self.axis,
            dim=self.dim,
            keepdims=self.keepdims,
            where=where,
            dtype=self.dtype,
            zero_safe=self.zero_safe,
            split_every=self.split_every,
            stacklevel=2,
        )

    def __repr__(self) -> str:
        return f"KLDivLoss(reduction={self.reduction!r}, log_target={self.log_target!r})"
