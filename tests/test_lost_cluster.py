"""Clusters that are lost, or shared, or whose workers come and go, while an evaluation runs."""

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

from kldiv_dask import EvaluationError, evaluate
from kldiv_dask.evaluation import checkpoint
from kldiv_dask.evaluation.errors import ClusterError
from tests.helpers.cases import some_slow
from tests.helpers.evaluations import same_bits
from tests.helpers.resumable import positions_of

VALUES = np.random.default_rng(0).normal(size=(2, 40, 3, 5))


def slow(block):
    time.sleep(0.1)
    return block


def pair():
    arrays = (da.from_array(values, chunks=(1, 3, 5)) for values in VALUES)
    return [array.map_blocks(slow, dtype="f8", meta=np.empty((0, 0, 0))) for array in arrays]


@pytest.fixture(scope="module")
def undisturbed():
    return evaluate(*VALUES, progress=False, scheduler="sync").state


@contextlib.contextmanager
def own_cluster(workers=1, **options):
    """A cluster of this test alone, in this process if it has one worker."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=workers > 1,
            dashboard_address="127.0.0.1:0",
            silence_logs=False,
            **options,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def once_there(path, act):
    """Do something as soon as there is a checkpoint."""

    def wait():
        while not path.exists():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


LOSSES = {
    "restarted": lambda client: client.restart(wait_for_workers=False),
    "without workers": lambda client: client.cluster.scale(0),
    "closed": lambda client: client.cluster.close(),
}


@pytest.mark.parametrize("loss", some_slow(*LOSSES))
def test_nothing_is_skipped_because_the_cluster_is_lost(tmp_path, loss, undisturbed):
    path = tmp_path / "run"
    settings = {
        "distributed.scheduler.no-workers-timeout": "1s",
        "distributed.comm.timeouts.connect": "2s",
        "kldiv.evaluate.slab-time": 0,
    }
    with dask.config.set(settings), own_cluster() as client:
        thread = once_there(path, lambda: LOSSES[loss](client))
        options = {"checkpoint": path, "checkpoint_interval": 0, "progress": False}
        with pytest.raises(ClusterError, match=r"^the cluster was lost: "):
            evaluate(*pair(), on_error="skip", scheduler=client, **options)
        thread.join()
    header, _ = checkpoint.loads(path.read_bytes(), "")
    assert header["skipped"] == []
    assert 0 < positions_of(header) < 120
    same_bits(evaluate(*pair(), scheduler="threads", **options).state, undisturbed)


def broken(block, block_info=None):
    if block_info[0]["chunk-location"][0] == 3:
        raise ConnectionResetError("the store has closed the connection")
    return block


@pytest.mark.parametrize("where", some_slow("cluster", "threads"))
def test_a_connection_that_a_task_loses_is_an_error_of_that_task(where):
    """A store of one's own that can't be reached is no cluster that is lost."""
    x, t = (da.from_array(values, chunks=(1, 3, 5)) for values in VALUES)
    x = x.map_blocks(broken, dtype="f8", meta=np.empty((0, 0, 0)))
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(own_cluster()) if where == "cluster" else where
        with pytest.raises(EvaluationError, match="closed the connection"):
            evaluate(x, t, progress=False, scheduler=scheduler)
        with pytest.warns(UserWarning, match=r"\[3:4, 0:3\] are left out: .* closed the conn"):
            result = evaluate(x, t, progress=False, scheduler=scheduler, on_error="skip")
    assert [one["region"] for one in result.skipped] == [[[3, 4], [0, 3]]]
    assert result.count == 39 * 3


# Several runs on one cluster

COMMAND = "from kldiv_dask.cli import main; main()"


def command(address, number, name="evaluate"):
    """Start a command on a cluster."""
    arguments = [name, "x.npy", "t.npy", "--scheduler", address, "--chunks", "1,3,5"]
    arguments += (
        ["--json", f"{number}.json"] if name == "evaluate" else ["--kind", "logits", "--json"]
    )
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def _files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    for name, values in zip(("x", "t"), VALUES, strict=True):
        np.save(f"{name}.npy", values)


@pytest.mark.slow
@pytest.mark.usefixtures("_files")
def test_commands_beside_a_notebook(undisturbed):
    """Some end before the others, which go on."""
    with own_cluster(workers=2) as client:
        address = client.scheduler.address
        done = []
        notebook = threading.Thread(
            target=lambda: done.append(evaluate(*pair(), progress=False, scheduler=client))
        )
        notebook.start()
        running = [
            command(address, number, name)
            for number, name in enumerate(("evaluate", "compute", "evaluate"))
        ]
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert (process.returncode, errors) == (0, b"")
        notebook.join()
        left = client.run(lambda dask_worker: list(dask_worker.plugins))
    assert not [name for names in left.values() for name in names if "kldiv" in name]
    same_bits(done[0].state, undisturbed)
    results = [Path(f"{number}.json").read_text().partition('"provenance"')[0] for number in (0, 2)]
    assert results[0] == results[1]
    assert f'"mean": {done[0].mean!r}' in results[0]


@pytest.mark.slow
@pytest.mark.usefixtures("_files")
def test_workers_that_leave_while_three_jobs_run(undisturbed):
    """One leaves every three seconds and another comes, as on a cluster that takes nodes back."""
    with own_cluster(workers=3) as client:
        address, ended = client.scheduler.address, threading.Event()

        def leave():
            while not ended.wait(3):
                worker = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
                with contextlib.suppress(Exception):
                    client.run(_end, workers=[worker])

        leaving = threading.Thread(target=leave)
        leaving.start()
        done = []

        def work():
            done.extend(evaluate(*pair(), progress=False, scheduler=client) for _ in range(3))

        jobs = [threading.Thread(target=work) for _ in range(2)]
        for job in jobs:
            job.start()
        for number in range(4):
            process = command(address, number)
            _, errors = process.communicate(timeout=200)
            assert (process.returncode, errors) == (0, b"")
        for job in jobs:
            job.join()
        ended.set()
        leaving.join()
    assert len(done) == 6
    for result in done:
        same_bits(result.state, undisturbed)


def _end():
    import os

    os._exit(1)
