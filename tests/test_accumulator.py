"""`KLDivergence`: whatever the batches and the order of merging, the bits of one call over all."""

import copy
import functools
import itertools
import json
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest

from kldiv_dask import KLDivergence, kl_div, kl_div_with_logits, partial_sum
from tests.helpers.bits import FLOATS, assert_same_bits
from tests.helpers.cases import (
    Array,
    dtype_of,
    log_probabilities,
    narrow,
    probabilities,
    slow_unless,
    some_slow,
)
from tests.test_operands import filtered, without_expressions

KINDS = ("log_probs_and_probs", "log_probs", "logits")
REDUCED = ("sum", "mean", "batchmean")
ROWS, CLASSES = 60, 7

pytestmark = pytest.mark.filterwarnings("ignore:reduction='mean' divides:UserWarning")


def data(kind: str, dtype: str, odd: tuple[int, ...] = ()) -> tuple[Array, Array, Array]:
    """A pair, in which some rows hold what is not finite, and a mask."""
    rng = np.random.default_rng(KINDS.index(kind))
    x = log_probabilities(rng, (ROWS, CLASSES), np.float64) * 2.0 ** rng.integers(-9, 9, (ROWS, 1))
    t = (probabilities if kind == "log_probs_and_probs" else log_probabilities)(
        rng, x.shape, np.float64
    )
    for number, row in enumerate(odd):
        x[row, number] = (-np.inf, np.nan, np.inf)[number % 3]
    if kind == "logits":
        t = narrow(x + 0.1 * t, np.float64)
    where = rng.random(x.shape[: 1 if kind == "logits" else 2]) < 0.5
    where[3:9] = False
    return narrow(x, dtype_of(dtype)), narrow(t, dtype_of(dtype)), where


def one_call(kind: str, x: Any, t: Any, reduction: str, **options: Any) -> Any:
    if kind == "logits":
        return kl_div_with_logits(x, t, reduction=reduction, **options).compute()
    log_target = kind == "log_probs"
    return kl_div(x, t, reduction=reduction, log_target=log_target, **options).compute()


def filled(kind: str, *batches: Any, **options: Any) -> KLDivergence:
    accumulator = KLDivergence(kind, **options)
    for batch in batches:
        accumulator.update(*batch)
    return accumulator


def again(accumulator: KLDivergence, **options: Any) -> KLDivergence:
    """A new accumulator with the state of one, by way of JSON."""
    loaded = KLDivergence(accumulator.kind, **options)
    loaded.load_state_dict(json.loads(json.dumps(accumulator.state_dict())))
    return loaded


# Bits


@pytest.mark.parametrize("odd", some_slow((5, 7, 44), ()))
@pytest.mark.parametrize(
    ("kind", "dtype"),
    slow_unless(
        [(KINDS[0], "float32")],
        itertools.product(KINDS, FLOATS),
    ),
)
def test_batchings_and_merge_trees(kind: str, dtype: str, odd: tuple[int, ...]) -> None:
    """More than 1000 over all parameters, each compared in its whole state."""
    rng = np.random.default_rng([FLOATS.index(dtype), len(odd)])
    x, t, where = data(kind, dtype, odd)
    options: dict[str, Any] = {"reduction": REDUCED[(len(odd) + FLOATS.index(dtype)) % 3]}
    options |= {"temperature": 0.7, "axis": -1} if kind == "logits" else {"zero_safe": True}
    call = {name: value for name, value in options.items() if name != "reduction"}
    masked = bool(rng.integers(2))
    mask = where if masked else np.ones_like(where)
    whole = filled(kind, (x, t, mask), **options)
    for reduction in REDUCED:
        result = one_call(kind, x, t, reduction, where=mask if masked else None, **call)
        assert_same_bits(again(whole, **{**options, "reduction": reduction}).compute(), result)

    # Single rows, and runs of 4 and 16, from which any batching is put together.
    runs: dict[tuple[int, int], KLDivergence] = {}
    for size in (1, 4, 16):
        for start in range(0, ROWS, size):
            rows = slice(start, start + size)
            runs[start, min(start + size, ROWS)] = filled(
                kind, (x[rows], t[rows], mask[rows] if masked else None), **options
            )
    empty = filled(kind, (x[:0], t[:0]), **options)
    for _ in range(50):
        parts, start = [empty, KLDivergence(kind, **options)], 0
        while start < ROWS:
            stops = [stop for begin, stop in runs if begin == start]
            stop = int(rng.choice(stops))
            parts.append(runs[start, stop])
            start = stop
        rng.shuffle(parts)  # type: ignore[arg-type]
        while len(parts) > 1:
            left, right = (parts.pop(rng.integers(len(parts))) for _ in range(2))
            match rng.integers(8):
                case 0:
                    left = pickle.loads(pickle.dumps(left))  # noqa: S301
                case 1:
                    right = again(right, **options)
            if len(parts) > 2 and rng.random() < 0.3:
                parts.append(copy.deepcopy(left).merge(right, parts.pop()))
            else:
                parts.append(left + right)
        assert parts[0].state_dict() == whole.state_dict()
        assert_same_bits(parts[0].compute(), whole.compute())


