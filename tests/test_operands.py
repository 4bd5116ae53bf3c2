"""Whatever may stand for an array: sequences, stored arrays, other libraries', unknown chunks."""

import itertools
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr

from kldiv_dask import kl_div, kl_div_summary
from tests.helpers.bits import REDUCED, assert_same_bits, expected, terms_of
from tests.helpers.cases import Array, compositions, log_probabilities, probabilities

# Dask's array expressions have no boolean masks and no unknown chunk sizes.
EXPRESSIONS = bool(dask.config.get("array.query-planning", None))
without_expressions = pytest.mark.skipif(EXPRESSIONS, reason="not in Dask's array expressions")

pytestmark = pytest.mark.filterwarnings("ignore:reduction='mean' divides:UserWarning")

rng = np.random.default_rng(4)
X = log_probabilities(rng, (6, 4), np.float32)
T = probabilities(rng, (6, 4), np.float32)
LAZY_X, LAZY_T = (da.from_array(a, chunks=(2, 3)) for a in (X, T))


def check(x: Any, t: Any, eager_x: Array = X, eager_t: Array = T) -> da.Array:
    """All reductions of a pair, which is the same as an eager one; returns the lazy terms."""
    terms = terms_of(eager_x, eager_t)
    results = {"none": terms, **expected(terms, eager_x, terms.dtype)}
    lazy = {reduction: kl_div(x, t, reduction=reduction) for reduction in results}
    (computed,) = dask.compute(lazy, scheduler="synchronous")
    for reduction, result in results.items():
        assert_same_bits(computed[reduction], result, reduction)
    summary = kl_div_summary(x, t).compute(scheduler="synchronous")
    assert summary.sum == results["sum"]
    assert summary.batch_size == (eager_x.shape[0] if eager_x.ndim else 1)
    assert summary.numel == terms.size
    return lazy["none"]


# What is not a Dask array takes the chunks of the operand that is


class Sliceable:
    """As little of an array as will do."""

    def __init__(self, values: Array) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.ndim = values.ndim

    def __dask_tokenize__(self) -> Any:
        return dask.base.normalize_token(self.values)

    def __getitem__(self, key: Any) -> Array:
        return self.values[key]


def in_hdf5(values: Array, folder: Path) -> Any:
    file = pytest.importorskip("h5py").File(f"{mkdtemp(dir=folder)}/a.h5", "w")
    return file.create_dataset("values", data=values, chunks=(1, 4))


def in_zarr(values: Array, folder: Path) -> Any:
    return zarr.create_array(f"{mkdtemp(dir=folder)}/a.zarr", data=values)


def labeled(values: Array, _: Path) -> Any:
    return pytest.importorskip("xarray").DataArray(values)


def labeled_lazy(values: Array, _: Path) -> Any:
    return pytest.importorskip("xarray").DataArray(da.from_array(values, chunks=(2, 3)))


OPERANDS: dict[str, Callable[[Array, Path], Any]] = {
    "numpy": lambda values, _: values,
    "sliceable": lambda values, _: Sliceable(values),
    "h5py": in_hdf5,
    "zarr": in_zarr,
    "xarray": labeled,
    "xarray of dask": labeled_lazy,
    "dask": lambda values, _: da.from_array(values, chunks=(2, 3)),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.product(OPERANDS, repeat=2)))
def test_arrays_of_any_library(tmp_path: Path, first: str, second: str) -> None:
    if EXPRESSIONS and "h5py" in first + second:
        pytest.skip("has no deterministic token, which Dask's array expressions insist on")
    terms = check(OPERANDS[first](X, tmp_path), OPERANDS[second](T, tmp_path))
    if "dask" in first + second:
        assert terms.chunks == LAZY_X.chunks


def test_sequences_and_scalars() -> None:
    x, t = np.array([[-1.0, -2.0], [-3.0, -0.5]]), np.array([0.25, 0.75])
    check(x.tolist(), t.tolist(), x, t)
    check(tuple(x.tolist()), (0.25, 0.75), x, t)
    check(-1.5, 0.5, np.array(-1.5), np.array(0.5))
    check(np.float32(-1.5), np.float32(0.5), np.array(-1.5, "f4"), np.array(0.5, "f4"))
    # a scalar does not widen an array
    check(X, np.float64(0.25), X, np.array(0.25, np.float32))
    check(-2.0, LAZY_T, np.array(-2.0, np.float32), T)


