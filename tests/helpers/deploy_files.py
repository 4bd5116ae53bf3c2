"""The deployment files, and what is asked of them in more than one test."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import dask
import jsonschema
import yaml
from distributed import Security
from distributed.cli import dask_scheduler, dask_worker
from packaging.requirements import Requirement

from kldiv_dask.cli import main as kldiv_dask
from tests.deploy_crds.make import SCHEMAS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = sysconfig.get_path("scripts")
PLATFORMS = ("local", "docker", "kubernetes", "slurm")


def call(
    *command: str | Path, check: bool = True, env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command, with the programs of this environment to be found first, to its end."""
    environment = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}", **(env or {})}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        **{key: value for key, value in options.items() if key != "input"},
    ) as process:
        try:
            out, err = process.communicate(options.get("input"), timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert not check or process.returncode == 0, out + err
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def load(path: str) -> Any:
    """Read a YAML file."""
    return yaml.safe_load((DEPLOY / path).read_text())


def readme(platform: str) -> str:
    """Read the README of a platform."""
    return (DEPLOY / platform / "README.md").read_text()


def shell(platform: str) -> list[str]:
    """Shell blocks of a README."""
    return re.findall(r"^```sh\n(.*?)^```", readme(platform), re.MULTILINE | re.DOTALL)


def unknown_settings(settings: dict[str, Any], known: dict[str, Any]) -> list[str]:
    """Dotted names of settings that Dask's own defaults do not have."""
    names = []
    for name, value in settings.items():
        if name not in known:
            names.append(name)
        elif isinstance(value, dict):
            inner = unknown_settings(value, known[name] if isinstance(known[name], dict) else {})
            names += [f"{name}.{rest}" for rest in inner]
    return names


def with_settings() -> Any:
    """Dask's configuration with the file's settings, for the time of a context."""
    return dask.config.set(dask.config.merge(dask.config.config, load("dask.yaml")))


def pods(resource: dict[str, Any]) -> dict[str, Any]:
    """Pod specifications of a resource, by role."""
    spec = resource["spec"]
    cluster = spec["cluster"]["spec"] if "cluster" in spec else spec
    found = {role: cluster[role]["spec"] for role in ("scheduler", "worker")}
    return found | ({"client": spec["job"]["spec"]} if "job" in spec else {})


def violations(resource: Any, kind: str) -> list[str]:
    """Where a resource departs from what the operator and Kubernetes define."""
    schemas = json.loads(SCHEMAS.read_text()) | {"$ref": f"#/$defs/{kind}"}
    errors = jsonschema.Draft202012Validator(schemas).iter_errors(resource)
    return [f"{error.json_path}: {error.message}" for error in errors]


def dask_commands() -> Iterator[tuple[str, list[str]]]:
    """Commands of this package and of Dask in the files, and where they are."""
    compose = load("docker/compose.yaml")["services"]
    for service in compose.values():
        command = service.get("command", [])
        yield "compose", shlex.split(command) if isinstance(command, str) else command
    for name in ("cluster", "job"):
        for pod in pods(load(f"kubernetes/{name}.yaml")).values():
            yield name, pod["containers"][0]["args"]
    for platform in PLATFORMS:
        text = "".join(shell(platform)).replace("run --rm kldiv", "\nkldiv-dask")
        for line in re.findall(r"(?:^|\n)((?:dask|kldiv-dask) [^\n&]+)", text):
            yield platform, shlex.split(line)


def parse(command: Iterable[str]) -> None:
    """Parse a command's options without running it."""
    words = [re.sub(r"\$\(\w+\)", "1", word) for word in command]  # Kubernetes fills them in
    commands = {
        "dask scheduler": dask_scheduler.main,
        "dask worker": dask_worker.main,
        "kldiv-dask compute": kldiv_dask.commands["compute"],
    }
    commands[" ".join(words[:2])].make_context(words[0], words[2:], ignore_unknown_options=False)


def unmet(pins: dict[str, str], extras: Iterable[str]) -> list[str]:
    """Requirements that pins leave open, of this package and of pinned ones that are installed."""
    found = []
    for name, number in {"kldiv-dask": None, **pins}.items():
        if number not in (None, version(name)):  # what other releases need is not known here
            continue
        for text in requires(name) or []:
            need = Requirement(text)
            environments = [{"extra": extra} for extra in (extras if number is None else [""])]
            if need.marker and not any(map(need.marker.evaluate, environments)):
                continue
            pin = pins.get(normal(need.name))
            if normal(need.name) != "kldiv-dask" and not (pin and need.specifier.contains(pin)):
                found.append(f"{name} needs {need}")
    return found


def normal(name: str) -> str:
    """Spell a distribution's name as all indexes understand it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named_files(security: Security, role: str) -> list[Any]:
    """Give the files that a role's TLS settings name."""
    named = security.get_tls_config_for_role(role)
    return [named[part] for part in ("ca_file", "cert", "key")]
