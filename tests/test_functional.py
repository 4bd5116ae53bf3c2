"""What may be handed to the public functions, and what they say about the rest."""

import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from kldiv_dask import KLDivLoss, KLDivSummary, kl_div, kl_div_summary
from tests import reference
from tests.helpers.bits import assert_same_bits, expected, terms_of
from tests.helpers.cases import REDUCTIONS, log_probabilities, probabilities

rng = np.random.default_rng(4)
X = log_probabilities(rng, (6, 4), np.float64)
T = probabilities(rng, (6, 4), np.float64)
LAZY_X, LAZY_T = da.from_array(X, chunks=(2, 4)), da.from_array(T, chunks=(2, 4))


# Errors: each type with its whole text, and which comes first

COMPLEX, INTEGER, WIDE = np.ones((6, 4), complex), np.ones((6, 4), int), np.ones((6, 5))
OF_RESULT = "must be one of float16, bfloat16, float32, float64, got"
FLOATS = OF_RESULT.replace("float16", "float8_e4m3fn, float8_e5m2, float16", 1)
MASKED = (
    "must have chunks of numpy.ndarray, got MaskedArray; pass np.ma.getdata({}), and where, which "
    "is False where it is masked"
)

ERRORS: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
    (ValueError, "reduction must be one of 'none', 'mean', 'batchmean', 'sum', got 'average'",
     (COMPLEX, INTEGER), {"reduction": "average", "dtype": int}),
    (ValueError, "reduction must be one of 'none', 'mean', 'batchmean', 'sum', got None",
     (X, T), {"reduction": None}),
    (TypeError, f"the dtype of target {FLOATS} complex128", (INTEGER, COMPLEX), {}),
    (TypeError, f"the dtype of input {FLOATS} complex128", (COMPLEX, COMPLEX), {}),
    (TypeError, f"the dtype of input {FLOATS} int64", (INTEGER, WIDE), {"dtype": int}),
    (TypeError, f"the dtype of target {FLOATS} int64", (WIDE, INTEGER), {}),
    (TypeError, f"the dtype of target {FLOATS} bool", (X, True), {}),
    (TypeError, f"the dtype of input {FLOATS} uint8", (LAZY_X.astype("u1"), T), {"dtype": "f4"}),
    (TypeError,
     f"the dtype of target {FLOATS} object; convert it, as target.astype('float32') does",
     (X, None), {}),
    (TypeError, f"the dtype of target {FLOATS} <U5", (X, "probs"), {}),
    (TypeError, f"dtype {OF_RESULT} int32", (X, WIDE), {"dtype": "i4"}),
    (TypeError, f"dtype {OF_RESULT} complex64", (X, WIDE), {"dtype": "c8"}),
    (ValueError, "input of shape (6, 4) and target of shape (6, 5) do not broadcast together: they "
     "have 4 and 5 elements along the last axis; if these are classes, and one is padded, cut it: "
     "array[..., :4]",
     (X, WIDE), {}),
    (ValueError, "input of shape (4, 6) and target of shape (6, 4) do not broadcast together",
     (LAZY_X.T, LAZY_T), {"split_every": 1}),
    (ValueError, "input of shape (3, 6, 4) and target of shape (2, 1, 4) do not broadcast together",
     (np.ones((3, 6, 4)), np.ones((2, 1, 4))), {}),
    (ValueError, "input of shape (0,) and target of shape (2,) do not broadcast together",
     ([], [0.5, 0.5]), {}),
    (TypeError, f"input {MASKED.format('input')}",
     (np.ma.masked_invalid(X), T), {}),
    (TypeError, f"target {MASKED.format('target')}",
     (X, da.from_array(np.ma.masked_invalid(T), chunks=2)), {}),
]  # fmt: skip


