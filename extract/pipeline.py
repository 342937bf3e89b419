"""List → plan → encode → commit: the run of an extraction, captions first, then videos, shard by shard."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glscl.cache.creation import StoreSpec, create_library, require_format
from glscl.cache.files import written
from glscl.cache.filling import filling
from glscl.cache.frame_format import FrameSpec
from glscl.cache.keys import Stat, has_key
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import Library, Place, open_library, read_header
from glscl.cache.lists import list_names, read_record, versions_of
from glscl.cache.planning import Work, begin, work_for
from glscl.cache.schema import STREAMS, Annotations, Status
from glscl.cache.store import Store
from glscl.common.arguments import types_checked
from glscl.common.devices import cores
from glscl.common.errors import DecodeError, GlsclError, Hint, InputError, NotFoundError, StorageError, UsageError
from glscl.common.memory import keep_freed_memory
from glscl.common.progress import Progress
from glscl.common.settings import as_dict, build, differences
from glscl.common.tables import amount
from glscl.extract.backbone.encoder import (
    Backbone,
    Preprocessing,
    expected_preprocessing,
    introduce,
    require_gpu_compiler,
)
from glscl.extract.backbone.weight_settings import CONFIG_FILES, recorded
from glscl.extract.batching import Stopwatch
from glscl.extract.beginning import begun_pool, decoding_of, first_videos
from glscl.extract.captions import cut_note, extract_captions
from glscl.extract.decode.pool import DecodePool, wake
from glscl.extract.engine import AboutBackbone, Engine, backbone_of, precision_in_force
from glscl.extract.listing import (
    ListChanges,
    Listing,
    ListOrigin,
    another_set,
    changes_since,
    current_list,
    list_of,
    require_apart,
)
from glscl.extract.part import Part
from glscl.extract.settings import ExtractSettings
from glscl.extract.videos import VideoExtraction


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractionSummary:
    """What an extraction did. Seconds of stages overlap: decoding runs beside encoding.

    While parts of others are missing, `complete` is False and the counts are those of what is there; `finished_here` says
    that this run put the last one in (into a cache that was complete before: that it was part 1).

    Attributes:
        list, list_hash: the list and its version. notes: what its reader dropped or chose.
        encoded: "videos", "texts", "frames" that this run encoded.
        reused: "videos", "texts" of the list that were there already.
        previous: version of the list that counted before; None where there was none.
        changes: how the list differs from that; see `glscl.extract.listing.ListChanges`.
        missing: entries without a file and without an item from before.
        left: shards of others that hold some of the list, and files that are not here: a run that is no part makes what is
            wanted of them.
        failed: entries without features, or with fewer than they should have.
    """

    cache: str
    list: str
    list_hash: str
    fingerprint: str
    already_complete: bool
    complete: bool
    finished_here: bool
    part: str | None
    encoded: dict[str, int]
    reused: dict[str, int]
    previous: str | None
    changes: dict[str, int]
    missing: int
    left: int
    shards: dict[str, dict[str, int]]
    videos: int
    texts: int
    frames: int
    failed: Sequence[dict[str, Any]]
    texts_without_video: int | None
    notes: Sequence[str]
    seconds: dict[str, float]
    bound_by: str | None

    def __repr__(self) -> str:
        counts = f"{self.videos} videos, {self.texts} texts, {len(self.failed)} failed"
        return f"ExtractionSummary({self.cache!r}, {self.list}@{self.list_hash}, {counts})"

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@types_checked
def extract(
    annotations: Annotations,
    out: os.PathLike[str] | str,
    settings: ExtractSettings | None = None,
    *,
    origin: ListOrigin | None = None,
    backbone: Backbone | None = None,
    device: str | torch.device | Engine = "cpu",
    progress: Progress | None = None,
    known: KnownFiles | None = None,
) -> ExtractionSummary:
    """Bring the items of a list into a cache, which is made where there is none. What it has is not encoded again.

    Launches of different parts may run at the same time on one folder, or each on a folder of its own for
    `glscl.cache.upkeep.merge`. What stands in a shard does not depend on who makes it.

    Args:
        annotations: videos and captions from a dataset reader.
        out: folder of the cache.
        settings: how to sample, encode and store; the defaults where None.
        origin: what the list is called and where it comes from; by default it is called as the data set.
        backbone: encodes frames and captions; None loads the one that the settings name, where there is anything to encode.
        device: where a backbone that is loaded here encodes, or an engine that encodes on other machines.
        known: the memo of contents, where a reader has hashed files already; that of the cache by default.

    Raises:
        NotFoundError: not one of the videos is there.
        DecodeError: not one of them could be decoded, or `strict`.
        BackboneError: the backbone cannot be loaded, see `glscl.extract.backbone.encoder.load_backbone`.
        CacheBusyError: another process writes this cache.
        FingerprintError, StorageError, …: see `create_library` and `Library.commit`.
    """
    started = time.perf_counter()
    settings = settings or ExtractSettings()
    run = _Extraction(
        annotations,
        Path(out),
        settings,
        origin or ListOrigin(),
        backbone,
        torch.device(device) if isinstance(device, str) else device,
        progress or Progress(quiet=True),
    )
    run.known = known or run.known
    with run.decoders:
        run.open()
        run.plan()
        if not run.nothing_to_do:
            run.fill()
    return run.summary(seconds=time.perf_counter() - started)


def count_encoded(
    annotations: Annotations,
    out: Path,
    origin: ListOrigin | None = None,
    known: KnownFiles | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, int]:
    """How many different "videos" and "texts" of a list a cache holds already; 0 where there is no cache. Writes nothing."""
    if not written(out / "store.json"):
        return {"videos": 0, "texts": 0}
    library = open_library(out)
    made = list_of(annotations, known or KnownFiles.read(out), origin or ListOrigin(), library, progress=progress).made
    return {"videos": _answered(library, "video", made.video_key), "texts": _answered(library, "text", made.text_key)}


def in_force(settings: ExtractSettings, out: Path, device: torch.device) -> ExtractSettings:
    """The settings with the precision that a device takes for a cache, which may be there."""
    made_with = None
    if written(out / "store.json"):
        made_with = read_header(out)["configuration"]["backbone"].get("precision")
    return dataclasses.replace(settings, precision=precision_in_force(settings, device, made_with))


class _Extraction:
    """One run; its steps are called in the order in which they stand."""

    library: Library
    listing: Listing
    changes: ListChanges
    warnings: list[str]

    def __init__(
        self,
        annotations: Annotations,
        out: Path,
        settings: ExtractSettings,
        origin: ListOrigin,
        backbone: Backbone | None,
        device: torch.device | Engine,
        progress: Progress,
    ) -> None:
        self.annotations, self.out, self.settings = annotations, out, settings
        self.backbone = self.given = backbone
        self.device, self.engine = (device, None) if isinstance(device, torch.device) else (torch.device("cpu"), device)
        self.about: AboutBackbone | None = None
        self.progress = progress
        self.part = Part.parse(settings.part)
        if settings.single_writer and not self.part.whole:
            raise UsageError(
                f"`part` is {self.part} and `single_writer` says that nobody else writes there",
                hint="Leave one of the two out",
            )
        if settings.compile and self.engine is None:
            require_gpu_compiler(self.device)
        self.origin = dataclasses.replace(origin, name=settings.list or origin.name).named(annotations.dataset)
        self.known = KnownFiles.read(out)
        self.is_current = False  # that the list counts already
        self.finished_here = False
        self.watch = Stopwatch()
        self.encoded = {"videos": 0, "texts": 0}
        self.cut = 0  # captions longer than what is kept of them
        self.seconds_texts = 0.0
        self.workers = settings.workers or cores()
        self.decoders = contextlib.ExitStack()  # that are at work
        self._begun: tuple[Preprocessing, DecodePool] | None = None

    # --- what is there, and what is asked for ------------------------------------------------------------------

    def open(self) -> None:
        """Open the cache or make it. A backbone is loaded only where the cache does not say that this one made it."""
        fresh = not written(self.out / "store.json")
        if not self.annotations.videos:
            raise InputError(f"{self.annotations.dataset} lists no video", hint="Check the annotations with `dry_run`")
        if fresh:  # said before a model is loaded; an older cache may know videos without their files
            missing = [video.id for video in self.annotations.videos if video.path is None]
            total, strict = len(self.annotations.videos), self.settings.strict
            _require_found(self.annotations.dataset, missing, among=total, strict=strict)
        else:
            require_format(self.out, self.settings.format)
        if self.given is None and self.engine is None:
            self.settings = in_force(self.settings, self.out, self.device)
        alike = None if self.backbone or fresh else _made_alike(self.out, self._in_force(), self.origin, self.known)
        if alike is None:
            self._wake_workers()
            if fresh and self.part.whole and self.given is None and self.engine is None:
                self._begin_decoding()
            self._load()
        else:
            self.library = alike

    def _begin_decoding(self) -> None:
        """Let the first videos of a new cache be decoded while the backbone is loaded, for what it will most likely want."""
        told = expected_preprocessing(self.settings)
        if told is not None:
            decoding = decoding_of(self.settings, told.transform)
            pool = begun_pool(decoding, self.workers, self.decoders)
            if pool is None:
                pool = self.decoders.enter_context(DecodePool(decoding, workers=self.workers))
                pool.begin(first_videos(self.annotations))
            self._begun = told, pool

    def plan(self) -> None:
        """Make the list and find out what of it is not there."""
        self.listing = list_of(
            self.annotations,
            self.known,
            self.origin,
            self.library,
            all_captions=self.settings.all_captions,
            settings=as_dict(self._in_force()),
            progress=self.progress,
        )
        made, s = self.listing.made, self.settings
        with contextlib.suppress(StorageError):  # a memo saves time; who may only read loses nothing else
            self._remember()
        without = [id for id, there in zip(made.video_ids, has_key(made.video_key)) if not there]
        if len(without) == len(made.video_ids) == len(made.unreadable):
            raise StorageError(
                f"None of the {amount(len(without), 'video')} can be read; {without[0]!r}: {made.unreadable[without[0]]}"
            )
        known = bool(list_names(self.out))
        _require_found(made.dataset, without, among=len(made.video_ids), strict=s.strict, lists=known)
        if s.strict:
            require_apart(made)
        before = current_list(self.library, made.name)
        self.changes, self.previous = changes_since(before, made), None if before is None else before.hash
        self.warnings = another_set(before, made, [v.id for v in self.annotations.videos if v.path is not None])
        self.is_current = self.previous == made.hash
        self.reused = {
            "videos": _answered(self.library, "video", made.video_key),
            "texts": _answered(self.library, "text", made.text_key),
        }
        awaited = made.hash in versions_of(self.out, made.name) and not Store(self.library, made).complete
        self.nothing_to_do = not any(map(self._is_left, STREAMS, map(self._work, STREAMS))) and (
            self.is_current or awaited
        )

    def _work(self, stream: str) -> Work:
        retry = self.settings.retry_failed and stream == "video"
        return work_for(self.library, stream, self.listing.wanted[stream], parts=self.part.count, retry_failed=retry)

    def _is_left(self, stream: str, work: Work) -> bool:
        """Whether shards of a stream are to be made by this part."""
        new = range(-(-len(work.new) // self._shard_items(stream)))
        return any(map(self.part.takes, (*(place.shard for place in work.finish), *new)))

    def _shard_items(self, stream: str) -> int:
        return self.settings.shard_videos if stream == "video" else self.settings.shard_texts

    # --- what is missing ---------------------------------------------------------------------------------------

    def _wake_workers(self) -> None:
        """Let what decoding processes need be imported while the backbone is loaded."""
        if self.given is None and self.engine is None:
            wake([self.settings.transform_module])

    def fill(self) -> None:
        """Write the list, encode what is missing, and let the list count once everything of it is there."""
        part, alone = (self.part.index, self.part.count), self.settings.single_writer
        with filling(self.library, self.listing.made, part=part, single_writer=alone) as outcome:
            texts, videos = self._work("text"), self._work("video")
            videos_left = self._is_left("video", videos)
            if videos_left:
                self._wake_workers()
            clock = time.perf_counter()
            if self._is_left("text", texts):
                self._extract_captions(texts)
            self.seconds_texts = time.perf_counter() - clock
            if videos_left:
                self._extract_videos(videos)
        self.finished_here = outcome.finished or (self.is_current and self.part.index == 1)

    def _extract_captions(self, work: Work) -> None:
        self._load()
        places, captions, progress = self._begin("text", work), self.listing.captions, self.progress
        if self.engine is not None:
            self.cut = self.engine.captions(self.library, places, captions, progress)
        elif self.backbone is not None:
            self.cut = extract_captions(self.library, places, captions, self.backbone, self.settings, progress=progress)

    def _extract_videos(self, work: Work) -> None:
        about, places = self._load(), self._begin("video", work)
        sources, listed = self.listing.sources, self.known.stat_of
        if self.engine is not None:
            self.watch = self.engine.videos(self.library, places, sources, listed, self.progress)
        elif self.backbone is not None:
            videos = VideoExtraction(self.library, places, sources, listed, self.backbone, self.settings)
            self.watch = videos.watch
            videos.run(self._pool(about), self.progress)

    def _pool(self, about: AboutBackbone) -> DecodePool:
        """The one that has begun, where the backbone wants what was expected of it; else a new one."""
        if self._begun is not None and self._begun[0].same_pictures(about.description.preprocessing):
            return self._begun[1]
        self.decoders.close()
        pool = DecodePool(decoding_of(self.settings, about.transform), workers=self.workers)
        return self.decoders.enter_context(pool)

    def _begin(self, stream: str, work: Work) -> list[Place]:
        """The shards that fall to this part."""
        places = begin(self.library, work, stream, shard_items=self._shard_items(stream))
        own = [place for place in places if self.part.takes(place.shard)]
        self.encoded[f"{stream}s"] = sum(len(place.items) for place in own)
        return own

    def _load(self) -> AboutBackbone:
        """The backbone, loaded where it was not given; and the cache opened as one that it made, or made now."""
        if self.about is not None:
            return self.about
        s = self.settings
        if self.engine is not None:
            self.about = self.engine.backbone()
        else:
            if self.device.type == "cpu":
                keep_freed_memory()
            if self.backbone is None:
                self.backbone = backbone_of(s, self.device)
            self.about = AboutBackbone.of(self.backbone)
        if self.given is None:
            for line in self.about.notes:
                self.progress.note(line)
        self.library = create_library(
            self.out, _spec(s, self.about, self.origin), s.format, single_writer=s.single_writer
        )
        introduce(self.about.description.name, self.about.tensors, self.library)
        self.known.contents(_weight_files(s))
        return self.about

    def _in_force(self) -> ExtractSettings:
        """The settings as a list keeps them: the same for all parts, and true of a backbone that was given."""
        s, given = dataclasses.replace(self.settings, part=None), self.given
        if given is None:
            return dataclasses.replace(
                s, precision=self.engine.precision if self.engine and s.precision == "auto" else s.precision
            )
        return dataclasses.replace(s, backbone=given.name, max_words=given.words, precision=given.precision)

    def _remember(self) -> None:
        """Keep what was hashed, beside what others have hashed meanwhile."""
        if self.known.hashed:
            self.known.unite(KnownFiles.read(self.out))
            self.known.save(self.out)

    def summary(self, *, seconds: float) -> ExtractionSummary:
        """What was done. Raises DecodeError where all is there and no video gave frames."""
        self.library.refresh()
        store, watch = Store(self.library, self.listing.made), self.watch
        return ExtractionSummary(
            cache=str(self.out),
            list=store.list_name,
            list_hash=store.list_hash,
            fingerprint=store.fingerprint,
            already_complete=self.nothing_to_do,
            complete=store.complete,
            finished_here=self.finished_here,
            part=None if self.part.whole else str(self.part),
            encoded={**self.encoded, "frames": watch.frames},
            reused=self.reused,
            previous=self.previous,
            changes=self.changes._asdict(),
            missing=self.changes.without_file,
            left=0 if store.complete else sum(self._work(stream).left for stream in STREAMS),
            **counted(store),
            notes=[*store.list.notes, *self.warnings, *cut_note(self.cut, self._in_force().max_words)],
            seconds={
                "total": seconds,
                "texts": self.seconds_texts,
                "waiting_for_frames": watch.waiting,
                "encoding_frames": watch.encoding,
                "writing": watch.writing,
                "decoding_in_workers": watch.decoding,
            },
            bound_by=_bound_by(watch, cores() if self.engine is None and self.device.type == "cpu" else None),
        )


def _made_alike(root: Path, settings: ExtractSettings, origin: ListOrigin, known: KnownFiles) -> Library | None:
    """The cache, where one of its lists says that it was made by the same settings, versions and weights; else None.

    What is loaded for it is then a backbone less. Whatever is encoded is encoded by one that was compared.
    """
    library = open_library(root)
    if library.header["format"] != settings.format or any(
        known.stat_of(path) != Stat.of(path) for path in _weight_files(settings)
    ):
        return None
    for name in list_names(root):
        for version in versions_of(root, name):
            with contextlib.suppress(GlsclError):
                record = read_record(root / "lists" / name / f"{version}.json")
                made_by = build(ExtractSettings, record.settings)
                if record.versions == origin.versions and not differences(made_by, settings):
                    return library
    return None


def _weight_files(settings: ExtractSettings) -> list[Path]:
    """The files that weights come from, as far as they are named by the settings."""
    given = Path(settings.pretrained)
    files = [given, *(given.parent / name for name in CONFIG_FILES)] if given.is_file() else [given]
    folders = [given, Path(settings.backbone.removeprefix("local-dir:"))]
    for folder in folders if settings.backbone.startswith("local-dir:") else folders[:1]:
        with contextlib.suppress(OSError):
            files += sorted(folder.iterdir())
    return [path for path in files if path.is_file()]


def _spec(settings: ExtractSettings, backbone: AboutBackbone, origin: ListOrigin) -> StoreSpec:
    if settings.pad_tokens and not (settings.tokens and backbone.is_causal):
        raise UsageError(
            "`pad_tokens` needs `tokens`, and a text tower like CLIP's own in which nothing sees what follows it"
        )
    decoding = decoding_of(settings, backbone.transform)
    return StoreSpec(
        configuration={
            "backbone": dataclasses.asdict(backbone.description),
            "sampling": dataclasses.asdict(decoding.sampling) | {"decoder": settings.decoder},
            **({"pad_tokens": True} if settings.pad_tokens else {}),
        },
        embed_dim=backbone.embed_dim,
        dtype=settings.dtype,
        tokens=settings.tokens and backbone.gives_tokens,
        frames=FrameSpec.make(settings.store_frames, backbone.transform.size, settings.frame_quality),
        versions=origin.versions,
    )


def settings_of(configuration: Any) -> dict[str, Any]:
    """The settings that make a cache of this configuration again, name → value: `_spec` the other way round.

    Raises:
        UsageError: it is of no extraction, or says too little.
    """
    try:
        made, sampling = configuration["backbone"], configuration["sampling"]
        if made["pretrained"] == "imported":
            raise UsageError("The run was trained on imported features, which no extraction makes")
        return {
            **as_dict(recorded(made)),
            "backbone": made["name"],
            "pretrained": made["pretrained"],
            "precision": made["precision"].split()[0],  # of "bf16 weights"
            "preprocess": made["preprocessing"].get("method", "open_clip"),
            "max_words": made["words"],
            "fps": "native" if sampling["fps"] is None else sampling["fps"],
            "sampling": sampling["rule"],
            "max_frames": sampling["max_frames"],
            "decoder": sampling["decoder"],
            "pad_tokens": configuration.get("pad_tokens", False),
            **{name: configuration[name] for name in ("dtype", "tokens")},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"The record does not say how its cache was extracted: {error!r}") from error


def _answered(library: Library, stream: str, keys: np.ndarray) -> int:
    """How many different keys have an item that says more than that no file was there."""
    about = library.stream(stream)
    numbers = about.index.find(np.unique(keys[has_key(keys)], axis=0))
    return int((about.status[numbers[numbers >= 0]] != int(Status.MISSING)).sum())


def counted(store: Store) -> dict[str, Any]:
    """What there is of a list. Raises DecodeError where it is complete and no video gave frames."""
    usable = np.isin(store.status(), [s for s in Status if s.usable])  # (V,)
    failed = store.failures()
    if store.complete and not usable.any():
        first = failed[0] if failed else {"id": "", "reason": "nothing"}
        raise DecodeError(
            f"None of the {amount(len(usable), 'video')} gave frames; the first, {first['id']!r}: {first['reason']}",
            hint=Hint("See all reasons", "inspect", {"": store.path}),
        )
    owners = store.list.text_video
    return {
        "videos": int(usable.sum()),
        "texts": int((store.numbers["text"] >= 0).sum()),
        "frames": store.count_frames(),
        "failed": failed,
        "texts_without_video": int((~np.append(usable, False)[owners]).sum()) if store.complete else None,
        "shards": {
            stream: {"committed": len(about.commits), "planned": len(about.places)}
            for stream in STREAMS
            for about in [store.library.stream(stream)]
        },
    }


def _bound_by(watch: Stopwatch, shared: int | None = None) -> str | None:
    """Which stage sets the pace, and for how much of the time.

    It is the one that the others wait for: decoding, where the encoder found no frames. Where all work on the same `shared`
    cores each slows the others down, and it is the one that takes most of the cores.
    """
    if not watch.frames:
        return None
    stages = {"decode": watch.waiting, "encode": watch.encoding, "write": watch.writing}
    if shared:
        stages["decode"] = max(watch.waiting, watch.decoding_cpu / shared)
        stages["encode"] = watch.encoding_cpu / shared
    slowest = max(stages, key=lambda name: stages[name])
    return f"{slowest} ({100 * stages[slowest] / sum(stages.values()):.0f} % of the time)"


def _require_found(dataset: str, missing: list[str], *, among: int, strict: bool, lists: bool = False) -> None:
    """Raise NotFoundError where no video was found, or with `strict` not every one."""
    if len(missing) == among:
        raise NotFoundError(
            f"None of the {amount(among, 'video')} of {dataset} was found, for example {missing[0]!r}",
            hint="Name the folder that holds them with `videos` (`dry_run` shows what is looked for)"
            + (", or with `list` a list of this cache that knows them by their ids" if lists else ""),
        )
    if strict and missing:
        lacking = f"{amount(len(missing), 'video')} {'is' if len(missing) == 1 else 'are'}"
        raise NotFoundError(f"{lacking} missing, the first is {missing[0]!r} (`strict`)")
