"""The same small array, stored in every way the library opens."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

KINDS = ["npy-C", "npy-F", "zarr2", "zarr3", "raw", "sharded", "group", "file", "memory"]
ZARR_FILES = ["zarr2", "zarr3", "raw", "sharded", "group"]
VALUES = np.arange(60.0).reshape(10, 6) + 1


def write(
    folder: Path,
    kind: str,
    values: npt.ArrayLike,
    chunks: tuple[int, ...] | None = None,
    name: str = "scores",
) -> tuple[str, str | None]:
    """Store an array; return the path and key to open it with."""
    values = np.asarray(values)
    path, key = str(folder / f"{name}.{'npy' if kind.startswith('npy') else 'zarr'}"), None
    if kind.startswith("npy"):
        np.save(path, np.asarray(values, order="F" if kind == "npy-F" else "C"))
        return path, key
    if kind == "memory":
        path = f"memory:/{path}"
    if kind == "group":
        key = "deep/scores"
    options: dict[str, Any] = {"chunks": chunks or values.shape}
    options["zarr_format"] = 2 if kind == "zarr2" else 3
    if kind == "sharded":
        options["shards"] = options["chunks"]
        options["chunks"] = (1,) * values.ndim
    if kind == "raw":
        options["compressors"] = None
    array = zarr.create_array(path, name=key, data=values, overwrite=True, **options)
    assert array.shape == values.shape
    return (f"file://{path}" if kind == "file" else path), key


def date_later(path: str | Path) -> None:
    """Have been written a second later: file systems may not tell milliseconds apart."""
    for file in (Path(path), *Path(path).rglob("*")):
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def chunk_files(path: str | Path) -> list[Path]:
    """Files below a local store that hold data rather than metadata, in order."""
    files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    chunks = [file for file in files if file.name[-1].isdigit()]
    assert len(chunks) == 6
    return chunks


@contextmanager
def served(folder: Path, *, lists: bool = True) -> Iterator[str]:
    """Serve a folder by HTTP, with or without listings of its folders; give its URL."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def list_directory(self, path: Any) -> Any:
            return super().list_directory(path) if lists else self.send_error(403)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
