"""Workers are warm before their first task."""

import numpy as np
import pytest
from distributed import Client, LocalCluster

from kldiv_dask import kl_div_summary, kl_div_with_logits_summary
from kldiv_dask.workers import WarmUp, warm


@pytest.fixture(scope="module")
def fresh():
    """A worker process that no other test has made compile anything."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def kernels():
    """Count the kernels that the process has compiled, or has loaded."""
    from kldiv_dask.kernels import compiled

    return len(compiled._kernels)


def test_kernels_are_there_before_the_first_task(fresh):
    before = sum(fresh.run(kernels).values())
    pairs = [np.zeros((2, 3), dtype) for dtype in ("f4", "f4")]
    for summary in (kl_div_summary, kl_div_with_logits_summary):
        with warm(fresh, summary(*pairs)):
            warmed = sum(fresh.run(kernels).values())
            assert warmed > before
            summary(*(np.ones((4, 3), "f4") for _ in pairs)).compute(scheduler=fresh)
            assert sum(fresh.run(kernels).values()) == warmed
        before = warmed


def test_later_workers_are_warmed_up_too_but_not_after_the_context(fresh):
    sample = kl_div_summary(np.zeros((1, 1), "f2"), np.zeros((1, 1), "f2"))
    with warm(fresh, sample):
        fresh.cluster.scale(2)
        fresh.wait_for_workers(2, timeout=30)
        assert min(fresh.run(kernels).values()) >= 1
    plugins = fresh.run(lambda dask_worker: WarmUp.name in dask_worker.plugins)
    assert not any(plugins.values())


class Broken:
    def compute(self, scheduler):
        raise ImportError("no ml_dtypes here")


def test_a_worker_that_cannot_says_so_at_once(fresh):
    with pytest.raises(ImportError, match="no ml_dtypes here"), warm(fresh, Broken()):
        pass
