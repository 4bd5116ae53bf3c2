"""A real SLURM of one node on this machine, from Debian's packages slurm-wlm and munge; needs root.

Daemons and jobs live in a process namespace of their own, which takes all of them along as it ends.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.deploy_files import call

# No cgroups and no accounting: these belong to the machine. Two CPUs are said to be four, so that
# two tasks of two CPUs run at once.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
EnforcePartLimits=ALL
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16384 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=120 State=UP
"""

DAEMONS = """
set -e
munged --foreground --force --key-file=munge.key --socket=munge.socket --pid-file=munge.pid \
    --log-file=munge.log --seed-file=munge.seed &
until [ -S munge.socket ]; do sleep 0.1; done
slurmctld -D &
slurmd -D &
wait
"""


@contextlib.contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Start SLURM; the environment for its commands."""
    missing = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name)]
    if missing or os.getuid() != 0:
        raise RuntimeError(f"needs root and the packages slurm-wlm and munge; missing: {missing}")
    # munged wants a short path for its socket.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        controller, node = free_ports(2)
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(host=host, controller=controller, node=node, folder=folder)
        (folder / "slurm.conf").write_text(text)
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        with (
            (folder / "daemons.log").open("w") as log,
            subprocess.Popen(
                ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", DAEMONS],
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            ) as daemons,
        ):
            try:
                wait_for_node(environment, folder)
                yield environment
            finally:
                daemons.kill()


def submit(command: list[str], environment: dict[str, str]) -> str:
    """Submit a job, wait for its end, and return what SLURM knows of it."""
    number = re.findall(r"\d+", call(*command, env=environment).stdout)[0]
    end = time.monotonic() + 60
    while time.monotonic() < end:
        job = call("scontrol", "show", "job", number, env=environment).stdout
        if re.search("JobState=(COMPLETED|FAILED)", job):
            return job
        time.sleep(0.2)
    raise TimeoutError(job)


def wait_for_node(environment: dict[str, str], folder: Path) -> None:
    """Wait until the node takes jobs."""
    end = time.monotonic() + 30
    state = ""
    while state != "idle":
        if time.monotonic() > end:
            logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
            raise RuntimeError(f"no idle node after 30 s, but {state!r}:\n{logs}")
        time.sleep(0.2)
        command = ["sinfo", "--noheader", "--format=%t"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        state = done.stdout.strip()


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
