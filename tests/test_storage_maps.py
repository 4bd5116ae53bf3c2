"""Files that change while they are mapped, and files that are read without maps."""

import os
import subprocess
import sys

import dask
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from kldiv_dask import evaluate, kl_div, kl_div_with_logits, open_array, open_pair
from kldiv_dask.cli import main
from kldiv_dask.evaluation import EvaluationError
from tests.helpers import llama_base
from tests.helpers.cases import some_slow
from tests.helpers.stores import VALUES, date_later, write

ROWS = np.random.default_rng(0).normal(size=(400, 1000)).astype("f4")


@pytest.fixture(autouse=True)
def at_once():
    with dask.config.set({"kldiv.retry-delays": []}):
        yield


def base_file(path):
    llama_base.write(path, ROWS[:14].reshape(2, 7, 1000), np.zeros((2, 16)))


WRITERS = {
    "x.npy": lambda path: np.save(path, ROWS),
    "x.safetensors": lambda path: save_file({"x": ROWS}, path),
    "base": base_file,
}


# What is read without maps


@pytest.mark.parametrize("name", some_slow(*WRITERS))
def test_values_without_maps_are_those_with_them(tmp_path, name):
    WRITERS[name](tmp_path / name)
    wanted = open_array(tmp_path / name).compute()
    with dask.config.set({"kldiv.map-files": False}):
        x = open_array(tmp_path / name, chunks=(3, *[500] * (wanted.ndim - 1)))
    # What was in force when the array was opened counts, wherever it is read.
    found = x.compute(scheduler="processes", num_workers=1)
    assert np.array_equal(found, wanted)
    assert np.array_equal(x[1, 2:6:3].compute(), wanted[1, 2:6:3])


@pytest.mark.parametrize("dtype", ["?", ">f4", "<f8", "f2"])
@pytest.mark.parametrize("order", "CF")
def test_any_region_without_maps(tmp_path, order, dtype):
    values = (np.arange(7 * 30 * 400) % 2039).reshape(7, 30, 400).astype(dtype)
    np.save(tmp_path / "x.npy", np.asarray(values, order=order))
    with dask.config.set({"kldiv.map-files": False}):
        x = open_array(tmp_path / "x.npy", chunks=-1)
    for index in (
        (slice(2, 5),),
        (slice(None), slice(3, 9), slice(7, 8)),
        (3, slice(0, 30, 7), slice(5, 390)),
        (slice(1, 2), 4, 399),
        (6, 29, 399),
        (slice(3, 3), 0),
        (slice(0, 7, 2), slice(None), 11),
    ):
        assert np.array_equal(x[index].compute(), values[index])


def test_chunks_without_maps_do_not_follow_the_file(tmp_path):
    path, _ = write(tmp_path, "npy-C", VALUES)
    with dask.config.set({"kldiv.map-files": False}):
        chunk = open_array(path).compute()
    with open(path, "r+b") as file:
        file.truncate(200)
    assert np.array_equal(chunk, VALUES)


# A file is cut short between the check and the use


CUT = """
import os, sys
import dask
from kldiv_dask import open_array
from kldiv_dask.storage import mapped
path = sys.argv[1]
with dask.config.set({"kldiv.map-files": False, "kldiv.retry-delays": []}):
    x = open_array(path)
    real = mapped.check_unchanged
    checks = iter(range(100))
    def check_and_cut(*arguments):
        real(*arguments)
        if next(checks) == int(sys.argv[2]):
            os.truncate(path, 5000)
    held = x.persist(scheduler="sync")  # keeps the map, if there is one
    mapped.check_unchanged = check_and_cut
    try:
        x.sum().compute(scheduler="sync")
    except Exception as error:
        print(type(error).__name__, error)
    print("alive")
"""


@pytest.mark.parametrize("name", some_slow(*WRITERS))
def test_a_file_that_is_cut_after_the_check_leaves_the_process_alive(tmp_path, name):
    WRITERS[name](tmp_path / name)
    # The last one before a use: rows of base files come after their heads.
    last = "2" if name == "base" else "0"
    command = [sys.executable, "-c", CUT, str(tmp_path / name), last]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    error, alive = done.stdout.splitlines()
    assert error.startswith(f"ChunkReadError {tmp_path / name}")
    assert "the file ends at byte 5000 of" in error or "has 5000 bytes, it had" in error
    assert alive == "alive"


@pytest.mark.parametrize("command", ["compute", "evaluate"])
def test_the_commands_heed_the_configuration(tmp_path, command):
    path = str(tmp_path / "x.npy")
    np.save(path, ROWS[:10])
    with dask.config.set({"kldiv.map-files": "maybe"}):
        found = CliRunner().invoke(main, [command, path, path])
    assert found.exit_code == 2
    assert found.stderr == "Error: kldiv.map-files must be true or false, got 'maybe'\n"


# A file is written between the check and the use


@pytest.mark.parametrize(
    "use",
    [
        lambda x, t: kl_div(x, t, reduction="sum"),
        lambda x, t: kl_div(x, t, reduction="none"),
        lambda x, t: kl_div(x, t, reduction="sum", axis=1),
        kl_div_with_logits,
        lambda x, t: evaluate(x, t, progress=False),
        lambda x, t: evaluate(x[:, :900], t[:, :900], progress=False),
    ],
)
def test_what_was_written_meanwhile_is_an_error(tmp_path, use):
    paths = [tmp_path / f"{name}.npy" for name in "qp"]
    for path in paths:
        np.save(path, ROWS)
    pair = dask.persist(*open_pair(*paths), scheduler="sync")  # views, of which no page was read
    date_later(paths[1])
    message = rf"{paths[1]} was changed while it was read: the file was written at"
    with pytest.raises((ValueError, EvaluationError), match=message):
        dask.compute(use(*pair))


def test_maps_that_are_not_changed_are_no_error(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    (x,) = dask.persist(open_array(tmp_path / "x.npy"), scheduler="sync")
    assert kl_div_with_logits(x, x).compute() == 0
    os.remove(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"x\.npy was changed while it was read: .*No such file"):
        kl_div_with_logits(x, x).compute()
