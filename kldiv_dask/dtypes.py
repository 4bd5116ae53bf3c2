"""The floating types that numbers can have, and what each module knows of them.

To add a type that numbers are stored in, add a row here, and its decoding to
`kernels.stored_floats` unless kernels compute with it as it is.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from kldiv_dask.extras import require

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class FloatType(NamedTuple):
    """A binary floating-point type."""

    name: str
    """As NumPy and torch call it."""
    bits: int
    precision: int
    """Bits of its significand, with the leading one, which is not stored."""
    lowest: int
    """The smallest number above 0 is 2 to the power of this."""
    safetensors: str
    """What ``.safetensors`` files call it."""
    pattern: str
    """The integers that kernels take its bits as; '' if Numba knows the type they meet."""
    in_numpy: bool
    """Whether NumPy has it; if not, ml_dtypes has."""
    is_result: bool
    """Whether results can have it. Operands can have any."""
    read_as: str = ""
    """What numbers of it become as soon as they are read; '' if they stay as they are."""


TABLE = {
    row.name: row
    for row in (
        FloatType("float8_e4m3fn", 8, 4, -9, "F8_E4M3", "u1", in_numpy=False, is_result=False),
        # Distributed can't move arrays of this type: NumPy does not read what its `str` is. A
        # serializer of ours would have to be in workers before they import this package.
        FloatType("float8_e5m2", 8, 3, -16, "F8_E5M2", "", False, False, read_as="float32"),
        FloatType("float16", 16, 11, -24, "F16", "u2", in_numpy=True, is_result=True),
        FloatType("bfloat16", 16, 8, -133, "BF16", "i2", in_numpy=False, is_result=True),
        FloatType("float32", 32, 24, -149, "F32", "", in_numpy=True, is_result=True),
        FloatType("float64", 64, 53, -1074, "F64", "", in_numpy=True, is_result=True),
    )
}

# What operands can have, and what results can.
OPERANDS = tuple(TABLE)
RESULTS = tuple(row.name for row in TABLE.values() if row.is_result)


def dtype_called(name: str, needed_by: str = "") -> "np.dtype[Any]":
    """Return the type of the table that has a name; `needed_by` is what an error says needs it.

    Raises
    ------
    ImportError
        If it is one of ml_dtypes, which is not installed.
    """
    import numpy as np

    if TABLE[name].in_numpy:
        return np.dtype(name)
    package = require("ml_dtypes", "bfloat16", needed_by or f"dtype {name}")
    dtype: np.dtype[Any] = np.dtype(getattr(package, name))
    return dtype


def dtype_read(dtype: "np.dtype[Any]") -> "np.dtype[Any]":
    """Return the type that numbers of a type become as soon as they are read."""
    row = TABLE.get(dtype.name)
    return dtype_called(row.read_as) if row is not None and row.read_as else dtype


def named_dtype(dtype: "npt.DTypeLike") -> "np.dtype[Any]":
    """Return what `numpy.dtype` does, and of names in the table those it doesn't know too."""
    import numpy as np

    return dtype_called(dtype) if isinstance(dtype, str) and dtype in TABLE else np.dtype(dtype)
