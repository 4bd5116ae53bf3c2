"""What is done on workers before their first task."""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from distributed import Client, Worker, WorkerPlugin


class WarmUp(WorkerPlugin):  # type: ignore[misc]
    """Compute a small sample on each worker, which compiles the kernels that it needs.

    Otherwise the first task on each thread of a worker would wait for the compiler, and a scheduler
    takes how long tasks last from the first of them.

    Parameters
    ----------
    work : callable
        Computes something of the same types and options as what is to be computed.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        # Of two runs on one cluster, neither may end the other's.
        self.name = f"kldiv-dask-warm-up-{uuid.uuid4().hex}"

    async def setup(self, worker: Worker) -> None:
        """Compute in a thread, so that the worker can go on answering."""
        try:
            await asyncio.to_thread(self.work)
        except ImportError:  # this worker can compute nothing
            raise
        except Exception:  # noqa: S110 - the computation itself will say what is wrong
            pass


@contextlib.contextmanager
def warm(client: Client, work: Callable[[], Any]) -> Iterator[None]:
    """Warm the workers up that there are, and those that come within the context.

    Raises
    ------
    ImportError
        A worker can't import what it needs.
    """
    plugin = WarmUp(work)
    try:
        try:
            client.register_plugin(plugin)
        except ImportError:
            raise
        except Exception:  # noqa: S110 - a worker has left; the result does not depend on it
            pass
        yield
    finally:
        if client.status == "running":  # or the call would wait for a scheduler that is gone
            with contextlib.suppress(Exception):  # likewise
                client.unregister_worker_plugin(plugin.name)
