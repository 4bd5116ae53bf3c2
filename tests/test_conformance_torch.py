"""The library beside torch itself, where torch can be imported."""

import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import kldiv_dask
from tests.helpers import cases
from tests.helpers.agreement import difference, tolerance
from tests.helpers.cases import FLOATS, REDUCTIONS, Array

torch = pytest.importorskip("torch")

FLAGS = (None, False, True)
SPELLINGS = (*REDUCTIONS, "elementwise_mean")

# Every one is a float16, so that a cast to any type is exact, and no intermediate of torch
# overflows or underflows in float16; test_conformance.py lists what happens where one does.
ORDINARY = {
    "input": st.floats(-50, 50, width=16),
    "target": st.floats(0, 8, width=16, allow_subnormal=False),
    "log target": st.floats(-6, 3, width=16),
}
SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan])


@pytest.fixture(autouse=True)
def _scheduler() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def counted(function: Callable[[], Any]) -> tuple[Any, list[warnings.WarningMessage]]:
    """The result of a call and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return function(), caught


def refused(function: Callable[[], Any]) -> tuple[Exception, list[warnings.WarningMessage]]:
    """The exception that a call raises and its warnings."""

    def raised() -> Exception:
        with pytest.raises(Exception) as caught:  # noqa: PT011
            function()
        return caught.value

    return counted(raised)


def categories(caught: list[warnings.WarningMessage]) -> list[type[Warning]]:
    return [warning.category for warning in caught]


def both(input: Array, target: Array, **options: Any) -> tuple[Array, Array]:
    """What the library and torch return, after they warned alike."""
    tensors = torch.from_numpy(input), torch.from_numpy(target)
    theirs, theirs_caught = counted(lambda: torch.nn.functional.kl_div(*tensors, **options))
    ours, caught = counted(lambda: kldiv_dask.kl_div(input, target, **options))
    assert categories(caught) == categories(theirs_caught)
    return ours.compute(), theirs.numpy()


@st.composite
def calls(draw: st.DrawFn) -> tuple[Array, Array, dict[str, Any]]:
    log_target = draw(st.booleans())
    shapes = draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0,
                                                    max_side=4)).input_shapes  # fmt: skip
    operands = []
    for shape, name in zip(shapes, ("input", "log target" if log_target else "target"),
                           strict=True):  # fmt: skip
        elements = ORDINARY[name] | SPECIAL if draw(st.booleans()) else ORDINARY[name]
        dtype = draw(st.sampled_from(FLOATS))
        wide = draw(hnp.arrays(np.float64, shape, elements=elements))
        operands.append(wide.astype(dtype))
    options = {"reduction": draw(st.sampled_from(SPELLINGS)), "log_target": log_target}
    if draw(st.booleans()):
        options |= {flag: draw(st.sampled_from(FLAGS)) for flag in ("size_average", "reduce")}
    return *operands, options


@settings(max_examples=400, deadline=None, derandomize=True)
@given(calls())
def test_any_call_agrees(call: tuple[Array, Array, dict[str, Any]]) -> None:
    x, t, options = call
    ours, theirs = both(x, t, **options)
    assert not difference(ours, theirs, tolerance(x, t, options))


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_batch_of_distributions_agrees(dtype: str, reduction: str, log_target: bool) -> None:
    rng = np.random.default_rng(5)
    draw = cases.log_probabilities if log_target else cases.probabilities
    x = cases.log_probabilities(rng, (16, 1000), dtype)
    t = draw(rng, (16, 1000), dtype)
    options = {"reduction": reduction, "log_target": log_target}
    ours, theirs = both(x, t, **options)
    assert not difference(ours, theirs, tolerance(x, t, options))


# Values of any truth that torch accepts for the legacy flags.
@pytest.mark.parametrize("flag", [0, 1, "", "no", [], 0.0])
@pytest.mark.parametrize("name", ["size_average", "reduce"])
def test_flags_count_by_truthiness(name: str, flag: Any) -> None:
    x, t = np.log([[0.25, 0.75]] * 3), np.array([[0.5, 0.5]] * 3)
    ours, theirs = both(x, t, **{name: flag})
    np.testing.assert_allclose(ours, theirs, rtol=1e-15)


@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.parametrize("reduction", [*SPELLINGS, "unknown"])
@pytest.mark.parametrize(("size_average", "reduce"), [*itertools.product(FLAGS, FLAGS)])
def test_module_agrees(size_average: Any, reduce: Any, reduction: str, log_target: bool) -> None:
    """Constructor and call warn, raise and compute as torch's, without the batchmean quirk."""
    x = np.log([[0.25, 0.75]] * 3)
    arguments = size_average, reduce, reduction, log_target
    theirs, theirs_caught = counted(lambda: torch.nn.KLDivLoss(*arguments))
    ours, caught = counted(lambda: kldiv_dask.KLDivLoss(*arguments))
    assert ours.reduction == theirs.reduction
    assert categories(caught) == categories(theirs_caught)

    tensor = torch.from_numpy(x)
    if ours.reduction == "unknown":
        for call in (lambda: theirs(tensor, tensor), lambda: ours(x, x)):
            assert type(refused(call)[0]) is ValueError
        return
    wanted, theirs_caught = counted(lambda: theirs(tensor, tensor.exp()))
    got, caught = counted(lambda: ours(x, np.exp(x)))
    assert categories(caught) == categories(theirs_caught)
    np.testing.assert_allclose(got.compute(), wanted.numpy(), rtol=1e-13, atol=1e-16)


