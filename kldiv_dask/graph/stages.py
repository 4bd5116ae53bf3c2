"""The names of tasks."""

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def stage(name: str) -> Callable[[Function], Function]:
    """Name a function so that Dask names its tasks ``kl-div-<name>``.

    Dashboards cut a name at a word of eight letters that begins with one from a to f, as it may be
    a hash; so it is not "finalize".
    """

    def rename(function: Function) -> Function:
        function.__name__ = f"kl-div-{name}"
        return function

    return rename
