"""The command ``kldiv-dask``, also mounted as ``dask kldiv``.

Every `dask` command imports this package, so what it needs to compute is imported on use.
"""

import click

from kldiv_dask.cli.common import SETTINGS
from kldiv_dask.cli.compute import compute
from kldiv_dask.cli.evaluate import evaluate

__all__ = ["main"]


# The name of the subcommand of `dask`.
@click.group("kldiv", context_settings=SETTINGS)
@click.version_option(package_name="kldiv-dask", message="kldiv-dask %(version)s")
def main() -> None:
    """Kullback-Leibler divergence of stored arrays: exact, and the same bits everywhere."""


main.add_command(compute)
main.add_command(evaluate)
