"""Compile a kernel for one signature: once a process, and kept on disk for the next process.

Numba's disk cache is used in a way that leaves nothing to races. It numbers the files of one
function, so that two processes which add *different* signatures at once may exchange them. Here
every combination of signature, processor and kernel source is a function of its own name, so
whatever two processes write to one file is the same. Where no cache directory is writable, or the
disk is full, kernels are compiled in memory.
"""

import functools
import hashlib
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba

Kernel = Callable[..., Any]

# Numba counts references to every array and slice that a function is given, with atomic operations:
# a quarter of the time of a comparison of positions. The caller holds all arrays of a kernel, so
# nothing of this is needed; what it takes away is allocating in a kernel.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}

# Decorators of what kernels are made of.
inner_function = numba.njit(**_OPTIONS)
inlined_function = numba.njit(**_OPTIONS, inline="always")

_kernels: dict[tuple[Kernel, Any], Kernel] = {}
_lock = threading.Lock()


def compiled(function: Kernel, signature: tuple[Any, ...]) -> Kernel:
    """Return a plain function compiled for one signature.

    Threads that ask for the same kernel wait for one compilation.

    Parameters
    ----------
    function : function
        At module level and without a closure.
    signature : tuple of numba.types.Type
        The types of its arguments.

    Returns
    -------
    callable
        Releases the GIL while it runs.
    """
    key = (function, signature)
    if key not in _kernels:
        with _lock:
            if key not in _kernels:
                _kernels[key] = _compile(function, signature)
    return _kernels[key]


def _compile(function: Kernel, signature: tuple[Any, ...]) -> Kernel:
    digest = hashlib.sha256(f"{_environment()} {signature}".encode()).hexdigest()[:16]
    named = types.FunctionType(function.__code__, function.__globals__)
    named.__qualname__ = f"{function.__qualname__}-{digest}"
    try:
        return _jit(named, signature, cache=True)
    except Exception:
        # No directory to write to, a full disk, a damaged file: the cache is never needed. What
        # has nothing to do with it fails again.
        return _jit(named, signature, cache=False)


def _jit(function: Kernel, signature: tuple[Any, ...], *, cache: bool) -> Kernel:
    dispatcher: Any = numba.njit(**_OPTIONS, cache=cache)(function)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    kernel: Kernel = dispatcher
    return kernel


@functools.cache
def _environment() -> str:
    """Return what else the machine code depends on: the processor, and every kernel's source."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source.update(path.read_bytes())
    processor = (
        numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
        numba.config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten(),
    )
    return f"{source.hexdigest()} {processor} {numba.__version__}"