@pytest.mark.parametrize(("category", "text", "pair", "options"), ERRORS)
def test_errors(
    category: type[Exception], text: str, pair: tuple[Any, Any], options: dict[str, Any]
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: kl_div(*pair, **{"reduction": "sum", **options}),
        lambda: KLDivLoss(**{"reduction": "none", **options})(*pair),
    ]
    if "reduction" not in options:
        calls.append(lambda: kl_div_summary(*pair, **options))
    for call in calls:
        with pytest.raises(category) as caught:
            call()
        assert type(caught.value) is category
        assert str(caught.value) == text


def test_the_mean_warns_before_a_shape_error() -> None:
    with (
        pytest.warns(UserWarning, match="reduction='mean'"),
        pytest.raises(ValueError, match="do not broadcast"),
    ):
        kl_div(X, WIDE)


# Warnings: category, text, and the caller's line. Each call stands on the line of its lambda.

MEAN = (UserWarning, "reduction='mean' divides by the number of elements, classes included")
OLD_MEAN = (UserWarning, "reduction='elementwise_mean' is deprecated; use reduction='mean' instead")
RECHUNKED = (da.PerformanceWarning, "target has chunks (3 x 2, 1 x 4) where input has (2 x 3, 1 x")
OTHER_X = LAZY_X.rechunk((3, 4))
LOSS, OLD_LOSS = KLDivLoss(), KLDivLoss(reduction="elementwise_mean")


def legacy(reduction: str) -> tuple[type[Warning], str]:
    text = f"size_average and reduce are deprecated; use reduction={reduction!r} instead"
    return UserWarning, text


WARNINGS: list[tuple[Callable[[], Any], list[tuple[type[Warning], str]]]] = [
    (lambda: kl_div(X, T), [MEAN]),
    (lambda: kl_div(X, T, reduction="mean"), [MEAN]),
    (lambda: kl_div(X, T, reduction="elementwise_mean"), [OLD_MEAN]),
    (lambda: kl_div(X, T, True), [legacy("mean")]),
    (lambda: kl_div(X, T, False, True, "batchmean"), [legacy("sum")]),
    (lambda: kl_div(X, T, reduce=False, reduction="nonsense"), [legacy("none")]),
    (lambda: kl_div(OTHER_X, LAZY_T, reduction="sum"), [RECHUNKED]),
    (lambda: kl_div(OTHER_X, LAZY_T, reduction="none"), [RECHUNKED]),
    (lambda: kl_div(OTHER_X, LAZY_T), [MEAN, RECHUNKED]),
    (lambda: kl_div(OTHER_X, LAZY_T, size_average=False), [legacy("sum"), RECHUNKED]),
    (lambda: kl_div_summary(OTHER_X, LAZY_T), [RECHUNKED]),
    (lambda: KLDivLoss(), []),
    (lambda: KLDivLoss(False), [legacy("sum")]),
    (lambda: KLDivLoss(reduce=False, reduction="batchmean"), [legacy("none")]),
    (lambda: LOSS(X, T), [MEAN]),
    (lambda: OLD_LOSS(X, T), [OLD_MEAN]),
    (lambda: LOSS(OTHER_X, LAZY_T), [MEAN, RECHUNKED]),
    (lambda: kl_div(X, T, reduction="sum"), []),
    (lambda: kl_div(X, T, reduction="batchmean"), []),
    (lambda: kl_div(LAZY_X, T, reduction="none"), []),
    (lambda: kl_div_summary(LAZY_X, T), []),
]  # fmt: skip


