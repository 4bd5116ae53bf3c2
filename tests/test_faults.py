"""Faults while the command computes: the right bits, or one clear error, in bounded time.

Processes are killed, cables are pulled, memory is filled and chunks are damaged for real. After
each run, no process and no file of it may be left. `pytest -m "" -rP tests/test_faults.py` ends
with a table of them all.
"""

import os
import shutil
import signal
import time

import pytest
import zarr

from tests.helpers import faulty_filesystem
from tests.helpers.commands import eventually
from tests.helpers.fault_runs import BOUND, NONE, Data, Local, Table, running
from tests.helpers.hosts import Cluster, Hosts, needs_hosts

HOSTS = pytest.param("hosts", marks=[needs_hosts, pytest.mark.slow])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def table():
    return Table()


@pytest.fixture(scope="module")
def network():
    with Hosts() as network:
        yield network


@pytest.fixture(params=["local", HOSTS])
def place(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Local()


@pytest.fixture
def hosts(tmp_path, monkeypatch, network, data):
    """A cluster across hosts; the current directory has the client's certificates."""
    with Cluster(network, tmp_path, data.environment) as cluster:
        monkeypatch.chdir(cluster.client)
        yield cluster


@pytest.fixture(autouse=True)
def _no_faults_left(data):
    yield
    shutil.rmtree(data.faults)
    data.faults.mkdir()


@pytest.mark.slow
def test_nothing_happens(place, data, table):
    with running(place, data) as run:
        run.wait_for_some()
        run.strike()
        table.right(f"{place.name}: {NONE}", run, data)


# Workers


@needs_hosts
@pytest.mark.slow
def test_a_worker_is_killed(hosts, data, table):
    with running(hosts, data) as run:
        run.wait_for_some()
        run.strike()
        hosts.workers(run.process)[0].kill()
        table.right("hosts: SIGKILL of a worker", run, data)


@pytest.mark.slow
def test_a_worker_is_killed_where_a_read_has_failed_twice(local, data, table):
    faulty_filesystem.place(data.faults, data.chunk(20), faulty_filesystem.ERROR, times=2)
    with running(local, data) as run:
        run.wait(lambda: not faulty_filesystem.pending(data.faults, data.chunk(20)))
        run.strike()
        local.workers(run.process)[0].kill()
        table.right("local: a read that fails twice, then SIGKILL of a worker", run, data)


@needs_hosts
@pytest.mark.slow
def test_half_of_the_workers_are_killed(hosts, data, table):
    with running(hosts, data) as run:
        run.wait_for_some()
        run.strike()
        for worker in hosts.hosts.workers("left"):
            worker.kill()
        table.right("hosts: SIGKILL of half of the workers", run, data)


@needs_hosts
@pytest.mark.slow
def test_all_of_a_host_is_killed(hosts, data, table):
    with running(hosts, data) as run:
        run.wait_for_some()
        run.strike()
        hosts.hosts.kill("left")
        table.right("hosts: SIGKILL of all on a host, for good", run, data)


@needs_hosts
@pytest.mark.slow
def test_a_worker_is_frozen(hosts, data, table):
    """As by a hang of its machine: it keeps its connections and says nothing, for good."""
    with running(hosts, data) as run:
        run.wait_for_some()
        run.strike()
        frozen = hosts.workers(run.process)[0]
        frozen.suspend()  # SIGSTOP
        table.right("hosts: SIGSTOP of a worker, for good", run, data)
    # Twice the time that deploy/dask.yaml gives a silent worker, and the rest of the run.
    assert run.seconds < 150
    assert eventually(lambda: not frozen.is_running())


@pytest.mark.slow
def test_a_worker_takes_too_much_memory_once(place, data, table):
    faulty_filesystem.place(data.faults, data.chunk(60), faulty_filesystem.MEMORY, times=1)
    with running(place, data) as run:
        run.wait(lambda: not faulty_filesystem.pending(data.faults, data.chunk(60)))
        run.strike()
        table.right(f"{place.name}: a worker over its memory limit", run, data)


@pytest.mark.slow
def test_a_task_takes_too_much_memory(place, data, table):
    faulty_filesystem.place(data.faults, data.chunk(60), faulty_filesystem.MEMORY, times=9)
    with running(place, data) as run:
        run.wait(lambda: len(faulty_filesystem.pending(data.faults, data.chunk(60))) < 9)
        run.strike()
        pattern = "KilledWorker: Attempted to run task .*kl-div-.* on 4 different workers.*"
        table.error(f"{place.name}: a task over all memory limits", run, 1, pattern)


@needs_hosts
@pytest.mark.slow
def test_no_worker_is_left(network, tmp_path, monkeypatch, data, table):
    patience = {"DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": "5s"}
    with Cluster(network, tmp_path, {**data.environment, **patience}) as hosts:
        monkeypatch.chdir(hosts.client)
        with running(hosts, data) as run:
            run.wait_for_some()
            run.strike()
            network.kill("left")
            network.kill("right")
            pattern = "NoWorkerError: Attempted to run task .*waiting without any running workers."
            table.error("hosts: SIGKILL of all workers, for good", run, 1, pattern)


# The network


@needs_hosts
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, 20])
def test_a_cable_is_pulled_for_a_while(hosts, data, table, seconds):
    with running(hosts, data) as run:
        run.wait_for_some()
        run.strike()
        hosts.hosts.link("left", "down")
        time.sleep(seconds)
        hosts.hosts.link("left", "up")
        table.right(f"hosts: a link cut for {seconds} s", run, data)


