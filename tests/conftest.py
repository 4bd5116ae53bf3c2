"""Fixtures that several test files share."""

from collections.abc import Iterator

import pytest
from distributed import Client, LocalCluster


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for what needs root and a daemon or two."""
    parser.addoption(
        "--runslurm",
        action="store_true",
        help="start a SLURM and run jobs on it; needs root, slurm-wlm and munge",
    )


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A client of two worker processes. Whoever wants it says so: ``compute(scheduler=client)``."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
