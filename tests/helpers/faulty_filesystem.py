"""A file system for URLs that begin faulty://: local files, but slow, and with faults on demand.

A fault is a file in the folder that `FAULTS` names, called after the chunk it is for: the next read
of that chunk removes it and fails, or takes far too much memory, as the file says. `install` makes
it a plugin of fsspec, which finds it in every process that has the plugin's folder on its path.
"""

import os
import time
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

FAULTS = "KLDIV_FAULTS"
SECONDS = "KLDIV_SECONDS"  # that every read takes

ERROR, MEMORY = "error", "memory"


class FaultyFileSystem(LocalFileSystem):  # type: ignore[misc]
    protocol = "faulty"

    @classmethod
    def _strip_protocol(cls, path: str) -> Any:
        return super()._strip_protocol(path.removeprefix("faulty://"))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> Any:
        time.sleep(float(os.environ[SECONDS]))
        for fault in pending(os.environ[FAULTS], chunk=Path(path)):
            kind = fault.read_text()
            fault.unlink()
            if kind == ERROR:
                raise OSError(5, "Input/output error", path)
            held = b"x" * 2**29
            time.sleep(20)  # the nanny looks ten times a second
            del held
        return super().cat_file(path, start, end, **kwargs)


def place(folder: str | Path, chunk: Path, kind: str, times: int) -> None:
    """Let the next reads of a chunk, such as x.zarr/c/0/0, meet a fault."""
    for number in range(times):
        (Path(folder) / f"{'-'.join(chunk.parts[-4:])}.{number}").write_text(kind)


def pending(folder: str | Path, chunk: Path) -> list[Path]:
    """Faults that a chunk has yet to meet."""
    return sorted(Path(folder).glob(f"{'-'.join(chunk.parts[-4:])}.*"))


def install(folder: Path) -> None:
    """Leave what pip would leave of a package with the plugin."""
    info = folder / "faulty-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[fsspec.specs]\nfaulty = tests.helpers.faulty_filesystem:FaultyFileSystem\n"
    )
