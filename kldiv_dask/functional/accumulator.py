"""KL divergence of data that arrive in batches."""

import operator
from collections.abc import Mapping
from typing import Any, Literal

import dask
import numpy as np
import numpy.typing as npt

from kldiv_dask import graph, partial
from kldiv_dask.functional.divergence import prepare, whole
from kldiv_dask.functional.logits import merged_positions, prepare_logits
from kldiv_dask.options import named_dtype, resolve_kind

# Of what `state_dict` returns.
VERSION = 1


class KLDivergence:
    """An exact running KL divergence, for batches of which each fits into a computation.

    It gives the same bits as one call over all batches joined along their first axis, whatever the
    batches, their order, and the order in which accumulators are merged.

    Parameters
    ----------
    kind : {'probs', 'log_probs', 'logits'}
        What the batches are: log-probabilities against probabilities as for `kl_div`,
        log-probabilities against log-probabilities as for it with ``log_target``, or logits
        against logits as for `kl_div_with_logits`.
    reduction : {'mean', 'batchmean', 'sum'}
        As for the function that `kind` names.
    axis, temperature
        As for `kl_div_with_logits`, for logits alone.
    dtype : dtype_like, optional
        As for the function that `kind` names. By default the first batch decides, and those that
        would be computed in another type are refused.
    zero_safe : bool
        As for `kl_div`.

    Examples
    --------
    >>> import numpy as np
    >>> from kldiv_dask import KLDivergence
    >>> first, second = KLDivergence("logits"), KLDivergence("logits")
    >>> first.update(np.log([[0.25, 0.75]]), np.zeros((1, 2)))
    >>> second.update(np.log([[0.5, 0.5], [0.5, 0.5]]), np.zeros((2, 2)))
    >>> (first + second).compute().round(6)
    np.float64(0.047947)
    """

    def __init__(
        self,
        kind: Literal["probs", "log_probs", "logits"] = "probs",
        *,
        reduction: str = "mean",
        axis: int = -1,
        temperature: float = 1.0,
        dtype: npt.DTypeLike | None = None,
        zero_safe: bool = False,
    ) -> None:
        self._reduction = resolve_kind(kind, reduction, stacklevel=2)
        if kind != "logits" and (axis != -1 or temperature != 1):
            raise ValueError(
                f"axis is {axis!r} and temperature is {temperature!r} with kind={kind!r}; they are "
                "for logits"
            )
        self.kind = kind
        self.reduction = reduction
        self.axis = operator.index(axis)
        self.temperature = float(temperature)
        self.zero_safe = bool(zero_safe)
        self.dtype = None if dtype is None else named_dtype(dtype)
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._partial = partial.zero()
        self._types: list[str] | None = None

    def update(self, input: Any, target: Any, where: Any = None) -> None:
        """Add a batch, computing it now.

        Parameters
        ----------
        input, target : array_like
            NumPy or Dask arrays of what `kind` says.
        where : array_like of bool, optional
            Which elements, or positions of logits, to include.

        Raises
        ------
        ValueError, TypeError
            As the function that `kind` names; or the batch would be computed in another type than
            those before.
        """
        if self.kind == "logits":
            logits, to = prepare_logits(
                input, target, self.axis, self.temperature, where, self.dtype, stacklevel=2
            )
            types = [to.name, logits.dtype.name]
            pair, merged = merged_positions(logits, None)
        else:
            pair, term = prepare(
                input,
                target,
                self.kind == "log_probs",
                self.dtype,
                self.zero_safe,
                where,
                stacklevel=2,
            )
            types = [term.dtype.name, term.compute_dtype.name]
            merged = graph.merged(graph.partials(pair, term, whole(pair)), None, whole(pair))
        self._check_types(types)
        added, rows = dask.compute(merged, graph.batch_size(merged, pair))
        added = added.reshape(partial.SIZE)
        added[partial.ROWS] = rows
        self._add(added, types)

    def compute(self) -> Any:
        """Return the reduction of all batches so far, a NumPy scalar, rounded once.

        Raises
        ------
        ValueError
            There has been no batch, and no `dtype` says what the result is to be.
        """
        dtype = named_dtype(self._types[0]) if self._types else self.dtype
        if dtype is None:
            raise ValueError("there has been no batch; update with one, or construct with a dtype")
        sums = partial.total(self._partial)
        divisor = sums.numel if self._reduction.kind == "mean" else 1
        divisor *= sums.rows if self._reduction.per_batch else 1
        return partial.quotient(sums, divisor, dtype)

    def merge(self, *others: "KLDivergence") -> "KLDivergence":
        """Add the batches of other accumulators to this one, and return it.

        Raises
        ------
        ValueError
            Another accumulator was constructed with other options.
        """
        for other in others:
            self._check_options(other._options(), "the other accumulator")
            if other._types is not None:
                self._check_types(other._types)
                self._add(other._partial, other._types)
        return self

    def __add__(self, other: Any) -> "KLDivergence":
        if not isinstance(other, KLDivergence):
            return NotImplemented
        joined = KLDivergence.__new__(KLDivergence)
        joined.__dict__.update(self.__dict__)
        return joined.merge(other)

    def state_dict(self) -> dict[str, Any]:
        """Return all that has been added, as what JSON can hold."""
        return {
            "version": VERSION,
            **self._options(),
            "types": self._types,
            "partial": self._partial.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, in the place of what has been added here.

        Raises
        ------
        ValueError
            It is damaged, of another version, or of an accumulator with other options.
        """
        if state.get("version") != VERSION:
            raise ValueError(
                f"the state is of version {state.get('version')!r}; accepted is {VERSION}"
            )
        self._check_options({name: state.get(name) for name in self._options()}, "the state")
        numbers, types = state.get("partial"), state.get("types")
        if (
            not isinstance(numbers, list)
            or len(numbers) != partial.SIZE
            or not all(type(number) is int and abs(number) < 2**63 for number in numbers)
        ):
            raise ValueError(f"the state's partial is not a list of {partial.SIZE} integers")
        self._partial = np.array(numbers, dtype=np.int64)
        self._types = None if types is None else [str(name) for name in types]

    def _options(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "axis": self.axis,
            "temperature": self.temperature,
            "zero_safe": self.zero_safe,
            "dtype": None if self.dtype is None else self.dtype.name,
        }

    def _check_options(self, options: Mapping[str, Any], whose: str) -> None:
        for name, own in self._options().items():
            if options[name] != own:
                raise ValueError(f"{whose} has {name}={options[name]!r}; accepted is {own!r}")

    def _check_types(self, types: list[str]) -> None:
        if self._types is not None and self._types != types:
            raise TypeError(
                f"the batch would be computed in {types[1]} to {types[0]}, where those before were "
                f"computed in {self._types[1]} to {self._types[0]}; "
                "give all batches one type, or construct with a dtype"
            )

    def _add(self, added: partial.Partial, types: list[str]) -> None:
        self._partial = partial.merge(np.stack([self._partial, added]), axis=(0,))
        self._types = types

    def __repr__(self) -> str:
        return f"KLDivergence({self.kind!r}, reduction={self.reduction!r})"
