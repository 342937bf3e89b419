"""Pixels of the videos of a cache, sampled and cut exactly as its features were.

F frames of a video, S side of the model's input in pixels.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import TracebackType

import numpy as np

from glscl.cache.frames import StoredFrames
from glscl.cache.known_files import KnownFiles
from glscl.cache.schema import FramePosition
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable, frame_positions
from glscl.common.devices import cores
from glscl.common.errors import DecodeError, NotFoundError, StorageError, UsageError
from glscl.common.launch import launch
from glscl.extract.backbone.picture_transform import PictureTransform
from glscl.extract.datasets.video_files import VideoFiles, split_extension
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask
from glscl.train_head.finetuning.settings import FinetuneSettings

_AHEAD = 2  # batches that wait ready
_TIME_LIMIT = 60.0  # seconds without progress after which a video is given up
_VIDEOS_A_WORKER = 4  # decoded at a time, so that workers seldom wait for the last of them


class DecodedFrames:
    """Frames of the videos of a cache, by their row in the list: from the cache where it stores them, else decoded.

    What was decoded stays in memory up to a budget, so that later epochs decode only what did not fit. Use it as a
    context manager; leaving it ends the decoding processes.

    Args:
        store: an open cache that was extracted from videos.
        items: the videos that will be asked for; all of them must be found.
        transform: picture part of the backbone's preprocessing.
        settings: where the videos lie, which frames of them are wanted, how many processes of each training process
            decode (None shares the cores), and how many GB (1e9 bytes) of frames are kept.

    Raises:
        UsageError: the features of the cache were imported.
        NotFoundError: videos that are not there, or are others than those that were extracted.
    """

    def __init__(
        self, store: Store, items: Sequence[int], transform: PictureTransform, settings: FinetuneSettings
    ) -> None:
        sampling = store.configuration.get("sampling")
        if not isinstance(sampling, Mapping) or "decoder" not in sampling:
            raise UsageError(f"{store.place} holds imported features: how they were made from pixels is not known")
        self.store, self.width = store, settings.max_frames
        self.position: FramePosition = settings.frame_position
        self.counts = np.diff(store.arrays("video", ["offsets"])["offsets"])
        stored = StoredFrames(store)
        self._stored = stored if stored.available else None
        self._kept: dict[int, np.ndarray] = {}
        self._room = settings.frame_memory * 1e9
        self._pool: DecodePool | None = None
        self._threads: list[tuple[threading.Event, threading.Thread]] = []
        if self._stored is None:
            self._known = KnownFiles.read(store.path)
            self._paths = find_videos(store, items, settings.videos, self._known)
            decoding = Decoding.of_cache(sampling, prepare=transform, time_limit=_TIME_LIMIT)
            workers = settings.workers or max(1, cores() // launch().world)
            self._pool = DecodePool(decoding, workers=workers)

    def __enter__(self) -> DecodedFrames:
        if self._pool is not None:
            self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stop, _ in self._threads:
            stop.set()
        for _, thread in self._threads:
            thread.join()
        if self._pool is not None:
            self._pool.__exit__(kind, error, trace)

    def read(self, items: Sequence[int]) -> list[np.ndarray]:
        """(F, S, S, 3) uint8 of each item, F at most `width`.

        Raises:
            DecodeError: a video gives other frames than at extraction, or none.
        """
        found = {item: self._kept[item] for item in items if item in self._kept}
        missing = [item for item in dict.fromkeys(items) if item not in found]
        if missing:
            found.update(self._from_cache(missing) if self._stored is not None else self._decode(missing))
        return [found[item] for item in items]

    def ahead(self, steps: Sequence[Sequence[int]]) -> Iterator[list[np.ndarray]]:
        """`read` of the items of each step, made ready in a thread while the caller works on the step before."""
        ready: queue.Queue[list[np.ndarray] | BaseException] = queue.Queue(_AHEAD)
        stop = threading.Event()

        def put(batch: list[np.ndarray] | BaseException) -> bool:
            while not stop.is_set():
                try:
                    ready.put(batch, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for group in _groups(steps, self._at_once):
                    frames = iter(self.read([item for step in group for item in step]))
                    if not all(put([next(frames) for _ in step]) for step in group):
                        return
            except BaseException as error:  # goes on in the caller, which waits for it
                put(error)

        thread = threading.Thread(target=work, name="glscl-frames", daemon=True)
        self._threads.append((stop, thread))
        thread.start()
        try:
            for _ in steps:
                batch = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
        finally:
            stop.set()
            thread.join()
            self._threads.remove((stop, thread))

    @property
    def _at_once(self) -> int:
        return 1 if self._pool is None else _VIDEOS_A_WORKER * self._pool.workers

    def _positions(self, item: int) -> np.ndarray:
        count = int(self.counts[item])
        return frame_positions(count, self.width or count, self.position)

    def _from_cache(self, items: Sequence[int]) -> dict[int, np.ndarray]:
        assert self._stored is not None
        return {item: self._stored.read(item, self._positions(item).tolist()) for item in items}

    def _decode(self, items: Sequence[int]) -> dict[int, np.ndarray]:
        assert self._pool is not None
        plan = self.store.plan.videos
        wanted = {item: self._positions(item) for item in items}
        tasks = [
            VideoTask(item, path, plan[item].start, plan[item].end, self._known.stat_of(path))
            for item, path in ((item, self._paths[item]) for item in items)
        ]
        seen = dict.fromkeys(items, 0)
        parts: dict[int, list[np.ndarray]] = {item: [] for item in items}
        for event in self._pool.decode(tasks):
            item = event.item
            if isinstance(event, FrameChunk):
                here = wanted[item] - seen[item]
                parts[item].append(event.frames[here[(here >= 0) & (here < len(event.frames))]])
                seen[item] += len(event.frames)
            elif event.frames != self.counts[item]:
                raise DecodeError(
                    f"{self._paths[item]} gives {event.frames} frames now and gave {self.counts[item]} when "
                    f"{self.store.place} was extracted" + (f" ({event.reason})" if event.reason else ""),
                    hint="Put the same file there, or extract again",
                )
        frames = {item: np.concatenate(chunks) for item, chunks in parts.items()}
        for item, decoded in frames.items():
            if decoded.nbytes <= self._room:
                self._kept[item] = decoded
                self._room -= decoded.nbytes
        return frames


def items_of(store: Store, *tables: FeatureTable) -> list[int]:
    """Rows in the list of the videos of its tables, those of one after those of the other."""
    position = {video.id: item for item, video in enumerate(store.plan.videos)}
    return [position[video] for table in tables for video in table.video_ids]


def find_videos(store: Store, items: Sequence[int], folder: Path | None, known: KnownFiles) -> dict[int, str]:
    """Path of a file with the content that was extracted, of each item: below `folder` by name, else where it was seen.

    The name is that of the item, with or without an extension, or of a file in which the content was seen before.

    Args:
        known: where contents were seen; learns what is hashed here, and so does the cache.

    Raises:
        NotFoundError: some are not there, or have another content.
    """
    below = None if folder is None else _Below(folder)
    candidates: dict[int, list[str]] = {}
    for item in items:
        seen = known.paths_of(store.list.video_content[item].tobytes())
        named = () if below is None else below.named(store.list.video_ids[item], *seen)
        candidates[item] = [*named, *seen]
    paths = list(dict.fromkeys(path for each in candidates.values() for path in each))
    content = dict(zip(paths, known.contents(paths)))
    if known.hashed and not store.library.is_flat and launch().speaks:
        with contextlib.suppress(StorageError):  # who may only read the cache hashes the files again
            known.unite(KnownFiles.read(store.path))
            known.save(store.path)
    found = {}
    for item, each in candidates.items():
        wanted = store.list.video_content[item].tobytes()
        found[item] = next((path for path in each if content[path] == wanted), None)
    missing = [item for item, path in found.items() if path is None]
    if missing:
        first = missing[0]
        other = next((path for path in candidates[first] if isinstance(content[path], bytes)), None)
        where = f"below {folder} or where extraction found them" if folder else "where extraction found them"
        is_it = "is not there" if other is None else f"has another content in {other}"
        raise NotFoundError(
            f"{len(missing)} of {len(found)} videos of {store.place} are not {where} as they were extracted: the first, "
            f"{store.list.video_ids[first]}, {is_it}",
            hint="Name the folder that holds them with `videos`, or extract again",
        )
    return {item: path for item, path in found.items() if path is not None}


class _Below:
    """Files below a folder by their name, with and without extension."""

    def __init__(self, folder: Path) -> None:
        files = VideoFiles(folder)
        self._by_name: dict[str, list[str]] = {}
        for name in files.names:
            whole = _composed(PurePath(name).name)
            for each in {whole, split_extension(whole)[0]}:
                self._by_name.setdefault(each, []).append(files.full(name))

    def named(self, *names: str) -> list[str]:
        """Files that are called like one of these, which may have folders in front."""
        bare = dict.fromkeys(_composed(PurePath(name).name) for name in names)
        return [path for name in bare for path in self._by_name.get(name, ())]


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # as a name that macOS has decomposed is looked for


def _groups(steps: Sequence[Sequence[int]], least: int) -> Iterator[list[Sequence[int]]]:
    """Steps together until they have `least` items."""
    group: list[Sequence[int]] = []
    for step in steps:
        group.append(step)
        if sum(map(len, group)) >= least:
            yield group
            group = []
    if group:
        yield group
