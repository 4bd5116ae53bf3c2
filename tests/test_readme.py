"""The READMEs tell the truth: their commands and snippets run, as they are written."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.request
from fnmatch import fnmatch
from pathlib import Path

import pytest

import kldiv_dask

ROOT = Path(__file__).parents[1]
JUPYTER = ROOT / "deploy" / "jupyter" / "README.md"
TESTS = "pytest"  # what the command that runs them ends with


def blocks(language, path=ROOT / "README.md"):
    found = re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_ci_runs_the_test_command():
    commands = [command for block in blocks("sh") for command in block.splitlines()]
    (test_command,) = [command for command in commands if command.endswith(TESTS)]
    assert test_command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.slow
def test_the_main_job_prints_what_is_promised():
    (command,) = [block for block in blocks("sh") if "kldiv-dask compute" in block]
    job = shlex.split(command.split("&&")[-1])
    job[0] = str(Path(sys.executable).with_name(Path(job[0]).name))
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, check=True)
    (promised,) = re.findall(r"It prints `(\S+)`", (ROOT / "README.md").read_text())
    assert done.stdout == promised + "\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with the data of a checkout, in which files may be left."""
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_snippet_runs(number, folder):
    exec(compile(blocks("python")[number], "README.md", "exec"), {})


def test_paths_exist():
    text = (ROOT / "README.md").read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", text)
    linked = [path or picture for path, picture in linked]
    assert linked
    assert [path for path in linked if not (ROOT / path).exists()] == []
    assert ".github/report.png" in linked
    # Those who unpack a source distribution follow them too.
    sdist = tomllib.loads((ROOT / "pyproject.toml").read_text())
    kept = sdist["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    kept += ["/pyproject.toml", "/LICENSE"]  # which hatchling always takes
    for path in linked:
        parents = [path, *map(str, Path(path).parents)]
        assert any(fnmatch(f"/{part}", name) for part in parents for name in kept), path
    guide = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"^  (\S+)  ", guide.split("## Where things are")[1], re.MULTILINE)
    assert listed
    assert [name for name in listed if not (ROOT / "kldiv_dask" / name).exists()] == []


def test_the_table_of_functions_has_every_public_name():
    text = (ROOT / "README.md").read_text().split("## Which function for what")[1]
    table = text.strip().partition("\n\n")[0]
    assert set(kldiv_dask.__all__) <= set(re.findall(r"`(\w+)`", table))


# In a fresh checkout and environment


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is under version control, or would be."""
    copy = tmp_path_factory.mktemp("checkout") / "kldiv-dask"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, files.split("\0")):
        if (ROOT / file).exists():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, copy / file)
    return copy


def environment():
    """The variables of a user, whose shell knows of no environment of these tests."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV"}
    own = str(Path(sys.executable).parent)
    paths = [path for path in os.environ["PATH"].split(os.pathsep) if path != own]
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"PATH": os.pathsep.join(paths)}


@pytest.mark.slow
def test_every_command(checkout):
    said = re.search(r"^```text\n(mean KL .*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    printed = ""
    for block in blocks("sh"):
        if not block.rstrip().endswith(TESTS):  # which CI runs, and which has come here
            command = ["bash", "-euo", "pipefail", "-c", block]
            done = subprocess.run(
                command, cwd=checkout, env=environment(), capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            printed += done.stdout
    assert said.group(1) in printed
    made = [checkout / "report.html", *(checkout / "nightly").iterdir()]
    assert sorted(file.suffix for file in made if file.stat().st_size) == [
        ".ckpt", ".html", ".html", ".json", ".kldiv"
    ]  # fmt: skip


@pytest.mark.slow
def test_jupyter_starts_and_converts(checkout, tmp_path):
    (tmp_path / "jupyter_server_config.py").write_text(
        "c.ServerApp.allow_root = True\nc.ServerApp.open_browser = False\n"
    )
    settings = {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "run")}
    start, convert, _ = blocks("sh", JUPYTER)
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", start],
            cwd=checkout,
            env=environment() | settings,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        (address,) = wait_for(r"(http://127\.0\.0\.1:\d+/\S+)", log, process)
        with urllib.request.urlopen(address) as answer:  # noqa: S310
            assert answer.status == 200
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
    command = ["bash", "-euo", "pipefail", "-c", convert]
    subprocess.run(command, cwd=checkout, env=environment() | settings, check=True)
    assert (checkout / "analysis.html").stat().st_size > 100_000


def wait_for(pattern, log, process, seconds=600):
    """Wait for a line of a log; return what is found in it."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if found := re.findall(pattern, log.read_text()):
            return found[:1]
        time.sleep(0.5)
    raise AssertionError(log.read_text())