@pytest.mark.parametrize("reduction", REDUCED)
@pytest.mark.parametrize("kind", some_slow(*KINDS))
def test_updates(kind: str, reduction: str) -> None:
    """In any order and of any size, between results, of NumPy and Dask arrays."""
    rng = np.random.default_rng(1)
    x, t, where = data(kind, "float32")
    for _ in range(3):
        order = rng.permutation(ROWS)
        accumulator = KLDivergence(kind, reduction=reduction)
        cuts = np.sort(rng.integers(0, ROWS + 1, 5))
        for rows in np.split(order, cuts):
            pair: list[Any] = [x[rows], t[rows], where[rows]]
            if rng.random() < 0.5:
                pair = [da.from_array(a, chunks=(5, *a.shape[1:])) for a in pair]
            accumulator.update(*pair)
            accumulator.compute()
        result = one_call(kind, x, t, reduction, where=where)
        assert_same_bits(accumulator.compute(), result)
        accumulator.reset()
        accumulator.update(x[:9], t[:9])
        assert_same_bits(accumulator.compute(), one_call(kind, x[:9], t[:9], reduction))


@without_expressions
@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_unknown_size(kind: str) -> None:
    x, t, _ = data(kind, "float32")
    keep = ([*range(5)], [7, 9], [])
    batches = [(filtered(x, rows), filtered(t, rows)) for rows in keep]
    rows = [*keep[0], *keep[1]]
    got = filled(kind, *batches, reduction="batchmean").compute()
    assert_same_bits(got, one_call(kind, x[rows], t[rows], "batchmean"))


@pytest.mark.parametrize("axis", some_slow(0, 1, -1))
def test_batches_of_images(axis: int) -> None:
    """Positions along several axes; whatever the axis of the classes, the others are positions."""
    x, t = np.random.default_rng(2).standard_normal((2, 4, 5, 6))
    places = [i for i in range(3) if i != axis % 3]
    batches = [[np.take(a, [i], axis=places[0]) for a in (x, t)] for i in range(x.shape[places[0]])]
    for reduction in REDUCED:
        got = filled("logits", *batches, axis=axis, reduction=reduction).compute()
        assert_same_bits(got, one_call("logits", x, t, reduction, axis=axis))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    slow_unless(
        [("log_probs", "float16"), ("logits", "float64")],
        itertools.product(("log_probs", "logits"), FLOATS),
    ),
)
def test_types_of_results(kind: str, dtype: str) -> None:
    x, t, _ = data("logits", "float32")
    given = filled(kind, (x, t), reduction="sum", dtype=dtype)
    assert_same_bits(given.compute(), one_call(kind, x, t, "sum", dtype=dtype))
    assert_same_bits(again(given, reduction="sum", dtype=dtype).compute(), given.compute())


@pytest.mark.parametrize("kind", some_slow("logits", "log_probs"))
def test_batches_of_two_types(kind: str) -> None:
    x, t, _ = data("logits", "float32")
    wide = (x.astype("f8"), t.astype("f8"))
    both = filled(kind, wide, (x, t), reduction="sum", dtype="float64")
    result = one_call(kind, *(np.concatenate([a, a]) for a in wide), "sum")
    assert_same_bits(both.compute(), result)


