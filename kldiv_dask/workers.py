"""What is done on workers before their first task."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from distributed import Client, Worker, WorkerPlugin


class WarmUp(WorkerPlugin):  # type: ignore[misc]
    """Compute a small sample on each worker, which compiles the kernels that it needs.

    Otherwise the first task on each thread of a worker would wait for the compiler, and a scheduler
    takes how long tasks last from the first of them.

    Parameters
    ----------
    sample : collection with a ``compute(scheduler=...)``
        Of the same types and options as what is to be computed.
    """

    name = "kldiv-dask-warm-up"

    def __init__(self, sample: Any) -> None:
        self.sample = sample

    async def setup(self, worker: Worker) -> None:
        """Compute in a thread, so that the worker can go on answering."""
        await asyncio.to_thread(self.sample.compute, scheduler="synchronous")


@contextlib.contextmanager
def warm(client: Client, sample: Any) -> Iterator[None]:
    """Warm the workers up that there are, and those that come within the context."""
    client.register_plugin(WarmUp(sample))
    try:
        yield
    finally:
        if client.status == "running":  # or the call would wait for a scheduler that is gone
            with contextlib.suppress(OSError):
                client.unregister_worker_plugin(WarmUp.name)
