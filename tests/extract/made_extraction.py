"""A made-up backbone and decoder for extractions that take milliseconds; they count what they are asked for.

A file's bytes are its video: a byte is a frame, one a second; `broken…` cannot be decoded, and what ends in `!` is cut short.
n frames, T texts, L tokens, D embed_dim.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from glscl.cache.schema import Annotations, Status, TextFeatures, VideoItem
from glscl.cache.store import Store
from glscl.extract.backbone.encoder import Backbone, Description, TokenizedTexts
from glscl.extract.decode.video import Decoding, FrameChunk, VideoDone, VideoTask
from glscl.extract.listing import ListOrigin
from glscl.extract.pipeline import ExtractionSummary, extract
from glscl.extract.settings import ExtractSettings

D = 4
WORDS = 6
ORIGIN = ListOrigin(name="made", recipe="msrvtt", command="glscl extract", versions={"torch": "2"})


def frames_of(content: bytes, start: float | None = None, end: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The video that a file is, or a part of it: frames (n, 1, 1, 3) uint8 and times (n,) float32."""
    shown = b"" if content.startswith(b"broken") else content
    times = [t for t in range(len(shown)) if (start or 0) <= t < (np.inf if end is None else end)]
    frames = np.array([[shown[t], t % 256, len(shown)] for t in times], np.uint8).reshape(-1, 1, 1, 3)
    return frames, np.array(times, np.float32)


def features_of(frames: np.ndarray) -> np.ndarray:
    """(n, 1, 1, 3) uint8 → (n, D) float32, each frame by itself."""
    pixels = frames.reshape(-1, 3).astype(np.float32)
    return np.concatenate([pixels, pixels.sum(1, keepdims=True) + 1], axis=1)


def tokens_of(text: str) -> np.ndarray:
    """(L,) ids of a caption's first letters, start and end among them."""
    return np.array([1, *(2 + ord(letter) % 1000 for letter in text[: WORDS - 2]), 999], np.int64)


def text_features_of(text: str) -> np.ndarray:
    """(L, D) float32 of a caption, the last of which is the pooled one."""
    ids = tokens_of(text).astype(np.float32)
    return np.stack([ids, np.arange(len(ids), dtype=np.float32), ids % 7, ids + len(ids)], axis=1)


