"""A Dask cluster for one command: a running one, or one that is started here and cleaned up."""

import contextlib
import importlib
import logging
import math
import os
import signal
import socket
import ssl
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from kldiv_dask.versions import check_workers

if TYPE_CHECKING:
    from distributed import Client

# The ways to ask a command to stop: Ctrl-C, and what batch systems and containers send.
SIGNALS = signal.SIGINT, signal.SIGTERM

# Seconds to look for a scheduler that is said to be there.
CONNECT_TIMEOUT = 10

# Most threads of a process. Kernels release the GIL and a process takes about a second to start,
# which is for many threads; but Zarr serves all threads of a process from a single event loop.
THREADS = 4


@contextlib.contextmanager
def connect(
    scheduler: str | None = None, workers: int | None = None, threads: int | None = None
) -> Iterator["Client"]:
    """Connect to a cluster, and silence the logs of `distributed` in this process.

    Parameters
    ----------
    scheduler : str, optional
        Address of a running cluster. Without it a cluster of processes is started on this machine,
        which ends with the context and leaves no files behind.
    workers, threads : int, optional
        Number of processes to start, and of threads in each. By default they take all CPUs, with
        at most 4 threads a process.

    Yields
    ------
    distributed.Client
        A client of the cluster.

    Raises
    ------
    OSError
        If there is no scheduler at the address within 10 seconds, it is lost later (after some 30
        seconds of silence), or a file that Dask's configuration names for TLS does not exist.
    ValueError
        If the address can't be understood, is a TLS address and no certificates are configured, or
        is of another kind and the configuration requires encryption.
    ImportError
        If the scheduler, or a worker that it has by now, can't import this package, or a worker has
        another version of it, NumPy or Numba, where that matters.

    Examples
    --------
    >>> from kldiv_dask.cli.cluster import connect
    >>> with connect("nowhere") as client:
    ...     client.ncores()
    Traceback (most recent call last):
    ValueError: missing port number in address 'nowhere'
    """
    from distributed import CancelledError, Client

    with contextlib.ExitStack() as stack:
        # Errors that matter come back as exceptions.
        logging.disable(logging.CRITICAL)
        stack.callback(logging.disable, logging.NOTSET)
        if scheduler is None:
            with _held_signals():
                cluster = stack.enter_context(_local_cluster(workers, threads))
            yield stack.enter_context(Client(cluster, set_as_default=False))
        else:
            _check_security(scheduler)
            # As a default, a client that can't connect would stay so, and computations would hang.
            try:
                client = Client(scheduler, timeout=CONNECT_TIMEOUT, set_as_default=False)
            except OSError as error:
                if not scheduler.startswith("tls://") and _speaks_tls(scheduler):
                    raise ConnectionError(
                        "the scheduler there takes encrypted connections only: use tls://, with"
                        " the certificates of Dask's configuration"
                    ) from error
                raise
            stack.enter_context(client)
            _check_imports(client)
            try:
                yield client
            except CancelledError as error:
                raise ConnectionError(
                    f"the scheduler {scheduler} was lost, or dropped the computation: {error}"
                ) from error


@contextlib.contextmanager
def _local_cluster(workers: int | None, threads: int | None) -> Iterator[Any]:
    import dask
    from dask.system import CPU_COUNT
    from distributed import LocalCluster

    if workers is None and threads is None:
        workers = math.ceil(CPU_COUNT / THREADS)
    parent = dask.config.get("temporary-directory", None)
    with (
        tempfile.TemporaryDirectory(prefix="kldiv-dask-", dir=parent) as folder,
        # For the scheduler too; local_directory= would be for workers only.
        dask.config.set({"temporary-directory": folder}),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            dashboard_address="127.0.0.1:0",  # None would be port 8787, and a warning if it's taken
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster


def _check_security(scheduler: str) -> None:
    """Refuse an address that doesn't go with the TLS settings: connecting would fail unclearly."""
    import dask
    from distributed import Security

    security = Security()
    files = security.get_tls_config_for_role("client")
    settings = {"ca_file": "ca-file", "cert": "client.cert", "key": "client.key"}
    for name, setting in settings.items():
        path = files[name]
        if path and "\n" not in path and not os.path.exists(path):  # it may be the text itself
            raise FileNotFoundError(
                f"the file {os.path.abspath(path)} does not exist, which Dask's configuration names"
                f" as distributed.comm.tls.{setting}"
            )
    default = dask.config.get("distributed.comm.default-scheme")
    scheme = scheduler.partition("://")[0] if "://" in scheduler else default
    if scheme == "tls" and not (files["ca_file"] and files["cert"]):
        raise ValueError(
            "a TLS address needs certificates: set distributed.comm.tls.ca-file, client.cert and"
            " client.key in Dask's configuration"
        )
    if scheme == "tcp" and security.require_encryption:
        raise ValueError(
            "the address is not encrypted, and Dask's configuration requires encryption"
            " (distributed.comm.require-encryption): use tls://"
        )


def _speaks_tls(scheduler: str) -> bool:
    """Whether what listens at an address answers a TLS handshake, however it likes the rest."""
    host, _, port = scheduler.partition("://")[2].rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent, so it does not matter who it is.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except ssl.SSLError as error:
        # An alert, such as that a certificate is wanted, is part of TLS as well.
        return "ALERT" in str(error.reason or "")
    except (OSError, ValueError):
        return False


def _check_imports(client: "Client") -> None:
    """Refuse a cluster without this package: its workers would die of it, and tasks would wait."""
    client.run_on_scheduler(importlib.import_module, "kldiv_dask")
    imported = client.run(importlib.import_module, "kldiv_dask", on_error="return")
    for worker, result in imported.items():
        if isinstance(result, Exception) and not isinstance(result, OSError):  # one that has left
            raise ImportError(f"worker {worker} cannot import kldiv_dask: {result}")
    check_workers(client)
    if not imported:
        warnings.warn("the cluster has no workers yet; waiting for them", stacklevel=2)


@contextlib.contextmanager
def _held_signals() -> Iterator[None]:
    """Hold signals back while a cluster starts, and SIGINT from its processes for good.

    Half a cluster can't be stopped in good order. And Ctrl-C at a terminal goes to all processes
    of a command, of which each worker would show its own traceback.
    """
    if sys.platform == "win32":  # has no signal masks
        yield
        return
    pending: list[int] = []
    with handled_by(lambda number, frame: pending.append(number)):
        resource_tracker.ensure_running()  # started by the first worker, it would unblock SIGINT
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # threads and processes inherit
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for number in pending:
        signal.raise_signal(number)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Handle `SIGNALS` by `handler` within the context."""
    previous_handlers = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in previous_handlers.items():
            signal.signal(number, previous)
