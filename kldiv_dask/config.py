"""The section `kldiv` of Dask's configuration: its defaults, and its values as they are used.

Importing this module puts the defaults, which are in ``kldiv.yaml``, behind what is configured.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.config
from dask.utils import parse_bytes, parse_timedelta

DEFAULTS = Path(__file__).with_name("kldiv.yaml")

dask.config.update_defaults(dask.config.collect([str(DEFAULTS)], env={}))


def size(key: str) -> int:
    """Return a size in bytes.

    Examples
    --------
    >>> import dask
    >>> with dask.config.set({"kldiv.chunk-size": "64 MiB"}):
    ...     size("chunk-size")
    67108864
    """
    value = _get(key)
    number = _number(value, parse_bytes)
    if not 1 <= number < math.inf:
        raise _refused(key, value, "a size such as '64 MiB', or a number of bytes, from 1 on")
    return int(number)


def flag(key: str) -> bool:
    """Return a choice between true and false.

    Examples
    --------
    >>> import dask
    >>> with dask.config.set({"kldiv.map-files": False}):
    ...     flag("map-files")
    False
    """
    value = _get(key)
    if not isinstance(value, bool):
        raise _refused(key, value, "true or false")
    return value


def count(key: str, least: int = 1) -> int:
    """Return a whole number.

    Examples
    --------
    >>> import dask
    >>> with dask.config.set({"kldiv.split-every": 8}):
    ...     count("split-every", least=2)
    8
    """
    value = _get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _refused(key, value, f"a whole number from {least} on")
    return value


def seconds(key: str) -> float:
    """Return a duration in seconds.

    Examples
    --------
    >>> import dask
    >>> with dask.config.set({"kldiv.evaluate.checkpoint-interval": "5 minutes"}):
    ...     seconds("evaluate.checkpoint-interval")
    300.0
    """
    value = _get(key)
    number = _number(value, parse_timedelta)
    if not 0 <= number < math.inf:
        raise _refused(key, value, "a duration such as '5 minutes', or a number of seconds")
    return number


def delays(key: str) -> list[float]:
    """Return a list of durations in seconds.

    Examples
    --------
    >>> import dask
    >>> with dask.config.set({"kldiv.retry-delays": [1, "1 minute"]}):
    ...     delays("retry-delays")
    [1.0, 60.0]
    """
    value = _get(key)
    is_list = isinstance(value, list | tuple)
    numbers = [_number(delay, parse_timedelta) for delay in value] if is_list else [math.nan]
    if not all(0 <= number < math.inf for number in numbers):
        raise _refused(key, value, "a list of durations such as [0.5, '2 s'], or [] for none")
    return numbers


def _get(key: str) -> Any:
    return dask.config.get(f"kldiv.{key}")


def _number(value: Any, parse: Callable[[str], float]) -> float:
    """Return a number, or what a string is parsed to; NaN of anything else."""
    if isinstance(value, bool) or value == "":
        return math.nan
    try:
        return float(parse(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, KeyError, OverflowError):
        return math.nan


def _refused(key: str, value: Any, accepted: str) -> ValueError:
    return ValueError(f"kldiv.{key} must be {accepted}, got {value!r}")