@needs_hosts
@pytest.mark.slow
def test_a_cable_is_pulled(hosts, data, table):
    with running(hosts, data) as run:
        run.wait_for_some()
        run.strike()
        hosts.hosts.link("left", "down")
        table.right("hosts: a link cut for good", run, data)


# Files


@needs_hosts
@pytest.mark.slow
def test_a_read_fails_twice(hosts, data, table):
    faulty_filesystem.place(data.faults, data.chunk(60), faulty_filesystem.ERROR, times=2)
    with running(hosts, data) as run:
        run.wait(lambda: len(faulty_filesystem.pending(data.faults, data.chunk(60))) < 2)
        run.strike()
        table.right("hosts: a read that fails twice", run, data)


@pytest.mark.slow
def test_a_read_always_fails(place, data, table):
    faulty_filesystem.place(data.faults, data.chunk(60), faulty_filesystem.ERROR, times=9)
    with running(place, data) as run:
        run.wait(lambda: len(faulty_filesystem.pending(data.faults, data.chunk(60))) < 9)
        run.strike()
        pattern = (
            rf"on a worker, faulty://.*/x.zarr \[960:976, 0:64\] could not be read:"
            rf" OSError: \[Errno 5\] Input/output error: '{data.chunk(60)}'"
        )
        table.error(f"{place.name}: a read that always fails", run, 1, pattern)
    assert len(faulty_filesystem.pending(data.faults, data.chunk(60))) == 9 - 3


@pytest.mark.slow
def test_a_damaged_chunk(place, data, table):
    path, chunk = data.copied()
    with running(place, data, [path, path]) as run:
        run.wait_for_some()
        run.strike()
        os.truncate(chunk, chunk.stat().st_size - 9)
        pattern = rf"on a worker, {path} \[1760:1776, 0:64\] could not be read: RuntimeError: .*"
        table.error(f"{place.name}: a damaged chunk", run, 1, pattern)


# The scheduler


@needs_hosts
@pytest.mark.slow
def test_the_scheduler_is_killed(hosts, data, table):
    with running(hosts, data) as run:
        run.wait_for_some()
        run.strike()
        hosts.running["scheduler"].kill()
        pattern = f"the scheduler {hosts.scheduler} was lost, .*lost the connection.*"
        table.error("hosts: SIGKILL of the scheduler", run, 1, pattern)


@needs_hosts
@pytest.mark.slow
def test_the_cable_of_the_scheduler_is_pulled(hosts, data, table):
    with running(hosts, data) as run:
        run.wait_for_some()
        run.strike()
        hosts.hosts.link("scheduler", "down")
        pattern = f"the scheduler {hosts.scheduler} was lost, .*lost the connection.*"
        table.error("hosts: the scheduler's link cut", run, 1, pattern)


# The client


@pytest.mark.slow
def test_the_client_is_stopped(place, data, table):
    with running(place, data) as run:
        run.wait_for_some()
        run.strike()
        run.process.send_signal(signal.SIGINT)
        table.error(f"{place.name}: Ctrl-C in the client", run, 130, "stopped by SIGINT")


@pytest.mark.slow
def test_the_client_is_stopped_in_a_slab(local, data, table):
    shape, chunks = (2**19, 64), (4, 64)
    zarr.create_array("empty.zarr", shape=shape, chunks=chunks, dtype="f4", fill_value=0.5)
    with running(local, data, ["empty.zarr"] * 2, chunks="4,64") as run:
        run.wait(lambda: "0%" in run.terminal.text)
        time.sleep(5)
        run.strike()
        run.process.send_signal(signal.SIGINT)
        table.error("local: Ctrl-C in a walk over slabs", run, 130, "stopped by SIGINT")
    assert run.seconds < 15


@needs_hosts
@pytest.mark.slow
def test_the_client_is_stopped_while_its_cable_is_pulled(hosts, data, table):
    with running(hosts, data) as run:
        run.wait_for_some()
        hosts.hosts.link("client", "down")
        time.sleep(1)
        run.strike()
        run.process.send_signal(signal.SIGINT)
        table.error("hosts: Ctrl-C with the client's link cut", run, 130, "stopped by SIGINT")


@pytest.mark.slow
def test_what_became_of_all_faults(table):
    if not table.rows:
        pytest.skip("no faults before")
    print(f"\n{table}")
    assert max(seconds for _, _, seconds in table.rows) < BOUND
