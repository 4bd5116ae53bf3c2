"""The KL divergence of data in batches."""

from collections.abc import Mapping
from typing import Any, Literal

import dask
import numpy as np
import numpy.typing as npt

from kldiv_dask import graph, partial_sum, xarray_support
from kldiv_dask.dtypes import RESULTS, named_dtype
from kldiv_dask.functional.divergence import prepare
from kldiv_dask.functional.logits import merged_positions, prepare_logits
from kldiv_dask.options import (
    float_dtype,
    resolve_integer_axis,
    resolve_kind,
    resolve_temperature,
)
from kldiv_dask.versions import REVISION

# The version of what `state_dict` returns. 2: other names of kinds, and the revision of kernels.
VERSION = 2


class KLDivergence:
    """An exact running KL divergence of data in batches.

    The result has the same bits as one call over all batches, joined along the first axis of the
    elements or positions. It does not depend on the sizes and the order of the batches, or on the
    order in which accumulators are merged.

    Parameters
    ----------
    kind : {'log_probs_and_probs', 'log_probs', 'logits'}
        What input and target hold: log-probabilities and probabilities, as for `kl_div`;
        log-probabilities in both, as for `kl_div` with ``log_target``; or logits in both, as for
        `kl_div_with_logits`.
    reduction : {'mean', 'batchmean', 'sum'}
        As for the function that `kind` names.
    axis, temperature
        As for `kl_div_with_logits`; for logits only.
    dtype : dtype_like, optional
        As for that function. By default the first batch decides, and batches that would be
        computed in another type are refused.
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
        kind: Literal["log_probs_and_probs", "log_probs", "logits"] = "log_probs_and_probs",
        *,
        reduction: str = "mean",
        axis: int = -1,
        temperature: float = 1.0,
        dtype: npt.DTypeLike | None = None,
        zero_safe: bool = False,
    ) -> None:
        self._reduction = resolve_kind(kind, reduction, stacklevel=2)
        self.kind = kind
        self.reduction = reduction
        self.axis = resolve_integer_axis(axis)
        self.temperature = resolve_temperature(temperature)
        self.zero_safe = bool(zero_safe)
        self.dtype = None if dtype is None else float_dtype(dtype)
        if kind != "logits" and (self.axis != -1 or self.temperature != 1):
            raise ValueError(
                f"axis is {axis!r} and temperature is {temperature!r} with kind={kind!r}; they are "
                "for logits"
            )
        if kind == "logits" and self.zero_safe:
            raise ValueError("zero_safe is True with kind='logits'; it is for the other kinds")
        self.reset()

    def reset(self) -> None:
        """Remove all batches."""
        self._partial = partial_sum.zero()
        self._types: list[str] | None = None

    def update(self, input: Any, target: Any, where: Any = None) -> None:
        """Compute a batch, and add it.

        Parameters
        ----------
        input, target : array_like
            NumPy or Dask arrays that hold what `kind` says; DataArrays are paired by name.
        where : array_like of bool, optional
            Which elements, or positions of logits, to include.

        Raises
        ------
        ValueError, TypeError
            What the function for `kind` refuses; or the batch would be computed in another type
            than those before.
        """
        if self.kind == "logits":
            operands = xarray_support.match(
                input, target, {"where": where}, axis=self.axis, classes=True
            )
            logits, result_dtype = prepare_logits(
                operands, self.temperature, self.dtype, stacklevel=2
            )
            types = [result_dtype.name, logits.dtype.name]
            pair, merged = merged_positions(logits, None)
        else:
            operands = xarray_support.match(input, target, {"where": where})
            pair, spec = prepare(
                operands, self.kind == "log_probs", self.dtype, self.zero_safe, stacklevel=2
            )
            types = [spec.dtype.name, spec.compute_dtype.name]
            merged = graph.tree_reduce(graph.partials(pair, spec, pair.axes), None, pair.axes)
        self._check_types(types, "the batch")
        added, rows = dask.compute(merged, graph.batch_size(merged, pair))
        added = added.reshape(partial_sum.SIZE)
        added[partial_sum.ROWS] = rows
        self._set([self._partial, added], types)

    def compute(self) -> Any:
        """Return the reduction of all batches so far as a NumPy scalar, rounded once.

        Raises
        ------
        ValueError
            There was no batch, and no `dtype` was given.
        """
        dtype = named_dtype(self._types[0]) if self._types else self.dtype
        if dtype is None:
            raise ValueError("there has been no batch; update with one, or construct with a dtype")
        sums = partial_sum.total(self._partial)
        return partial_sum.quotient(sums, self._reduction.divisor(sums.numel, sums.rows), dtype)

    def merge(self, *others: "KLDivergence") -> "KLDivergence":
        """Add the batches of other accumulators to this one, and return it.

        Raises
        ------
        ValueError
            Another accumulator has other options, apart from the reduction.
        TypeError
            Its batches were computed in another type, or it is no accumulator.
        """
        parts, types = [self._partial], self._types
        for other in others:
            if not isinstance(other, KLDivergence):
                raise TypeError(f"other must be a KLDivergence, got a {type(other).__name__}")
            self._check_options(other._options(), "the other accumulator")
            self._check_types(other._types, "the other accumulator", types)
            parts.append(other._partial)
            types = types or other._types
        self._set(parts, types)
        return self

    def __add__(self, other: Any) -> "KLDivergence":
        if not isinstance(other, KLDivergence):
            return NotImplemented
        joined = KLDivergence.__new__(KLDivergence)
        joined.__dict__.update(self.__dict__)
        return joined.merge(other)

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of all batches, and the options, for JSON."""
        return {
            "version": VERSION,
            "revision": REVISION,
            **self._options(),
            "types": None if self._types is None else list(self._types),
            "partial": self._partial.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, in the place of what has been added here.

        Raises
        ------
        ValueError
            It is damaged, of another version, or of an accumulator with other options.
        TypeError
            It is no mapping.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"the state must be a dict, got a {type(state).__name__}")
        expected = self.state_dict()
        if state.get("version", VERSION) == VERSION:
            missing = [name for name in expected if name not in state]
            if missing:
                raise ValueError(f"the state has no {', '.join(missing)}")
        for name in ("version", "revision"):
            if state[name] != expected[name]:
                raise ValueError(
                    f"the state must be of {name} {expected[name]}, got {state[name]!r}, which "
                    "another version of kldiv_dask makes: add the batches again"
                )
        self._check_options(state, "the state")
        types = state["types"]
        if types is not None:
            if (
                not isinstance(types, list)
                or len(types) != 2
                or types[0] not in RESULTS
                or types[1] not in ("float32", "float64")
            ):
                raise ValueError(f"the state's types must be two names of types, got {types!r}")
            types = list(types)
        self._set([_checked_partial(state["partial"])], types)

    def _options(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "axis": self.axis,
            "temperature": self.temperature,
            "zero_safe": self.zero_safe,
            "dtype": None if self.dtype is None else self.dtype.name,
        }

    def _check_options(self, options: Mapping[str, Any], whose: str) -> None:
        for name, value in self._options().items():
            if options[name] != value:
                raise ValueError(f"{whose} must have {name}={value!r}, got {options[name]!r}")

    def _check_types(
        self, types: list[str] | None, whose: str, before: list[str] | None = None
    ) -> None:
        before = before or self._types
        if before is not None and types is not None and before != types:
            raise TypeError(
                f"{whose} is computed in {types[1]} to {types[0]}, where those before were"
                f" computed in {before[1]} to {before[0]}; give all batches one type"
            )

    def _set(self, parts: list[partial_sum.Partial], types: list[str] | None) -> None:
        self._partial = partial_sum.merge(np.stack(parts), axis=(0,))
        self._types = types

    def __repr__(self) -> str:
        return f"KLDivergence({self.kind!r}, reduction={self.reduction!r})"


def _checked_partial(numbers: Any) -> partial_sum.Partial:
    """Return a canonical partial that was stored as a list."""
    message = f"the state's partial is not a list of {partial_sum.SIZE} integers from state_dict"
    if not isinstance(numbers, list) or len(numbers) != partial_sum.SIZE:
        raise ValueError(message)
    for index, number in enumerate(numbers):
        low, high = partial_sum.bounds(index)
        if type(number) is not int or not low <= number < high:
            raise ValueError(f"{message}: at {index} it has {number!r}")
    return np.array(numbers, dtype=np.int64)
