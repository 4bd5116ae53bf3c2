"""Opening stored arrays: what is read, when, in which chunks, and what goes wrong."""

import itertools
import math
import os
import pickle
import resource
import subprocess
import sys

import dask
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kldiv_dask.storage import npy as npy_format
from kldiv_dask.storage import open_array, open_pair
from kldiv_dask.storage import zarr as zarr_format
from tests.helpers.stores import KINDS, VALUES, ZARR_FILES, chunk_files, date_later, write

# Dask's array expressions do not fuse `from_array` with what follows yet.
EXPRESSIONS = dask.config.get("array.query-planning", False)


def chunk_shape(x):
    return tuple(map(max, x.chunks))


def open_source(path, key=None):
    return (npy_format if path.endswith("npy") else zarr_format).open_source(path, key)


# What is read


@pytest.mark.parametrize("chunks", [None, "auto", 3, (4, -1), ((1, 9), (2, 4)), {0: 2}, "100 B"])
@pytest.mark.parametrize("kind", KINDS)
def test_values(tmp_path, kind, chunks):
    path, key = write(tmp_path, kind, VALUES, chunks=(4, 3))
    x = open_array(path, key=key, chunks=chunks)
    assert (x.shape, x.dtype) == (VALUES.shape, VALUES.dtype)
    for scheduler in "sync", "threads":
        assert np.array_equal(x.compute(scheduler=scheduler), VALUES)


@pytest.mark.parametrize("kind", ["npy-C", "npy-F", "zarr3", "sharded"])
def test_indexing_the_opened_array(tmp_path, kind):
    x = open_array(write(tmp_path, kind, VALUES, chunks=(4, 3))[0], chunks=(4, 3))
    assert np.array_equal(x[1:9:2, 4].compute(), VALUES[1:9:2, 4])
    assert np.array_equal(x[None, ::-1, -1].compute(), VALUES[None, ::-1, -1])
    if not EXPRESSIONS:  # a list of positions fails for any array there
        assert np.array_equal(x[[7, 0, 3]].compute(), VALUES[[7, 0, 3]])


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", "f4", "f8", ">f4", ">i2"])
@pytest.mark.parametrize("kind", ["npy-C", "zarr2", "zarr3"])
def test_dtypes_are_kept_in_native_byte_order(tmp_path, kind, dtype):
    x = open_array(write(tmp_path, kind, VALUES.astype(dtype))[0], chunks=(4, 3))
    computed = x.compute()
    assert x.dtype == computed.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(computed, VALUES.astype(dtype))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["npy-C", "npy-F", "zarr2", "zarr3"])
def test_scalar_and_empty_arrays(tmp_path, kind, shape):
    values = np.full(shape, 7.0)
    path, _ = write(tmp_path, kind, values, chunks=tuple(max(n, 1) for n in shape))
    computed = open_array(path).compute()
    assert computed.shape == shape
    assert np.array_equal(computed, values)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_format_versions(tmp_path, version):
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array(file, VALUES, version=version)
    assert np.array_equal(open_array(tmp_path / "x.npy").compute(), VALUES)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_chunks_are_read_only_views_of_the_file(tmp_path, order):
    path, _ = write(tmp_path, f"npy-{order}", VALUES)
    chunk = open_source(path)[2:8, 1:5]
    assert type(chunk) is np.ndarray
    assert chunk.strides == np.asarray(VALUES, order=order).strides
    assert not chunk.flags.writeable
    with open(path, "r+b") as file:
        file.seek(-VALUES.nbytes, os.SEEK_END)
        file.write(np.full(60, -1.0).tobytes())
    assert (chunk == -1).all()


