"""Run ``kldiv-dask compute`` on workers that are SLURM jobs of their own, and end them after it.

    python slurm/jobqueue.py JOBS INPUT TARGET [OPTIONS of kldiv-dask compute]

The scheduler runs where this is started. Workers join as their jobs start, and none is waited for.
"""

import os
import subprocess
import sys

import dask
from dask_jobqueue import SLURMCluster
from distributed import Security

CONFIGURATION = "dask.yaml"

# A worker is a job of 4 threads, as many as the library makes use of in a process. A thread holds
# two chunks of 128 MiB, compressed and not: about 512 MiB, of 1 GiB here.
JOB = {"cores": 4, "processes": 1, "memory": "4 GiB", "walltime": "01:00:00"}

# Dashboards are for those who can log in to the node; port 0 is any free one, as nodes are shared.
LOCAL = "127.0.0.1:0"


def cluster(interface=None):
    """Make a cluster without workers; `interface` chooses the network (``"ib0"``, say)."""
    return SLURMCluster(
        **JOB,
        interface=interface,
        security=Security(),
        scheduler_options={"dashboard_address": LOCAL},
        # A worker leaves in good order before its job is stopped: its tasks go to others.
        worker_extra_args=["--dashboard-address", LOCAL, "--lifetime", "55m"],
        job_script_prologue=[f"export DASK_CONFIG={CONFIGURATION}"],
        log_directory="slurm",
    )


def main(jobs, *arguments):
    """Compute on so many jobs; return the exit code of the command."""
    with cluster(os.environ.get("KLDIV_INTERFACE")) as slurm:
        slurm.scale(jobs=int(jobs))
        command = ["kldiv-dask", "compute", *arguments, "--scheduler", slurm.scheduler_address]
        return subprocess.run(command).returncode  # noqa: S603 - the user's own arguments


if __name__ == "__main__":
    os.environ["DASK_CONFIG"] = CONFIGURATION  # for the command
    dask.config.refresh(paths=[*dask.config.paths, CONFIGURATION])  # for the scheduler
    sys.exit(main(*sys.argv[1:]))