class MadeBackbone(Backbone):
    """Stands for `Backbone`; its features are functions of a frame or a caption alone.

    Attributes:
        texts: captions, each as often as it was encoded.
    """

    name, pretrained, words, precision, embed_dim = "made", "seed", WORDS, "fp32", D
    device = torch.device("cpu")

    def __init__(self, weights: str = "0" * 16) -> None:
        self.transform = SimpleNamespace(size=(1, 1))
        self.text_tower = SimpleNamespace(gives_tokens=True, is_causal=False, cut=lambda texts, tokenized: 0)
        self.notes: list[str] = []
        self.description = Description(
            library="made",
            name=self.name,
            pretrained=self.pretrained,
            weights=weights,
            quick_gelu=False,
            preprocessing={},
            tokenizer="letters",
            words=WORDS,
            precision=self.precision,
        )
        self.texts: Counter[str] = Counter()
        self._tokenized: defaultdict[bytes, deque[str]] = defaultdict(deque)  # texts of equal tokens, not yet encoded

    def encode_frames(self, frames: np.ndarray) -> np.ndarray:
        return features_of(frames)

    def encode_later(self, parts: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        features = self.encode_frames(np.concatenate(parts))
        return lambda: features

    def tokenize(self, texts: Iterable[str]) -> TokenizedTexts:
        tokens = [tokens_of(text) for text in texts]
        ids = np.stack([np.pad(row, (0, WORDS - len(row))) for row in tokens])
        for row, text in zip(ids, texts):
            self._tokenized[row.tobytes()].append(text)
        return TokenizedTexts(ids, np.array([len(row) for row in tokens]))

    def encode_tokens(self, tokens: TokenizedTexts, *, padded: bool = False) -> TextFeatures:
        texts = [self._tokenized[row.tobytes()].popleft() for row in tokens.ids]
        self.texts.update(texts)
        found = [text_features_of(text) for text in texts]
        longest = int(tokens.lengths.max())
        states = np.stack([np.pad(rows, ((0, longest - len(rows)), (0, 0))) for rows in found])
        mask = torch.arange(longest) < torch.from_numpy(tokens.lengths)[:, None]
        return TextFeatures(torch.from_numpy(np.stack([rows[-1] for rows in found])), torch.from_numpy(states), mask)

    def tensors_for_heads(self) -> dict[str, np.ndarray]:
        return {"logit_scale": np.zeros(1, np.float32)}


class MadePool:
    """Stands for `DecodePool`.

    Attributes:
        decoded: contents, each as often as it was decoded, with its times. paths: in the order in which they were read.
        meanwhile: called with a path between its first frame and its last.
        failing: path → status of a failure that is none of the file.
    """

    def __init__(self) -> None:
        self.decoded: Counter[tuple[bytes, float | None, float | None]] = Counter()
        self.paths: list[str] = []
        self.meanwhile: Callable[[str], None] = lambda path: None
        self.failing: dict[str, Status] = {}

    def __call__(self, decoding: Decoding, **_: object) -> MadePool:
        return self

    def __enter__(self) -> MadePool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def decode(self, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
        for task in tasks:
            self.paths.append(task.path)
            try:
                content = Path(task.path).read_bytes()
            except OSError:
                yield VideoDone(task.item, Status.MISSING, "no such file")
                continue
            self.decoded[content, task.start, task.end] += 1
            if task.path in self.failing:
                yield VideoDone(task.item, self.failing[task.path], "the machine is busy")
                continue
            frames, times = frames_of(content, task.start, task.end)
            half = len(frames) // 2
            for rows in (slice(0, half), slice(half, None)):
                if len(frames[rows]):
                    yield FrameChunk(task.item, frames[rows], times[rows])
                self.meanwhile(task.path) if rows.start == 0 else None
            status = Status.DECODE_ERROR if not len(frames) else Status.PARTIAL if content[-1:] == b"!" else Status.OK
            reason = {Status.DECODE_ERROR: "no video stream", Status.PARTIAL: "it is cut short"}.get(status)
            yield VideoDone(task.item, status, reason, "made", float(len(frames)), 1.0, len(frames))


class Extractor:
    """Extracts with a made-up backbone and decoder, and knows what that cost.

    Attributes:
        spent: what the last extraction encoded: contents of videos and texts, in order.
    """

    def __init__(self, backbone: MadeBackbone, pool: MadePool) -> None:
        self.backbone, self.pool = backbone, pool
        self.spent: tuple[list[bytes], list[str]] = ([], [])

    @property
    def items(self) -> list[bytes | str]:
        """Both together."""
        return [*self.spent[0], *self.spent[1]]

    def __call__(
        self, annotations: Annotations, out: Path, origin: ListOrigin = ORIGIN, **options: object
    ) -> ExtractionSummary:
        self.backbone.texts.clear()
        self.backbone._tokenized.clear()
        self.pool.decoded.clear()
        settings = {
            "backbone": "made",
            "pretrained": "seed",
            "precision": "fp32",
            "dtype": "float32",
            "max_words": WORDS,
        }
        settings |= {"format": "hdf5", "shard_videos": 2, "shard_texts": 3, "batch_frames": 4, "workers": 1} | options
        given = None if settings.pop("load", False) else self.backbone
        progress = settings.pop("progress", None)
        try:
            return extract(
                annotations, out, ExtractSettings(**settings), origin=origin, backbone=given, progress=progress
            )
        finally:
            videos = [content for content, _, _ in self.pool.decoded.elements()]
            self.spent = videos, sorted(self.backbone.texts.elements())


def named(name: str, family: str = "") -> ListOrigin:
    """Where a list of a name comes from; of a benchmark with its family."""
    return replace(ORIGIN, name=name, family=family)


_clock = iter(range(10**18, 2 * 10**18, 10**9))


def write(path: Path, content: bytes | str) -> Path:
    """A file that is never as old as another, however quickly one follows the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    os.utime(path, ns=(moment := next(_clock), moment))
    return path


def require_reads(
    store: Store,
    annotations: Annotations,
    contents: Mapping[str, bytes | None],
    *,
    status_of: Callable[[VideoItem, bytes], Collection[Status]] | None = None,
    all_captions: bool = False,
) -> None:
    """Every entry of a list reads as what its file and caption are.

    Args:
        contents: id → what its file was, None without one.
        status_of: what may have become of a file; by default what its content says.
        all_captions: those of videos without a file too.
    """
    assert store.ids("video") == [video.id for video in annotations.videos]
    assert store.ids("text") == [text.id for text in annotations.texts]
    assert store.captions() == [text.text for text in annotations.texts]
    video, text = store.arrays("video"), store.arrays("text")
    for row, item in enumerate(annotations.videos):
        content = contents[item.id]
        allowed = [Status.MISSING] if content is None else (status_of or _status_of)(item, content)
        status = Status(int(video["status"][row]))
        assert status in allowed, (item.id, status, allowed)
        frames, times = frames_of(content if content is not None and status.usable else b"", item.start, item.end)
        rows = slice(video["offsets"][row], video["offsets"][row + 1])
        np.testing.assert_array_equal(video["values"][rows], features_of(frames), err_msg=item.id)
        np.testing.assert_array_equal(video["times"][rows], times, err_msg=item.id)
    for row, item in enumerate(annotations.texts):
        there = all_captions or contents[item.video] is not None
        rows = slice(text["offsets"][row], text["offsets"][row + 1])
        expected = text_features_of(item.text) if there else np.zeros((0, D), np.float32)
        np.testing.assert_array_equal(text["values"][rows], expected, err_msg=item.id)
        np.testing.assert_array_equal(text["pooled"][row], expected[-1] if there else np.zeros(D), err_msg=item.id)


def _status_of(item: VideoItem, content: bytes) -> Collection[Status]:
    """What becomes of a file that nothing happens to."""
    if not len(frames_of(content, item.start, item.end)[0]):
        return [Status.DECODE_ERROR]
    return [Status.PARTIAL if content[-1:] == b"!" else Status.OK]


def require_equal(one: Store, other: Store) -> None:
    """Two lists read alike, value for value."""
    assert one.fingerprint == other.fingerprint and one.complete and other.complete
    for stream in ("video", "text"):
        assert one.ids(stream) == other.ids(stream)
        for name, array in one.arrays(stream).items():
            np.testing.assert_array_equal(array, other.arrays(stream)[name], err_msg=f"{stream} {name}")
