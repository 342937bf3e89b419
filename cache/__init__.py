"""The contract between extraction and everything after it. One path holds features, captions, ids, splits and failures.

In reading order:
    schema            items, splits, features in batches, status of an item
    shard_arrays      which arrays a shard holds
    files             files that are whole or not there
    fingerprint       a hash of everything that decides the values
    keys              what an item was made from, as 16 bytes
    known_files       where contents were last seen
    lock              one writer at a time
    frame_format      how frames are stored with the features
    jpeg              frames as JPEG
    additions         keys that are encoded together; where a key stands
    records           what stands in a cache's JSON files, as types
    commits           the records that make shards part of a cache
    formats/          a shard as HDF5 or Zarr
    encoded_items     encoded videos and captions, and the arrays of a shard made of them
    backbone_tensors  tensors of the backbone that heads start from
    shards            one committed shard, read array by array
    mirror            a cache at an address, and what is here of it
    lists             who asked for what
    library           the files of a cache: items by keys
    planning          what is left to encode of what is wanted
    reading           items of many shards as one array
    sampler           which captions make a batch
    table             one split as tensors
    store             a list seen on a library
    stored_table      one split, of which features are read as they are asked for
    creation          a cache, begun
    remains           what killed writers left
    filling           what every writer does: the list first, the items, at last the list counts
    frames            frames that a cache holds, read a video at a time

Wings, which neither extraction nor training loads:
    upkeep/           inspect, verify, repair, merge, convert
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glscl.cache.schema import Annotations, Expected, Split, Status, TextFeatures, TextItem, VideoFeatures, VideoItem

if TYPE_CHECKING:
    from glscl.cache.creation import StoreSpec, create_library
    from glscl.cache.formats import STORES
    from glscl.cache.store import Store, open_store
    from glscl.cache.table import FeatureTable

__all__ = [
    "STORES",
    "Annotations",
    "Expected",
    "FeatureTable",
    "Split",
    "Status",
    "Store",
    "StoreSpec",
    "TextFeatures",
    "TextItem",
    "VideoFeatures",
    "VideoItem",
    "create_library",
    "open_store",
]


_MODULES = {
    "FeatureTable": "table",
    "STORES": "formats",
    "Store": "store",
    "StoreSpec": "creation",
    "create_library": "creation",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:
    # zarr, h5py and torch are imported on first use, so that a list of the commands is there at once.
    if name in _MODULES:
        return getattr(import_module(f"glscl.cache.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
