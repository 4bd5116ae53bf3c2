"""Stores of chunks that are not written yet, and what is told of them."""

import json
from pathlib import Path
from typing import Any

import zarr

from kldiv_dask.storage import Contents, open_array, source_of

BLOCKS: dict[str, Any] = {
    "zarr2": {"zarr_format": 2},
    "nested zarr2": {
        "zarr_format": 2,
        "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
    "zarr3": {},
    "flat zarr3": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "v2 names in zarr3": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "sharded": {"shards": (4, 6)},
    "index first": {"shards": (4, 6), "index": "start"},
}


def make(
    path: Any,
    kind: Any = "zarr3",
    shape: Any = (10, 6),
    chunks: Any = (4, 3),
    key: Any = None,
    fill_value: int = 0,
    **more: Any,
) -> Any:
    """Make an array of chunks that are not written yet."""
    options = BLOCKS[kind] | more
    if options.pop("index", None):
        inner = zarr.codecs.BytesCodec(), zarr.codecs.ZstdCodec()
        codec = zarr.codecs.ShardingCodec(chunk_shape=(2, 3), codecs=inner, index_location="start")
        options |= {"serializer": codec, "compressors": None}
        chunks = options.pop("shards")
    elif "shards" in options:
        chunks = (2, 3)
    return zarr.create_array(
        path,
        name=key,
        shape=shape,
        chunks=chunks,
        dtype="f4",
        fill_value=fill_value,
        config={"write_empty_chunks": True},
        **options,
    )


def look(path: Any, key: Any = None) -> Any:
    source = source_of(open_array(path, key=key))
    assert source is not None
    found = source.contents()
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    assert Contents(**found.to_dict()) == found._replace(missing=(), fill=None)
    return found


def size_below(path: Any) -> Any:
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
