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
from importlib.metadata import version
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
    normal,
    parse,
    pods,
    readme,
    shell,
    unknown_settings,
    unmet,
    violations,
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


# Docker


def test_the_dockerfile_is_linted():
    text = (DEPLOY / "docker/Dockerfile").read_text()
    lint = ("hadolint", "--no-color", "-")
    assert call(*lint, input=text).stdout == ""
    assert "unexpected 'C'" in call(*lint, input=text.replace("COPY", "COPPY"), check=False).stdout
    latest = text.replace(":3.11.7-slim-bookworm", ":latest")
    assert "DL3007" in call(*lint, input=latest, check=False).stdout


def test_the_image_is_made_of_what_docker_may_see():
    ignored, *allowed = re.findall(
        r"^[^#\n]+$", (DEPLOY / "docker/Dockerfile.dockerignore").read_text(), re.MULTILINE
    )
    text = (DEPLOY / "docker/Dockerfile").read_text()
    sources = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert ignored == "*"
    assert {name[1:] for name in allowed if name.startswith("!")} == sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_all_requirements_are_pinned():
    lines = (DEPLOY / "requirements.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {normal(name): number for name, number in pins.items()}
    assert pins["dask"] == pins["distributed"]
    extras = ["", "zarr", "bfloat16"]
    assert unmet(pins, extras) == []
    for name in ("zarr", "dask"):
        rest = {pinned: number for pinned, number in pins.items() if pinned != name}
        assert [need for need in unmet(rest, extras) if f"kldiv-dask needs {name}" in need]
    (old,) = unmet({**pins, "numba": "0.60.0"}, extras)
    assert old.startswith("kldiv-dask needs numba")


def test_the_compose_file_is_of_the_schema(tmp_path):
    check = ("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
    path = DEPLOY / "docker/compose.yaml"
    call(*check, path)
    mistaken = tmp_path / "compose.yaml"
    mistaken.write_text(path.read_text().replace("mem_limit", "mem_limits"))
    assert "'mem_limits' was unexpected" in call(*check, mistaken, check=False).stdout


def test_containers_can_do_little_and_publish_to_this_machine_only():
    services = load("docker/compose.yaml")["services"]
    assert set(services) == {"scheduler", "worker", "kldiv"}
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert all(volume.endswith(":ro") for volume in service["volumes"])
        assert service["mem_limit"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:8787:8787"]


def test_one_image():
    image = f"kldiv-dask:{version('kldiv-dask')}"
    services = load("docker/compose.yaml")["services"].values()
    images = [service["image"] for service in services]
    for name in ("cluster", "job"):
        for pod in pods(load(f"kubernetes/{name}.yaml")).values():
            images += [c["image"] for c in pod["containers"] + pod.get("initContainers", [])]
    assert images == [image] * 9
    assert f"-t {image} " in (DEPLOY / "docker/Dockerfile").read_text()
    assert f"`{image}`" in readme("kubernetes")


# Kubernetes


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_a_resource_is_of_its_schema(name):
    resource = load(f"kubernetes/{name}.yaml")
    assert violations(resource, {"cluster": "DaskCluster", "job": "DaskJob"}[name]) == []


@pytest.mark.parametrize("name", ["cluster", "job"])
@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("replicas: 3", "replica: 3", "'replica' was unexpected"),
        ("replicas: 3", "replicas: three", "'three' is not of type 'integer'"),
        ("mountPath: /tmp", "mountpath: /tmp", "'mountPath' is a required property"),
        ("claimName", "claim", "'claim' was unexpected"),
        ("runAsNonRoot", "runAsNonroot", "'runAsNonroot' was unexpected"),
        ("    service:", "    services:", "'services' was unexpected"),
        ("port: 8786", 'port: "8786"', "'8786' is not of type 'integer'"),
        ("kind: Dask", "kinds: Dask", "'kind' is a required property"),
    ],
)
def test_a_typo_in_a_resource_is_caught(name, right, wrong, message):
    path = f"kubernetes/{name}.yaml"
    text = (DEPLOY / path).read_text()
    assert right in text
    errors = violations(yaml.safe_load(text.replace(right, wrong)), load(path)["kind"])
    assert any(message in error for error in errors), errors


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_pods_can_do_little(name):
    for pod in pods(load(f"kubernetes/{name}.yaml")).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"] + pod.get("initContainers", []):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"]
            assert security["capabilities"] == {"drop": ["ALL"]}
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["memory"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_a_pod_has_the_key_of_its_role_and_no_other(name):
    with with_settings():
        security = Security()
    for role, pod in pods(load(f"kubernetes/{name}.yaml")).items():
        (secret,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        assert all(item["key"] == item["path"] for item in secret["items"])
        files = [f"tls/{item['path']}" for item in secret["items"]]
        assert files == named_files(security, role)


@pytest.mark.parametrize("name", ["cluster", "job"])
def test_names_in_a_resource_agree(name):
    resource = load(f"kubernetes/{name}.yaml")
    cluster = resource["metadata"]["name"]
    spec = resource["spec"]["cluster"]["spec"] if name == "job" else resource["spec"]
    service = spec["scheduler"]["service"]
    assert service["type"] == "ClusterIP"
    assert service["selector"]["dask.org/cluster-name"] == cluster
    (scheduler,) = spec["scheduler"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in scheduler["ports"]}
    assert ports == {port["targetPort"]: port["port"] for port in service["ports"]}
    text = (DEPLOY / f"kubernetes/{name}.yaml").read_text()
    addresses = re.findall(r"tls://([\w-]+):8786", text)
    assert set(addresses) == {f"{cluster}-scheduler"}
    assert len(addresses) == len(pods(resource)) - 1


def test_the_cluster_of_a_job_is_like_that_which_stays():
    own = (DEPLOY / "kubernetes/job.yaml").read_text().replace("kldiv-job", "kldiv")
    assert yaml.safe_load(own)["spec"]["cluster"]["spec"] == load("kubernetes/cluster.yaml")["spec"]


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