# What is wrong with a call, torch's exception, the library's and what its message names. Several
# wrongs show which one is looked for first.
REFUSED = {
    "reduction": ({"reduction": "Mean"}, ValueError, ValueError, "'Mean'"),
    "complex input": ({"input": "complex64"}, RuntimeError, TypeError, "input .*complex64"),
    "complex target": ({"target": "complex128"}, RuntimeError, TypeError, "target .*complex128"),
    "integer input": ({"input": "int64"}, RuntimeError, TypeError, "input .*int64"),
    "unsigned target": ({"target": "uint8"}, RuntimeError, TypeError, "target .*uint8"),
    "bool target": ({"target": "bool"}, RuntimeError, TypeError, "target .*bool"),
    "shapes": ({"shape": (4,)}, RuntimeError, ValueError, r"\(2, 3\).*\(4,\)"),
    "integer, shapes": ({"target": "int8", "shape": (4,)}, RuntimeError, TypeError, "int8"),
    "integer, complex": ({"input": "int8", "target": "complex64"}, RuntimeError, TypeError,
                         "target .*complex64"),
    "reduction, complex": ({"reduction": "", "input": "complex64"}, ValueError, ValueError, "''"),
    "reduction, shapes": ({"reduction": "", "shape": (4,)}, ValueError, ValueError, "''"),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "theirs", "ours", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_torch_refuses(
    wrong: dict[str, Any], theirs: type[Exception], ours: type[Exception], message: str
) -> None:
    x = np.ones((2, 3), wrong.get("input", "float32"))
    t = np.ones(wrong.get("shape", (2, 3)), wrong.get("target", "float32"))
    options = {"reduction": wrong.get("reduction", "mean")}
    tensors = torch.from_numpy(x), torch.from_numpy(t)
    raised, theirs_caught = refused(lambda: torch.nn.functional.kl_div(*tensors, **options))
    assert type(raised) is theirs
    raised, caught = refused(lambda: kldiv_dask.kl_div(x, t, **options))
    assert type(raised) is ours
    assert re.search(message, str(raised))
    assert categories(caught) == categories(theirs_caught)


def test_warnings_point_at_the_caller() -> None:
    x = np.zeros((2, 3))
    calls = [
        lambda: kldiv_dask.kl_div(x, x),
        lambda: kldiv_dask.kl_div(x, x, reduce=True),
        lambda: kldiv_dask.kl_div(x, x, reduction="elementwise_mean"),
        lambda: kldiv_dask.KLDivLoss(size_average=False),
        lambda: kldiv_dask.KLDivLoss()(x, x),
    ]
    for call in calls:
        _, caught = counted(call)
        assert [warning.filename for warning in caught] == [__file__]


# Tensors as operands

X, T = np.random.default_rng(0).normal(size=(2, 6, 5)).astype("f4")
TAKING = {
    "kl_div": lambda x, t: kldiv_dask.kl_div(x, t, reduction="sum").compute(),
    "kl_div_with_logits": lambda x, t: kldiv_dask.kl_div_with_logits(x, t).compute(),
    "evaluate": lambda x, t: kldiv_dask.evaluate(x, t, progress=False).mean,
    "KLDivergence": lambda x, t: kldiv_dask.KLDivergence("logits").update(x, t),
}
each_function = pytest.mark.parametrize("function", TAKING.values(), ids=TAKING)


@each_function
def test_tensors_are_taken(function: Callable[..., Any]) -> None:
    x, t = torch.from_numpy(X), torch.from_numpy(abs(T))
    assert function(x, t) == function(X, abs(T))
    assert function(torch._neg_view(x), t) == function(-X, abs(T))
    narrow = [tensor.bfloat16() for tensor in (x.T, t.T)]
    wide = [tensor.float().numpy() for tensor in narrow]
    got, wanted = function(*narrow), function(*wide)
    if wanted is not None:
        assert got == np.asarray(wanted).astype(np.asarray(got).dtype)


@each_function
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_tensors_of_8_bits_are_taken(function: Callable[..., Any], dtype: Any) -> None:
    narrow = [torch.from_numpy(a).to(dtype) for a in (X.T, abs(T).T)]
    assert function(*narrow) == function(*(tensor.float() for tensor in narrow))


@each_function
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.requires_grad_(), "that requires grad; pass input.detach()"),
        (torch.nn.Parameter, "that requires grad; pass input.detach()"),
        (lambda x: x.to("meta"), "on meta; pass input.cpu()"),
        (lambda x: x.to_sparse(), "of layout torch.sparse_coo; pass input.to_dense()"),
        (lambda x: x.to(torch.float8_e5m2fnuz), "of torch.float8_e5m2fnuz; pass input.float()"),
    ],
)
def test_other_tensors_are_refused(
    function: Callable[..., Any], change: Callable[[Any], Any], message: str
) -> None:
    start = "input must be an array in memory, got a torch tensor "
    with pytest.raises(TypeError, match=f"^{re.escape(start + message)}$"):
        function(change(torch.from_numpy(X.copy())), T)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_on_a_gpu_are_refused() -> None:
    with pytest.raises(TypeError, match=r"a torch tensor on cuda:0; pass input.cpu\(\)$"):
        kldiv_dask.kl_div_with_logits(torch.from_numpy(X).cuda(), T)


