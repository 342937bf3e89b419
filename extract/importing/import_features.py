"""Features that others extracted become an ordinary cache: frames from arrays by video id, captions from any reader.

Everything is read and checked once before the cache is created, so what is refused leaves nothing behind; then it is
read again shard by shard and committed, so a killed import goes on where it stopped.

T texts, L tokens, F frames, D embed_dim.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from glscl.cache.creation import StoreSpec, create_library, require_format
from glscl.cache.encoded_items import EncodedText, EncodedVideo, text_arrays
from glscl.cache.filling import filling
from glscl.cache.fingerprint import canonical
from glscl.cache.keys import KEY_BYTES, Stat, as_array, captioned_rows_key, clip, has_key, rows_key, text_key
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import Library, Place, open_library
from glscl.cache.lists import arrange
from glscl.cache.planning import begin, work_for
from glscl.cache.schema import Annotations, Status, TextItem, VideoItem
from glscl.cache.shard_arrays import decode_features, encode_features
from glscl.cache.store import Store
from glscl.common.errors import FingerprintError, Hint, InputError, StorageError, UsageError, telling
from glscl.common.progress import Progress
from glscl.common.settings import as_dict, check
from glscl.common.tables import amount
from glscl.common.versions import versions
from glscl.extract.backbone.encoder import Backbone, introduce, load_backbone
from glscl.extract.captions import cut_note, extract_captions
from glscl.extract.datasets.builder import NOT_LOOKED_FOR
from glscl.extract.datasets.text_files import examples
from glscl.extract.decode.packets import duration_and_rate
from glscl.extract.importing.feature_files import open_arrays
from glscl.extract.importing.pairing import (
    EntryFrames,
    FrameReaders,
    RowReaders,
    frame_readers,
    text_readers,
    without_zeros,
)
from glscl.extract.listing import Keyed, ListOrigin, assemble, current_list
from glscl.extract.pipeline import counted
from glscl.extract.settings import ImportSettings
from glscl.extract.videos import commit_videos


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What an import did; `notes` are those of the annotations and what was found in the features.

    Attributes:
        list, list_hash: the list and its version.
        encoded: "videos", "texts" that this import brought. reused: those of the list that were there already.
        failed: entries without features, or with fewer than they should have.
    """

    cache: str
    list: str
    list_hash: str
    fingerprint: str
    already_complete: bool
    encoded: dict[str, int]
    reused: dict[str, int]
    videos: int
    texts: int
    frames: int
    failed: Sequence[dict[str, Any]]
    texts_without_video: int | None
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class FeatureFiles(NamedTuple):
    """Where the features of an import are.

    Attributes:
        features: of frames: a folder with one file a video, or one file with one entry a video: (F, D) float16, float32 or
            float64, further axes of length 1 allowed, (D,) being one frame. All-zero rows are no frames.
        text_features: the same for captions, (D,) by caption id or (n, D) by video id for its n captions; or one array
            (T, D) with a row for each caption as they stand in the annotation files. None has them encoded by a backbone.
        token_features: (L, D) by caption id, or one array (T, L, D) in that order, zero rows being padding; None makes a
            cache without tokens. Read only together with `text_features`.
    """

    features: Path
    text_features: Path | None = None
    token_features: Path | None = None

    def check(self, backbone: object | None) -> None:
        """Raise UsageError where the ways that captions come by their features exclude each other."""
        if self.text_features is not None and backbone is not None:
            raise UsageError("`text_features` and `backbone` exclude each other: captions are read, or encoded now")
        if self.token_features is not None and self.text_features is None:
            raise UsageError("`token_features` needs `text_features` beside it")


