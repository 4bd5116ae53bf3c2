"""Who gives a plain address for a scheduler that takes encrypted connections is told so."""

import asyncio
import subprocess

import pytest
from distributed import Scheduler, Security

from kldiv_dask.cli.cluster import _speaks_tls, connect


@pytest.fixture
def security(tmp_path):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -subj /CN=x"
    subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=True)
    names = {"tls_ca_file": "cert", "tls_scheduler_cert": "cert", "tls_scheduler_key": "key"}
    files = {name: str(tmp_path / f"{file}.pem") for name, file in names.items()}
    return Security(require_encryption=True, **files)


def told(address):
    with (
        pytest.raises(OSError, match=r"takes encrypted connections only: use tls://"),
        connect(address),
    ):
        pass


@pytest.mark.filterwarnings("ignore")  # of the connection that the scheduler refuses
def test_a_plain_address_of_an_encrypted_scheduler(security):
    async def with_tls():
        options = {"port": 0, "dashboard": False}
        async with Scheduler(protocol="tls", security=security, **options) as scheduler:
            await asyncio.to_thread(told, scheduler.address.replace("tls://", "tcp://"))
        async with Scheduler(**options) as scheduler:
            assert not await asyncio.to_thread(_speaks_tls, scheduler.address)

    asyncio.run(with_tls())


def test_nobody_at_the_address():
    assert not _speaks_tls("tcp://127.0.0.1:1")
    assert not _speaks_tls("nowhere")
