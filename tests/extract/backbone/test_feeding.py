"""Frames on their way to a GPU and features back. Streams, events and pinned memory are made up here, the device is the CPU."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from glscl.extract.backbone.feeding import ROWS, SLOTS, Feed, fetched_later


@pytest.fixture
def recorded(monkeypatch):
    """On which streams events were recorded."""
    streams = []

    class Event:
        def record(self, stream=None):
            streams.append(stream)

        def synchronize(self): ...

    class Stream:
        def __init__(self, device=None):
            self.of = f"copies to {device}"

        def wait_event(self, event): ...

    def current_stream(device=None):
        stream = Stream()
        stream.of = f"work on {device}"
        return stream

    for name, value in {
        "Event": Event,
        "Stream": Stream,
        "current_stream": current_stream,
        "stream": contextlib.nullcontext,
        "synchronize": lambda device=None: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    return streams


def frames(count):
    return np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def test_what_comes_back_is_waited_for_on_the_device_that_it_is_on(recorded):
    """Not on the current device, which is the first in every process of a launch."""
    features = torch.randn(2, 3)
    np.testing.assert_array_equal(fetched_later(features)(), features.numpy())
    assert [stream.of for stream in recorded] == [f"work on {features.device}"]


def test_batches_come_whole_and_in_few_shapes(recorded):
    feed, shapes = Feed(torch.device("cpu")), set()
    for count in (5, 33, 1, 64, 40):
        parts = [frames(count), frames(2)]
        found = feed.put(parts)
        np.testing.assert_array_equal(found[: count + 2], np.concatenate(parts))
        shapes.add(len(found))
    assert shapes == {ROWS, 2 * ROWS, 3 * ROWS}
    feed = Feed(torch.device("cpu"), rows=20)
    assert {len(feed.put([frames(count)])) for count in (20, 3, 11)} == {20}


def test_a_batch_stays_while_the_next_is_on_its_way(recorded):
    feed = Feed(torch.device("cpu"))
    before = feed.put([frames(4)])
    for _ in range(SLOTS - 1):
        feed.put([frames(5)])
    np.testing.assert_array_equal(before[:4], frames(4))