def test_npy_chunks_share_a_file_descriptor(tmp_path):
    path, _ = write(tmp_path, "npy-C", np.ones((500, 2)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        assert open_array(path, chunks=(1, -1)).compute().sum() == 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_chunks_never_written_are_the_fill_value(tmp_path):
    array = zarr.create_array(
        tmp_path / "x.zarr", shape=(8,), chunks=(4,), dtype="f4", fill_value=-7
    )
    array[:4] = 1
    assert open_array(tmp_path / "x.zarr").compute().tolist() == [1] * 4 + [-7] * 4


# When it is read


@pytest.mark.parametrize("kind", ZARR_FILES)
def test_opening_zarr_reads_no_chunk(tmp_path, kind):
    path, key = write(tmp_path, kind, VALUES, chunks=(4, 3))
    contents = {file: file.read_bytes() for file in chunk_files(path)}
    for file in contents:
        file.write_bytes(b"garbage")
    total = open_array(path, key=key).sum()
    for file, data in contents.items():
        file.write_bytes(data)
    assert total.compute() == VALUES.sum()


def test_opening_npy_reads_no_data(tmp_path):
    path = tmp_path / "x.npy"
    shape = (2**23, 2**15)  # a terabyte, in a sparse file
    with open(path, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * math.prod(shape))
    x = open_array(path)
    assert chunk_shape(x) == (1024, 2**15)
    assert x[-1, -3:].compute().tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_zarr_metadata_is_read_once_a_process(tmp_path, kind):
    path, _ = write(tmp_path, kind, VALUES)
    x = open_array(path, chunks=2)
    assert x.sum().compute() == VALUES.sum()
    for file in tmp_path.rglob("*"):
        if file.name in (".zarray", "zarr.json"):
            file.write_text("garbage")
    assert x.sum().compute() == VALUES.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_handles_pickle_small(tmp_path, kind):
    path, key = write(tmp_path, kind, VALUES, chunks=(4, 3))
    source = open_source(path, key)
    assert np.array_equal(source[:], VALUES)
    pickled = pickle.dumps(source)
    assert len(pickled) - len(path) < 400
    assert pickle.loads(pickled) == source  # noqa: S301


@pytest.mark.parametrize("kind", ["npy-C", "zarr2", "zarr3", "sharded", "group", "memory"])
def test_keys_follow_the_contents(tmp_path, kind):
    path, key = write(tmp_path, kind, VALUES, chunks=(4, 3))
    first = open_array(path, key=key)
    assert open_array(path, key=key).__dask_keys__() == first.__dask_keys__()
    assert open_array(path, key=key, chunks=2).name != first.name
    write(tmp_path, kind, VALUES + 1, chunks=(4, 3))
    if kind != "memory":
        date_later(path)
    second = open_array(path, key=key)
    assert second.name != first.name
    assert np.array_equal(second.compute(), VALUES + 1)


def test_keys_are_the_same_in_another_process(tmp_path):
    paths = [write(tmp_path, kind, VALUES)[0] for kind in ("npy-C", "zarr3")]
    program = (
        "import sys; from kldiv_dask.storage import open_array;"
        "print(*(open_array(path).name for path in sys.argv[1:]))"
    )
    names = subprocess.check_output([sys.executable, "-c", program, *paths], text=True).split()
    assert names == [open_array(path).name for path in paths]


@pytest.mark.parametrize("kinds", [*itertools.product(["npy-C", "zarr3"], repeat=2)])
def test_a_pair_of_chunks_is_one_task(tmp_path, kinds):
    stored = (np.ones((64, 6)), (2, 3))
    paths = [write(tmp_path, kind, *stored, str(i))[0] for i, kind in enumerate(kinds)]
    x, t = open_pair(*paths, chunks=(2, -1))
    assert len(x.chunks[0]) == 32
    terms = np.exp(t) * (t - x)
    (optimized,) = dask.optimize(terms)
    if not EXPRESSIONS:
        graph = dict(optimized.__dask_graph__())
        assert len(graph) == 32
        assert not any(task.dependencies for task in graph.values())
    assert (terms.compute() == 0).all()


# In which chunks


@pytest.mark.parametrize(
    ("shape", "stored", "dtype", "expected"),
    [
        ((100_000, 32_000), (100, 1000), "f4", (1000, 32_000)),
        ((100_000, 32_000), (1000, 32_000), "f4", (1000, 32_000)),
        ((8, 4096, 128_256), (1, 128, 128_256), "f2", (1, 512, 128_256)),
        ((8, 4096, 128_256), (1, 128, 8016), "f2", (1, 512, 128_256)),
        ((1100, 32_000), (1, 32_000), "f4", (65, 32_000)),  # 8 MiB
        ((14_400, 32_000), (1, 32_000), "f4", (225, 32_000)),  # a 64th
        ((1000, 3 * 10**8), (1, 10**7), "f4", (1, 3 * 10**7)),
        ((1000, 3 * 10**8), (1, 10**8), "f4", (1, 10**8)),
        ((7, 1000), (3, 70), "f8", (7, 1000)),
    ],
)
@pytest.mark.filterwarnings("ignore:.* has stored chunks of 381.47 MiB")
def test_default_chunks(tmp_path, shape, stored, dtype, expected):
    zarr.create_array(tmp_path / "x.zarr", shape=shape, chunks=stored, dtype=dtype)
    assert chunk_shape(open_array(tmp_path / "x.zarr")) == expected


def test_shards_are_the_stored_chunks_of_a_sharded_array(tmp_path):
    path = tmp_path / "x.zarr"
    zarr.create_array(path, shape=(100, 8), chunks=(2, 2), shards=(10, 4), dtype="f8")
    assert chunk_shape(open_array(path, chunks="2200 B")) == (30, 8)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("4 MiB", (2048, 256)),  # a whole shard, and as many more as fit
        ("2 MiB", (1024, 256)),
        ("1 MiB", (512, 256)),  # half a shard, in 8 inner chunks
        ("64 KiB", (64, 128)),
        ("32 KiB", (64, 64)),
        ("24 KiB", (64, 64)),  # one inner chunk at least, without a warning if it is little more
    ],
)
def test_shards_beyond_the_limit_are_read_in_part(tmp_path, limit, expected):
    values = np.random.default_rng(0).normal(size=(4096, 256))
    zarr.create_array(tmp_path / "x.zarr", data=values, chunks=(64, 64), shards=(1024, 256))
    x = open_array(tmp_path / "x.zarr", chunks=limit)
    assert chunk_shape(x) == expected
    with dask.config.set({"kldiv.chunk-size": limit}):
        assert open_array(tmp_path / "x.zarr").chunks == x.chunks
    assert np.array_equal(x.blocks[:3].compute(), values[: 3 * expected[0]])


