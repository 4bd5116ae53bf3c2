"""Axes that are gathered in one chunk where partial sums would be larger than the data."""

import dask
import dask.array as da
import numpy as np
import pytest
from dask.utils import key_split

from kldiv_dask import kl_div
from tests.helpers.bits import assert_same_bits


@pytest.fixture
def tight():
    """Chunks of 64 kiB at most; and partials of more than 100 kiB are large."""
    with (
        dask.config.set({"kldiv.chunk-size": "64 kiB"}),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("kldiv_dask.graph.gathering.MERGE_BYTES", 100_000)
        yield


def cut_along_the_axis(length, chunks, shape=(8, 64)):
    rng = np.random.default_rng(0)
    pair = [np.log(rng.random((length, *shape), "f4")), rng.random((length, *shape), "f4")]
    return pair, [da.from_array(array, chunks=chunks) for array in pair]


@pytest.mark.parametrize(
    ("length", "chunks", "opened"),
    [
        (16, (1, 8, 64), "chunks=(16, 8, 64)"),  # all of it is one chunk
        (100, (1, 8, 64), r"chunks=(100, \d+, \d+)"),  # cut along other axes instead
        (60, (7, 8, 64), r"chunks=(60, \d+, \d+)"),
    ],
)
def test_chunks_are_gathered_where_partials_would_be_larger(tight, length, chunks, opened):
    pair, lazy = cut_along_the_axis(length, chunks)
    where = da.from_array(np.arange(length)[:, None, None] % 3 > 0, chunks=(5, 1, 1))
    pattern = (
        (
            r"axis 0 is cut into \d+ pieces, of which each takes 584 bytes for every element of the"
            r" result: 292.00 kiB for a pair of chunks, .*B for all; input and target \(.*\) are "
            rf"rechunked instead, .* as {opened} of kldiv_dask.open_pair does"
        )
        .replace("=(", r"=\(")
        .replace("+)", r"+\)")
        .replace("64)", r"64\)")
    )
    for options in ({}, {"where": where}, {"keepdims": True}):
        with pytest.warns(da.PerformanceWarning, match=pattern) as caught:
            got = kl_div(*lazy, reduction="sum", axis=0, **options)
        assert caught[0].filename == __file__
        wanted = kl_div(*pair, reduction="sum", axis=0, **options).compute()
        assert_same_bits(got.compute(), wanted)
        stages = {key_split(key) for key in got.dask}
        assert "kl-div-merge" not in " ".join(stages)
        assert (max(got.numblocks) > 1) == (length > 16)


def test_partials_that_are_larger_than_rechunking_holds_are_warned_of(tight):
    pair, lazy = cut_along_the_axis(300, (2, 8, 64))
    pattern = r"cut into 150 pieces.* for all; open input and target in larger pieces of it, as ch"
    with pytest.warns(da.PerformanceWarning, match=pattern):
        got = kl_div(*lazy, reduction="sum", axis=0)
    assert_same_bits(got.compute(), kl_div(*pair, reduction="sum", axis=0).compute())


@pytest.mark.parametrize("chunks", [(80, 8, 64), (1, 1, 64), (100, 1, 64)])
def test_partials_that_are_smaller_are_left_alone(tight, chunks):
    _, lazy = cut_along_the_axis(100, chunks)
    got = kl_div(*lazy, reduction="sum", axis=0)
    assert ("kl-div-merge" in " ".join(map(key_split, got.dask))) == (chunks[0] < 100)


def test_the_size_of_partials_is_said_before_anything_runs():
    lazy = [da.zeros((256, 2048, 32768), chunks=(1, 1024, 32768), dtype="f4") for _ in range(2)]
    with pytest.warns(da.PerformanceWarning, match=r"18.25 GiB for a pair of chunks, 9.12 TiB for"):
        kl_div(*lazy, reduction="sum", axis=0)
