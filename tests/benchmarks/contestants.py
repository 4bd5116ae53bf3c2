"""Who is compared: this library, what people use without it, and the data they are given.

The rivals are given the shortest expression that is right for positive targets, without what torch
does for zeros, infinities and NaN beside it. Sums of 16-bit terms are accumulated in float32. What
has no threads of its own is called by several, each for its part of the rows.
"""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt

from kldiv_dask import partial_sum
from kldiv_dask.kernels import pointwise, pointwise_sum
from tests.benchmarks.measurement import Array, Run, counted, in_parts
from tests.helpers.cases import dtype_of

CLASSES = 32768
NARROW = ("float16", "bfloat16")

# Bytes of a chunk where data in memory is given to Dask.
CHUNK = 16 * 2**20


class Case(NamedTuple):
    """What is computed, and by how many threads."""

    dtype: str
    log_target: bool
    reduction: str
    threads: int

    @property
    def work(self) -> str:
        """What is computed, in words."""
        return f"{self.dtype} {self.reduction}{', log target' * self.log_target}"

    def __str__(self) -> str:
        return f"{self.work}, {counted(self.threads)}"

    @property
    def accumulator(self) -> npt.DTypeLike:
        """The type that sums of terms are accumulated in."""
        return np.float32 if self.dtype in NARROW else np.dtype(self.dtype)


def log_softmax(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Return log-probabilities of random logits of unit variance, in float32 or float64.

    With 32768 classes the probabilities are about 3e-5, and the smallest is above half of the
    smallest float16, so it does not become a zero.
    """
    wide = np.float64 if dtype == "float64" else np.float32
    logits = rng.standard_normal(shape, wide)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def pair(size: int, dtype: str, log_target: bool) -> tuple[Array, Array]:
    """Return an input and a target of about `size` elements, in rows of distributions."""
    rng = np.random.default_rng(0)
    shape = (max(size // CLASSES, 2), CLASSES)
    x, t = (log_softmax(rng, shape, dtype) for _ in range(2))
    target = t if log_target else np.exp(t)
    return x.astype(dtype_of(dtype)), target.astype(dtype_of(dtype))


def in_chunks(array: Array) -> da.Array:
    """Return a Dask array of chunks of whole rows."""
    rows = max(CHUNK // (array.itemsize * array.shape[1]), 1)
    return da.from_array(array, chunks=(rows, array.shape[1]), inline_array=True)


def _this_library(case: Case, x: Array, t: Array) -> Run:
    """The function that Dask calls for each pair of chunks, and what it does with partials."""
    spec = pointwise.PointwiseSpec(x.dtype, case.log_target, False)

    def block(x: Array, t: Array) -> partial_sum.Partial:
        state = partial_sum.zero()
        pointwise_sum.add_block(state, x, t, spec)
        return state

    if case.reduction == "none":
        return in_parts(lambda x, t: pointwise.block_terms(x, t, spec), case.threads, x, t)
    blocks = in_parts(block, case.threads, x, t)
    return lambda: [
        partial_sum.quotient(
            partial_sum.total(partial_sum.merge(np.stack(blocks()), (0,))), 1, x.dtype
        )
    ]


def _torch(case: Case, x: Array, t: Array, compiled: bool) -> Run:
    import torch

    def kl_div(x: Any, t: Any) -> Any:
        return torch.nn.functional.kl_div(
            x, t, reduction=case.reduction, log_target=case.log_target
        )

    def tensor(array: Array) -> Any:
        if case.dtype == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.set_num_threads(case.threads)
    if compiled:
        torch.compiler.reset()
        kl_div = torch.compile(kl_div, dynamic=False)
    tensors = tensor(x), tensor(t)
    return lambda: [kl_div(*tensors)]


def _torch_eager(case: Case, x: Array, t: Array) -> Run:
    return _torch(case, x, t, compiled=False)


def _torch_compile(case: Case, x: Array, t: Array) -> Run:
    return _torch(case, x, t, compiled=True)


def _numpy(case: Case, x: Array, t: Array) -> Run:
    def terms(x: Array, t: Array) -> Array:
        return np.exp(t) * (t - x) if case.log_target else t * (np.log(t) - x)

    if case.reduction == "none":
        return in_parts(terms, case.threads, x, t)
    return in_parts(lambda x, t: terms(x, t).sum(dtype=case.accumulator), case.threads, x, t)


def _scipy(case: Case, x: Array, t: Array) -> Run | None:
    """SciPy has nothing for log targets that NumPy has not."""
    from scipy.special import xlogy

    if case.log_target:
        return None
    if case.reduction == "none":
        return in_parts(lambda x, t: xlogy(t, t) - t * x, case.threads, x, t)
    return in_parts(
        lambda x, t: (xlogy(t, t) - t * x).sum(dtype=case.accumulator), case.threads, x, t
    )


def _numexpr(case: Case, x: Array, t: Array) -> Run | None:
    """numexpr has no 16-bit types.

    Its own sum is not used: it takes one thread, and over 2^25 float32 terms it was 4 % off.
    """
    import numexpr

    if case.dtype in NARROW:
        return None
    numexpr.set_num_threads(case.threads)
    expression = "exp(t) * (t - x)" if case.log_target else "t * (log(t) - x)"
    if case.reduction == "none":
        return lambda: [numexpr.evaluate(expression, {"x": x, "t": t})]
    return lambda: [numexpr.evaluate(expression, {"x": x, "t": t}).sum()]


def _jax(case: Case, x: Array, t: Array) -> Run:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    @jax.jit
    def kl_div(x: Any, t: Any) -> Any:
        terms = jnp.exp(t) * (t - x) if case.log_target else t * (jnp.log(t) - x)
        return terms if case.reduction == "none" else terms.sum()

    arrays = jnp.asarray(x), jnp.asarray(t)
    return lambda: [kl_div(*arrays).block_until_ready()]


def dask_expression(log_target: bool, x: da.Array, t: da.Array) -> da.Array:
    """Return the terms as one writes them with Dask alone."""
    return da.exp(t) * (t - x) if log_target else t * (da.log(t) - x)


def _dask(case: Case, x: Array, t: Array) -> Run:
    result = dask_expression(case.log_target, in_chunks(x), in_chunks(t))
    if case.reduction == "sum":
        result = result.sum(dtype=case.accumulator)
    return lambda: [result.compute(scheduler="threads", num_workers=case.threads)]


class Contestant(NamedTuple):
    """One way to compute the divergence."""

    name: str
    package: str
    make: Callable[[Case, Array, Array], Run | None]
    """Return what to time, or None if it can't be had. Its result is a list of parts."""

    def available(self) -> bool:
        """Whether the package that it needs is installed."""
        return importlib.util.find_spec(self.package) is not None


OURS = Contestant("kldiv-dask", "kldiv_dask", _this_library)

RIVALS = (
    Contestant("torch eager", "torch", _torch_eager),
    Contestant("torch compiled", "torch", _torch_compile),
    Contestant("JAX", "jax", _jax),
    Contestant("NumPy", "numpy", _numpy),
    Contestant("SciPy", "scipy", _scipy),
    Contestant("numexpr", "numexpr", _numexpr),
    Contestant("Dask", "dask", _dask),
)
