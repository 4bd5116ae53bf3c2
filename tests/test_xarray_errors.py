"""What is said of DataArrays that do not go together, and of what is none."""

import re

import dask
import dask.array as da
import numpy as np
import pytest

from kldiv_dask import evaluate, kl_div, kl_div_summary, kl_div_with_logits
from tests.helpers.cases import log_probabilities, probabilities

xr = pytest.importorskip("xarray")

pytestmark = pytest.mark.filterwarnings("ignore:reduction='mean' divides:UserWarning")

without_expressions = pytest.mark.skipif(
    bool(dask.config.get("array.query-planning", None)), reason="not in Dask's array expressions"
)

rng = np.random.default_rng(11)
DIMS = ("doc", "token", "class")
X = log_probabilities(rng, (4, 3, 5), np.float64)
T = probabilities(rng, (4, 3, 5), np.float64)
MASK = np.ones((4, 3), bool)
COORDS = {
    "doc": list("abcd"),
    "token": [10, 20, 30],
    "class_name": ("class", list("vwxyz")),
    "run": 7,
}
BATCH = xr.DataArray(da.from_array(X, chunks=(2, 3, 5)), dims=DIMS, coords=COORDS)
OTHER = xr.DataArray(T, dims=DIMS, coords=COORDS).transpose("class", "doc", "token")
PAGES = BATCH.drop_vars("doc").assign_coords(page=("doc", [1, 2, 3, 4])).set_xindex("page")
QUIET = {"progress": False}