@pytest.mark.parametrize(("call", "expectations"), WARNINGS)
def test_warnings(call: Callable[[], Any], expectations: list[tuple[type[Warning], str]]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert [warning.category for warning in caught] == [category for category, _ in expectations]
    for warning, (_, text) in zip(caught, expectations, strict=True):
        assert str(warning.message).startswith(text)
        assert warning.filename == __file__
        assert warning.lineno == call.__code__.co_firstlineno


def test_the_performance_warning_says_what_it_costs_and_what_to_do() -> None:
    small = LAZY_X[:, :1].rechunk((6, 1))
    with pytest.warns(da.PerformanceWarning) as caught:
        kl_div(small, LAZY_T, reduction="sum")
    (warning,) = caught
    text = str(warning.message)
    # the smaller operand is the one that is moved
    assert text.startswith("input has chunks (1 x 6, 1 x 1) where target has (3 x 2, 1 x 4): ")
    for part in ("input (48 B in 1 chunks)", "kldiv_dask.open_pair", "chunks=target.chunks"):
        assert part in text


# Legacy flags

FLAGS = {
    (None, True): "mean", (True, None): "mean", (True, True): "mean",
    (False, None): "sum", (False, True): "sum",
    (None, False): "none", (True, False): "none", (False, False): "none",
}  # fmt: skip


TRUTH: dict[Any, tuple[Any, ...]] = {None: (None,), True: (True, 1, "no"), False: (False, 0, "")}


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "nonsense"])
@pytest.mark.parametrize(("size_average", "reduce"), FLAGS)
def test_legacy_flags(size_average: bool | None, reduce: bool | None, reduction: str) -> None:
    """They override `reduction`, except that the function divides by the batch size even so."""
    kind = FLAGS[size_average, reduce]
    terms = terms_of(X, T)
    results = {"none": terms, **expected(terms, X, terms.dtype)}
    divided = {
        "none": terms / len(X),
        "sum": results["batchmean"],
        "mean": reference.quotient(reference.exact_sum(terms), X.size * len(X), X.dtype),
    }
    for flags in itertools.product(TRUTH[size_average], TRUTH[reduce]):
        with pytest.warns(UserWarning, match=f"use reduction='{kind}' instead"):
            got = kl_div(X, T, *flags, reduction)
        with pytest.warns(UserWarning, match=f"use reduction='{kind}' instead"):
            loss = KLDivLoss(*flags, reduction)
        assert loss.reduction == kind
        assert_same_bits(got.compute(), (divided if reduction == "batchmean" else results)[kind])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reduction='mean'
            assert_same_bits(loss(X, T).compute(), results[kind])


def test_terms_are_divided_before_they_are_rounded() -> None:
    x, t = X.astype(np.float16), T.astype(np.float16)
    with pytest.warns(UserWarning, match="deprecated"):
        got = kl_div(x, t, reduce=False, reduction="batchmean")
    wanted = terms_of(x, t) / len(x)
    assert_same_bits(got.compute(), wanted.astype(np.float16))
    twice = terms_of(x, t).astype(np.float16) / np.float16(len(x))
    assert (got.compute() != twice).any()


def test_a_scalar_input_has_no_batch_to_divide_by() -> None:
    for reduce, result in ((False, "none"), (True, "mean")):
        with pytest.warns(UserWarning, match="deprecated"):
            got = kl_div(-1.0, 0.5, reduce=reduce, reduction="batchmean")
        assert_same_bits(got.compute(), kl_div(-1.0, 0.5, reduction="sum").compute(), result)


# KLDivLoss


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (KLDivLoss(), "KLDivLoss(reduction='mean', log_target=False)"),
        (
            KLDivLoss(reduction="sum", log_target=True),
            "KLDivLoss(reduction='sum', log_target=True)",
        ),
    ],
)
def test_loss_repr(loss: KLDivLoss, text: str) -> None:
    assert repr(loss) == str(loss) == text


