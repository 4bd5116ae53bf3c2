"""Deployment files: checked by the tools and schemas of what reads them, and run where they can be.

A check of somebody else's, a linter or a schema, is also given a typo that it has to catch.
"""

import copy
import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
from pathlib import Path

import distributed
import jsonschema
import pytest
import yaml
from distributed import LocalCluster, Security

from kldiv_dask.cli.cluster import connect
from tests.helpers.deploy_files import (
    DEPLOY,
    PLATFORMS,
    ROOT,
    SCRIPTS,
    call,
    dask_commands,
    load,
    named_files,
    parse,
    readme,
    shell,
    unknown_settings,
    with_settings,
)
from tests.helpers.deploy_slurm import free_ports, slurm, submit

ROLES = ("scheduler", "worker", "client")

EXAMPLE = [
    "data/student.zarr",
    "data/teacher.zarr",
    "--kind",
    "log_probs",
    "--reduction",
    "batchmean",
]
RESULT = "0.06150904\n"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A checkout's deploy/ with certificates and data, made by its own scripts."""
    root = tmp_path_factory.mktemp("checkout")
    made = shutil.ignore_patterns("*.pem", "data", ".env", "__pycache__")
    shutil.copytree(DEPLOY, root / "deploy", ignore=made)
    (root / "tests").symlink_to(ROOT / "tests")
    call("tls/make.sh", cwd=root / "deploy")
    call("python", "example.py", cwd=root / "deploy")
    return root / "deploy"


@pytest.fixture
def folder(prepared, monkeypatch):
    """The same as the current directory."""
    monkeypatch.chdir(prepared)
    return prepared


# Dask's settings


def test_dask_knows_the_settings():
    own = Path(distributed.__file__).parent
    known = yaml.safe_load((own / "distributed.yaml").read_text())
    schema = yaml.safe_load((own / "distributed-schema.yaml").read_text())
    settings = load("dask.yaml")
    assert unknown_settings(settings, known) == []
    jsonschema.validate(settings, schema)

    mistaken = copy.deepcopy(settings)
    mistaken["distributed"]["worker"]["memory"]["tarjet"] = False
    assert unknown_settings(mistaken, known) == ["distributed.worker.memory.tarjet"]
    mistaken = copy.deepcopy(settings)
    mistaken["distributed"]["worker"]["memory"]["pause"] = "80%"
    with pytest.raises(jsonschema.ValidationError, match="80%"):
        jsonschema.validate(mistaken, schema)


def test_every_role_finds_its_certificate(folder):
    with with_settings():
        security = Security()
    assert security.require_encryption
    for role in ROLES:
        assert security.get_connection_args(role)["ssl_context"]
        assert security.get_listen_args(role)["ssl_context"]
    files = [Path(path) for role in ROLES for path in named_files(security, role)]
    assert {path.name for path in Path("tls").glob("*.pem")} == {path.name for path in files}


def test_a_scheduler_restarts_silent_workers_in_the_time_that_is_set(folder):
    with (
        with_settings(),
        LocalCluster(n_workers=0, security=Security(), dashboard_address="127.0.0.1:0") as cluster,
    ):
        assert cluster.scheduler.worker_ttl == 60
        # With many workers it waits for 10 heartbeats, which are further apart.
        assert cluster.scheduler.periodic_callbacks["worker-ttl"].callback_time == 60_000


# Certificates


def test_keys_are_for_their_owner_only(folder):
    keys = list(Path("tls").glob("*-key.pem"))
    assert sorted(key.name for key in keys) == [f"{role}-key.pem" for role in sorted(ROLES)]
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600] * 3


@pytest.mark.parametrize(
    ("role", "purposes"),
    [("scheduler", "server client"), ("worker", "server client"), ("client", "client")],
)
def test_what_a_certificate_is_good_for(folder, role, purposes):
    verify = ("openssl", "verify", "-CAfile", "tls/ca.pem", "-purpose")
    good = [
        purpose
        for purpose in ("server", "client")
        if call(*verify, f"ssl{purpose}", f"tls/{role}.pem", check=False).returncode == 0
    ]
    assert good == purposes.split()


def test_certificates_of_others_are_refused(folder, tmp_path, monkeypatch):
    (tmp_path / "tls").mkdir()
    call(shutil.copy("tls/make.sh", tmp_path / "tls"))
    options = {"n_workers": 0, "dashboard_address": "127.0.0.1:0"}
    with with_settings(), LocalCluster(security=Security(), **options) as cluster:
        with (
            pytest.warns(UserWarning, match="no workers yet"),
            connect(cluster.scheduler_address) as client,
        ):
            assert client.scheduler.address.startswith("tls://")
        monkeypatch.chdir(tmp_path)
        refused = pytest.raises(OSError, match="certificate does not match")
        with refused, connect(cluster.scheduler_address):
            pass


# Commands in whatever file


