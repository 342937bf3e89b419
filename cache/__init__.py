"""The contract: records, fingerprint, stores. One path holds features, captions, ids, splits and failures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from glscl.cache.schema import Annotations, Expected, Status, TextFeatures, TextItem, VideoFeatures, VideoItem

if TYPE_CHECKING:
    from glscl.cache.creation import StoreSpec, create_store
    from glscl.cache.feature_table import FeatureTable
    from glscl.cache.formats import STORES
    from glscl.cache.plan import Split
    from glscl.cache.store import Store, open_store

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
    "create_store",
    "open_store",
]


_MODULES = {
    "FeatureTable": "feature_table",
    "STORES": "formats",
    "Split": "plan",
    "Store": "store",
    "StoreSpec": "creation",
    "create_store": "creation",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:
    # zarr, h5py and torch are imported on first use, so that `glscl --help` answers at once.
    if name in _MODULES:
        return getattr(import_module(f"glscl.cache.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
