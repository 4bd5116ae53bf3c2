"""All reductions from one read."""

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import DaskMethodsMixin
from dask.highlevelgraph import HighLevelGraph
from dask.utils import format_bytes

from kldiv_dask import graph, xarray_support
from kldiv_dask.align import Pair
from kldiv_dask.functional.divergence import prepare
from kldiv_dask.graph.tree import SplitEvery
from kldiv_dask.options import Reduction
from kldiv_dask.progress import ProgressOption, counter, reporter


class KLDivSummary(NamedTuple):
    """Every reduction of one pair of arrays, and what was counted on the way, as NumPy scalars.

    `kl_div_summary` returns a `LazySummary`, which computes this.

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

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th scope='row'>{name}</th><td>{html.escape(_shown(value))}</td></tr>"
            for name, value in self._asdict().items()
        )
        return f"<table>{''.join(rows)}</table>"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, np.integer) else str(value)


class LazySummary(DaskMethodsMixin):  # type: ignore[misc]
    """A Dask collection that computes a `KLDivSummary`.

    Whatever takes Dask collections takes it, beside others and nested in lists and dicts:
    `dask.compute`, `dask.persist`, and the methods of a client. Its attributes are the fields of
    `KLDivSummary` as lazy 0-d Dask arrays, which iteration yields in that order.

    Parameters
    ----------
    fields : KLDivSummary
        Of Dask arrays.
    pairs : int
        The number of pairs of chunks; where the classes of logits are cut, of rows of them.
    blocks : dask.array.Array, optional
        The partial of each pair; None where the fields are persisted or optimized.
    pair : Pair, optional
        What `blocks` are made of.
    """

    # No named tuple: a client takes a tuple for several collections.
    sum: da.Array
    mean: da.Array
    batchmean: da.Array
    numel: da.Array
    batch_size: da.Array
    nan_count: da.Array
    posinf_count: da.Array
    neginf_count: da.Array

    def __init__(
        self,
        fields: KLDivSummary,
        pairs: int,
        blocks: da.Array | None = None,
        pair: Pair | None = None,
    ) -> None:
        for name, field in fields._asdict().items():
            setattr(self, name, field)
        self.pairs = pairs
        self._blocks, self._pair = blocks, pair

    def __iter__(self) -> Iterator[da.Array]:
        return (getattr(self, name) for name in KLDivSummary._fields)

    @property
    def is_large(self) -> bool:
        """Whether there are more pairs of chunks than one graph should have."""
        return self._blocks is not None and graph.is_large(self._blocks)

    def compute(self, *, progress: ProgressOption = None, **kwargs: Any) -> KLDivSummary:
        """Compute all fields from a single read of the data.

        Beyond 100,000 pairs of chunks, more than Dask's scheduler should be given at once, this
        walks the data slab by slab, with the same result; ``kldiv.graph-size`` of Dask's
        configuration says otherwise. `dask.compute` makes one graph.

        Parameters
        ----------
        progress : bool, callable or None
            None to show a line on stderr if that is a terminal or the output of a notebook, True to
            show it in any case, False for none. The line has the fraction that is done, the rate
            and the time that is left. A callable is called instead with each
            `ProgressUpdate`: ``done`` and ``total`` pairs of chunks, the ``unit`` ``'pairs of
            chunks'``, and the line as ``text``. With a line or a callable, fewer pairs are walked
            too, in slabs of a sixteenth of them but at least 256.
        **kwargs
            Passed on to `dask.compute`, such as ``scheduler``.

        Returns
        -------
        KLDivSummary
            The same fields as NumPy scalars.
        """
        callback = reporter(progress)
        notify = None if callback is None else counter(callback, self.pairs, "pairs of chunks")
        walks = self._blocks is not None and (notify is not None or self.is_large)
        if walks and self._pair is not None:
            total = graph.walk(self._blocks, progress=notify, **kwargs)
            fields = _fields(total, self._pair, self.sum.dtype)
            return LazySummary(fields, self.pairs).compute(progress=False, **kwargs)
        computed: KLDivSummary = super().compute(**kwargs)
        if notify is not None:
            notify(self.pairs)
        return computed

    def __repr__(self) -> str:
        cost = ""
        if self._pair is not None:
            size = self._pair.nbytes
            read = "an unknown amount" if math.isnan(size) else format_bytes(int(size))
            plural = "" if self.pairs == 1 else "s"
            cost = f": {self.pairs:,} pair{plural} of chunks, {read} to read"
        return (
            f"KLDivSummary of {self.sum.dtype}, lazy{cost}; "
            f"compute() gives {', '.join(KLDivSummary._fields)}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>"

    # Dask's protocol of collections. The arrays are of graphs, or of expressions where
    # ``array.query-planning`` is set.

    def __dask_graph__(self) -> Mapping[Any, Any]:
        graphs = [field.__dask_graph__() for field in self]
        if all(isinstance(field_graph, HighLevelGraph) for field_graph in graphs):
            merged: Mapping[Any, Any] = HighLevelGraph.merge(*graphs)
            return merged
        return {key: task for field_graph in graphs for key, task in field_graph.items()}

    def __dask_keys__(self) -> list[Any]:
        return [field.__dask_keys__() for field in self]

    def __dask_layers__(self) -> tuple[str, ...]:
        return tuple(layer for field in self for layer in field.__dask_layers__())

    def __dask_tokenize__(self) -> tuple[str, ...]:
        return type(self).__name__, *(field.name for field in self)

    def __dask_exprs__(self) -> list[Any] | None:
        expressions = [getattr(field, "expr", None) for field in self]
        return None if None in expressions else expressions

    def __dask_rebuild_from_exprs__(self, expressions: Iterable[Any]) -> "LazySummary":
        return LazySummary(KLDivSummary(*map(type(self.sum), expressions)), self.pairs)

    @property
    def __dask_optimize__(self) -> Any:
        return da.Array.__dask_optimize__

    @property
    def __dask_scheduler__(self) -> Any:
        return da.Array.__dask_scheduler__

    def __dask_postcompute__(self) -> tuple[Callable[..., KLDivSummary], tuple[()]]:
        return _computed, ()

    def __dask_postpersist__(self) -> tuple[Callable[..., "LazySummary"], tuple[()]]:
        return self._rebuilt, ()

    def _rebuilt(self, graph: Mapping[Any, Any], **options: Any) -> "LazySummary":
        """Return a summary whose fields are in another graph."""
        fields = []
        for place, field in enumerate(self):
            (key,) = field.__dask_keys__()
            rebuild, state = field.__dask_postpersist__()
            # A client that has persisted expressions calls each field by another key.
            renamed = options or key in graph
            field_graph = graph if renamed else {key: list(graph.values())[place]}
            fields.append(rebuild(field_graph, *state, **options))
        return LazySummary(KLDivSummary(*fields), self.pairs)


def _computed(results: Iterable[Sequence[Any]]) -> KLDivSummary:
    """Return what was computed of the keys of each field, of which there is one."""
    return KLDivSummary(*(only for (only,) in results))


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
    LazySummary
        A Dask collection of the fields of `KLDivSummary`, each a lazy 0-d Dask array: sum, mean
        and batchmean in the result type of `kl_div`, the counts in int64. `compute` turns all of
        them into numbers in one pass, and can show its progress.

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
    operands = xarray_support.match(input, target, {"where": where})
    pair, spec = prepare(operands, log_target, dtype, zero_safe, stacklevel=2)
    return summarize(graph.partials(pair, spec, pair.axes), pair, spec.dtype, split_every)


def summarize(
    blocks: da.Array, pair: Pair, dtype: np.dtype[Any], split_every: SplitEvery
) -> LazySummary:
    """Return the lazy summary of partials."""
    merged = graph.tree_reduce(blocks, split_every, pair.axes)
    return LazySummary(_fields(merged, pair, dtype), graph.size(blocks), blocks, pair)


def _fields(merged: da.Array, pair: Pair, dtype: np.dtype[Any]) -> KLDivSummary:
    sum, mean, batchmean = (
        graph.finalize_scalar(merged, reduction, pair, dtype)
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
