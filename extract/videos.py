"""Videos of a plan: decoded, encoded and committed shard by shard."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from glscl.cache.encoded_items import EncodedVideo, video_arrays
from glscl.cache.frames import StoredFrames
from glscl.cache.schema import Status, VideoItem
from glscl.cache.store import Store
from glscl.common.errors import DecodeError
from glscl.common.progress import Progress, Task
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.batching import ShardInProgress, Stopwatch
from glscl.extract.decode.pool import DecodePool, FrameChunk, VideoDone, VideoTask
from glscl.extract.frame_spool import FrameSpool


class VideoExtraction:
    """Makes shards of videos, several of which may be under way at once.

    Args:
        shards: numbers of those to be made.
        retried: those of them that are there and get a revision: what gave no frames is decoded again, the rest is kept.
        batch_frames: frames that the backbone encodes at once.
        strict: raise DecodeError at the first video that gives no frames.
    """

    def __init__(
        self,
        store: Store,
        backbone: Backbone,
        *,
        shards: list[int],
        retried: Iterable[int] = (),
        batch_frames: int,
        strict: bool = False,
    ) -> None:
        self.store, self.backbone, self.batch_frames, self.strict = store, backbone, batch_frames, strict
        self.shards, self.videos = shards, store.plan.videos
        self.watch = Stopwatch()
        self._kept = {shard: _usable_records(store, shard) for shard in retried}
        self._old_frames = StoredFrames(store)
        self._under_way: dict[int, ShardInProgress] = {}
        self._failed = 0

    def run(self, pool: DecodePool, progress: Progress) -> None:
        """Make all of them.

        Raises:
            DecodeError: `strict`.
            StorageError: see `Store.commit`.
        """
        if not self.shards:
            return
        with progress.task("videos", sum(len(self._wanted(s)) for s in self.shards), "videos") as task, pool:
            for shard in self.shards:
                if not any(self.videos[i].path is not None for i in self._wanted(shard)):
                    self._begin(shard, task)  # and end: there is nothing to decode
            for event in self._timed(pool.decode(self._tasks())):
                shard = self._shard_of(event.index)
                if shard not in self._under_way:
                    self._begin(shard, task)
                if isinstance(event, FrameChunk):
                    self._under_way[shard].add(event)
                else:
                    self._decoded(event, task)

    def _wanted(self, shard: int) -> list[int]:
        """Numbers of the videos of a shard that are not kept from an earlier run."""
        kept = self._kept.get(shard, {})
        return [i for i in self.store.shard_range("video", shard) if i not in kept]

    def _shard_of(self, index: int) -> int:
        return index // self.store.shard_items["video"]

    def _tasks(self) -> Iterator[VideoTask]:
        for shard in self.shards:
            for i in self._wanted(shard):
                video = self.videos[i]
                if video.path is not None:
                    yield VideoTask(index=i, path=video.path, start=video.start, end=video.end)

    def _timed(self, events: Iterator[FrameChunk | VideoDone]) -> Iterator[FrameChunk | VideoDone]:
        """The events, with the time that it takes until one comes."""
        while True:
            clock = time.perf_counter()
            event = next(events, None)
            self.watch.waiting += time.perf_counter() - clock
            if event is None:
                return
            yield event

    def _begin(self, shard: int, task: Task) -> None:
        """Close what needs no decoding: kept from an earlier run, or known to be missing."""
        items = self.store.shard_range("video", shard)
        spool = FrameSpool(self.store.path, self.store.frames) if self.store.frames else None
        self._under_way[shard] = ShardInProgress(items, self.backbone, self.batch_frames, self.watch, spool)
        for i in items:
            if i in self._kept.get(shard, {}):
                if spool is not None:
                    spool.add_stored(i, *self._old_frames.stored(i))
                self._close(_not_decoded(i, Status.OK, None))
            elif self.videos[i].path is None:
                self._failed += 1
                self._close(_not_decoded(i, Status.MISSING, "no file found for this id"))
                task.advance(failed=self._failed)

    def _decoded(self, done: VideoDone, task: Task) -> None:
        self.watch.decoding += done.seconds
        self._failed += not done.status.usable
        if self.strict and not done.status.usable:
            raise DecodeError(f"{self.videos[done.index].id!r} gives no frames: {done.reason} (--strict)")
        self._close(done)
        task.advance(**({"failed": self._failed} if self._failed else {}))

    def _close(self, done: VideoDone) -> None:
        """No more frames of a video come; commit its shard where it was the last."""
        shard = self._shard_of(done.index)
        current = self._under_way[shard]
        current.close(done)
        if current.complete:
            clock = time.perf_counter()
            records = current.records() | self._kept.get(shard, {})
            commit_videos(self.store, shard, records, retry=shard in self._kept, frames=current.spool)
            self.watch.writing += time.perf_counter() - clock
            del self._under_way[shard]


def commit_videos(
    store: Store,
    shard: int,
    records: Mapping[int, EncodedVideo],
    *,
    retry: bool = False,
    frames: FrameSpool | None = None,
) -> None:
    """Commit the records of a shard, by item number; `retry` replaces what was committed before.

    `frames` holds the frames to be stored, where the cache stores them, and is closed.
    """
    items = store.shard_range("video", shard)
    plan: list[VideoItem] = [store.plan.videos[i] for i in items]
    ordered = [records[i] for i in items]
    revision = store.commits("video")[shard].revision + 1 if retry else 0
    arrays = video_arrays(plan, ordered, embed_dim=store.embed_dim, dtype=store.dtype)
    if frames is not None:
        arrays |= frames.arrays(items)
    store.commit(
        "video",
        shard,
        arrays,
        failures=[
            {"id": item.id, "reason": record.reason, "status": Status(record.status).name.lower()}
            for item, record in zip(plan, ordered)
            if record.status != Status.OK
        ],
        ledger=[record.ledger or {} for record in ordered],
        revision=revision,
    )
    if frames is not None:
        frames.close()


def shards_with_failures(store: Store) -> list[int]:
    """Numbers of the committed shards in which a video gave no frames."""
    return [
        shard
        for shard, commit in sorted(store.commits("video").items())
        if any(not Status[failure["status"].upper()].usable for failure in commit.failures)
    ]


def _usable_records(store: Store, shard: int) -> dict[int, EncodedVideo]:
    """The videos of a committed shard that need not be decoded again."""
    items = store.shard_range("video", shard)
    found = store.arrays("video", items=items)
    reasons = {f["id"]: f["reason"] for f in store.commits("video")[shard].failures}
    ledger = store.ledger(shard)
    records = {}
    for row, i in enumerate(items):
        status = Status(int(found["status"][row]))
        rows = slice(int(found["offsets"][row]), int(found["offsets"][row + 1]))
        if status.usable:
            records[i] = EncodedVideo(
                frame_features=np.asarray(found["values"][rows], np.float32),
                times=found["times"][rows],
                status=status,
                reason=reasons.get(store.plan.videos[i].id),
                duration=float(found["duration"][row]),
                fps=float(found["fps"][row]),
                frames_total=int(found["frames_total"][row]),
                ledger=ledger[row] if row < len(ledger) else None,
            )
    return records


def _not_decoded(index: int, status: Status, reason: str | None) -> VideoDone:
    return VideoDone(
        index=index,
        status=status,
        reason=reason,
        decoder="none",
        decoder_note=None,
        duration=0.0,
        fps=0.0,
        frames_total=0,
        codec="",
        seconds=0.0,
        frames=0,
    )
