"""Operands whose dimensions have names: matched by name, and results that have the names again.

Nothing else knows of xarray. What computes is given plain arrays, laid out so that NumPy's
broadcasting by position pairs what belongs together by name.
"""

from kldiv_dask.xarray_support.names import Dims, coordinate, own_dims
from kldiv_dask.xarray_support.operands import Operands, match

__all__ = ["Dims", "Operands", "coordinate", "match", "own_dims"]