def test_a_pair_of_shards_and_chunks_is_cut_alike(tmp_path):
    options = {"shape": (1000, 600), "dtype": "f8"}
    zarr.create_array(tmp_path / "x", chunks=(10, 600), shards=(1000, 600), **options)
    zarr.create_array(tmp_path / "t", chunks=(25, 300), **options)
    x, t = open_pair(tmp_path / "x", tmp_path / "t", chunks="500 kB")
    assert x.chunks == t.chunks
    assert chunk_shape(x) == (100, 600)


def test_stored_chunks_beyond_the_limit_are_read_whole_with_a_warning(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", shape=(4096, 256), chunks=(1024, 256), dtype="f8")
    assert chunk_shape(open_array(tmp_path / "x.zarr", chunks="1 MiB")) == (1024, 256)
    message = r"x\.zarr has stored chunks of 2\.00 MiB, .* each thread reads .*, not 512\.00 kiB"
    with pytest.warns(UserWarning, match=message) as caught:
        x = open_array(tmp_path / "x.zarr", chunks="512 KiB")
    assert chunk_shape(x) == (1024, 256)
    assert [(one.filename, one.category) for one in caught] == [(__file__, UserWarning)]
    with pytest.warns(UserWarning, match=message) as caught:
        open_pair(tmp_path / "x.zarr", tmp_path / "x.zarr", chunks="512 KiB")
    assert [one.filename for one in caught] == [__file__]


def test_tiny_stored_chunks_are_not_read_by_the_million(tmp_path):
    zarr.create_array(tmp_path / "x.zarr", shape=(10**6, 4), chunks=(1, 4), dtype="f8")
    assert chunk_shape(open_array(tmp_path / "x.zarr")) == (10_000, 4)


@pytest.mark.parametrize(("order", "chunksize"), [("C", (5, 6)), ("F", (10, 3))])
def test_npy_chunks_are_contiguous_in_the_file(tmp_path, order, chunksize):
    path, _ = write(tmp_path, f"npy-{order}", VALUES)
    x = open_array(path, chunks="240 B")
    assert chunk_shape(x) == chunksize
    flag = f"{order}_CONTIGUOUS"
    contiguous = x.map_blocks(
        lambda block: np.full((1, 1), block.flags[flag]), dtype=bool, chunks=(1, 1)
    )
    assert contiguous.compute().all()


@st.composite
def stored_pairs(draw):
    """Two broadcastable shapes with stored chunks, dtypes, and a limit in bytes."""
    joint = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    pair = []
    for _ in range(2):
        own = joint[draw(st.integers(0, len(joint) - 1)) :]
        shape = tuple(1 if draw(st.integers(0, 5)) == 0 else n for n in own)
        stored = tuple(draw(st.integers(1, n)) for n in shape)
        pair.append((shape, stored, draw(st.sampled_from(["f2", "f4", "f8"]))))
    return *pair, draw(st.sampled_from([64, 512, 4096, 65_536]))


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(stored_pairs())
@pytest.mark.filterwarnings("ignore:.* has stored chunks of")
def test_pairs_are_aligned_and_cut_no_stored_chunk(tmp_path, drawn):
    *stored, limit = drawn
    for i, (shape, chunks, dtype) in enumerate(stored):
        zarr.create_array(
            tmp_path / str(i), shape=shape, chunks=chunks, dtype=dtype, overwrite=True
        )
    pair = open_pair(tmp_path / "0", tmp_path / "1", chunks=f"{limit} B")

    def joined(rows):
        axes = max(map(len, rows))
        return np.array([[1] * (axes - len(row)) + list(row) for row in rows])

    shapes = joined([x.shape for x in pair])
    chunks = joined([chunk_shape(x) for x in pair])
    units = joined([chunks for _, chunks, _ in stored])
    for x, t in zip(*(x.chunks[::-1] for x in pair), strict=False):
        assert x == t or x == (1,) or t == (1,)
    whole = ((chunks % units == 0) | (chunks == shapes)).all(axis=1)
    itemsize = max(x.dtype.itemsize for x in pair)
    if np.minimum(np.lcm(*units), shapes.max(axis=0)).prod() * itemsize <= limit:
        assert whole.all()
        assert chunks.max(axis=0).prod() * itemsize <= limit
    else:
        assert whole.any()


@pytest.mark.parametrize(
    ("x_chunks", "x_dtype", "t_chunks", "expected"),
    [
        ((1000, 8000), "f4", (7, 32_000), (1000, 32_000)),
        ((1000, 8000), "f2", (700, 8000), (700, 32_000)),
    ],
)
def test_clashing_stored_chunks_follow_the_larger(tmp_path, x_chunks, x_dtype, t_chunks, expected):
    for name, chunks, dtype in ("x", x_chunks, x_dtype), ("t", t_chunks, "f4"):
        zarr.create_array(tmp_path / name, shape=(9000, 32_000), chunks=chunks, dtype=dtype)
    x, t = open_pair(tmp_path / "x", tmp_path / "t")
    assert x.chunks == t.chunks
    assert chunk_shape(x) == expected


def test_pair_follows_the_order_of_the_larger_file(tmp_path):
    x, _ = write(tmp_path, "npy-C", np.ones(6, "f8"), name="x")
    t, _ = write(tmp_path, "npy-F", VALUES.astype("f4"), name="t")
    x, t = open_pair(x, t, chunks="240 B")
    assert chunk_shape(t) == (10, 3)
    assert chunk_shape(x) == (3,)


@pytest.mark.parametrize(
    ("x_shape", "t_shape", "x_chunks", "t_chunks"),
    [
        ((10, 6), (6,), ((4, 4, 2), (3, 3)), ((3, 3),)),
        ((10, 1), (10, 6), ((4, 4, 2), (1,)), ((4, 4, 2), (3, 3))),
        ((1, 6), (10, 1), ((1,), (3, 3)), ((4, 4, 2), (1,))),
        ((), (10, 6), (), ((4, 4, 2), (3, 3))),
    ],
)
def test_broadcast_pairs(tmp_path, x_shape, t_shape, x_chunks, t_chunks):
    x, _ = write(tmp_path, "npy-C", np.full(x_shape, 2.0), name="x")
    t, _ = write(tmp_path, "zarr3", np.ones(t_shape, "f4"), name="t")
    x, t = open_pair(x, t, chunks=(4, 3))
    assert (x.chunks, t.chunks) == (x_chunks, t_chunks)
    assert np.array_equal((x + t).compute(), np.full((10, 6), 3.0))


def test_pair_from_one_group(tmp_path):
    group = zarr.open_group(tmp_path / "scores.zarr", mode="w")
    group.create_array("q", data=VALUES, chunks=(4, 6))
    group.create_array("p", data=VALUES + 1, chunks=(6, 2))
    path = tmp_path / "scores.zarr"
    q, p = open_pair(path, path, input_key="q", target_key="p", chunks="500 B")
    assert q.name != p.name
    assert q.chunks == p.chunks == ((10,), (6,))
    assert (p - q).sum().compute() == 60
