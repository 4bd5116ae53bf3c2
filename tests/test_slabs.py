"""The walk over more pairs of chunks than one graph should have."""

import dask
import dask.array as da
import numpy as np
import pytest

from kldiv_dask import kl_div_summary, kl_div_with_logits_summary
from kldiv_dask.functional import summary as summary_module
from kldiv_dask.graph import slabs
from tests.helpers.bits import assert_same_bits, operands
from tests.helpers.commands import call

CHUNKS = (2, 3)


@pytest.fixture
def small():
    """Let the walk begin beyond 10 pairs of chunks, with 7 in a slab."""
    with dask.config.set({"kldiv.graph-size": 10, "kldiv.slab-size": 7}):
        yield


def pair(kind="wide", shape=(40, 9), chunks=CHUNKS):
    x, t = operands(kind, (shape, shape), "float64", log_target=False)
    return [da.from_array(a, chunks=chunks) for a in (x, t)]


def assert_same_summary(got, wanted):
    for name, value in wanted._asdict().items():
        assert_same_bits(getattr(got, name), value, name)


@pytest.mark.parametrize("kind", ["usual", "wide", "special"])
@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_the_bits_of_one_graph(small, kind, scheduler):
    lazy = kl_div_summary(*pair(kind))
    assert (lazy.pairs, lazy.is_large) == (60, True)
    whole = dask.compute(*lazy)  # one graph
    updates = []
    got = lazy.compute(scheduler=scheduler, progress=updates.append)
    assert_same_summary(got, type(got)(*whole))
    done = [update.done for update in updates]
    assert done[-1] == 60
    assert len(done) > 60 / 7
    assert 0 < min(np.diff(done, prepend=0)) <= max(np.diff(done, prepend=0)) <= 7


def test_on_a_cluster(small, client):
    lazy = kl_div_summary(*pair(), where=da.from_array(np.arange(40) % 3 > 0, chunks=5)[:, None])
    updates = []
    got = lazy.compute(scheduler=client, progress=updates.append)
    assert_same_summary(got, type(got)(*dask.compute(*lazy)))
    assert updates[-1].done == 60


@pytest.mark.parametrize("chunks", [(2, 9), (2, 3)])
def test_logits(small, chunks):
    where = np.arange(40) % 4 != 1
    lazy = kl_div_with_logits_summary(*pair("usual", chunks=chunks), where=where)
    assert lazy.is_large
    got = lazy.compute()
    assert_same_summary(got, type(got)(*dask.compute(*lazy)))
    assert got.numel == 30


def test_as_many_as_a_graph_should_have_are_one_graph():
    lazy = kl_div_summary(*pair())
    with dask.config.set({"kldiv.graph-size": 60, "kldiv.slab-size": "refused by a walk"}):
        assert not lazy.is_large
        assert np.isfinite(lazy.compute().sum)
    with dask.config.set({"kldiv.graph-size": 59}):
        assert lazy.is_large


def test_only_a_slab_is_read_at_a_time(small):
    """And nothing more once a block has failed."""
    seen = []

    def touch(block, block_info=None):
        place = block_info[0]["chunk-location"]
        seen.append(place)
        if place[0] == 9:
            raise OSError(f"no row {place[0]}")
        return block

    x, t = pair()
    lazy = kl_div_summary(x.map_blocks(touch, dtype=x.dtype, meta=np.empty((0, 0))), t)
    with pytest.raises(OSError, match="no row 9"):
        lazy.compute(scheduler="sync")
    assert len(set(seen)) <= 35


def test_the_command(small, client, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("x.npy", np.log(rng.random((60, 4))))
    np.save("t.npy", rng.random((60, 4)))
    walks = []
    monkeypatch.setattr(
        summary_module.graph, "walk", lambda *a, **k: walks.append(1) or slabs.walk(*a, **k)
    )
    options = ["--scheduler", client.scheduler.address, "--reduction", "sum", "--chunks"]
    one = call(capsys, "x.npy", "t.npy", *options, "60,4")
    assert (one[0], one[2], walks) == (0, [], [])
    many = call(capsys, "x.npy", "t.npy", *options, "1,4")
    assert (many, walks) == (one, [1])
