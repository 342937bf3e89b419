"""glscl: encode every frame and caption with CLIP once; then train and judge text-video retrieval heads in seconds.

    cache = glscl.open_cache("caches/msrvtt-ViT-B-32")
    table = cache.table("test", frames=12)
    glscl.train(cache, glscl.TrainSettings(head="glscl"), "runs/mine")
    model = glscl.load_run("runs/mine")
    model.search("a man is cooking", top=5)

The command line does the same: `glscl --help`. Everything here is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glscl.cache.schema import Annotations, TextFeatures, VideoFeatures
    from glscl.cache.store import Store
    from glscl.cache.store import open_store as open_cache
    from glscl.cache.table import FeatureTable
    from glscl.common.errors import GlsclError
    from glscl.evaluate.evaluation import Evaluation
    from glscl.evaluate.evaluation import evaluate_run as evaluate
    from glscl.evaluate.metrics import retrieval_metrics
    from glscl.evaluate.search.model import Model, load_run
    from glscl.evaluate.serve.client import Client
    from glscl.evaluate.settings import EvaluateSettings
    from glscl.evaluate.validating.validation import train
    from glscl.extract.backbone.encoder import Backbone, load_backbone
    from glscl.extract.datasets import read_dataset
    from glscl.extract.decode.video import decode
    from glscl.extract.pipeline import ExtractionSummary, extract
    from glscl.extract.settings import ExtractSettings
    from glscl.train_head.heads import HEADS, build_head
    from glscl.train_head.heads.base import Head
    from glscl.train_head.importing.foreign_weights import head_from_state_dict
    from glscl.train_head.settings import TrainSettings
    from glscl.train_head.train import TrainResult

__version__ = "0.1.0"

__all__ = [
    "HEADS",
    "Annotations",
    "Backbone",
    "Client",
    "EvaluateSettings",
    "Evaluation",
    "ExtractSettings",
    "ExtractionSummary",
    "FeatureTable",
    "GlsclError",
    "Head",
    "Model",
    "Store",
    "TextFeatures",
    "TrainResult",
    "TrainSettings",
    "VideoFeatures",
    "__version__",
    "build_head",
    "decode",
    "evaluate",
    "extract",
    "head_from_state_dict",
    "load_backbone",
    "load_run",
    "open_cache",
    "read_dataset",
    "retrieval_metrics",
    "train",
]

_DEFINED = {  # name → module:name in it
    "HEADS": "train_head.heads:HEADS",
    "Annotations": "cache.schema:Annotations",
    "Backbone": "extract.backbone.encoder:Backbone",
    "Client": "evaluate.serve.client:Client",
    "EvaluateSettings": "evaluate.settings:EvaluateSettings",
    "Evaluation": "evaluate.evaluation:Evaluation",
    "ExtractSettings": "extract.settings:ExtractSettings",
    "ExtractionSummary": "extract.pipeline:ExtractionSummary",
    "FeatureTable": "cache.table:FeatureTable",
    "GlsclError": "common.errors:GlsclError",
    "Head": "train_head.heads.base:Head",
    "Model": "evaluate.search.model:Model",
    "Store": "cache.store:Store",
    "TextFeatures": "cache.schema:TextFeatures",
    "TrainResult": "train_head.train:TrainResult",
    "TrainSettings": "train_head.settings:TrainSettings",
    "VideoFeatures": "cache.schema:VideoFeatures",
    "build_head": "train_head.heads:build_head",
    "decode": "extract.decode.video:decode",
    "head_from_state_dict": "train_head.importing.foreign_weights:head_from_state_dict",
    "load_backbone": "extract.backbone.encoder:load_backbone",
    "load_run": "evaluate.search.model:load_run",
    "open_cache": "cache.store:open_store",
    "read_dataset": "extract.datasets:read_dataset",
    "retrieval_metrics": "evaluate.metrics:retrieval_metrics",
    "train": "evaluate.validating.validation:train",
}


def __getattr__(name: str) -> Any:
    if name in ("extract", "evaluate"):  # the rooms themselves, which can be called
        return import_module(f"{__name__}.{name}")
    if name not in _DEFINED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _DEFINED[name].partition(":")
    globals()[name] = found = getattr(import_module(f"{__name__}.{module}"), attribute)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
