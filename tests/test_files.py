"""Files that are written whole, by one run at a time, to whatever name they are given."""

import json
import multiprocessing
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from kldiv_dask import Evaluation, EvaluationWarning, evaluate
from kldiv_dask.evaluation import files
from tests.helpers.cases import slow_unless
from tests.helpers.resumable import go, load, positions_of

LONGEST = 255


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names():
    return sorted(os.listdir())


# Writing


def test_a_file_keeps_its_permissions_and_a_new_one_gets_those_of_any_file():
    Path("old").write_bytes(b"before")
    os.chmod("old", 0o640)
    Path("any").touch()
    for name in ("old", "new"):
        files.write(name, b"after")
        assert Path(name).read_bytes() == b"after"
    modes = {name: stat.S_IMODE(os.stat(name).st_mode) for name in ("old", "new", "any")}
    assert modes == {"old": 0o640, "new": modes["any"], "any": modes["any"]}
    assert names() == ["any", "new", "old"]


def test_a_link_stays_a_link():
    os.mkdir("far")
    Path("far/result").write_bytes(b"before")
    os.symlink("far/result", "result")
    os.symlink("far/nothing yet", "dangling")
    for name, target in (("result", "far/result"), ("dangling", "far/nothing yet")):
        files.write(name, b"after")
        assert os.readlink(name) == target
        assert Path(target).read_bytes() == b"after"
    assert names() == ["dangling", "far", "result"]
    assert sorted(os.listdir("far")) == ["nothing yet", "result"]


