"""A lazy summary as a Dask collection."""

import os
import pickle
import subprocess
import sys

import dask
import dask.array as da
import numpy as np
import pytest

from kldiv_dask import KLDivSummary, kl_div_summary, kl_div_with_logits_summary
from tests.helpers.cases import some_slow
from tests.test_operands import EXPRESSIONS, without_expressions

RNG = np.random.default_rng(0)
X, T = (da.from_array(RNG.random((40, 4)) - shift, chunks=(2, 4)) for shift in (1, 0))
WHERE = da.from_array(np.arange(40) % 3 > 0, chunks=5)


SORTS = "masked", "terms", "logits", "cut"


@pytest.fixture(params=SORTS)
def lazy(request):
    if request.param == "terms":
        return kl_div_summary(X, T)
    pair = [array.rechunk((2, 2)) for array in (X, T)] if request.param == "cut" else (X, T)
    options = {"where": WHERE} if request.param == "masked" else {}
    return kl_div_with_logits_summary(*pair, **options)


def test_is_computed_alone_beside_others_and_nested(lazy):
    wanted = lazy.compute(scheduler="sync")
    assert type(wanted) is KLDivSummary
    assert [type(field) for field in wanted] == [np.float64] * 3 + [np.int64] * 5
    alone, total = dask.compute(lazy, X.sum())
    assert (type(alone), alone) == (KLDivSummary, wanted)
    assert total == X.sum().compute()
    assert dask.compute({"runs": [lazy, 1]}) == ({"runs": [wanted, 1]},)
    assert dask.delayed(lambda found: found[0].numel)([lazy]).compute() == wanted.numel
    assert KLDivSummary(*dask.compute(*lazy)) == wanted
    assert lazy.mean.compute() == wanted.mean


def test_stays_a_summary_where_it_stays_lazy(lazy):
    wanted = lazy.compute()
    for again in (*dask.persist(lazy), *dask.optimize(lazy), lazy.persist()):
        assert repr(again).startswith("KLDivSummary of float64, lazy; compute() gives sum, ")
        updates = []
        assert again.compute(progress=updates.append) == wanted
        assert [update.done for update in updates] == [lazy.pairs]
        assert again.batchmean.compute() == wanted.batchmean
    assert pickle.loads(pickle.dumps(lazy)).compute() == wanted  # noqa: S301
    assert dask.is_dask_collection(lazy)


def test_what_is_persisted_is_not_read_again():
    read = []

    def touch(block):
        read.append(1)
        return block

    lazy = kl_div_summary(X.map_blocks(touch, dtype=X.dtype, meta=np.empty((0, 0))), T)
    (kept,) = dask.persist(lazy, scheduler="sync")
    assert len(read) == 20
    with dask.config.set({"kldiv.graph-size": 1}):
        assert lazy.is_large
        assert not kept.is_large
        kept.compute()
    assert len(read) == 20


def test_tokens_tell_summaries_apart():
    pairs = [(X, T), (X, T), (X, T[::-1])]
    tokens = [dask.base.tokenize(kl_div_summary(*pair)) for pair in pairs]
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.parametrize("lazy", some_slow(*SORTS), indirect=True)
def test_on_a_cluster(lazy, client):
    wanted = lazy.compute(scheduler="sync")
    assert client.compute(lazy).result() == wanted
    assert client.compute([lazy, X.sum()])[0].result() == wanted
    assert client.compute({"run": lazy}).result() == {"run": wanted}
    for kept in (client.persist(lazy), client.persist([lazy])[0]):
        assert kept.compute(scheduler=client) == wanted
        assert kept.mean.compute(scheduler=client) == wanted.mean
    with client.as_current():
        (kept,) = dask.persist(lazy)
        assert dask.compute(kept, lazy) == (wanted, wanted)


@without_expressions
def test_of_labeled_arrays(client):
    xr = pytest.importorskip("xarray")
    x, t = (xr.DataArray(array, dims=("position", "class")) for array in (X, T))
    lazy = kl_div_with_logits_summary(x, t, dim="class")
    wanted = kl_div_with_logits_summary(X, T).compute()
    assert dask.compute(lazy, x.sum())[0] == wanted
    assert dask.persist(lazy)[0].compute() == wanted
    assert client.compute(lazy).result() == wanted


@pytest.mark.parametrize("shape", some_slow((600, 1), (600, 4), (), (0, 4)))
def test_progress_counts_every_pair_of_chunks(shape):
    pair = [np.full(shape, value) for value in (-1.0, 0.5)]
    lazy = kl_div_summary(*(da.from_array(array, chunks=1) for array in pair))
    updates = []
    assert str(lazy.compute(progress=updates.append)) == str(lazy.compute())
    assert updates[-1].done == lazy.pairs
    assert len(updates) >= lazy.pairs / 300
    assert lazy.pairs == max(int(np.prod(shape)), updates[0].done)


@pytest.mark.slow
def test_under_array_expressions():
    """The tests above, in a process where Dask's arrays are expressions."""
    if EXPRESSIONS:
        pytest.skip("they are")
    options = ["-q", "-n0", "-p", "no:cacheprovider", "-k", "not under_array_expressions"]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        env=os.environ | {"DASK_ARRAY__QUERY_PLANNING": "True"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout
    assert "passed" in found.stdout
