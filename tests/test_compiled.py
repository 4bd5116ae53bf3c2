"""Kernels are compiled once, kept on disk, and work where nothing can be kept."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest

import kldiv_dask
from kldiv_dask.kernels import jit

PACKAGE = Path(kldiv_dask.__file__).parent

# Sums float32, float16 or float64 zeros and prints what had to be compiled.
JOB = """
import sys
import numpy as np
from numba.core.event import install_recorder
with install_recorder("numba:compile") as recorder:
    from kldiv_dask import partial_sum
    from kldiv_dask.kernels import pointwise, pointwise_sum
    x = np.full(1000, -1.0, sys.argv[1])
    state = partial_sum.zero()
    spec = pointwise.PointwiseSpec(x.dtype, False, False)
    pointwise_sum.add_block(state, x, np.ones_like(x), spec)
assert partial_sum.total(state).units == 1000 << 1074
print(len(recorder.buffer))
"""


@pytest.fixture
def installed(tmp_path):
    """The package, installed where no kernel has been compiled yet."""
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, site / "kldiv_dask", ignore=shutil.ignore_patterns("__pycache__"))
    return site


def environment(site):
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(site),
        "PYTHONWARNINGS": "error",
        "HOME": str(site),
    }


def start(site, dtype="float32", before=()):
    return subprocess.Popen(
        [*before, sys.executable, "-c", JOB, dtype],
        cwd=site,
        env=environment(site),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Return how many functions a process had to compile."""
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    return int(out)


def cache_files(site):
    return sorted(site.rglob("*.nb?"))


@pytest.mark.slow
def test_the_second_process_compiles_nothing(installed):
    """Unless the cache is damaged, or a kernel's source is another, which is another kernel."""
    assert finish(start(installed)) > 0
    assert len(cache_files(installed)) == 2  # an index and its data
    elsewhere = shutil.copytree(installed, installed.with_name("elsewhere"))
    again = [start(installed), start(elsewhere)]
    assert [finish(process) for process in again] == [0, 0]

    (data,) = (path for path in cache_files(elsewhere) if path.suffix == ".nbc")
    data.write_bytes(data.read_bytes()[:100])
    damaged = start(elsewhere)
    constants = installed / "kldiv_dask" / "kernels" / "elementary.py"
    constants.write_text(constants.read_text() + "\n# changed\n")
    changed = start(installed)
    assert finish(damaged) > 0
    assert finish(changed) > 0


@pytest.mark.slow
def test_a_read_only_install_without_a_home(installed):
    """HOME lies in the same tree, so there is no place at all to keep kernels."""
    if os.geteuid() == 0:  # no permission stops root, so the file system has to
        script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
        before = ["unshare", "--mount", "sh", "-c", script, str(installed)]
        if subprocess.run([*before, "true"], capture_output=True).returncode:
            pytest.skip("root may not mount a read-only file system here")
    else:
        before = []
        for folder in [installed, *installed.rglob("*/")]:
            folder.chmod(0o555)
    try:
        assert finish(start(installed, before=before)) > 0
    finally:
        for folder in [installed, *installed.rglob("*/")]:
            folder.chmod(0o755)
    assert cache_files(installed) == []


@pytest.mark.slow
def test_processes_that_start_at_once(installed):
    """They write to one cache, with kernels of three types; each sum is checked in its process."""
    dtypes = ["float32", "float16", "float64"]
    # Tests that run beside this one have clocks of their own.
    last = ("nice", "-n", "19")
    processes = [start(installed, dtypes[i % 3], before=last) for i in range(64)]
    for process in processes:
        finish(process)
    later = [start(installed, dtype) for dtype in dtypes]
    assert [finish(process) for process in later] == [0, 0, 0]


def test_threads_share_one_compilation(monkeypatch):
    count = 0
    compile_once = jit._compile

    def counting(*args):
        nonlocal count
        count += 1
        return compile_once(*args)

    monkeypatch.setattr(jit, "_compile", counting)
    monkeypatch.setattr(jit, "_kernels", {})
    signature = (numba.float64[::1],)
    kernels = []
    barrier = threading.Barrier(8)

    def ask():
        barrier.wait()
        kernels.append(jit.compiled(add_one, signature))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == 1
    assert len(set(map(id, kernels))) == 1
    values = np.zeros(3)
    kernels[0](values)
    assert values.tolist() == [1, 1, 1]


def add_one(values):
    for i in range(values.size):
        values[i] += 1


@pytest.mark.slow
def test_kernels_count_no_references(monkeypatch):
    from kldiv_dask.kernels import softmax_kl

    made = []

    def uncached(function, signature, *, cache):
        kernel = numba.njit(**jit._OPTIONS)(function)
        kernel.compile(signature)
        made.append(kernel)
        return kernel

    monkeypatch.setattr(jit, "_jit", uncached)
    monkeypatch.setattr(jit, "_kernels", {})
    logits = np.zeros((1, 2), np.float32)
    assert softmax_kl.block_divergences(logits, logits, None, np.dtype(np.float32), 1.0)[0] == 0
    for kernel in made:
        for text in kernel.inspect_asm().values():
            assert "NRT_incref" not in text
            assert "NRT_decref" not in text
    assert made


def test_all_functions_of_kernels_are_compiled_with_the_same_options():
    for path in (PACKAGE / "kernels").glob("*.py"):
        assert path.name == "jit.py" or "njit" not in path.read_text(), path