COMMANDS = [
    pytest.param(command, id=f"{place}: {' '.join(command[:2])}")
    for place, command in dask_commands()
    if command
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_options_that_it_is_given(command):
    parse(command)
    with pytest.raises(Exception, match=r"No such option.*--nthreds"):
        parse([*command, "--nthreds=4"])


def test_all_commands_are_found():
    assert len(COMMANDS) == 2 + 2 + 3 + 3 + 1 + 1


# SLURM


@pytest.mark.parametrize("script", ["slurm/job.sbatch", "tls/make.sh"])
def test_a_shell_script_is_linted(script):
    call("bash", "-n", DEPLOY / script)
    call("shellcheck", DEPLOY / script)
    text = (DEPLOY / script).read_text() + "rm $nothing\n"
    done = call("shellcheck", "-", input=text, check=False)
    assert "SC2154" in done.stdout
    assert "SC2086" in done.stdout


def test_the_job_script_of_a_worker(folder, recwarn):
    found = importlib.util.spec_from_file_location("jobqueue", DEPLOY / "slurm/jobqueue.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    with (
        with_settings(),
        module.cluster(interface="lo") as cluster,
    ):
        text = cluster.job_script()
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
    options = dict(line.split()[1:] for line in text.splitlines() if re.match("#SBATCH -. ", line))
    assert options == {
        "-J": "dask-worker",
        "-e": "slurm/dask-worker-%J.err",
        "-o": "slurm/dask-worker-%J.out",
        "-n": "1",
        "-t": "01:00:00",
    }
    assert re.findall("#SBATCH --(.*)", text) == ["cpus-per-task=4", "mem=4G"]
    assert "\nexport DASK_CONFIG=dask.yaml\n" in text
    _, address, command = re.search(r"dask_worker (tls)(://\S+) (.*)", text).groups()
    assert address.startswith("://127.0.0.1:")
    for option in (
        "--nthreads 4",
        "--memory-limit 4.00GiB",
        "--nanny",
        "--interface lo",
        "--protocol tls://",
        "--tls-ca-file tls/ca.pem",
        "--tls-cert tls/worker.pem",
        "--tls-key tls/worker-key.pem",
        "--dashboard-address 127.0.0.1:0",
    ):
        assert f"{option} " in f"{command} "
    parse(["dask", "worker", *shlex.split(command)])


@pytest.mark.slow
def test_the_sbatch_script_with_another_srun(folder, tmp_path):
    """All but SLURM: the one task is run where the job is."""
    stub = tmp_path / "srun"
    stub.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    stub.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{SCRIPTS}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_MEM_PER_CPU": "1024",
        "KLDIV_INTERFACE": "lo",
    }
    done = call("bash", "slurm/job.sbatch", *EXAMPLE, env=environment)
    assert done.stdout == RESULT
    assert len(re.findall("Registered to: +tls://127.0.0.1:", done.stderr)) == 1
    assert re.search(r"Memory: +921.00 MiB", done.stderr)
    assert list(Path("slurm").glob("*.json")) == []


def test_slurm(folder, request):
    """The commands of the README with a real SLURM."""
    if not request.config.getoption("--runslurm"):
        pytest.skip("starts a SLURM, with --runslurm")
    with slurm() as environment:
        environment = {**environment, "PATH": f"{SCRIPTS}:{environment['PATH']}"}
        small = ("--ntasks=2", "--cpus-per-task=2", "--mem-per-cpu=1G")
        job = submit(["sbatch", *small, "slurm/job.sbatch", *EXAMPLE], environment)
        assert "ExitCode=0:0" in job
        log = re.search("StdOut=(.*)", job)[1]
        text = Path(log).read_text()
        assert RESULT in text.splitlines(keepends=True)
        assert text.count("Start worker at:") == 2
        job = submit(["sbatch", *small, "slurm/job.sbatch", "nothing", "nothing"], environment)
        assert "ExitCode=2:0" in job
        done = call("python", "slurm/jobqueue.py", "1", *EXAMPLE, env=environment)
        assert done.stdout == RESULT
        assert call("squeue", "--noheader", env=environment).stdout == ""


# By hand


@pytest.mark.slow
def test_the_commands_for_a_laptop(prepared):
    install, *blocks = shell("local")
    assert "requirements.txt" in install
    assert [line for line in "".join(blocks).splitlines() if line.split()[0] == "kldiv-dask"]
    script = "".join(blocks)
    for port, free in zip(("8786", "8787"), free_ports(2), strict=True):
        script = script.replace(port, str(free))
    done = call("bash", "-e", "-c", script, cwd=prepared.parent)
    assert done.stdout.splitlines(keepends=True)[-1] == RESULT
    assert f"prints `{RESULT.strip()}`" in readme("local")
    assert len(re.findall("Registered to: +tls://127.0.0.1:", done.stderr)) == 2


# READMEs


@pytest.mark.parametrize("platform", [".", *PLATFORMS, "jupyter"])
def test_a_readme_is_short_and_its_links_lead_somewhere(platform):
    text = readme(platform)
    assert len(text.splitlines()) <= 50
    linked = re.findall(r"\]\((?!https)([^)]+)\)", text)
    assert linked
    assert [path for path in linked if not (DEPLOY / platform / path).exists()] == []


def test_results_in_readmes():
    expected = json.loads((ROOT / "tests/data/ocr/expected.json").read_text())["log_probs"]
    assert float(RESULT) == pytest.approx(expected["batchmean"], rel=1e-6)  # float32
    for platform in (".", "local", "docker", "slurm"):
        assert f"`{RESULT.strip()}`" in readme(platform)
