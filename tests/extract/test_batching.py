"""Frames of videos in shared batches: each feature comes back to its frame, also where batches are still under way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glscl.cache.schema import Status
from glscl.extract.batching import AHEAD, ShardInProgress, Stopwatch
from glscl.extract.decode.video import FrameChunk, VideoDone

LENGTHS = (5, 0, 9, 2, 4)


class Later:
    """A backbone whose feature of a frame is its only pixel, and which is asked for it later."""

    embed_dim = 1

    def __init__(self, device: str) -> None:
        self.device, self.waiting, self.most, self.sizes = torch.device(device), 0, 0, []

    def encode_later(self, parts):
        frames = np.concatenate(parts).reshape(-1, 1).astype(np.float32)
        self.waiting, self.most = self.waiting + 1, max(self.most, self.waiting + 1)
        self.sizes.append(len(frames))

        def wait():
            self.waiting -= 1
            return frames

        return wait


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_features_come_back_to_their_frames_in_order(device):
    backbone = Later(device)
    shard = ShardInProgress(range(len(LENGTHS)), backbone, 3, Stopwatch(), None)
    values = iter(range(100))
    expected = {}
    for item, length in enumerate(LENGTHS):
        pixels = np.array([next(values) for _ in range(length)], np.uint8)
        expected[item] = pixels.tolist()
        for start in range(0, length, 4):
            part = pixels[start : start + 4]
            shard.add(FrameChunk(item, part.reshape(-1, 1, 1, 1), np.arange(len(part), dtype=np.float32)))
        about = dict.fromkeys(VideoDone._fields, 0) | {"item": item, "status": Status.OK}
        shard.close(VideoDone(**about))
    records = shard.records()
    assert {item: record.frame_features[:, 0].tolist() for item, record in records.items()} == expected
    assert backbone.sizes == [3] * 6 + [2] and backbone.waiting == 0
    assert backbone.most == (AHEAD + 1 if device == "cuda" else 1)