def test_loss_takes_axes_and_dimensions_as_kl_div_does() -> None:
    x, t = np.log(np.random.default_rng(0).dirichlet(np.ones(3), (2, 4, 5)))
    where = np.arange(4)[:, None, None] % 2 == 0
    options: dict[str, Any] = {"reduction": "sum", "log_target": True, "axis": (0, -1)}
    for keepdims in (False, True):
        loss = KLDivLoss(**options, keepdims=keepdims)
        for mask in (None, where):
            result = loss(x, t, where=mask).compute()
            wanted = kl_div(x, t, **options, keepdims=keepdims, where=mask).compute()
            assert result.shape == ((1, 5, 1) if keepdims else (5,))
            np.testing.assert_array_equal(result, wanted)
    del options["axis"]
    pair = [xr.DataArray(a, dims=("text", "token", "class")) for a in (x, t)]
    named = KLDivLoss(**options, dim=["text", "class"])(*pair)
    assert named.dims == ("token",)
    np.testing.assert_array_equal(named, kl_div(*pair, **options, dim=["text", "class"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "none", "axis": 0}, "axis must be None with reduction='none', got 0"),
        ({"reduction": "none", "keepdims": True}, "keepdims is True with reduction='none'"),
        ({"reduction": "batchmean", "dim": "x"}, "dim is 'x' with reduction='batchmean'"),
    ],
)
def test_loss_refuses_axes_as_kl_div_does(options: dict[str, Any], message: str) -> None:
    x = np.zeros((2, 3))
    for function in (KLDivLoss(**options), lambda *pair: kl_div(*pair, **options)):
        with pytest.raises(ValueError, match=message):
            function(x, x)


def test_loss_is_pickled_with_its_options() -> None:
    options: dict[str, Any] = {
        "reduction": "batchmean", "log_target": True, "dtype": "f4", "zero_safe": True,
        "split_every": {0: 2},
    }  # fmt: skip
    loss = KLDivLoss(**options)
    again = pickle.loads(pickle.dumps(loss))  # noqa: S301
    assert type(again) is KLDivLoss
    assert vars(again) == vars(loss) == options | {"axis": None, "dim": None, "keepdims": False}
    x, t = np.array([[-1.0, -np.inf]]), np.array([[-2.0, -np.inf]])
    value = again(x, t).compute()
    assert value.dtype == np.float32
    assert np.isfinite(value)  # zero_safe
    assert again(x, t).name == loss(x, t).name == kl_div(x, t, **options).name


# KLDivSummary


def test_summary_fields() -> None:
    x = np.array([[-1, np.inf, -np.inf, np.nan, -np.inf]] * 2, np.float32)
    t = np.array([[0.5, 0.5, 0.5, 0.5, 0.0]] * 2, np.float32)
    summary = kl_div_summary(x, t)
    assert [getattr(summary, name) for name in KLDivSummary._fields] == list(summary)
    assert all(isinstance(field, da.Array) and field.shape == () for field in summary)
    for got in (summary.compute(), summary.compute(scheduler="synchronous")):
        assert type(got) is KLDivSummary
        assert [field.dtype for field in got] == [np.float32] * 3 + [np.int64] * 5
        assert np.isnan(got[:3]).all()
        assert got._asdict() == {**got._asdict(), "numel": 10, "batch_size": 2,
                                 "nan_count": 4, "posinf_count": 2, "neginf_count": 2}  # fmt: skip
    safe = kl_div_summary(x, t, zero_safe=True).compute()
    assert (safe.numel, safe.nan_count) == (10, 2)
    assert pickle.loads(pickle.dumps(safe))[3:] == safe[3:]  # noqa: S301


def test_summary_passes_on_what_it_is_told() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("this scheduler was asked")

    with pytest.raises(RuntimeError, match="this scheduler was asked"):
        kl_div_summary(X, T).compute(scheduler=refuse)


@pytest.mark.parametrize(("x", "t", "batch", "numel"), [
    (-1.0, 0.5, 1, 1), (-1.0, T, 1, 24), (X[0], T, 4, 24), (X[:1], T, 1, 24), (X, T[:1], 6, 24),
    (X[:0], T[:0], 0, 0), (X[:, :0], T[:, :0], 6, 0),
])  # fmt: skip
def test_batch_size_is_that_of_the_input(x: Any, t: Any, batch: int, numel: int) -> None:
    for chunks in (-1, 1):
        pair = (da.from_array(np.asarray(a), chunks=chunks) for a in (x, t))
        got = kl_div_summary(*pair).compute()
        assert (got.batch_size, got.numel) == (batch, numel)