def test_no_link_at_a_temporary_name_is_followed(monkeypatch):
    """Nobody can lay out a link to another's file, even one who guesses the name."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "guessed")
    Path("precious").write_bytes(b"precious")
    os.symlink("precious", files._beside(Path("result").absolute(), "guessed.part"))
    with pytest.raises(FileExistsError):
        files.write("result", b"result")
    assert Path("precious").read_bytes() == b"precious"


def write_often(content):
    for _ in range(60):
        files.write("shared", content)


def test_two_writers_at_once():
    contents = [bytes([number]) * 100_000 for number in range(2)]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if os.path.exists("shared"):
            seen.add(Path("shared").read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= set(contents)
    assert names() == ["shared"]


@pytest.mark.parametrize("name", ["n" * LONGEST, "ü" * (LONGEST // 2)])
def test_names_as_long_as_can_be(name):
    files.check(name, "--json")
    with files.locked(Path(name).absolute()):
        files.write(name, b"1")
    assert names() == [name]
    with pytest.raises(ValueError, match=r"^--json must be a file, got 'nn+n': File name too long"):
        files.check("n" * (LONGEST + 1), "--json")


def test_what_is_no_regular_file_is_written_to():
    os.mkfifo("pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append(Path("pipe").read_bytes()))
    thread.start()
    files.write("pipe", b"through the pipe")
    thread.join()
    assert read == [b"through the pipe"]
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    with pytest.raises(OSError, match="No space left on device"):
        files.write("/dev/full", b"much")


# Locks


def test_a_second_run_with_one_checkpoint_is_refused_and_the_first_one_named(undisturbed):
    """In another process, in this one, and by another name of the file."""
    os.symlink("run", "link")
    holder = f"process {os.getpid()} on .*, since 20"
    said = []

    def second():
        program = (
            "from tests.helpers.resumable import go\n"
            f"import os; os.chdir({os.getcwd()!r}); go('run')"
        )
        command = [sys.executable, "-c", program]
        root = Path(__file__).parent.parent
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        said.append(done.stderr)
        for name in ("run", "link"):
            with pytest.raises(BlockingIOError) as error:
                go(name)
            said.append(str(error.value))

    calls = iter(range(1000))
    result = go("run", before=lambda: second() if next(calls) == 5 else None)
    assert result.state.bins.keys.tolist() == undisturbed.bins.keys.tolist()
    assert len(said) == 3
    for message in said:
        assert re.search(rf"(run|link) is in use by {holder}.*; wait until it ends", message)
    assert names() == ["link", "run"]


def test_what_a_killed_run_leaves_holds_up_no_other():
    target = Path("run").absolute()
    for ending in ("lock", "1234.part"):
        files._beside(target, ending).write_text("process 1 on earth")
    other = files._beside(target.with_name("run.2"), "1234.part")
    other.touch()
    go("run")
    assert names() == sorted([other.name, "run"])


# Checkpoints that can't be written


@pytest.fixture(scope="module")
def undisturbed():
    return go().state


def test_a_checkpoint_that_can_never_be_written_costs_no_result(undisturbed):
    os.mkdir("folder")
    calls = iter(range(1000))

    def lose():
        if next(calls) == 5:
            for name in os.listdir("folder"):
                os.remove(f"folder/{name}")
            os.rmdir("folder")

    with pytest.warns(EvaluationWarning) as said:
        result = go("folder/run", before=lose)
    assert result.to_dict()["overall"]["sum"] == go().overall.sum
    messages = {str(one.message) for one in said}
    for end in ("the run goes on, and tries again in 0 s", "what was done since .* is in no file"):
        wanted = rf"checkpoint /.*/folder/run could not be written: .*No such file.*; {end}"
        assert any(re.fullmatch(wanted, one) for one in messages), end
    assert names() == []


def test_a_checkpoint_that_can_be_written_again_is(undisturbed):
    os.mkdir("folder")
    calls = iter(range(1000))

    def away_and_back():
        call = next(calls)
        if call == 5:
            os.rename("folder", "away")
        if call == 9:
            os.rename("away", "folder")

    with pytest.warns(EvaluationWarning, match="goes on, and tries again") as said:
        go("folder/run", before=away_and_back)
    assert {str(one.message).rpartition("; ")[2] for one in said} == {
        "the run goes on, and tries again in 0 s"
    }
    assert positions_of(load(Path("folder/run"))[0]) == 24 * 3
    assert os.listdir("folder") == ["run"]


# The command


@pytest.fixture
def pair():
    values = np.random.default_rng(0).normal(size=(2, 3, 4))
    for name, array in zip(("x.npy", "t.npy"), values, strict=True):
        np.save(name, array)
    return "x.npy", "t.npy"


def command(*arguments, redirected=""):
    line = f'exec "$0" -c "from kldiv_dask.cli import main; main()" evaluate "$@" {redirected}'
    options = ["--workers", "1", "--threads", "1"]
    return subprocess.run(
        ["bash", "-c", line, sys.executable, *arguments, *options],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )


@pytest.mark.parametrize(
    ("name", "redirected"),
    slow_unless(
        [("/dev/stdout", "> out")],
        [("-", ""), ("/dev/stdout", ""), ("link", ""), ("/dev/stdout", "> out"), ("-", ">> out")],
    ),
)
def test_json_on_the_standard_output_is_all_that_is_there(pair, name, redirected):
    os.symlink("/dev/stdout", "link")
    done = command(*pair, "--json", name, redirected=redirected)
    assert (done.returncode, done.stderr) == (0, b"")
    text = Path("out").read_bytes() if redirected else done.stdout
    assert json.loads(text)["overall"]["count"] == 3
    assert os.readlink("link") == "/dev/stdout"
    assert stat.S_ISREG(os.stat("out").st_mode) if redirected else "out" not in names()


@pytest.mark.slow
def test_a_result_that_cannot_be_saved_is_printed_and_written_elsewhere(pair):
    done = command(*pair, "--save", "/dev/full", "--json", "a.json")
    assert done.returncode == 1
    assert b"mean KL" in done.stdout
    assert done.stderr.startswith(b"Error: --save /dev/full could not be written: ")
    assert b"No space left on device" in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert json.loads(Path("a.json").read_bytes())["overall"]["count"] == 3


def test_saving_from_python_follows_the_same_rules(pair):
    result = evaluate(*pair, progress=False, scheduler="sync")
    os.symlink("far", "link")
    result.save("link")
    assert Evaluation.load("far").overall == result.overall
    assert names() == ["far", "link", "t.npy", "x.npy"]