def test_tensors_by_position() -> None:
    small = {
        "where": np.array([1, 0, 1, 1, 0, 1]),
        "groups": np.arange(6) % 2,
        "labels": np.array([0, 1, 2, 3, 4, 2]),
    }
    tensors = {name: torch.from_numpy(array) for name, array in small.items()}
    found, wanted = (kldiv_dask.evaluate(X, T, **said, progress=False) for said in (tensors, small))
    assert found.overall == wanted.overall
    assert found.groups == wanted.groups
    for name, tensor in tensors.items():
        message = f"^{name} must be an array in memory, got a torch tensor on meta; pass {name}.cpu"
        with pytest.raises(TypeError, match=message):
            kldiv_dask.evaluate(X, T, **{name: tensor.to("meta")}, progress=False)


def test_tensors_are_known_again_when_a_run_goes_on(tmp_path: Any) -> None:
    runs = [
        kldiv_dask.evaluate(
            torch.from_numpy(X.copy()), T, checkpoint=tmp_path / "c", progress=False
        )
        for _ in range(2)
    ]
    assert "taken_over" in runs[1].provenance


def test_one_tensor_twice_is_one_array() -> None:
    tensor = torch.from_numpy(X)
    with pytest.warns(kldiv_dask.EvaluationWarning, match="as if one array was given twice"):
        kldiv_dask.evaluate(tensor, tensor, progress=False)