def import_features(
    annotations: Annotations,
    files: FeatureFiles,
    out: Path,
    settings: ImportSettings | None = None,
    *,
    origin: ListOrigin | None = None,
    backbone: Backbone | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> ImportSummary:
    """Bring arrays into a cache, which is made where there is none. What it has already costs nothing.

    Args:
        annotations: videos and captions from a dataset reader; the videos themselves are not needed.
        files: the arrays.
        out: folder of the cache.
        settings: what the features are and how they are stored; the defaults where None. Frame i of a video is at
            start + i / fps seconds.
        backbone: encodes the captions; None loads the one that the settings name, if they name one.
        device: where a backbone that is loaded here encodes.
        origin: what the list is called and where it comes from; by default it is called as the data set.

    Raises:
        UsageError: none, or too many, of the sources of text features.
        NotFoundError: a path that is not there, or not one video has features.
        InputError: features that cannot be read, of a wrong shape or type, with NaN or infinite values.
        CacheBusyError: another process writes this cache.
        FingerprintError: a cache of other features is there, and `name` does not say that both are of one encoder.
        StorageError, …: see `create_library` and `Library.commit`.
    """
    settings = settings or ImportSettings()
    check(settings)
    features, text_features, token_features = files
    progress = progress or Progress(quiet=True)
    _check_sources(annotations, files, backbone or settings.backbone)
    if not np.isfinite(settings.fps):
        raise UsageError(f"`fps` is {settings.fps}; expected a number of frames a second above 0")
    require_format(Path(out), settings.format)  # said before a model is loaded
    if backbone is None and settings.backbone is not None:
        backbone = load_backbone(
            settings.backbone,
            settings.pretrained,
            words=settings.max_words,
            device=device,
            precision=settings.precision,
            asked=settings,
        )
    notes: list[str] = list(backbone.notes) if backbone is not None else []
    origin = dataclasses.replace(origin or ListOrigin(), **({"name": settings.list} if settings.list else {}))
    request = _request(annotations, files, settings) if backbone is None else None
    if request is not None and (done := _done_before(out, files, request, origin.named(annotations.dataset).name)):
        return done
    with ExitStack() as stack:
        stack.enter_context(telling(notes))
        frames_of = frame_readers(stack.enter_context(open_arrays(features)), annotations, notes)
        texts_of: RowReaders = {}
        tokens_of: RowReaders = {}
        if text_features is not None:
            texts_of = text_readers(stack.enter_context(open_arrays(text_features)), annotations, 1, notes)
        if token_features is not None:
            tokens_of = text_readers(stack.enter_context(open_arrays(token_features)), annotations, 2, notes)
        if text_features is not None:
            annotations = _with_features(annotations, texts_of, notes)
        if token_features is not None:
            lacking = [text.id for text in annotations.texts if text.id not in tokens_of]
            if lacking:
                raise InputError(
                    f"{token_features} has no token features of {amount(len(lacking), 'caption')}, for example {lacking[0]!r}",
                    hint="Give them for all captions that have text features, or leave `token_features` out",
                )
        embed_dim = _embed_dim(backbone, texts_of, frames_of)
        readers = _Readers(frames_of, texts_of, tokens_of)
        checked = _Checked(embed_dim, readers, settings, progress)
        mark = checked.everything(annotations, str(features))
        notes += checked.notes()
        annotations = dataclasses.replace(
            annotations,
            notes=[*(line for line in annotations.notes if line != NOT_LOOKED_FOR), *notes],
        )
        library = _create(out, settings, mark, embed_dim, bool(tokens_of), backbone)
        done = _fill(library, annotations, checked, settings, origin, backbone, progress)
    if request is not None:
        _remember(library, files, request, done)
    return done


# --- the same import again ----------------------------------------------------------------------------------------------


def _request(annotations: Annotations, files: FeatureFiles, settings: ImportSettings) -> bytes | None:
    """Hash of all that decides an import, of the features only what tells whether they changed; None where that fails."""
    seen: list[tuple[str, Stat]] = []
    try:
        for path in filter(None, files):
            below = [os.path.join(base, name) for base, _, names in os.walk(path) for name in names]
            for name in sorted(below) if path.is_dir() else [os.fspath(path)]:
                seen.append((os.path.abspath(name), Stat.of(name)))
        told = msgspec.msgpack.encode(
            [annotations, files, as_dict(settings), seen, versions()["glscl"]], enc_hook=os.fspath
        )
    except (OSError, UnicodeEncodeError):  # names that are no text
        return None
    return blake2b(told, digest_size=KEY_BYTES).digest()


def _mark(request: bytes, version: str) -> bytes:
    """What `KnownFiles` remembers of the frame features: which list came of which request."""
    return blake2b(request + version.encode(), digest_size=KEY_BYTES).digest()


def _done_before(out: Path, files: FeatureFiles, request: bytes, name: str) -> ImportSummary | None:
    """What is there of an import that was finished before, and of which nothing changed: read without its features."""
    seen = KnownFiles.read(out).remembered(files.features)
    if seen is None:
        return None
    library = open_library(out)
    made = current_list(library, name)
    if made is None or seen != _mark(request, made.hash):
        return None
    store = Store(library, made)
    if not store.complete:
        return None
    keys = {"videos": made.video_key, "texts": made.text_key}
    reused = {what: len(np.unique(each[has_key(each)], axis=0)) for what, each in keys.items()}
    return _summary(store, already=True, encoded=dict.fromkeys(keys, 0), reused=reused)


def _remember(library: Library, files: FeatureFiles, request: bytes, done: ImportSummary) -> None:
    """Keep that this was done; what an earlier version gave by id alone is looked up each time."""
    known = KnownFiles.read(library.path)
    with contextlib.suppress(OSError, StorageError):  # it only saves time
        known.remember(files.features, _mark(request, done.list_hash))
        known.save(library.path)


def _summary(
    store: Store, *, already: bool, encoded: dict[str, int], reused: dict[str, int], more: Sequence[str] = ()
) -> ImportSummary:
    return ImportSummary(
        cache=str(store.path),
        list=store.list_name,
        list_hash=store.list_hash,
        fingerprint=store.fingerprint,
        already_complete=already,
        encoded=encoded,
        reused=reused,
        notes=[*store.list.notes, *more],
        **{key: value for key, value in counted(store).items() if key != "shards"},
    )


def _create(
    out: Path, settings: ImportSettings, mark: str, embed_dim: int, has_tokens: bool, backbone: Backbone | None
) -> Library:
    """The cache that these features go into. `mark`: hash of all of them."""
    about: dict[str, Any] = {"name": settings.name or "features", "pretrained": "imported"}
    if settings.name is None:  # nobody says that other features come from the same encoder
        about["weights"] = mark
    configuration: dict[str, Any] = {"backbone": about, "sampling": {"fps": settings.fps, "source": "imported"}}
    if backbone is not None:
        about["words"] = backbone.words
        configuration["text_backbone"] = dataclasses.asdict(backbone.description)
    tokens = has_tokens or (backbone is not None and settings.tokens and backbone.text_tower.gives_tokens)
    spec = StoreSpec(configuration=configuration, embed_dim=embed_dim, dtype=settings.dtype, tokens=tokens)
    try:
        return create_library(out, spec, settings.format)
    except FingerprintError as error:
        if settings.name is None:
            raise FingerprintError(
                error.message,
                hint=Hint("Say with `name` what made both, if one encoder did, or use another folder with `out`"),
            ) from None
        raise


class _Readers(NamedTuple):
    """id → reads its rows, of videos, captions and tokens of captions."""

    frames: FrameReaders
    texts: RowReaders
    tokens: RowReaders

    def text_rows(self, id: str) -> np.ndarray:
        """Pooled feature and tokens of a caption, (1 + L, D)."""
        pooled = self.texts[id]()
        return np.concatenate([pooled, without_zeros(self.tokens[id]())]) if self.tokens else pooled


def _fill(
    library: Library,
    annotations: Annotations,
    checked: _Checked,
    settings: ImportSettings,
    origin: ListOrigin,
    backbone: Backbone | None,
    progress: Progress,
) -> ImportSummary:
    """Make the list, and commit what of it is not there."""
    annotations, readers = arrange(annotations), checked.readers
    videos = {id: Keyed(key) for id, key in checked.video_keys.items()}
    made, captions = assemble(
        annotations,
        origin,
        library,
        videos,
        lambda text: checked.text_keys[text.id] if readers.texts else text_key(text.text),
        settings=as_dict(settings),
    )
    video_of: dict[bytes, VideoItem] = {}
    for video in annotations.videos:
        if video.id in videos:
            video_of.setdefault(videos[video.id].key, video)
    before = current_list(library, made.name)
    wanted = {"text": as_array(captions), "video": as_array(video_of)}
    work = {stream: work_for(library, stream, keys) for stream, keys in wanted.items()}
    already = before is not None and before.hash == made.hash and not any(w.finish or len(w.new) for w in work.values())
    reused = {f"{stream}s": work[stream].had for stream in wanted}
    encoded, cut = {"videos": 0, "texts": 0}, 0
    if not already:
        with filling(library, made, what="import-features"):
            if backbone is not None:
                introduce(backbone.name, backbone.tensors_for_heads(), library)
            for stream, keys in wanted.items():
                size = settings.shard_videos if stream == "video" else settings.shard_texts
                places = begin(library, work_for(library, stream, keys), stream, shard_items=size)
                encoded[f"{stream}s"] = sum(len(place.items) for place in places)
                if stream == "video":
                    _commit_videos(library, places, video_of, readers.frames, settings.fps)
                elif backbone is not None:
                    texts = {key: text.text for key, text in captions.items()}
                    cut = extract_captions(library, places, texts, backbone, settings, progress=progress)
                else:
                    _commit_texts(library, places, captions, readers)
    more = cut_note(cut, settings.max_words)
    return _summary(Store(library, made), already=already, encoded=encoded, reused=reused, more=more)


def _video_key(video: VideoItem, frames: EntryFrames, fps: float) -> bytes:
    """Of its frames and when they are shown."""
    key, times = rows_key(frames.rows, fps, clip(video.start, None)[0]), _times(video, frames, fps)
    if np.array_equal(times, (video.start or 0.0) + np.arange(len(times)) / fps):
        return key
    return blake2b(key + times.astype("<f8").tobytes(), digest_size=KEY_BYTES).digest()


def _times(video: VideoItem, frames: EntryFrames, fps: float) -> np.ndarray:
    """(F,) seconds from the start of the file: as its features say, or row i at start + i / fps."""
    start = video.start or 0.0
    if frames.times is None:
        return start + frames.place / fps
    return frames.times if frames.times[0] >= start else start + frames.times  # from the start of the part


def _check_sources(annotations: Annotations, files: FeatureFiles, backbone: object | None) -> None:
    if not annotations.videos:
        raise InputError(
            f"{annotations.dataset} lists no video", hint=Hint("Check the annotations", "extract", {"dry_run": True})
        )
    files.check(backbone)
    if files.text_features is not None and not annotations.texts:
        raise UsageError(
            f"`text_features` is {files.text_features}; {annotations.dataset} lists no caption that it could belong to"
        )
    if annotations.texts and files.text_features is None and backbone is None:
        raise UsageError(
            f"The {amount(len(annotations.texts), 'caption')} need features",
            hint="Give `text_features=PATH`, or `backbone=NAME` to encode them now",
        )


def _with_features(annotations: Annotations, readers: RowReaders, notes: list[str]) -> Annotations:
    """Without the captions that have no features."""
    lacking = [text.id for text in annotations.texts if text.id not in readers]
    if not lacking:
        return annotations
    share = f"{len(lacking)} of {amount(len(annotations.texts), 'caption')}"
    notes.append(f"left out {share} that have no features: {examples(lacking)}")
    return dataclasses.replace(annotations, texts=[text for text in annotations.texts if text.id in readers])


# --- checked before anything is written -------------------------------------------------------------------------------


def _embed_dim(backbone: Backbone | None, texts_of: RowReaders, frames_of: FrameReaders) -> int:
    """D: the backbone's, else that of the first caption, else of the first video."""
    if backbone is not None:
        return backbone.embed_dim
    if texts_of:
        return next(iter(texts_of.values()))().shape[1]
    return next(iter(frames_of.values()))().rows.shape[1]


class _Checked:
    """Reads everything once: refuses what a cache must not hold, counts all-zero rows, makes keys, and hashes what remains.

    Attributes:
        video_keys, text_keys: id → key of its item, of what has features.
    """

    def __init__(self, embed_dim: int, readers: _Readers, settings: ImportSettings, progress: Progress) -> None:
        self.embed_dim, self.readers, self.progress = embed_dim, readers, progress
        self.dtype, self.fps = settings.dtype, settings.fps
        self.digest = hashlib.sha256()
        self.padding: dict[str, int] = {}  # id → all-zero rows behind its frames …
        self.holes: dict[str, int] = {}  # … and before or between them
        self.video_keys: dict[str, bytes] = {}
        self.text_keys: dict[str, bytes] = {}

    def everything(self, annotations: Annotations, source: str) -> str:
        """Hash of all features by id, the same from whatever files they come."""
        usable, readers = 0, self.readers
        with self.progress.task("check", len(readers.frames) + len(readers.texts), "entries") as task:
            for video in annotations.videos:
                if video.id in readers.frames:
                    frames = readers.frames[video.id]()
                    usable += frames.usable
                    if frames.padding:
                        self.padding[video.id] = frames.padding
                    if frames.holes:
                        self.holes[video.id] = frames.holes
                    if frames.rows.shape[1] != self.embed_dim == frames.given:
                        shape = (frames.given, frames.rows.shape[1])
                        raise InputError(
                            f"The video features of {video.id!r} have the shape {shape}, expected (F, {self.embed_dim}); "
                            "perhaps they are transposed",
                            hint="Save a row for each frame",
                        )
                    self._add("video", video.id, frames.rows if frames.usable else frames.rows[:0])
                    self.video_keys[video.id] = _video_key(video, frames, self.fps)
                    task.advance()
            for text in annotations.texts if readers.texts else ():
                pooled = readers.texts[text.id]()
                if len(pooled) != 1 or not pooled.any():
                    found = "zero everywhere" if len(pooled) == 1 else f"{len(pooled)} vectors"
                    raise InputError(f"The text feature of {text.id!r} is {found}, expected one vector")
                self._add("text", text.id, pooled)
                rows = pooled
                if readers.tokens:
                    tokens = without_zeros(readers.tokens[text.id]())
                    if not len(tokens):
                        raise InputError(f"The token features of {text.id!r} are zero everywhere")
                    self._add("token", text.id, tokens)
                    rows = np.concatenate([pooled, tokens])
                self.text_keys[text.id] = captioned_rows_key(text.text, rows)
                task.advance()
        if not usable:
            raise InputError(
                f"{source}: the features of all of {amount(len(readers.frames), 'video')} are zero everywhere"
            )
        return self.digest.hexdigest()[:16]

    def notes(self) -> list[str]:
        notes = []
        if self.padding:
            count, where = (
                sum(self.padding.values()),
                f"the end of {amount(len(self.padding), 'video')}",
            )
            notes.append(f"took {amount(count, 'all-zero frame')} at {where} for padding: {examples(self.padding)}")
        if self.holes:
            count, where = sum(self.holes.values()), f"{amount(len(self.holes), 'video')}"
            notes.append(
                f"left out {amount(count, 'all-zero frame')} before or between others of {where}, as of pictures that could not be "
                f"read: {examples(self.holes)}"
            )
        return notes

    def _add(self, kind: str, id: str, rows: np.ndarray) -> None:
        if rows.shape[1] != self.embed_dim:
            raise InputError(
                f"The {kind} features of {id!r} are {rows.shape[1]}-d, expected {self.embed_dim}-d: captions and "
                "frames must come from one model"
            )
        if not np.isfinite(decode_features(encode_features(rows, self.dtype), self.dtype)).all():
            raise InputError(
                f"The {kind} features of {id!r} reach {np.abs(rows).max():.3g}, more than {self.dtype} can hold",
                hint="Import with `dtype=float32`",
            )
        self.digest.update(canonical([kind, id, list(rows.shape)]))
        self.digest.update(np.ascontiguousarray(rows, "<f4").data)


# --- written ----------------------------------------------------------------------------------------------------------


def _record(video: VideoItem, frames: EntryFrames, fps: float) -> EncodedVideo:
    if not frames.usable:
        reason = f"its {frames.given} frame features are zero everywhere, as for a video that could not be read"
        return EncodedVideo(frames.rows[:0], np.zeros(0, np.float32), Status.DECODE_ERROR, reason)
    times = _times(video, frames, fps)
    if frames.times is None:
        rate, duration = fps, (int(frames.place[-1]) + 1) / fps
    else:
        duration, rate = duration_and_rate(times, fps)
    return EncodedVideo(
        frames.rows,
        times.astype(np.float32),
        duration=duration,
        fps=rate,
        frames_total=len(frames.rows),
        ledger={"decoder": "imported"},
    )


def _commit_videos(
    library: Library, places: Sequence[Place], video_of: Mapping[bytes, VideoItem], frames_of: FrameReaders, fps: float
) -> None:
    for place in places:
        keys = library.stream("video").keys_at(place)
        videos = [video_of[key.tobytes()] for key in keys]
        commit_videos(library, place, [_record(video, frames_of[video.id](), fps) for video in videos])


def _commit_texts(
    library: Library, places: Sequence[Place], captions: Mapping[bytes, TextItem], readers: _Readers
) -> None:
    for place in places:
        keys = library.stream("text").keys_at(place)
        items = [captions[key.tobytes()] for key in keys]
        arrays = text_arrays(
            keys,
            [item.text for item in items],
            list(_text_records(items, readers)),
            embed_dim=library.embed_dim,
            dtype=library.dtype,
        )
        library.commit(place.addition, place.shard, arrays)


def _text_records(items: Sequence[TextItem], readers: _Readers) -> Iterator[EncodedText]:
    """Token ids are not known: they are stored as 0."""
    for item in items:
        rows = readers.text_rows(item.id)
        yield EncodedText(rows[0], rows[1:], np.zeros(len(rows) - 1, np.int32))
