"""A cluster over TLS across hosts, and addresses that do not go with the TLS settings."""

import contextlib
import re
import subprocess
import time

import dask
import pytest

from kldiv_dask.cli.cluster import connect
from tests.helpers.commands import eventually, run
from tests.helpers.fault_runs import Data
from tests.helpers.hosts import NAMES, Cluster, Hosts, ip, needs_hosts


@needs_hosts
@pytest.mark.slow
def test_a_run_across_hosts(tmp_path, monkeypatch):
    data = Data(tmp_path)
    pair = [f"{tmp_path}/{name}.zarr" for name in ("x", "t")]
    options = ("--reduction", "sum", "--chunks", "16,-1")
    with Hosts() as hosts, Cluster(hosts, tmp_path, data.environment, each=1) as cluster:
        monkeypatch.chdir(cluster.client)
        command = (*cluster.prefix, "compute", *pair, *options)
        code, out, err = run(*command, *cluster.options, **cluster.environment)
        assert (code, err) == (0, [])
        assert float(out) == data.expected["sum"]
        assert len(hosts.workers("left")) == len(hosts.workers("right")) == 1
        for name in ("left", "right"):
            log = (tmp_path / f"{name}.log").read_text()
            started = re.findall(r"Start worker at: +tls://([\d.]+):", log)
            assert started == [hosts.address[name]]


# Cleaning up


def clean():
    return ip("netns", "list"), ip("-oneline", "link")


@needs_hosts
def test_hosts_are_apart_and_cables_can_be_pulled():
    with Hosts() as hosts:
        ping = (*hosts.on("left", "/usr/bin/env"), "bash", "-c")
        # The connection is refused as nothing listens there, which only the other host can tell.
        knock = f"exec 3<>/dev/tcp/{hosts.address['right']}/9"

        def answer(timeout=10):
            try:
                done = subprocess.run(
                    [*ping, knock], capture_output=True, text=True, timeout=timeout
                )
            except subprocess.TimeoutExpired:
                return "no answer"
            return "refused" if "refused" in done.stderr else done.stderr

        assert answer() == "refused"
        hosts.link("right", "down")
        assert answer(timeout=1) == "no answer"
        hosts.link("right", "up")
        assert eventually(lambda: answer() == "refused")


@needs_hosts
@pytest.mark.parametrize("where", NAMES)
def test_nothing_is_left_where_a_test_fails(where):
    before = clean()
    with contextlib.suppress(ZeroDivisionError), Hosts() as hosts:
        left = subprocess.Popen(hosts.on(where, "/usr/bin/env", "sleep", "1000"))
        assert eventually(lambda: hosts.processes(where))
        assert clean() != before
        raise ZeroDivisionError
    assert left.wait(1) == -9
    assert clean() == before


@needs_hosts
def test_a_file_that_is_left_is_found(tmp_path):
    with Hosts() as hosts:
        cluster = Cluster(hosts, tmp_path, {})
        cluster.scratch.mkdir()
        (cluster.scratch / "spilled").write_text("data")
        with pytest.raises(AssertionError, match="spilled"):
            cluster.__exit__()


# Addresses and TLS settings

FILES = {"ca-file": "ca.pem", "client.cert": "client.pem", "client.key": "client-key.pem"}


@pytest.mark.parametrize("setting", FILES)
def test_a_certificate_that_does_not_exist(tmp_path, monkeypatch, setting):
    monkeypatch.chdir(tmp_path)
    for other, name in FILES.items():
        if other != setting:
            (tmp_path / name).touch()
    settings = {f"distributed.comm.tls.{other}": name for other, name in FILES.items()}
    message = f"{tmp_path / FILES[setting]} does not exist.* as distributed.comm.tls.{setting}$"
    with dask.config.set(settings), pytest.raises(FileNotFoundError, match=message):
        quickly("tls://10.0.0.1:8786")


@pytest.mark.parametrize("scheme", ["tls", None])
def test_no_certificates(scheme):
    with (
        dask.config.set({"distributed.comm.default-scheme": scheme or "tls"}),
        pytest.raises(ValueError, match=r"needs certificates: set distributed\.comm\.tls\.ca-file"),
    ):
        quickly("tls://10.0.0.1:8786" if scheme else "10.0.0.1:8786")


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:8786", "10.0.0.1:8786"])
def test_an_address_that_is_not_encrypted(address):
    with (
        dask.config.set({"distributed.comm.require-encryption": True}),
        pytest.raises(ValueError, match=r"requires encryption .*: use tls://"),
    ):
        quickly(address)


def quickly(address):
    """Connect, and expect an error in much less than it takes to look for a scheduler."""
    start = time.monotonic()
    try:
        with connect(address):
            pass
    finally:
        assert time.monotonic() - start < 2