@pytest.mark.slow
def test_a_batch_of_two_types() -> None:
    x, t, _ = data("logits", "float32")
    halves = x.astype("f2"), t.astype("f2")
    mixed = filled("logits", (x, t), halves, (x, halves[1]), reduction="sum")
    joined = (
        np.concatenate([x, halves[0], x]), np.concatenate([t, halves[1], halves[1]])
    )  # fmt: skip
    assert_same_bits(mixed.compute(), one_call("logits", *joined, "sum"))


def test_nothing_in_it() -> None:
    x = np.zeros((0, 3), np.float32)
    for kind, reduction in itertools.product(KINDS, REDUCED):
        value = np.float32(0 if reduction == "sum" else math.nan)
        assert_same_bits(filled(kind, (x, x), reduction=reduction).compute(), value)
        assert_same_bits(KLDivergence(kind, reduction=reduction, dtype="f4").compute(), value)
        untouched = KLDivergence(kind, reduction=reduction)
        for accumulator in (untouched, untouched + untouched, again(untouched)):
            with pytest.raises(ValueError, match=r"^there has been no batch; update with one, or"):
                accumulator.compute()


# What does not fit


def unchanged(
    accumulator: KLDivergence, action: Callable[[], Any], category: Any, text: str
) -> None:
    """It raises, with a text that starts so, and leaves the accumulator as it was."""
    before, value = copy.deepcopy(accumulator.state_dict()), accumulator.compute()
    with pytest.raises(category) as caught:
        action()
    assert type(caught.value) is category
    assert str(caught.value).startswith(text)
    assert accumulator.state_dict() == before
    assert_same_bits(accumulator.compute(), value)


X, T, _ = data("logits", "float32")

KIND = "kind must be one of 'log_probs_and_probs', 'log_probs', 'logits'"

OPTIONS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, f"{KIND}, got 'prob'", {"kind": "prob"}),
    (ValueError, f"{KIND}, got 'probs'; of two arrays of probabilities, give", {"kind": "probs"}),
    *((ValueError, f"reduction must be one of 'mean', 'batchmean', 'sum', got {reduction!r}",
       {"kind": kind, "reduction": reduction})
      for kind in KINDS for reduction in ("none", "average", None)),
    *((ValueError, f"axis is 0 and temperature is 1.0 with kind={kind!r}; they are for logits",
       {"kind": kind, "axis": 0}) for kind in KINDS[:2]),
    (ValueError, "axis is -1 and temperature is 2 with kind='log_probs_and_probs'; they are for",
     {"temperature": 2}),
    *((TypeError, f"axis must be an integer, the axis of the classes, got {axis!r}",
       {"kind": "logits", "axis": axis})
      for axis in (1.5, (1,), None)),
    *((category, f"temperature must be a positive finite number, got {value!r}",
       {"kind": "logits", "temperature": value}) for category, value in
      ((ValueError, -1), (ValueError, math.nan), (TypeError, "1"), (TypeError, None))),
    (TypeError, "dtype must be one of float16, bfloat16, float32, float64, got int32",
     {"kind": "logits", "dtype": "i4"}),
]  # fmt: skip


@pytest.mark.parametrize(("category", "text", "options"), OPTIONS)
def test_options_are_checked_at_once(
    category: type[Exception], text: str, options: dict[str, Any]
) -> None:
    with pytest.raises(category) as caught:
        KLDivergence(**options)
    assert type(caught.value) is category
    assert str(caught.value).startswith(text)


UPDATES: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
    (TypeError, "the batch is computed in float64 to float64, where those before were "
     "computed in float32 to float32; give all batches one type",
     (X.astype("f8"), T)),
    (ValueError, "input and target must have as many classes along axis -1", (X[:, 1:], T)),
    (ValueError, "input of shape (59, 7) and target of shape (60, 7) do not", (X[1:], T)),
    (TypeError, "the dtype of input must be one of float8_e4m3fn, float8_e5m2, float16, bfloat16, "
     "float32, float64, got int64",
     (X.astype(int), T)),
    (ValueError, "where of shape (60, 7) does not broadcast", (X, T, np.ones_like(X, bool))),
]  # fmt: skip


