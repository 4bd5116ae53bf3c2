"""Deployment files of Docker and Kubernetes: checked by linters, schemas and each other.

A check of somebody else's, a linter or a schema, is also given a typo that it has to catch.
"""

import re
from importlib.metadata import version

import pytest
import yaml
from distributed import Security

from tests.helpers.deploy_files import (
    DEPLOY,
    ROOT,
    call,
    load,
    named_files,
    normal,
    pods,
    readme,
    unmet,
    violations,
    with_settings,
)

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
