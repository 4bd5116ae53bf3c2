"""CF attributes: what stands for no value is NaN, and packed numbers are refused."""

import base64
import importlib.util
import struct

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

from kldiv_dask import kl_div
from kldiv_dask.storage import open_array, open_pair

HOLES = np.array([[1.0, -9999.9, 3.0], [np.nan, 5.0, -9999.9], [-np.inf, 0.0, 1e20]])

ENCODINGS = {
    "none": {},
    "NaN": {"_FillValue": np.nan},
    "fill": {"_FillValue": -9999.9},
    "missing": {"missing_value": -9999.9},
    "both": {"_FillValue": -9999.9, "missing_value": -9999.9},
    "zero": {"_FillValue": 0.0},
    "infinite": {"_FillValue": -np.inf},
    "large": {"_FillValue": 1e20},
}


def same(x, y):
    return (x.dtype, x.shape) == (y.dtype, y.shape) and np.array_equal(x, y, equal_nan=True)


def dataset(values):
    return xr.Dataset({"x": (("row", "class"), values)})


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_as_xarray_reads_what_it_wrote_to_zarr(tmp_path, zarr_format, dtype, encoding):
    path = tmp_path / "x.zarr"
    with np.errstate(over="ignore"):
        values = HOLES.astype(dtype)
        dataset(values).to_zarr(
            path,
            zarr_format=zarr_format,
            encoding={"x": ENCODINGS[encoding] | {"chunks": (2, 2)}},
            consolidated=False,
        )
        with xr.open_zarr(path, consolidated=False, chunks=None) as opened:
            wanted = opened["x"].values
    # A number beyond the range of float16 is infinite in the attribute that xarray writes there.
    assert same(open_array(path, key="x").compute(), wanted)
    assert same(open_array(path / "x", chunks=1).compute(), wanted)


HDF5 = [
    pytest.param(
        True,
        marks=pytest.mark.skipif(
            importlib.util.find_spec("h5netcdf") is None, reason="h5netcdf is not installed"
        ),
        id="h5netcdf",
    ),
    pytest.param(False, id="h5py"),
]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("netcdf", HDF5)
def test_hdf5(tmp_path, netcdf, dtype, encoding):
    """By xarray, or by hand what it writes: arrays of one element in the type of the dataset."""
    path, values = tmp_path / "x.h5", HOLES.astype(dtype)
    if netcdf:
        dataset(values).to_netcdf(path, engine="h5netcdf", encoding={"x": ENCODINGS[encoding]})
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            wanted = opened["x"].values
    else:
        wanted = values.copy()
        with h5py.File(path, "w") as file:
            file["x"] = values
            for name, value in ENCODINGS[encoding].items():
                file["x"].attrs[name] = np.array([value], dtype)
                wanted[values == values.dtype.type(value)] = np.nan
    for chunks in None, 1:
        assert same(open_array(path, key="x", chunks=chunks).compute(), wanted)


PACKED = base64.b64encode(struct.pack("<d", -9999.9)).decode()
FORMS = {
    "number": -9999.9,
    "base64": PACKED,
    "text": "-9999.9",
    "NaN": "NaN",
    "list": [-9999.9, 5],
    "integer": 5,
    "beyond": 1e300,
}
MEANT = {"NaN": [], "list": [-9999.9, 5], "integer": [5], "beyond": []}


