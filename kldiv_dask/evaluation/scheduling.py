"""What is known of the scheduler that computes an evaluation."""

import os
from typing import Any

import dask.base

from kldiv_dask.evaluation.errors import ClusterError


def client_of(scheduler: Any) -> Any:
    """Return the client of a cluster that `dask.compute` would use; None if it would use none."""
    get = dask.base.get_scheduler() if scheduler is None else scheduler
    client = getattr(get, "__self__", get)
    return client if hasattr(client, "nthreads") else None


def compute_options(scheduler: Any) -> dict[str, Any]:
    """Return the keyword arguments that make `dask.compute` use a scheduler."""
    return {} if scheduler is None else {"scheduler": scheduler}


def is_lost(error: Exception, client: Any) -> bool:
    """Whether an error means that the cluster computes nothing any more."""
    if client is None:
        return False
    from distributed import CancelledError

    # All tasks are cancelled when a scheduler ends or is restarted. The two errors for too long
    # without a worker are compared by name, as not every version of distributed has both.
    without_worker = type(error).__name__ in ("NoWorkerError", "NoValidWorkerError")
    return without_worker or isinstance(error, CancelledError) or client.status != "running"


def threads(scheduler: Any) -> int:
    """Return how many pairs of chunks are computed at once."""
    client = client_of(scheduler)
    if client is None:
        return os.cpu_count() or 1
    try:
        count: int = sum(client.nthreads().values())
        return max(count, 1)
    except Exception as error:
        raise ClusterError(f"the cluster was lost: {error}") from error
