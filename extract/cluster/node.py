"""What runs on the machines of a cluster: encoders, which make whole shards, and decoders, which any machine may be.

A shard is made by the code that makes it on one machine, from the same keys in the same order, so its values are the same.
n items of the shard.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray  # pyright: ignore[reportMissingImports]
import ray.exceptions  # pyright: ignore[reportMissingImports]

from glscl.cache.additions import Addition
from glscl.cache.formats.blocks import Blocks
from glscl.cache.frame_format import FrameSpec
from glscl.cache.keys import Stat
from glscl.cache.library import Place
from glscl.cache.schema import Status
from glscl.common.memory import keep_freed_memory
from glscl.common.progress import Progress
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.batching import Stopwatch
from glscl.extract.beginning import decoding_of
from glscl.extract.captions import extract_captions
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.video import FrameChunk, VideoDone, VideoTask
from glscl.extract.engine import AboutBackbone, backbone_of
from glscl.extract.listing import Source
from glscl.extract.settings import ExtractSettings
from glscl.extract.videos import VideoExtraction

DEATHS = 3  # of the process that decodes a video, after which the video is given up
AHEAD_CHUNKS = 4  # of a video, decoded and not yet encoded


class Order(NamedTuple):
    """A shard to be made.

    Attributes:
        keys: (n, 16) uint8.
        captions: key → caption, of texts. sources: key → file, of videos. listed: path → what the file there was when its
            content was hashed.
        frames, embed_dim, dtype: as of the cache.
    """

    stream: str
    keys: np.ndarray
    captions: Mapping[bytes, str]
    sources: Mapping[bytes, Source]
    listed: Mapping[str, Stat | None]
    frames: FrameSpec | None
    embed_dim: int
    dtype: str

    @property
    def place(self) -> Place:
        count = len(self.keys)
        return Place(Addition("", self.stream, max(1, count), 0, self.keys), 0, range(count))


@dataclass
class Made:
    """A shard as `Library.commit` takes it, and what it took. A `Destination`, which keeps what is committed to it."""

    path: Path
    frames: FrameSpec | None
    embed_dim: int
    dtype: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    failures: list[Mapping[str, Any]] = field(default_factory=list)
    ledger: list[Mapping[str, Any]] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=Stopwatch)
    cut: int = 0

    def stream(self, name: str) -> Made:
        return self

    def keys_at(self, place: Place) -> np.ndarray:
        return place.addition.keys_of(place.shard)

    def commit(
        self,
        addition: Addition,
        shard: int,
        arrays: Mapping[str, np.ndarray | Blocks],
        *,
        failures: Sequence[Mapping[str, Any]] = (),
        ledger: Sequence[Mapping[str, Any]] = (),
    ) -> bool:
        self.arrays = {name: each.whole() if isinstance(each, Blocks) else each for name, each in arrays.items()}
        self.failures, self.ledger = [*failures], [*ledger]
        return True


class Encoder:
    """A backbone on one machine of the cluster, which makes a few shards at once: while one is encoded, others wait for frames.

    Args:
        device: "cuda" for the GPU that Ray gave it, or "cpu".
    """

    def __init__(self, settings: ExtractSettings, device: str) -> None:
        self.settings, self.device = settings, device
        self._backbone: Backbone | None = None
        self._turn = threading.RLock()  # to use the backbone

    def about(self) -> AboutBackbone:
        """Load the backbone. Raises as `load_backbone`."""
        return AboutBackbone.of(self._load())

    def make(self, order: Order, decoders: int) -> Made:
        """A shard.

        Args:
            decoders: videos that may be decoded for it at once.
        """
        backbone = self._load()
        with tempfile.TemporaryDirectory(prefix="glscl-shard-") as folder:
            made = Made(Path(folder), order.frames, order.embed_dim, order.dtype)
            if order.stream == "text":
                with self._turn:
                    made.cut = extract_captions(
                        made, [order.place], order.captions, backbone, self.settings, progress=Progress(quiet=True)
                    )
            else:
                videos = VideoExtraction(made, [order.place], order.sources, order.listed.get, backbone, self.settings)
                pool = Decoders(pickle.dumps(decoding_of(self.settings, backbone.transform)), decoders, self._turn)
                videos.run(pool, Progress(quiet=True))
                made.watch = videos.watch
            made.path = Path()
        return made

    def _load(self) -> Backbone:
        with self._turn:
            if self._backbone is None:
                if self.device == "cpu":
                    keep_freed_memory()
                self._backbone = backbone_of(self.settings, self.device)
            return self._backbone


class Decoders:
    """Stands for a `DecodePool`: each video is a task of the cluster, taken by whichever machine has a core to spare.

    Args:
        packed: the `Decoding`.
        most: videos under way at once.
        turn: held while what comes is made use of, and by nobody while it is waited for.
    """

    def __init__(self, packed: bytes, most: int, turn: threading.RLock) -> None:
        self.packed, self.most, self.turn = ray.put(packed), most, turn

    def decode(self, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
        """As `DecodePool.decode`."""
        source, more = iter(tasks), True
        running: dict[Any, tuple[VideoTask, float]] = {}
        while True:
            while more and len(running) < self.most:
                task = next(source, None)
                more = task is not None
                if task is not None:
                    running[_decode_anywhere().remote(self.packed, task)] = task, time.monotonic()
            if not running:
                return
            ready, _ = ray.wait([*running], num_returns=1)
            for events in ready:
                event = self._next(events, *running[events])
                if isinstance(event, VideoDone):
                    del running[events]
                with self.turn:
                    yield event

    def _next(self, events: Any, task: VideoTask, began: float) -> FrameChunk | VideoDone:
        try:
            event: Any = ray.get(next(events))
            return event
        except StopIteration:
            reason = "nothing came of it"
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            reason = f"the process that decodes it was lost {DEATHS + 1} times ({type(error).__name__})"
        seconds = time.monotonic() - began
        return VideoDone(item=task.item, status=Status.TIMED_OUT, reason=reason, decoder="none", seconds=seconds)


@functools.cache
def _decode_anywhere() -> Any:
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": DEATHS, "num_returns": "streaming"}
    return ray.remote(decode).options(
        **options, scheduling_strategy="SPREAD", _generator_backpressure_num_objects=AHEAD_CHUNKS
    )


def decode(packed: bytes, task: VideoTask) -> Iterator[FrameChunk | VideoDone]:
    """One video, in a process of its own, which may hang or die; what is kept from one call to the next is its pool."""
    pool = _pool(packed)
    try:
        yield from pool.decode([task])
    except BaseException:
        _pool.cache_clear()
        with contextlib.suppress(Exception):
            pool.__exit__(None, None, None)
        raise


@functools.lru_cache(1)
def _pool(packed: bytes) -> DecodePool:
    return DecodePool(pickle.loads(packed), workers=1).__enter__()
