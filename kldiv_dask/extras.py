"""Optional packages: what is said where one is not installed."""

import importlib
from typing import Any


def require(module: str, extra: str, what: str) -> Any:
    """Import an optional package that `what` needs, or say which extra of this one installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{what} needs the package {module}: pip install "kldiv-dask[{extra}]"'
        ) from error
