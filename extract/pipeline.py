"""Read → encode → commit: the run of an extraction, shard by shard.

Frames of different videos share full batches. Which frames share one is decided by the plan alone, never by which worker was
faster: a video's own full batches, then the remainders of a shard's videos in order. So a run that was killed and resumed
ends in the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache.feature_table import frame_positions
from glscl.cache.frames import FrameSpec
from glscl.cache.lock import hold, locks
from glscl.cache.schema import STREAMS, Annotations, Status, TextItem, VideoItem
from glscl.cache.shard import TextRecord, VideoRecord, text_arrays, video_arrays
from glscl.cache.store import Store, StoreSpec, create_store
from glscl.errors import DecodeError, InputError, NotFoundError
from glscl.extract.decode_pool import DecodePool, FrameChunk, VideoDone, VideoTask
from glscl.extract.encoder import Backbone, TokenizedTexts
from glscl.extract.frame_spool import FrameSpool
from glscl.extract.part import WHOLE, Part
from glscl.extract.sampling import Sampling
from glscl.extract.stored_frames import StoredFrames
from glscl.progress import Progress, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractionSummary:
    """What an extraction did. Seconds of stages overlap: decoding runs beside encoding.

    While parts of others are missing, `complete` is False and the counts are those of the shards that are there;
    `finished_here` says that this run put the last one in (into a cache that was complete before: that it was part 1).
    """

    cache: str
    fingerprint: str
    already_complete: bool
    complete: bool
    finished_here: bool
    part: str | None
    shards: dict[str, dict[str, int]]
    videos: int
    texts: int
    frames: int
    failed: list[dict[str, Any]]
    texts_without_video: int | None
    seconds: dict[str, float]
    bound_by: str | None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass
class _Stopwatch:
    waiting: float = 0.0  # for frames
    encoding: float = 0.0
    writing: float = 0.0
    decoding: float = 0.0  # in the workers, summed
    frames: int = 0


def extract(
    annotations: Annotations,
    out: Path,
    *,
    backbone: Backbone,
    sampling: Sampling,
    format: str = "zarr",
    dtype: str = "float16",
    tokens: bool = True,
    store_frames: str = "none",
    frame_quality: int = 95,
    shard_videos: int = 128,
    shard_texts: int = 2048,
    workers: int = 2,
    batch_frames: int = 128,
    batch_texts: int = 256,
    decoder: str = "auto",
    time_limit: float = 60.0,
    memory_limit: float = 4.0,
    strict: bool = False,
    retry_failed: bool = False,
    part: Part = WHOLE,
    progress: Progress | None = None,
    provenance: dict[str, Any] | None = None,
) -> ExtractionSummary:
    """Make a cache, or finish one that was begun.

    Launches of different parts may run beside each other on one folder, or each on a folder of its own for
    `glscl.cache.merge`. What stands in a shard does not depend on who makes it.

    Args:
        annotations: videos and captions from a dataset reader.
        out: folder of the cache.
        backbone: encodes frames and captions.
        sampling: which frames of a video are taken.
        store_frames: "none", "uint8" or "jpeg": whether the frames that the encoder saw are stored beside the features.
        frame_quality: of JPEG, 1 to 100.
        decoder: "auto", "decord" or "pyav".
        time_limit: seconds without progress after which a video is given up.
        memory_limit: GB (1e9 bytes) that a decoding process may take.
        strict: raise DecodeError at the first video that is missing or gives no frames.
        retry_failed: decode again what failed in earlier runs.
        part: the share of the shards that this run takes.
        provenance: command and versions, stored beside the configuration.

    Raises:
        NotFoundError: not one of the videos is there.
        DecodeError: not one of them could be decoded, or `strict`.
        CacheBusyError: another process writes this cache.
        FingerprintError, StorageError, …: see `create_store` and `Store.commit`.
    """
    started = time.perf_counter()
    progress = progress or Progress(quiet=True)
    _require_videos(annotations, strict)
    spec = StoreSpec(
        configuration={
            "backbone": dataclasses.asdict(backbone.description),
            "sampling": dataclasses.asdict(sampling) | {"decoder": decoder},
        },
        annotations=annotations,
        embed_dim=backbone.embed_dim,
        dtype=dtype,
        tokens=tokens,
        shard_items={"video": shard_videos, "text": shard_texts},
        provenance=provenance or {},
        frames=FrameSpec.make(store_frames, backbone.geometry.size, frame_quality),
    )
    store = create_store(out, spec, format)
    watch = _Stopwatch()
    retried = part.of(_shards_with_failures(store)) if retry_failed else []
    nothing_left = not retried and not any(part.of(store.pending(stream)) for stream in STREAMS)
    had_manifest = (store.path / "manifest.json").exists()
    already = nothing_left and (had_manifest or not store.complete)
    finished_here, seconds_texts = False, 0.0
    if not already:
        with hold(out, part=part, what="glscl extract") as own_lock:
            store.refresh()
            store.write_backbone_pieces(backbone.pieces())
            clock = time.perf_counter()
            extract_texts(store, backbone, tokens=tokens, batch_texts=batch_texts, part=part, progress=progress)
            seconds_texts = time.perf_counter() - clock
            pool = DecodePool(
                workers=workers,
                sampling=sampling,
                geometry=backbone.geometry,
                decoder=decoder,
                time_limit=time_limit,
                memory_limit=int(memory_limit * 1e9),
            )
            shards = sorted({*part.of(store.pending("video")), *retried})
            _extract_videos(store, backbone, pool, shards, retried, batch_frames, strict, watch, progress)
            store.refresh()
            if part.whole or store.complete:
                alone = all(lock.stale or lock.file == own_lock for lock in locks(out))
                finished_here = store.finish(clear=alone) or (had_manifest and part.index == 1)
    seconds = {
        "total": time.perf_counter() - started,
        "texts": seconds_texts,
        "waiting_for_frames": watch.waiting,
        "encoding_frames": watch.encoding,
        "writing": watch.writing,
        "decoding_in_workers": watch.decoding,
    }
    return ExtractionSummary(
        cache=str(out),
        fingerprint=store.fingerprint,
        already_complete=already,
        complete=store.complete,
        finished_here=finished_here,
        part=None if part.whole else str(part),
        **_counted(store),
        seconds=seconds,
        bound_by=_bound_by(watch, workers),
    )


def _counted(store: Store) -> dict[str, Any]:
    """What the committed shards hold. Raises DecodeError where the cache is complete and no video gave frames."""
    usable = frames = seen = 0
    for shard in sorted(store.commits("video")):
        found = store.arrays("video", ["status", "offsets"], items=store.shard_range("video", shard))
        usable += int(np.isin(found["status"], [s for s in Status if s.usable]).sum())
        frames, seen = frames + int(found["offsets"][-1]), seen + len(found["status"])
    failed = store.failures()
    if store.complete and not usable:
        first = failed[0] if failed else {"id": "", "reason": "nothing"}
        raise DecodeError(
            f"None of the {seen} videos gave frames; the first, {first['id']!r}: {first['reason']}",
            mend=f"See all reasons: glscl inspect {store.path}",
        )
    return {
        "videos": usable,
        "texts": sum(len(store.shard_range("text", shard)) for shard in store.commits("text")),
        "frames": frames,
        "failed": failed,
        "texts_without_video": int((store.arrays("text", ["video_index"])["video_index"] < 0).sum())
        if store.complete
        else None,
        "shards": {s: {"committed": len(store.commits(s)), "planned": store.num_shards(s)} for s in STREAMS},
    }


def first_videos(annotations: Annotations, count: int) -> Annotations:
    """Only the first `count` videos of each split, with their captions: a quick try of a large dataset."""
    taken: dict[str, int] = {}
    videos = []
    for video in annotations.videos:
        taken[video.split] = taken.get(video.split, 0) + 1
        if taken[video.split] <= count:
            videos.append(video)
    kept = {video.id for video in videos}
    note = f"--limit {count}: {len(videos)} of {len(annotations.videos)} videos were taken"
    return dataclasses.replace(
        annotations,
        videos=videos,
        texts=[text for text in annotations.texts if text.video in kept],
        notes=[*annotations.notes, note],
    )


def _bound_by(watch: _Stopwatch, workers: int) -> str | None:
    """Which stage set the pace, and how much of the wall time it was busy."""
    if not watch.frames:
        return None
    wall = watch.waiting + watch.encoding + watch.writing
    stages = {"decode": watch.decoding / workers, "encode": watch.encoding}
    slower = max(stages, key=lambda name: stages[name])
    return f"{slower} (busy {100 * min(1.0, stages[slower] / wall):.0f} % of the time)"


def _require_videos(annotations: Annotations, strict: bool) -> None:
    if not annotations.videos:
        raise InputError(f"{annotations.dataset} lists no video", mend="Check the annotations with --dry-run")
    missing = [video.id for video in annotations.videos if video.path is None]
    if len(missing) == len(annotations.videos):
        raise NotFoundError(
            f"None of the {len(missing)} videos of {annotations.dataset} was found, for example {missing[0]!r}",
            mend="Name the folder that holds them with --videos (glscl extract --dry-run shows what is looked for)",
        )
    if strict and missing:
        raise NotFoundError(f"{len(missing)} videos are missing, the first is {missing[0]!r} (--strict)")


def encode_video_file(
    path: Path, backbone: Backbone, sampling: Mapping[str, Any], *, width: int, time_limit: float = 60.0
) -> np.ndarray:
    """Frame features (F, D) float32 of one file, sampled as a cache was; at most `width` frames, spread evenly.

    Args:
        sampling: `configuration["sampling"]` of the cache.

    Raises:
        NotFoundError, DecodeError: the file is not there or gives no frames.
    """
    if not path.is_file():
        raise NotFoundError(f"No video file at {path}")
    rule = Sampling(**{k: v for k, v in sampling.items() if k != "decoder"})
    features, done = [], None
    pool = DecodePool(
        workers=1, sampling=rule, geometry=backbone.geometry, decoder=sampling["decoder"], time_limit=time_limit
    )
    with pool:
        for event in pool.decode([VideoTask(index=0, path=str(path))]):
            if isinstance(event, FrameChunk):
                features.append(backbone.encode_frames(event.frames))
            else:
                done = event
    if not features:
        raise DecodeError(f"{path} gives no frames: {done.reason}")
    frames = np.concatenate(features)
    return frames[frame_positions(len(frames), width, "uniform")]


# --- captions --------------------------------------------------------------------------------------------------


def extract_texts(
    store: Store, backbone: Backbone, *, tokens: bool, batch_texts: int, part: Part = WHOLE, progress: Progress
) -> None:
    """Encode and commit the captions of every shard of `part` that is not there yet."""
    index_of_video = {video.id: i for i, video in enumerate(store.plan.videos)}
    pending = part.of(store.pending("text"))
    with progress.task("captions", sum(len(store.shard_range("text", s)) for s in pending), "captions") as task:
        for shard in pending:
            items = [store.plan.texts[i] for i in store.shard_range("text", shard)]
            arrays = text_arrays(
                items,
                _encode_captions(items, backbone, tokens, batch_texts, task),
                video_index=[index_of_video.get(item.video, -1) for item in items],
                embed_dim=store.embed_dim,
                dtype=store.dtype,
            )
            store.commit("text", shard, arrays)


def _encode_captions(
    items: Sequence[TextItem], backbone: Backbone, tokens: bool, batch: int, task: Task
) -> list[TextRecord]:
    """Captions in batches of similar length, returned in their own order."""
    tokenized = backbone.tokenize([item.text for item in items])
    order = np.argsort(tokenized.lengths, kind="stable")
    records: list[TextRecord | None] = [None] * len(items)
    for start in range(0, len(items), batch):
        rows = order[start : start + batch]
        encoded = backbone.encode_texts(TokenizedTexts(tokenized.ids[rows], tokenized.lengths[rows]))
        for i, row in enumerate(rows):
            length = int(tokenized.lengths[row]) if tokens else 0
            records[row] = TextRecord(
                encoded.text_features[i],
                encoded.token_features[i, :length],
                tokenized.ids[row, :length].astype(np.int32),
            )
        task.advance(len(rows))
    return records


# --- videos ----------------------------------------------------------------------------------------------------


class _Video:
    """Frames and features of one video on their way through the encoder."""

    def __init__(self) -> None:
        self.waiting: list[np.ndarray] = []  # frames not yet encoded
        self.features: list[np.ndarray] = []
        self.times: list[np.ndarray] = []
        self.done: VideoDone | None = None

    @property
    def num_waiting(self) -> int:
        return sum(len(frames) for frames in self.waiting)

    def take(self, count: int | None = None) -> np.ndarray:
        """The first `count` waiting frames (all by default), (n, S, S, 3)."""
        frames = np.concatenate(self.waiting)
        count = len(frames) if count is None else count
        self.waiting = [frames[count:]] if count < len(frames) else []
        return frames[:count]


class _ShardInProgress:
    """Encodes the videos of one shard in an order that only the plan decides."""

    def __init__(
        self, items: range, backbone: Backbone, batch_frames: int, watch: _Stopwatch, spool: FrameSpool | None
    ) -> None:
        self.videos = {index: _Video() for index in items}
        self.spool = spool  # of frames to be stored
        self.backbone, self.batch_frames, self.watch = backbone, batch_frames, watch
        self.next = items.start  # first video whose remainder has not joined the shared batch
        self.shared: list[tuple[_Video, np.ndarray]] = []

    def add(self, chunk: FrameChunk) -> None:
        video = self.videos[chunk.index]
        video.waiting.append(chunk.frames)
        video.times.append(chunk.times)
        if self.spool is not None:
            self.spool.add(chunk.index, chunk.frames)
        while video.num_waiting >= self.batch_frames:
            video.features.append(self._encode(video.take(self.batch_frames)))

    def close(self, done: VideoDone) -> None:
        self.videos[done.index].done = done
        while self.next in self.videos and self.videos[self.next].done is not None:
            video = self.videos[self.next]
            if video.waiting:
                self.shared.append((video, video.take()))
            self.next += 1
            while sum(len(frames) for _, frames in self.shared) >= self.batch_frames:
                self._encode_shared()
        if self.complete and self.shared:
            self._encode_shared()

    @property
    def complete(self) -> bool:
        return self.next not in self.videos

    def records(self) -> dict[int, VideoRecord]:
        dim = self.backbone.embed_dim
        return {index: _record(video, dim) for index, video in self.videos.items()}

    def _encode_shared(self) -> None:
        """One batch of the remainders; what does not fit stays for the next."""
        room, batch, rest = self.batch_frames, [], []
        for video, frames in self.shared:
            taken = frames[:room]
            if len(taken):
                batch.append((video, taken))
            if len(frames) > len(taken):
                rest.append((video, frames[len(taken) :]))
            room -= len(taken)
        features = self._encode(np.concatenate([frames for _, frames in batch]))
        bounds = np.cumsum([len(frames) for _, frames in batch])[:-1]
        for (video, _), part in zip(batch, np.split(features, bounds)):
            video.features.append(part)
        self.shared = rest

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        clock = time.perf_counter()
        features = self.backbone.encode_frames(frames)
        self.watch.encoding += time.perf_counter() - clock
        self.watch.frames += len(frames)
        return features


def _record(video: _Video, embed_dim: int) -> VideoRecord:
    done = video.done
    return VideoRecord(
        frame_features=np.concatenate(video.features) if video.features else np.zeros((0, embed_dim), np.float32),
        times=np.concatenate(video.times) if video.times else np.zeros(0, np.float32),
        status=done.status,
        reason=done.reason,
        duration=done.duration,
        fps=done.fps,
        frames_total=done.frames_total,
        ledger={
            "decoder": done.decoder,
            "note": done.decoder_note,
            "codec": done.codec,
            "seconds": round(done.seconds, 3),
        },
    )


def _extract_videos(
    store: Store,
    backbone: Backbone,
    pool: DecodePool,
    shards: list[int],
    retried: list[int],
    batch_frames: int,
    strict: bool,
    watch: _Stopwatch,
    progress: Progress,
) -> None:
    kept = {shard: _usable_records(store, shard) for shard in retried}
    wanted = {s: [i for i in store.shard_range("video", s) if i not in kept.get(s, {})] for s in shards}
    videos = store.plan.videos
    if not shards:
        return
    in_progress: dict[int, _ShardInProgress] = {}
    old_frames = StoredFrames(store)

    def tasks() -> Iterator[VideoTask]:
        for shard in shards:
            for i in wanted[shard]:
                if videos[i].path is not None:
                    yield VideoTask(index=i, path=videos[i].path, start=videos[i].start, end=videos[i].end)

    failed = 0
    with progress.task("videos", sum(map(len, wanted.values())), "videos") as task, pool:

        def begin(shard: int) -> None:
            """Close what needs no decoding: kept from an earlier run, or known to be missing."""
            nonlocal failed
            spool = FrameSpool(store.path, store.frames) if store.frames else None
            in_progress[shard] = _ShardInProgress(
                store.shard_range("video", shard), backbone, batch_frames, watch, spool
            )
            for i in store.shard_range("video", shard):
                if i in kept.get(shard, {}):
                    if spool is not None:
                        spool.add_stored(i, *old_frames.stored(i))
                    close(_not_decoded(i, Status.OK, None))
                elif videos[i].path is None:
                    failed += 1
                    close(_not_decoded(i, Status.MISSING, "no file found for this id"))
                    task.advance(failed=failed)

        def close(done: VideoDone) -> None:
            shard = done.index // store.shard_items["video"]
            current = in_progress[shard]
            current.close(done)
            if current.complete:
                clock = time.perf_counter()
                records = current.records() | kept.get(shard, {})
                commit_videos(store, shard, records, retry=shard in kept, frames=current.spool)
                watch.writing += time.perf_counter() - clock
                del in_progress[shard]

        for shard in shards:
            if not any(videos[i].path is not None for i in wanted[shard]):
                begin(shard)  # and end: there is nothing to decode
        events = pool.decode(tasks())
        while True:
            clock = time.perf_counter()
            event = next(events, None)
            watch.waiting += time.perf_counter() - clock
            if event is None:
                break
            shard = event.index // store.shard_items["video"]
            if shard not in in_progress:
                begin(shard)
            if isinstance(event, FrameChunk):
                in_progress[shard].add(event)
                continue
            watch.decoding += event.seconds
            failed += not event.status.usable
            if strict and not event.status.usable:
                raise DecodeError(f"{videos[event.index].id!r} gives no frames: {event.reason} (--strict)")
            close(event)
            task.advance(**({"failed": failed} if failed else {}))


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


def commit_videos(
    store: Store,
    shard: int,
    records: dict[int, VideoRecord],
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


def _shards_with_failures(store: Store) -> list[int]:
    return [
        shard
        for shard, commit in sorted(store.commits("video").items())
        if any(not Status[failure["status"].upper()].usable for failure in commit.failures)
    ]


def _usable_records(store: Store, shard: int) -> dict[int, VideoRecord]:
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
            records[i] = VideoRecord(
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
