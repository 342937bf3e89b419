"""Made-up features that a head can learn, clips with captions, and scripts run in several processes at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from glscl.cache.schema import Annotations, TextFeatures, TextItem, VideoFeatures, VideoItem
from glscl.cache.table import FeatureTable


def planted_table(
    videos: int = 48, captions: int = 3, *, dim: int = 16, frames: int = 4, seed: int = 0
) -> FeatureTable:
    """Captions are their video's vector, rotated, with noise; frames are the vector with more noise."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    rotation = torch.from_numpy(np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32))
    meaning = normal(videos, dim)
    video_of_text = torch.arange(videos).repeat_interleave(captions)
    text = (meaning @ rotation)[video_of_text] + 0.3 * normal(videos * captions, dim)
    tokens = text[:, None] + 0.3 * normal(videos * captions, 5, dim)
    lengths = torch.from_numpy(rng.integers(2, 6, videos * captions))
    real = torch.from_numpy(rng.integers(1, frames + 1, videos))
    return FeatureTable.from_features(
        TextFeatures(text, tokens, torch.arange(5) < lengths[:, None]),
        VideoFeatures(meaning[:, None] + 0.5 * normal(videos, frames, dim), torch.arange(frames) < real[:, None]),
        video_of_text,
        text_ids=[f"video{v}#{i}" for i, v in enumerate(video_of_text.tolist())],
        video_ids=[f"video{v}" for v in range(videos)],
    )


@pytest.fixture(scope="session")
def planted() -> Callable[..., FeatureTable]:
    return planted_table


def launch(script: str, folder: Path, processes: int, *arguments: object) -> Any:
    """What `script` saves at the path it is given first, run in so many processes of one thread that know each other.

    Args:
        script: Python; its `sys.argv` is the path to save at (`torch.save`, by the first process) and `arguments`.
        folder: for the script and what it saves.
    """
    from forked import Forked  # the scripts import this file too

    file, out = folder / "shared.py", folder / f"{processes}.pt"
    file.write_text(script)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(processes):
        place = {"ACCELERATE_USE_CPU": "true"}
        if processes > 1:
            place |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            place |= {"MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}}
        running.append(Forked([file, out, *arguments], environment))
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="session")
def launched() -> Callable[..., Any]:
    return launch


def assert_same_weights(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """To 1e-5, named where they differ."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture(scope="session")
def same_weights() -> Callable[..., None]:
    return assert_same_weights


COLOURS = ("red", "green", "blue", "yellow", "white", "black")


def make_painted_corpus(folder: Path) -> Annotations:
    """Twelve clips of two to five seconds, each with two captions: eight to train on, two each in val and test."""
    videos, texts = [], []
    for i in range(12):
        split = "train" if i < 8 else "val" if i < 10 else "test"
        path = paint_clip(folder / "a" / f"clip{i}.mp4", seconds=2 + i % 4, seed=i)
        videos.append(VideoItem(f"clip{i}", split, str(path)))
        for k in range(2):
            words = f"a {COLOURS[i % 6]} circle {'moves' if k else 'stands on the left'} {'slowly' if i > 5 else ''}"
            texts.append(TextItem(f"clip{i}#{k}", f"clip{i}", split, words.strip()))
    return Annotations(dataset="made", videos=videos, texts=texts)


def paint_clip(path: Path, *, seconds: int, seed: int) -> Path:
    """An H.264 clip of 96 x 96 pixels in two random pictures of coarse squares a second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for _ in range(2 * seconds):
            picture = rng.integers(0, 255, (6, 6, 3), np.uint8).repeat(16, 0).repeat(16, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def painted_corpus() -> Callable[[Path], Annotations]:
    return make_painted_corpus