ERRORS = {
    "dim must be None where neither input nor target is a DataArray, got 'class'; use axis": (
        lambda: kl_div(X, T, dim="class"),
        lambda: kl_div_with_logits(X, T, dim="class"),
        lambda: evaluate(X, T, dim="class", **QUIET),
    ),
    "dim or axis must be given, not both, got 'class' and 2": (
        lambda: kl_div(BATCH, T, reduction="sum", dim="class", axis=2),
        lambda: kl_div_with_logits(BATCH, T, dim="class", axis=2),
    ),
    "dim is 'clas'; the dimensions of the operands are 'doc', 'token', 'class'": (
        lambda: kl_div(BATCH, T, reduction="sum", dim="clas"),
        lambda: kl_div_with_logits(BATCH, T, dim="clas"),
    ),
    "dim is ('class', 'doc'); the dimensions of the operands are 'doc', 'token', 'class'": (
        lambda: kl_div_with_logits(BATCH, T, dim=("class", "doc")),
    ),
    "dim is ['class']; the dimensions of the operands are 'doc', 'token', 'class'": (
        lambda: kl_div_with_logits(BATCH, T, dim=["class"]),
    ),
    "axis must name each axis once, got (-1, 2)": (
        lambda: kl_div(BATCH, T, reduction="sum", axis=(-1, 2)),
    ),
    "dim is ('doc', 'doc'), which names a dimension twice": (
        lambda: kl_div(BATCH, T, reduction="sum", dim=("doc", "doc")),
    ),
    "dim is 'doc' with reduction='batchmean'; it is for 'sum' and 'mean'": (
        lambda: kl_div(BATCH, T, reduction="batchmean", dim="doc"),
    ),
    "axis -1 is 'class' of input and 'token' of target; give its name as dim, or transpose one of"
    " them": (
        lambda: kl_div(BATCH, OTHER, reduction="sum", axis=-1),
        lambda: kl_div_with_logits(BATCH, OTHER),
    ),
    "axis 3 is out of bounds for array of dimension 3": (
        lambda: kl_div(BATCH, OTHER, reduction="sum", axis=3),
    ),
    "target must have the dimension of the classes, 'class', got 'doc', 'token'": (
        lambda: kl_div_with_logits(BATCH, OTHER[0], dim="class"),
    ),
    "target must be as long as input along 'doc', 4, got 3": (
        lambda: kl_div(BATCH, OTHER.drop_vars("doc")[:, :3]),
    ),
    "target must have the labels of input along 'token', in the same order, got others; use "
    "xarray.align or reindex_like": (
        lambda: kl_div(BATCH, OTHER.assign_coords(token=[10, 20, 31])),
        lambda: kl_div(BATCH, OTHER.isel(token=[1, 0, 2])),
    ),
    "target must have the labels of input along 'page', in the same order, got others;": (
        lambda: kl_div(PAGES, PAGES[::-1]),
        lambda: kl_div_summary(PAGES, PAGES[::-1]),
    ),
    "where must have the labels of input along 'doc'": (
        lambda: kl_div(BATCH, T, where=BATCH[::-1] < 0),
    ),
    "where must have dimensions out of 'doc', 'token', got 'doc', 'token', 'class'": (
        lambda: kl_div_with_logits(BATCH, T, where=BATCH < 0),
    ),
    "where must be a DataArray, as the dimensions of input and target are not in one order, got a"
    " plain array": (
        lambda: kl_div(BATCH, OTHER, where=MASK),
        lambda: kl_div_with_logits(BATCH[0], BATCH, where=MASK),
    ),
    "target must be a DataArray, or a plain array with at most the axes 'doc', 'token', 'class' of"
    " lengths (1, 3, 5), got one of shape (4, 3, 5)": (
        lambda: kl_div(BATCH[:1], T, reduction="none"),
        lambda: evaluate(BATCH[:1], T, **QUIET),
    ),
    "target must be a DataArray, or a plain array with at most the axes 'doc', 'token', 'class' of"
    " lengths (4, 3, 5), got one of shape (1, 4, 3, 5)": (lambda: kl_div(BATCH, T[None]),),
    "where must be a DataArray, or a plain array with at most the axes 'doc', 'token' of lengths"
    " (4, 3), got one of shape (1, 4, 3)": (
        lambda: kl_div_with_logits(BATCH, T, where=MASK[None]),
    ),
    "input of shape (4, 3, 5) and target of shape (3, 3, 5) do not broadcast together": (
        lambda: kl_div(BATCH, T[:3]),
    ),
    "groups must be a coordinate of input or target, 'doc', 'token', 'class_name', 'run', an array,"
    " or a file as pathlib.Path, got 'lang'": (lambda: evaluate(BATCH, T, groups="lang", **QUIET),),
    "groups is 'run', a coordinate that differs between input and target": (
        lambda: evaluate(BATCH, BATCH.assign_coords(run=8), groups="run", **QUIET),
    ),
    "groups must have dimensions out of 'doc', 'token', got 'class'": (
        lambda: evaluate(BATCH, T, groups="class_name", **QUIET),
    ),
    "cluster_axis is 'class'; the positions have 'doc', 'token'": (
        lambda: evaluate(BATCH, T, cluster_axis="class", **QUIET),
    ),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors(text):
    for call in ERRORS[text]:
        with pytest.raises(ValueError, match=re.escape(text)):
            call()


def test_the_classes_have_to_be_named_or_numbered():
    for call in (kl_div_with_logits, evaluate):
        with pytest.raises(
            TypeError, match="axis must be an integer, the axis of the classes, got None"
        ):
            call(BATCH, OTHER, axis=None)


def test_names_that_come_twice_are_refused():
    with pytest.warns(UserWarning, match="Duplicate dimension names"):
        twice = xr.DataArray(X[:3, :3], dims=("doc", "doc", "class"))
    for call in (kl_div, evaluate):
        with pytest.raises(ValueError, match=r"input has the dimensions .*, one of them twice"):
            call(twice, twice)


def test_other_labeled_objects_are_refused():
    dataset = BATCH.to_dataset(name="logits")
    text = "got a Dataset; pick a variable, as dataset['logits'] does"
    for call in (kl_div, kl_div_with_logits, kl_div_summary, evaluate):
        for name, pair in (
            ("input", (dataset, T)),
            ("target", (BATCH, dataset)),
            ("target", (X, dataset)),
        ):
            with pytest.raises(TypeError, match=re.escape(f"{name} must be a DataArray, {text}")):
                call(*pair)
    with pytest.raises(TypeError, match=re.escape(f"where must be a DataArray, {text}")):
        kl_div(X, T, where=dataset < 0)
    with pytest.raises(
        TypeError,
        match=re.escape(f"input must be a DataArray, {text.replace('Dataset', 'Variable')}"),
    ):
        kl_div(BATCH.variable, T)


@without_expressions
def test_unknown_chunk_sizes_are_refused():
    rows = da.from_array(X, chunks=(2, 3, 5))
    rows = rows[rows[:, 0, 0] < 0]
    with pytest.raises(ValueError, match="input has unknown chunk sizes along 'doc'; call compute"):
        kl_div(xr.DataArray(rows, dims=DIMS), T)
