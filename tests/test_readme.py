"""The README tells the truth: its commands are those of CI, and its snippets run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found
    return found


def test_ci_runs_the_test_command():
    commands = [command for block in blocks("sh") for command in block.splitlines()]
    (test_command,) = [command for command in commands if command.endswith("pytest")]
    assert test_command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_main_job_prints_what_is_promised():
    (command,) = [block for block in blocks("sh") if "kldiv-dask compute" in block]
    job = shlex.split(command.split("&&")[-1])
    job[0] = str(Path(sys.executable).with_name(Path(job[0]).name))
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True, check=True)
    (promised,) = re.findall(r"It prints `(\S+)`", README)
    assert done.stdout == promised + "\n"


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_snippet_runs(number, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(blocks("python")[number], "README.md", "exec"), {})


def test_paths_exist():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert linked
    assert [path for path in linked if not (ROOT / path).exists()] == []
    listed = re.findall(r"^  (\S+)  ", README.split("## Where things are")[1], re.MULTILINE)
    assert listed
    assert [name for name in listed if not (ROOT / "kldiv_dask" / name).exists()] == []