@pytest.mark.parametrize(("category", "text", "batch"), UPDATES)
def test_a_batch_that_does_not_fit(
    category: type[Exception], text: str, batch: tuple[Any, ...]
) -> None:
    accumulator = filled("logits", (X, T))
    unchanged(accumulator, lambda: accumulator.update(*batch), category, text)


def test_a_batch_that_cannot_be_computed() -> None:
    def fail(block: Array) -> Array:
        raise RuntimeError("the disk is gone")

    lazy = da.from_array(X).map_blocks(fail, dtype=X.dtype, meta=X[:0])
    for kind in KINDS:
        accumulator = filled(kind, (X, T))
        unchanged(
            accumulator,
            functools.partial(accumulator.update, lazy, T),
            RuntimeError,
            "the disk is gone",
        )


def test_the_first_batch_decides_only_if_it_was_added() -> None:
    accumulator = KLDivergence("logits")
    with pytest.raises(ValueError, match="do not broadcast together"):
        accumulator.update(X[1:].astype("f8"), T)
    accumulator.update(X, T)
    assert accumulator.compute().dtype == np.float32


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("must have kind='logits', got 'log_probs_and_probs'", {"kind": "log_probs_and_probs"}),
    ("must have axis=-1, got 0", {"axis": 0}),
    ("must have temperature=1.0, got 2.0", {"temperature": 2}),
    ("must have dtype=None, got 'float32'", {"dtype": "f4"}),
]


@pytest.mark.parametrize(("text", "options"), OTHERS)
def test_others_that_do_not_fit(text: str, options: dict[str, Any]) -> None:
    own, same = (filled("logits", (X, T)) for _ in range(2))
    other = KLDivergence(**{"kind": "logits", **options})
    whose = "the other accumulator "
    unchanged(own, lambda: own.merge(other), ValueError, whose + text)
    unchanged(own, lambda: own + other, ValueError, whose + text)
    state = other.state_dict()
    unchanged(own, lambda: own.load_state_dict(state), ValueError, "the state " + text)
    # Of several, none is added unless all fit.
    unchanged(own, lambda: own.merge(same, other), ValueError, whose + text)


def test_merging_is_of_accumulators_of_one_type() -> None:
    own, wide = (filled("logits", (X.astype(name), T.astype(name))) for name in ("f4", "f8"))
    text = "the other accumulator"
    unchanged(own, lambda: own.merge(wide), TypeError, text)
    unchanged(own, lambda: own + wide, TypeError, text)
    unchanged(own, lambda: own + 1, TypeError, "unsupported operand type(s) for +: 'KLDivergence'")
    unchanged(own, lambda: own.merge(own + own, wide), TypeError, text)


@pytest.mark.parametrize("other", [1, None, {}])
def test_merging_is_of_accumulators_alone(other: Any) -> None:
    own = filled("logits", (X, T))
    text = f"other must be a KLDivergence, got a {type(other).__name__}"
    unchanged(own, lambda: own.merge(other), TypeError, text)


def test_merging_leaves_the_others_as_they_were() -> None:
    first, second = filled("logits", (X[:9], T[:9])), filled("logits", (X[9:], T[9:]))
    states = first.state_dict(), second.state_dict()
    joined = first + second
    assert (first.state_dict(), second.state_dict()) == states
    joined.update(X, T)
    joined.reset()
    assert (first.state_dict(), second.state_dict()) == states
    assert first.merge(second, second) is first
    assert second.state_dict() == states[1]
    assert_same_bits((second + second).compute(), second.compute())
    first.merge(first)
    rows = np.tile(np.r_[0:ROWS, 9:ROWS], 2)
    assert_same_bits(first.compute(), one_call("logits", X[rows], T[rows], "mean"))


# States

STATE = filled("logits", (X, T)).state_dict()
NUMBERS = STATE["partial"]
PARTIAL = f"the state's partial is not a list of {partial_sum.SIZE} integers"


