"""Several processes that share a batch of pixels make the same steps as one process that has it to itself."""

from __future__ import annotations

import pytest
import torch

from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings

# A large eps keeps AdamW from making whole steps of gradients that are nothing but rounding.
SCRIPT = """
import os, sys
import torch
from glscl.cache.table import FeatureTable
from glscl.cache.store import open_store
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.train_head.finetuning.pixels import DecodedFrames, items_of
from glscl.train_head.finetuning.pixel_learner import PixelLearner
from glscl.train_head.finetuning.backbone_and_head import EndToEnd
from glscl.train_head.finetuning.settings import FinetuneSettings
from glscl.train_head.finetuning.towers import unfreeze
from glscl.train_head.heads import build_head
from glscl.train_head.loop import fit_learner

def main():
    store = open_store(sys.argv[2])
    table = FeatureTable.load(store, "train", max_frames=3)
    weights = {}
    for case in sys.argv[3].split():
        micro_batch = {"plain": None, "chunks": 1}[case]
        torch.manual_seed(0)
        backbone = load_backbone("demo", precision="fp32")
        training = dict(epochs=1, batch_size=4, lr=1e-3, eps=1e-3, max_frames=3)
        settings = FinetuneSettings(**training, backbone_lr_scale=0.5, micro_batch=micro_batch)
        unfreeze(backbone, settings)
        options = dict(queries=2, decoder_layers=1, aggregator_layers=1, dropout=0.0, frame_positions=3)
        model = EndToEnd(backbone, build_head("glscl", embed_dim=128, **options))
        with DecodedFrames(store, items_of(store, table), backbone.transform, settings) as frames:
            losses = fit_learner(PixelLearner(model, table, store, frames, settings), settings).losses
        weights[case] = {**{k: v.contiguous() for k, v in model.state_dict().items()}, "losses": torch.tensor(losses)}
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(weights, sys.argv[1])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # who goes first may leave the other waiting
        torch.distributed.destroy_process_group()

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_two_processes_make_the_same_steps_as_one(tmp_path, painted_corpus, launched, same_weights):
    cache = tmp_path / "cache"
    backbone = load_backbone("demo")
    settings = ExtractSettings(dtype="float32", store_frames="uint8", workers=1)
    extract(painted_corpus(tmp_path), cache, settings, backbone=backbone)
    one, two = launched(SCRIPT, tmp_path, 1, cache, "plain chunks"), launched(SCRIPT, tmp_path, 2, cache, "chunks")
    before = backbone.model.state_dict()
    assert not torch.equal(one["chunks"]["towers.visual.conv1.weight"], before["visual.conv1.weight"])
    same_weights(two["chunks"], one["chunks"])
    same_weights(one["chunks"], one["plain"])