def test_tables(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    check(pandas.Series(X[0]), pandas.Series(T[0]), X[0], T[0])
    check(pandas.DataFrame(X), LAZY_T)


@pytest.mark.parametrize("t_shape", [(4,), (1, 4), (6, 1), (), (6, 4), (2, 6, 4)])
def test_a_dask_array_lends_its_chunks(t_shape: tuple[int, ...]) -> None:
    t = np.resize(T, t_shape)
    terms = check(LAZY_X, t, X, t)
    assert terms.chunks[-2:] == LAZY_X.chunks
    assert kl_div(t, LAZY_X, reduction="none").chunks[-2:] == LAZY_X.chunks


def test_large_numpy_arrays_are_chunked_together() -> None:
    with dask.config.set({"array.chunk-size": "64 B"}):
        assert check(X, T).numblocks != (1, 1)
        assert check(X, T[:1], X, T[:1]).numblocks != (1, 1)


# Empty chunks, as a filter leaves them


def with_empty_chunks(length: int) -> list[tuple[int, ...]]:
    return [tuple(chunks) for c in compositions(length) for chunks in ((0, *c), (*c, 0), c)]


@pytest.mark.parametrize(("x_length", "t_length"), [(1, 1), (1, 3), (3, 1)])
def test_an_axis_of_one_may_have_empty_chunks(x_length: int, t_length: int) -> None:
    """The empty chunk of one operand must not meet the full one of the other."""
    x, t = X[:x_length, 0], T[:t_length, 0]
    for chunks in itertools.product(with_empty_chunks(x_length), with_empty_chunks(t_length)):
        check(*(da.from_array(a, chunks=(c,)) for a, c in zip((x, t), chunks, strict=True)), x, t)


@pytest.mark.parametrize("chunks", [(0, 3, 3), (3, 0, 3), (6, 0, 0)])
def test_empty_chunks_of_both_operands(chunks: tuple[int, ...]) -> None:
    check(*(da.from_array(a, chunks=(chunks, (4,))) for a in (X, T)))


# Unknown chunk sizes


def filtered(array: Array, keep: list[int], chunks: int = 2) -> da.Array:
    """Some rows of an array, in chunks of unknown size."""
    lazy = da.from_array(array, chunks=(chunks, *array.shape[1:]))
    mask = np.isin(np.arange(len(array)), keep)
    rows: da.Array = lazy[da.from_array(mask, chunks=chunks)]
    assert np.isnan(rows.shape[0])
    return rows


@without_expressions
@pytest.mark.parametrize("keep", [[0, 1, 2, 5], [3], [], [0, 1], list(range(6))])
def test_unknown_chunk_sizes(keep: list[int]) -> None:
    for x, t in ((X, T), (X[:, 0], T[:, 0]), (X, T[:, :1]), (X[:, :1], T)):
        check(filtered(x, keep), filtered(t, keep), x[keep], t[keep])
    # an operand without the unknown axis
    check(filtered(X, keep), T[0], X[keep], T[0])
    check(X[:1], filtered(T, keep), X[:1], T[keep])
    split = da.from_array(T[0], chunks=(3, 1))
    check(filtered(X, keep).rechunk({1: (3, 1)}), split, X[keep], T[0])
    # once computed, sizes are like any others
    x, t = (filtered(a, keep).compute_chunk_sizes() for a in (X, T))
    check(x, t, X[keep], T[keep])


@without_expressions
def test_known_sizes_may_meet_unknown_ones() -> None:
    known = da.from_array(T[[0, 1, 3]], chunks=((2, 1, 0), (4,)))
    check(filtered(X, [0, 1, 3]), known, X[[0, 1, 3]], T[[0, 1, 3]])
    known = da.from_array(X[[0, 1, 3]], chunks=((2, 1, 0), (4,)))
    check(known, filtered(T, [0, 1, 3]), X[[0, 1, 3]], T[[0, 1, 3]])


@without_expressions
@pytest.mark.parametrize(
    ("x_rows", "t_rows"),
    [
        ([0, 2, 4], [0, 1, 2, 3, 4, 5]),  # 1, 1, 1 and 2, 2, 2
        ([0, 1, 2], [0, 2, 3]),  # 2, 1 and 1, 2: as many altogether
        ([0], [0, 1]),
        ([], [0]),
    ],
)
def test_a_block_of_one_never_broadcasts(x_rows: list[int], t_rows: list[int]) -> None:
    text = r"unequal shapes \(\d, 4\) and \(\d, 4\) .*call compute_chunk_sizes\(\) on both"
    for first, second in ((x_rows, t_rows), (t_rows, x_rows)):
        x, t = filtered(X, first), filtered(T, second)
        for reduction in (*REDUCED, "none"):
            lazy = kl_div(x, t, reduction=reduction)
            with pytest.raises(ValueError, match=text):
                lazy.compute(scheduler="synchronous")
        with pytest.raises(ValueError, match=text):
            kl_div_summary(x, t).compute(scheduler="synchronous")
    known = da.from_array(T[:2], chunks=((2, 0, 0), (4,)))
    with pytest.raises(ValueError, match=text):
        kl_div(filtered(X, [0]), known, reduction="sum").compute(scheduler="synchronous")


@without_expressions
def test_where_sizes_are_needed_the_error_says_how_to_get_them() -> None:
    x, t = filtered(X, [0, 1, 3]), filtered(T, [0, 1, 3], chunks=3)
    for pair in ((x, t), (t, x), (x, T[[0, 1, 3]])):
        with pytest.raises(ValueError, match=r"unknown chunk sizes .* compute_chunk_sizes\(\)"):
            kl_div(*pair, reduction="sum")
    t = filtered(T, [0, 1, 3])
    with (
        pytest.warns(UserWarning, match="deprecated"),
        pytest.raises(ValueError, match=r"batch size, is unknown; call compute_chunk_sizes\(\)"),
    ):
        kl_div(x, t, reduce=False, reduction="batchmean")
