"""Workers are warm before their first task."""

import functools

import numpy as np
import pytest
from distributed import Client, LocalCluster

from kldiv_dask import kl_div_summary, kl_div_with_logits_summary
from kldiv_dask.cli.warmup import warm


@pytest.fixture(scope="module")
def fresh():
    """A worker process that no other test has made compile anything."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def kernels():
    """Count the kernels that the process has jit, or has loaded."""
    from kldiv_dask.kernels import jit

    return len(jit._kernels)


def computing(summary):
    return functools.partial(summary.compute, scheduler="synchronous")


def plugins(client):
    """The names of our plugins that any worker has."""
    found = client.run(lambda dask_worker: list(dask_worker.plugins)).values()
    return {name for names in found for name in names if "kldiv" in name}


def test_kernels_are_there_before_the_first_task(fresh):
    before = sum(fresh.run(kernels).values())
    pairs = [np.zeros((2, 3), dtype) for dtype in ("f4", "f4")]
    for summary in (kl_div_summary, kl_div_with_logits_summary):
        with warm(fresh, computing(summary(*pairs))):
            warmed = sum(fresh.run(kernels).values())
            assert warmed > before
            summary(*(np.ones((4, 3), "f4") for _ in pairs)).compute(scheduler=fresh)
            assert sum(fresh.run(kernels).values()) == warmed
        before = warmed


def test_later_workers_are_warmed_up_too_but_not_after_the_context(fresh):
    sample = kl_div_summary(np.zeros((1, 1), "f2"), np.zeros((1, 1), "f2"))
    with warm(fresh, computing(sample)):
        fresh.cluster.scale(2)
        fresh.wait_for_workers(2, timeout=30)
        assert min(fresh.run(kernels).values()) >= 1
    assert plugins(fresh) == set()


def no_package():
    raise ImportError("no ml_dtypes here")


def test_a_worker_that_cannot_says_so_at_once(fresh):
    with pytest.raises(ImportError, match="no ml_dtypes here"), warm(fresh, no_package):
        pass
    assert plugins(fresh) == set()


def wrong():
    raise AttributeError("of a sample, whose shape nobody has given")


def test_what_is_wrong_is_said_of_the_data_not_of_the_sample(fresh):
    with warm(fresh, wrong):
        assert fresh.submit(sum, [1, 2]).result() == 3
        fresh.cluster.scale(3)  # it starts all the same
        fresh.wait_for_workers(3, timeout=30)


def test_neither_of_two_runs_on_a_cluster_ends_the_other(fresh):
    with warm(fresh, int):
        with warm(fresh, int):
            assert len(plugins(fresh)) == 2
        assert len(plugins(fresh)) == 1
    first, second = warm(fresh, int), warm(fresh, int)
    for context in (first, second):
        context.__enter__()
    for context in (first, second):  # the first to come is the first to go
        context.__exit__(None, None, None)
    assert plugins(fresh) == set()


def test_a_plugin_that_somebody_else_has_removed(fresh):
    with warm(fresh, int):
        (name,) = plugins(fresh)
        fresh.unregister_worker_plugin(name)
