"""Read → encode → commit: the run of an extraction, captions first, then videos, shard by shard."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache.creation import StoreSpec, create_store
from glscl.cache.frame_format import FrameSpec
from glscl.cache.lock import hold, locks
from glscl.cache.schema import STREAMS, Annotations, Status
from glscl.cache.store import Store
from glscl.common.errors import DecodeError, InputError, NotFoundError
from glscl.common.progress import Progress
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.batching import Stopwatch
from glscl.extract.captions import extract_texts
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.sampling import Sampling
from glscl.extract.part import WHOLE, Part
from glscl.extract.videos import VideoExtraction, shards_with_failures


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractionSummary:
    """What an extraction did. Seconds of stages overlap: decoding runs beside encoding.

    While parts of others are missing, `complete` is False and the counts are those of the shards that are there;
    `finished_here` says that this run put the last one in (into a cache that was complete before: that it was part 1).
    `notes` are what the dataset reader dropped or chose, as the cache keeps them.
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
    notes: list[str]
    seconds: dict[str, float]
    bound_by: str | None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


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
    `glscl.cache.upkeep.merge`. What stands in a shard does not depend on who makes it.

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
    watch = Stopwatch()
    retried = part.of(shards_with_failures(store)) if retry_failed else []
    nothing_left = not retried and not any(part.of(store.pending(stream)) for stream in STREAMS)
    had_manifest = (store.path / "manifest.json").exists()
    already = nothing_left and (had_manifest or not store.complete)
    finished_here, seconds_texts = False, 0.0
    if not already:
        with hold(out, part=part, what="extract") as own_lock:
            store.refresh()
            store.write_backbone_tensors(backbone.pieces())
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
                picture_quality=store.frames.quality if store.frames else None,
            )
            videos = VideoExtraction(
                store,
                backbone,
                shards=sorted({*part.of(store.pending("video")), *retried}),
                retried=retried,
                batch_frames=batch_frames,
                strict=strict,
            )
            watch = videos.watch
            videos.run(pool, progress)
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
        notes=list(store.header.get("notes", [])),
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


def _bound_by(watch: Stopwatch, workers: int) -> str | None:
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
