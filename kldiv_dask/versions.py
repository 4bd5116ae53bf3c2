"""What must be equal for results to go together: between runs, and between a client and workers."""

from importlib.metadata import version
from typing import Any

# The number of the bits that the kernels give. Whatever changes a bit of a result raises it, and a
# test tells when. Results and checkpoints carry it; what has another is not merged or gone on with.
REVISION = 1

# The number of the layout of a result and a checkpoint; files of another are refused. A test tells
# when to raise it.
# 1: the first. 2: checks of what data look like, fingerprints, and the boxes that are done.
# 3: finite and infinite divergences apart, and labels where only one model has a finite number.
LAYOUT = 3


def installed() -> dict[str, str]:
    """Return what is installed here, of what decides on bits and on what is sent.

    Examples
    --------
    >>> installed()["bits"]
    'revision 1'
    """
    return {
        "bits": f"revision {REVISION}",
        "states": f"layout {LAYOUT}",
        # Arrays that one major version pickles may not be read by the other.
        "numpy": version("numpy").split(".")[0],
        # Its minor versions bring other compilers.
        "numba": ".".join(version("numba").split(".")[:2]),
    }


def check_workers(client: Any) -> None:
    """Refuse a cluster of which a worker has other versions, where they matter.

    Raises
    ------
    ImportError
        The first worker that differs is named, and in what.
    """
    expected = installed()
    for worker, reply in client.run(installed, on_error="return").items():
        if isinstance(reply, OSError):
            continue  # it has left before it could answer
        if isinstance(reply, Exception):  # one from before there was this function
            raise ImportError(
                f"worker {worker} has another version of kldiv_dask than this process: {reply}; "
                "install the same on all of them"
            )
        for name, wanted in expected.items():
            if reply[name] != wanted:
                what = "kldiv_dask" if name in ("bits", "states") else name
                raise ImportError(
                    f"worker {worker} must have {what} with {name} {wanted}, got {reply[name]}; "
                    f"install the same {what} on the client and all workers"
                )