@pytest.mark.parametrize("attribute", ["_FillValue", "missing_value"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_forms_in_zarr(tmp_path, zarr_format, form, attribute):
    values = HOLES.astype("f4")
    array = zarr.create_array(tmp_path / "x.zarr", data=values, zarr_format=zarr_format)
    array.attrs[attribute] = FORMS[form]
    wanted = np.where(np.isin(values, np.float32(MEANT.get(form, [-9999.9]))), np.nan, values)
    assert same(open_array(tmp_path / "x.zarr").compute(), wanted.astype("f4"))


@pytest.mark.parametrize("form", ["NaN", b"-9999.9", np.float64(-9999.9), [-9999.9, 5]])
def test_forms_in_hdf5(tmp_path, form):
    values = HOLES.astype("f4")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = values
        file["x"].attrs["missing_value"] = form
    numbers = [-9999.9, 5] if isinstance(form, list) else [float(form)]
    wanted = np.where(np.isin(values, np.float32(numbers)), np.nan, values)
    assert same(open_array(tmp_path / "x.h5").compute(), wanted.astype("f4"))


def test_a_fill_value_of_format_2_is_data_unless_xarray_wrote_it(tmp_path):
    path = tmp_path / "x.zarr"
    array = zarr.create_array(path, data=np.array([0.0, 1]), zarr_format=2, fill_value=0)
    first = open_array(path)
    assert same(first.compute(), np.array([0.0, 1]))
    array.attrs["_ARRAY_DIMENSIONS"] = ["row"]
    second = open_array(path)
    assert same(second.compute(), np.array([np.nan, 1]))
    assert second.name != first.name


@pytest.mark.parametrize("dtype", ["?", "i2", "u1"])
def test_integers_are_left_alone(tmp_path, dtype):
    values = np.array([0, 1, 1], dtype)
    array = zarr.create_array(tmp_path / "x.zarr", data=values)
    array.attrs.update(_FillValue=1, missing_value="none")
    array = zarr.create_array(tmp_path / "y.zarr", data=values, zarr_format=2, fill_value=1)
    array.attrs["_ARRAY_DIMENSIONS"] = ["row"]
    for name in "x.zarr", "y.zarr":
        assert same(open_array(tmp_path / name).compute(), values)


def test_float16_and_single_elements(tmp_path):
    array = zarr.create_array(tmp_path / "x.zarr", data=np.float16([[1, -9999.9]]))
    array.attrs["_FillValue"] = -9999.9
    x = open_array(tmp_path / "x.zarr")
    assert same(x.compute(), np.float16([[1, np.nan]]))
    assert same(x[0, 1].compute(), np.float16(np.nan))
    assert same(x[::-1, ::-1].compute(), np.float16([[np.nan, 1]]))


def test_what_stands_for_none_is_no_logit(tmp_path):
    """It counted as one, and gave a divergence that looked right."""
    values = np.array([[0.5, -9999.0], [0.5, 0.5]], "f4")
    for name in "input", "target":
        zarr.create_array(tmp_path / name, data=values).attrs["_FillValue"] = -9999
    x, t = open_pair(tmp_path / "input", tmp_path / "target")
    assert np.isnan(kl_div(x, t, log_target=True, reduction="sum").compute())


def test_on_a_cluster(tmp_path, client):
    array = zarr.create_array(tmp_path / "x.zarr", data=HOLES, chunks=(1, 1))
    array.attrs["_FillValue"] = 1e20
    x = open_array(tmp_path / "x.zarr", chunks=1)
    assert np.isnan(x.compute(scheduler=client)[2, 2])


# What is refused


@pytest.mark.parametrize("value", ["none", "AAAA", [], {"a": 1}, None])
def test_no_number(tmp_path, value):
    array = zarr.create_array(tmp_path / "x.zarr", data=HOLES)
    array.attrs["_FillValue"] = value
    if value == []:
        assert same(open_array(tmp_path / "x.zarr").compute(), HOLES)
        return
    with pytest.raises(ValueError, match=r"_FillValue of .*x\.zarr must be a number, got "):
        open_array(tmp_path / "x.zarr")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ({"dtype": "i2", "scale_factor": 0.5, "_FillValue": -1}, "scale_factor of .* must be 1 "),
        ({"dtype": "f4", "add_offset": 3.0}, "add_offset of .* must be 0 or absent, got 3.0"),
        ({"dtype": "i2", "scale_factor": 0.5, "add_offset": 1.0, "_FillValue": -9}, "scale_factor"),
    ],
)
def test_packed_zarr(tmp_path, zarr_format, encoding, named):
    """The message says how to open it, word for word."""
    path, values = tmp_path / "x.zarr", np.array([[1.0, 2.5], [3.0, 0.5]])
    dataset(values).to_zarr(
        path, group="deep", zarr_format=zarr_format, encoding={"x": encoding}, consolidated=False
    )
    np.save(tmp_path / "t.npy", values)
    for where, key in ((path, "deep/x"), (path / "deep", "x"), (path / "deep" / "x", None)):
        with pytest.raises(ValueError, match=named) as caught:
            open_array(where, key=key)
        with pytest.raises(ValueError, match=named):
            open_pair(where, tmp_path / "t.npy", input_key=key)
        (hint,) = str(caught.value).partition("; pass ")[2:]
        expression = hint.removesuffix(" instead of the path").replace(
            "open_zarr(", "open_zarr(consolidated=False, chunks=None, store="
        )
        opened = eval(expression, {"xarray": xr})  # noqa: S307
        assert np.array_equal(opened.values, values)


def test_packed_hdf5(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["deep/x"] = np.array([1, 2], "i2")
        file["deep/x"].attrs["scale_factor"] = np.array([0.5])
    hint = r"pass xarray\.open_dataset\('.*x\.h5', group='deep'\)\['x'\] instead"
    with pytest.raises(ValueError, match=rf"scale_factor of .*x\.h5:deep/x must be 1.*{hint}"):
        open_array(tmp_path / "x.h5")
    with pytest.raises(ValueError, match="scale_factor"):
        open_pair(tmp_path / "x.h5", tmp_path / "x.h5")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_neutral_factors_are_none(tmp_path, zarr_format):
    array = zarr.create_array(tmp_path / "x.zarr", data=HOLES, zarr_format=zarr_format)
    array.attrs.update(scale_factor=1, add_offset=0.0)
    assert same(open_array(tmp_path / "x.zarr").compute(), HOLES)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = HOLES
        file["x"].attrs.update(scale_factor=np.array([1.0]), add_offset=0)
    assert same(open_array(tmp_path / "x.h5").compute(), HOLES)


@pytest.mark.parametrize("value", ["much", [1, 2], None])
def test_factors_that_are_no_number(tmp_path, value):
    zarr.create_array(tmp_path / "x.zarr", data=HOLES).attrs["scale_factor"] = value
    with pytest.raises(ValueError, match=r"scale_factor of .* must be 1 or absent, got"):
        open_array(tmp_path / "x.zarr")