def replaced(index: int, number: Any) -> list[Any]:
    return [*NUMBERS[:index], number, *NUMBERS[index + 1 :]] if index else [number, *NUMBERS[1:]]


STATES: list[tuple[type[Exception], str, Any]] = [
    *((ValueError, "the state", {k: v for k, v in STATE.items() if k != name}) for name in STATE),
    *((ValueError, f"the state must be of version 2, got {version!r}",
       {**STATE, "version": version}) for version in (0, 1, "2", None)),
    *((ValueError, PARTIAL, {**STATE, "partial": numbers}) for numbers in (
        None, {}, "0" * partial_sum.SIZE, [], NUMBERS[1:], [*NUMBERS, 0], list(map(float, NUMBERS)),
        list(map(str, NUMBERS)), *(replaced(3, n) for n in (0.0, True, None, "0", 2**63, -(2**64))),
    )),
    # What no sum has: a limb that is not canonical, and fewer than no elements.
    *((ValueError, "the state's partial", {**STATE, "partial": replaced(i, n)})
      for i, n in ((3, 2**32), (3, -1), (partial_sum.NUMEL, -1), (partial_sum.ROWS, -1))),
    *((ValueError, "the state's types", {**STATE, "types": types}) for types in
      (5, "float32", [], ["float32"], ["int32", "float32"], ["a", "b"], ["float32"] * 3, [1, 2])),
    *((category, "the state", state) for category, state in
      ((ValueError, {}), (TypeError, None), (TypeError, []), (TypeError, json.dumps(STATE)))),
]  # fmt: skip


@pytest.mark.parametrize(("category", "text", "state"), STATES)
def test_damaged_states(category: type[Exception], text: str, state: Any) -> None:
    accumulator = filled("logits", (X[:2], T[:2]))
    unchanged(accumulator, lambda: accumulator.load_state_dict(state), category, text)


def test_loading_replaces_what_was_there() -> None:
    accumulator = filled("logits", (X.astype("f8")[:2], T[:2]))
    accumulator.load_state_dict(STATE)
    assert accumulator.state_dict() == STATE
    accumulator.update(X[:5], T[:5])
    rows = np.r_[0:ROWS, 0:5]
    assert_same_bits(accumulator.compute(), one_call("logits", X[rows], T[rows], "mean"))


def test_a_state_is_a_copy() -> None:
    accumulator = filled("logits", (X, T))
    state = accumulator.state_dict()
    assert json.loads(json.dumps(state)) == state == STATE
    state["types"].clear()
    state["partial"].clear()
    assert accumulator.state_dict() == STATE


# Words


def test_repr() -> None:
    assert repr(KLDivergence("logits")) == "KLDivergence('logits', reduction='mean')"
    assert (
        repr(filled("log_probs", reduction="sum")) == "KLDivergence('log_probs', reduction='sum')"
    )


def test_warnings_point_at_the_caller() -> None:
    mean = "reduction='mean' divides by the number of elements, classes included"
    old = "reduction='elementwise_mean' is deprecated"
    chunks = "target has chunks"
    lazy = da.from_array(X, chunks=(20, 7)), da.from_array(T, chunks=(30, 7))
    probs, logits = KLDivergence(reduction="sum"), KLDivergence("logits")
    calls: list[tuple[Callable[[], Any], list[str]]] = [
        (lambda: KLDivergence(), [mean]),
        (lambda: KLDivergence("log_probs"), [mean]),
        (lambda: KLDivergence("log_probs_and_probs", reduction="elementwise_mean"), [old]),
        (lambda: KLDivergence("log_probs_and_probs", reduction="batchmean"), []),
        (lambda: KLDivergence("logits"), []),
        (lambda: probs.update(*lazy), [chunks]),
        (lambda: logits.update(*lazy), [chunks]),
        (lambda: logits.update(X, T), []),
        (lambda: (logits + logits).compute(), []),
    ]  # fmt: skip
    for call, texts in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert len(caught) == len(texts)
        for warning, text in zip(caught, texts, strict=True):
            assert str(warning.message).startswith(text)
            assert (warning.filename, warning.lineno) == (__file__, call.__code__.co_firstlineno)
