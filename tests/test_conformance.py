"""The library against results of torch that are stored in `tests/data/goldens`."""

import itertools
import warnings
import zlib
from collections import defaultdict

import dask
import dask.array as da
import numpy as np
import pytest

from kldiv_dask import KLDivLoss, kl_div
from tests.data.goldens import Golden, load, torch_version
from tests.helpers.agreement import difference, expected, tolerance
from tests.helpers.cases import FLOATS, REDUCTIONS, Array, operand_chunks, random_chunking

# (set of values, log_target, (type of input, type of target), reductions)
Deviation = tuple[str, bool, list[tuple[str, str]], tuple[str, ...]]

# Both operands' types where torch computes a part of the term in a target type narrower than the
# result's.
NARROW_TARGET = [
    ("float32", "float16"),
    ("float64", "float16"),
    ("float64", "float32"),
    ("bfloat16", "float16"),
    ("float64", "bfloat16"),
]

# Pairs whose result has the range of the input, and not that of float16.
BIG_INPUT = [
    *NARROW_TARGET,
    ("float32", "float32"),
    ("float64", "float64"),
    ("bfloat16", "bfloat16"),
    ("float32", "bfloat16"),
    ("bfloat16", "float32"),
]

# Where torch overflows or underflows on the way to a result that has neither in it. Here only the
# result is rounded to a type narrower than float32, and sums have no running total to overflow.
DEVIATIONS: list[Deviation] = [
    # xlogy(target, target) and exp(target) overflow in the target's type, and the result is wider.
    ("overflowing", False, NARROW_TARGET, REDUCTIONS),
    ("huge", False, NARROW_TARGET, REDUCTIONS),
    ("huge", True, NARROW_TARGET, REDUCTIONS),
    # exp(target) underflows to 0 in float16; an infinite input makes NaN of 0 and inf of the rest.
    ("faint", True, [(name, "float16") for name in (*FLOATS, "bfloat16")], REDUCTIONS),
    # Both products overflow in float16, and their difference is NaN.
    ("huge", False, [("float16", "float16")], REDUCTIONS),
    ("special, target 65504.0", False, [("float16", "float16")], ("none",)),
    # target - input overflows in float16, and 0 times that is NaN.
    ("special, target -65504.0", True, [("float16", "float16")], ("none",)),
    # Terms are infinite in float16 before they are summed; the mean is finite, or the sum is
    # infinite instead of NaN.
    ("overflowing", False, [("float16", "float16")], ("mean",)),
    ("huge", True, [("float16", "float16")], ("mean", "batchmean", "sum")),
    # The sum overflows, on the way or at its end, and what it is divided by comes too late.
    *(("large", log_target, BIG_INPUT, ("mean",)) for log_target in (False, True)),
    *(("heap", log_target, BIG_INPUT, ("mean", "batchmean")) for log_target in (False, True)),
    # torch sums float16 in float32 for the mean, but not for batchmean.
    *(
        ("heap", log_target, [("float16", "float16")], ("batchmean",))
        for log_target in (False, True)
    ),
]
DEVIATING = {
    (values, log_target, *types, reduction)
    for values, log_target, pairs, reductions in DEVIATIONS
    for types, reduction in itertools.product(pairs, reductions)
}


def key(golden: Golden) -> tuple[str, bool, str, str, str]:
    types = golden.input.dtype.name, golden.target.dtype.name
    return golden.values, golden.options["log_target"], *types, golden.options["reduction"]


MIXED = "two types"


def group_of(golden: Golden) -> str:
    log = "log target" if golden.options["log_target"] else "target"
    if golden.input.dtype != golden.target.dtype:
        return f"{MIXED}, {log}, {golden.result.dtype.name}"
    if golden.legacy:
        return f"legacy {'module' if golden.module else 'function'}, {log}"
    return f"{golden.options['reduction']}, {log}, {golden.result.dtype.name}"


def grouped(goldens: list[Golden]) -> dict[str, list[Golden]]:
    groups = defaultdict(list)
    for golden in goldens:
        groups[group_of(golden)].append(golden)
    return groups


GROUPS = grouped(load((*FLOATS, "bfloat16")))


def chunked(golden: Golden) -> tuple[da.Array, da.Array]:
    """The operands, a third of them cut, at places that follow from the case's name."""
    rng = np.random.default_rng(zlib.crc32(golden.name.encode()))
    shapes = golden.input.shape, golden.target.shape
    shape = np.broadcast_shapes(*shapes)
    chunks = random_chunking(rng, shape) if rng.random() < 1 / 3 else tuple((n,) for n in shape)
    x, t = (
        da.from_array(array, chunks=operand_chunks(array.shape, chunks))
        for array in (golden.input, golden.target)
    )
    return x, t


def call(golden: Golden) -> da.Array:
    """Build the graph of a case, and check that it warns as often as torch did."""
    operands = chunked(golden)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if golden.module:
            result = KLDivLoss(**golden.options)(*operands)
        else:
            result = kl_div(*operands, **golden.options)
    assert [warning.category for warning in caught] == [UserWarning] * golden.warnings, golden.name
    return result


def disagreement(golden: Golden, got: Array, wanted: Array) -> str:
    allowed = tolerance(golden.input, golden.target, golden.options)
    found = difference(got, wanted, allowed)
    return found and f"{golden.name}: {found}"


# Of two types there are many pairs, and a kernel for each takes seconds to compile.
@pytest.mark.parametrize(
    "group",
    [pytest.param(g, marks=pytest.mark.slow) if g.startswith(MIXED) else g for g in GROUPS],
)
def test_library_agrees_with_torch(group: str) -> None:
    goldens = GROUPS[group]
    lazy = [call(golden) for golden in goldens]
    results = dask.compute(*lazy, scheduler="synchronous")
    problems = []
    for golden, array, result in zip(goldens, lazy, results, strict=True):
        assert (array.dtype, array.shape) == (result.dtype, result.shape), golden.name
        wanted = golden.result
        if key(golden) in DEVIATING:
            wanted = expected(golden.input, golden.target, golden.options, golden.module)
        problems.append(disagreement(golden, result, wanted))
    assert not any(problems), "\n".join(filter(None, problems))


def test_goldens_are_all_there() -> None:
    assert torch_version() == "2.13.0"
    assert sum(map(len, GROUPS.values())) >= 4_000
    listed = [f"{r}, {log}, {dtype}" for r, log, dtype in itertools.product(
        REDUCTIONS, ("target", "log target"), FLOATS)]  # fmt: skip
    assert set(listed) < set(GROUPS)


def test_reference_agrees_with_torch_except_where_listed() -> None:
    """The list of deviations is neither too short nor too long."""
    pytest.importorskip("ml_dtypes")
    deviating = set()
    for golden in load((*FLOATS, "bfloat16")):
        wanted = expected(golden.input, golden.target, golden.options, golden.module)
        if problem := disagreement(golden, wanted, golden.result):
            assert key(golden) in DEVIATING, problem
            deviating.add(key(golden))
    assert deviating == DEVIATING
