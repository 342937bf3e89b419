"""Read → encode → commit: the run of an extraction, captions first, then videos, shard by shard."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glscl.cache.creation import StoreSpec, create_store
from glscl.cache.frame_format import FrameSpec
from glscl.cache.lock import hold, locks
from glscl.cache.records import Failure
from glscl.cache.schema import STREAMS, Annotations, Status
from glscl.cache.store import Store
from glscl.common.errors import DecodeError, Hint, InputError, NotFoundError
from glscl.common.progress import Progress
from glscl.common.settings import as_dict, check
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.extract.batching import Stopwatch
from glscl.extract.captions import extract_captions
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import Decoding
from glscl.extract.part import Part
from glscl.extract.settings import ExtractSettings, parse_rate
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
    failed: list[Failure]
    texts_without_video: int | None
    notes: list[str]
    seconds: dict[str, float]
    bound_by: str | None

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def extract(
    annotations: Annotations,
    out: Path,
    settings: ExtractSettings | None = None,
    *,
    backbone: Backbone | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ExtractionSummary:
    """Make a cache, or finish one that was begun.

    Launches of different parts may run at the same time on one folder, or each on a folder of its own for
    `glscl.cache.upkeep.merge`. What stands in a shard does not depend on who makes it.

    Args:
        annotations: videos and captions from a dataset reader.
        out: folder of the cache.
        settings: how to sample, encode and store; the defaults where None.
        backbone: encodes frames and captions; None loads the one that the settings name.
        device: where a backbone that is loaded here encodes.
        provenance: command and versions, stored beside the configuration together with the settings.

    Raises:
        NotFoundError: not one of the videos is there.
        DecodeError: not one of them could be decoded, or `strict`.
        BackboneError: the backbone cannot be loaded, see `load_backbone`.
        CacheBusyError: another process writes this cache.
        FingerprintError, StorageError, …: see `create_store` and `Store.commit`.
    """
    started = time.perf_counter()
    settings = settings or ExtractSettings()
    check(settings)
    progress = progress or Progress(quiet=True)
    part = Part.parse(settings.part)
    workers = settings.workers or len(os.sched_getaffinity(0))
    _require_videos(annotations, settings.strict)
    backbone = backbone or load_backbone(
        settings.backbone,
        settings.pretrained,
        words=settings.max_words,
        device=device,
        precision=settings.precision,
        preprocess=settings.preprocess,
    )
    in_force = dataclasses.replace(  # a backbone that was given decides these
        settings, part=None, backbone=backbone.name, max_words=backbone.words, precision=backbone.precision
    )
    decoding = Decoding(
        sampling=Sampling(fps=parse_rate(settings.fps), rule=settings.sampling, max_frames=settings.max_frames),
        prepare=backbone.transform,
        decoder=settings.decoder,
        time_limit=settings.time_limit,
        memory_limit=int(settings.memory_limit * 1e9),
        jpeg_quality=settings.frame_quality if settings.store_frames == "jpeg" else None,
    )
    spec = StoreSpec(
        configuration={
            "backbone": dataclasses.asdict(backbone.description),
            "sampling": dataclasses.asdict(decoding.sampling) | {"decoder": settings.decoder},
        },
        annotations=annotations,
        embed_dim=backbone.embed_dim,
        dtype=settings.dtype,
        tokens=settings.tokens,
        shard_items={"video": settings.shard_videos, "text": settings.shard_texts},
        provenance={**(provenance or {}), "settings": as_dict(in_force)},
        frames=FrameSpec.make(settings.store_frames, backbone.transform.size, settings.frame_quality),
    )
    store = create_store(out, spec, settings.format)
    watch = Stopwatch()
    retried = part.share(shards_with_failures(store)) if settings.retry_failed else []
    nothing_left = not retried and not any(part.share(store.pending(stream)) for stream in STREAMS)
    had_manifest = (store.path / "manifest.json").exists()
    already = nothing_left and (had_manifest or not store.complete)
    finished_here, seconds_texts = False, 0.0
    if not already:
        with hold(out, part=(part.index, part.count), what="extract") as own_lock:
            store.refresh()
            store.write_backbone_tensors(backbone.tensors_for_heads())
            clock = time.perf_counter()
            extract_captions(store, backbone, settings, part=part, progress=progress)
            seconds_texts = time.perf_counter() - clock
            shards = sorted({*part.share(store.pending("video")), *retried})
            videos = VideoExtraction(store, backbone, settings, shards=shards, retried=retried)
            watch = videos.watch
            videos.run(DecodePool(decoding, workers=workers), progress)
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
            hint=Hint("See all reasons", "inspect", {"": store.path}),
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
        raise InputError(f"{annotations.dataset} lists no video", hint="Check the annotations with `dry_run`")
    missing = [video.id for video in annotations.videos if video.path is None]
    if len(missing) == len(annotations.videos):
        raise NotFoundError(
            f"None of the {len(missing)} videos of {annotations.dataset} was found, for example {missing[0]!r}",
            hint="Name the folder that holds them with `videos` (`dry_run` shows what is looked for)",
        )
    if strict and missing:
        raise NotFoundError(f"{len(missing)} videos are missing, the first is {missing[0]!r} (`strict`)")
