"""Several hosts on one machine: network namespaces, and a Dask cluster over TLS across them.

Everything is inside the namespaces, the switch that joins them too, so the machine's own network is
as it was, and a namespace that goes takes its links along.
"""

import contextlib
import functools
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psutil
import pytest

from tests.helpers.commands import SCRIPTS, eventually
from tests.helpers.deploy_files import DEPLOY

ROOT = Path(__file__).parents[2]
NAMES = ("client", "scheduler", "left", "right")
IP = shutil.which("ip") or ""
NUMBERS = itertools.count()


def missing() -> str:
    """What keeps this machine from having other hosts on it, or an empty string."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not IP or not shutil.which("openssl"):
        return "needs ip, of iproute2, and openssl"
    name = f"kldiv-{os.getpid()}-probe"
    if subprocess.run([IP, "netns", "add", name], capture_output=True).returncode:
        return "network namespaces can't be made here, as in most containers"
    ip("netns", "delete", name)
    return ""


def ip(*arguments: str) -> str:
    """Run `ip`, and return what it prints."""
    return subprocess.run([IP, *arguments], check=True, capture_output=True, text=True).stdout


class Hosts:
    """Hosts of the addresses 10.0.0.1 and on, in the order of `NAMES`, joined by a switch."""

    def __init__(self) -> None:
        self.prefix = f"kldiv-{os.getpid()}-{next(NUMBERS)}"
        self.address = {name: f"10.0.0.{number}" for number, name in enumerate(NAMES, 1)}

    def __enter__(self) -> Self:
        self.before = ip("-oneline", "link")
        try:
            switch = self._add("switch")
            ip("-n", switch, "link", "add", "switch", "up", "type", "bridge")
            for name, address in self.address.items():
                host = self._add(name)
                cable = ("netns", switch, "type", "veth", "peer", "eth0", "netns", host)
                ip("link", "add", name, *cable)
                ip("-n", switch, "link", "set", name, "up", "master", "switch")
                ip("-n", host, "address", "add", f"{address}/24", "dev", "eth0")
                ip("-n", host, "link", "set", "eth0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _add(self, name: str) -> str:
        host = self.namespace(name)
        ip("netns", "add", host)
        ip("-n", host, "link", "set", "lo", "up")
        return host

    def __exit__(self, *_: object) -> None:
        for host in self._existing():
            name = host.removeprefix(f"{self.prefix}-")
            self.kill(name)
            assert eventually(functools.partial(self.is_idle, name))
            ip("netns", "delete", host)
        assert self._existing() == []
        assert ip("-oneline", "link") == self.before

    def _existing(self) -> list[str]:
        names = [line.split()[0] for line in ip("netns", "list").splitlines()]
        return [name for name in names if name.startswith(f"{self.prefix}-")]

    def namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def on(self, name: str, command: str, *arguments: str) -> tuple[str, ...]:
        """Give the command that runs a script of this environment on a host."""
        return IP, "netns", "exec", self.namespace(name), str(SCRIPTS / command), *arguments

    def link(self, name: str, state: str) -> None:
        """Pull the cable of a host out of the switch, or put it back: "down" or "up"."""
        ip("-n", self.namespace("switch"), "link", "set", name, state)

    def processes(self, name: str) -> list[psutil.Process]:
        """Processes on a host."""
        found = []
        for pid in map(int, ip("netns", "pids", self.namespace(name)).split()):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def is_idle(self, name: str) -> bool:
        """Whether no process is on a host."""
        return not self.processes(name)

    def kill(self, name: str) -> None:
        """End all processes on a host at once, as a loss of power would."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):  # its nanny has ended it
                process.kill()

    def workers(self, name: str) -> list[psutil.Process]:
        """Worker processes on a host, without the nannies that restart them."""
        found = []
        for process in self.processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(process.cmdline()):
                    found.append(process)
        return found


class Cluster:
    """A scheduler on its host, and workers on each of the hosts left and right.

    Parameters
    ----------
    hosts : Hosts
        Where it runs.
    folder : pathlib.Path
        For certificates, settings, logs and temporary files, of which none are left.
    environment : dict
        More variables for all processes.
    each : int
        Number of workers on a host, each with a thread and 400 MiB.
    """

    name = "hosts"

    def __init__(
        self, hosts: Hosts, folder: Path, environment: Mapping[str, str], each: int = 2
    ) -> None:
        self.hosts, self.folder, self.each = hosts, folder, each
        self.scratch, self.client = folder / "scratch", folder / "client"
        self.environment = {**environment, "DASK_CONFIG": "dask.yaml"}
        self.scheduler = f"tls://{hosts.address['scheduler']}:8786"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        (self.folder / "tls").mkdir()
        self.scratch.mkdir()
        shutil.copy(DEPLOY / "dask.yaml", self.folder)
        shutil.copy(DEPLOY / "tls/make.sh", self.folder / "tls")
        subprocess.run([self.folder / "tls/make.sh"], check=True, capture_output=True)
        self.client.mkdir()
        for name in ("tls", "dask.yaml"):
            (self.client / name).symlink_to(self.folder / name)
        try:
            for name in ("scheduler", "left", "right"):
                self._start(name)
            for name in ("left", "right"):
                self._await(name, "Registered to: ", self.each)
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def prefix(self) -> tuple[str, ...]:
        return self.hosts.on("client", "kldiv-dask")

    @property
    def options(self) -> tuple[str, ...]:
        return "--scheduler", self.scheduler

    def workers(self, process: object) -> list[psutil.Process]:
        """Worker processes of all hosts, whichever process the command is."""
        return self.hosts.workers("left") + self.hosts.workers("right")

    def _start(self, name: str) -> None:
        command: tuple[str, ...]
        host = ("--host", self.hosts.address[name], "--no-dashboard")
        if name == "scheduler":
            command = ("scheduler", *host, "--port", "8786")
        else:
            size = ("--nworkers", str(self.each), "--nthreads", "1", "--memory-limit", "400MiB")
            command = ("worker", self.scheduler, *host, *size, "--nanny")
        with open(self.folder / f"{name}.log", "w") as log:
            self.running[name] = subprocess.Popen(
                self.hosts.on(name, "dask", *command),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **self.environment, "TMPDIR": str(self.scratch)},
            )
        self._await(name, {"scheduler": "Scheduler at:"}.get(name, "Start Nanny at:"), 1)

    def _await(self, name: str, line: str, times: int) -> None:
        end = time.monotonic() + 60
        while (self.folder / f"{name}.log").read_text().count(line) < times:
            log = (self.folder / f"{name}.log").read_text()
            assert time.monotonic() < end, log
            assert self.running[name].poll() is None, log
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        for name in NAMES:
            self.hosts.link(name, "up")
        for process in reversed(self.running.values()):  # the scheduler last: workers report to it
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        hosts = self.hosts
        assert eventually(lambda: not any(map(hosts.processes, NAMES))), [
            process for name in NAMES for process in hosts.processes(name)
        ]
        # Dask keeps empty files as locks.
        files = [path for path in self.scratch.rglob("*") if path.is_file()]
        full = [path for path in files if path.stat().st_size]
        assert not full, f"files are left: {full}"


needs_hosts = pytest.mark.skipif(bool(reason := missing()), reason=reason)
