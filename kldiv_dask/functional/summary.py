"""All reductions from one read."""

import html
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.utils import format_bytes

from kldiv_dask import graph, labelled
from kldiv_dask.align import Pair
from kldiv_dask.functional.divergence import prepare, whole
from kldiv_dask.graph.tree import SplitEvery
from kldiv_dask.options import Reduction


class KLDivSummary(NamedTuple):
    """Every reduction of one pair of arrays, and what was counted on the way.

    As `kl_div_summary` returns it, each field is a lazy 0-d Dask array; `compute` turns all of them
    into numbers in one pass.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import kl_div_summary
    >>> summary = kl_div_summary(np.log([[0.5, 0.5]]), np.array([[0.5, 0.5]])).compute()
    >>> float(summary.sum), int(summary.numel), int(summary.batch_size)
    (0.0, 2, 1)
    """

    sum: Any
    """The exact sum of the terms in nats, rounded once."""
    mean: Any
    """The sum divided by `numel`, rounded once."""
    batchmean: Any
    """The sum divided by `batch_size`, rounded once."""
    numel: Any
    """The number of elements of the broadcast result that are included."""
    batch_size: Any
    """``input.shape[0]``, or 1 where `input` is 0-d; with `where`, the rows that include any."""
    nan_count: Any
    """How many terms are NaN."""
    posinf_count: Any
    """How many terms are +inf."""
    neginf_count: Any
    """How many terms are -inf."""

    def compute(
        self, *, progress: Callable[[int], Any] | None = None, **kwargs: Any
    ) -> "KLDivSummary":
        """Compute all fields from a single read of the data.

        Beyond 100,000 pairs of chunks, more than Dask's scheduler should be given at once, this
        walks the data slab by slab, with the same result; ``kldiv.graph-size`` of Dask's
        configuration says otherwise.

        Parameters
        ----------
        progress : callable, optional
            Called with the number of pairs of chunks of each slab that is done.
        **kwargs
            Passed on to `dask.compute`, such as ``scheduler``.

        Returns
        -------
        KLDivSummary
            The same fields as NumPy scalars.
        """
        return KLDivSummary(*dask.compute(*self, **kwargs))

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th scope='row'>{name}</th><td>{html.escape(_shown(value))}</td></tr>"
            for name, value in self._asdict().items()
        )
        return f"<table>{''.join(rows)}</table>"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, np.integer) else str(value)


class LazySummary(KLDivSummary):
    """A summary that knows the partials it is of."""

    blocks: da.Array
    pair: Pair

    @property
    def pairs(self) -> int:
        """The number of pairs of chunks; where the classes of logits are cut, of rows of them."""
        return graph.size(self.blocks)

    @property
    def is_large(self) -> bool:
        """Whether there are more pairs of chunks than one graph should have."""
        return graph.is_large(self.blocks)

    def __repr__(self) -> str:
        pairs = f"{self.pairs:,} pair{'' if self.pairs == 1 else 's'} of chunks"
        size = self.pair.nbytes
        read = "an unknown amount" if math.isnan(size) else format_bytes(int(size))
        return (
            f"KLDivSummary of {self.sum.dtype}, lazy: {pairs}, {read} to read; "
            f"compute() gives {', '.join(self._fields)}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>"

    def compute(
        self, *, progress: Callable[[int], Any] | None = None, **kwargs: Any
    ) -> KLDivSummary:
        """Compute all fields, slab by slab if there are too many for one graph."""
        if not self.is_large:
            return super().compute(**kwargs)
        total = graph.walk(self.blocks, progress=progress, **kwargs)
        return _fields(total, self.pair, self.sum.dtype).compute(**kwargs)


def kl_div_summary(
    input: Any,
    target: Any,
    *,
    log_target: bool = False,
    where: Any = None,
    dtype: npt.DTypeLike | None = None,
    zero_safe: bool = False,
    split_every: SplitEvery = None,
) -> LazySummary:
    """Return every reduction of `kl_div`, and counts of non-finite terms, from one pass.

    Parameters
    ----------
    input, target, log_target, where, dtype, zero_safe, split_every
        As for `kl_div`.

    Returns
    -------
    KLDivSummary
        Lazy 0-d Dask arrays; sum, mean and batchmean in the result type of `kl_div`, the counts
        in int64.

    Raises
    ------
    ValueError, TypeError
        As for `kl_div`.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import kl_div_summary
    >>> summary = kl_div_summary(np.log([0.25, 0.75]), np.array([0.5, 0.5]))
    >>> round(float(summary.sum), 6)
    0.143841
    >>> kl_div_summary(np.array([-np.inf, 0.0]), np.zeros(2)).compute().nan_count
    np.int64(1)
    """
    given = labelled.match(input, target, {"where": where})
    pair, term = prepare(given, log_target, dtype, zero_safe, stacklevel=2)
    return summarise(graph.partials(pair, term, whole(pair)), pair, term.dtype, split_every)


def summarise(
    blocks: da.Array, pair: Pair, dtype: np.dtype[Any], split_every: SplitEvery
) -> LazySummary:
    """Return the lazy summary of partials."""
    merged = graph.merged(blocks, split_every, whole(pair))
    summary = LazySummary(*_fields(merged, pair, dtype))
    summary.blocks, summary.pair = blocks, pair
    return summary


def _fields(merged: da.Array, pair: Pair, dtype: np.dtype[Any]) -> KLDivSummary:
    sum, mean, batchmean = (
        graph.value(merged, reduction, pair, dtype)
        for reduction in (Reduction("sum", False), Reduction("mean", False), Reduction("sum", True))
    )
    return KLDivSummary(
        sum=sum,
        mean=mean,
        batchmean=batchmean,
        numel=graph.count(merged, "numel"),
        batch_size=graph.batch_size(merged, pair),
        nan_count=graph.count(merged, "nan"),
        posinf_count=graph.count(merged, "posinf"),
        neginf_count=graph.count(merged, "neginf"),
    )
