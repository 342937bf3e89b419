"""Features that others extracted become an ordinary cache: frames from arrays by video id, captions from any reader.

Everything is read and checked once before the cache is created, so what is refused leaves nothing behind; then it is
read again shard by shard and committed, so a killed import goes on where it stopped.

T texts, L tokens, F frames, D embed_dim.
"""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.encoded_items import EncodedText, EncodedVideo, text_arrays
from glscl.cache.filling import filling
from glscl.cache.fingerprint import canonical
from glscl.cache.keys import as_array, captioned_rows_key, clip, rows_key, text_key
from glscl.cache.library import Library, Place
from glscl.cache.lists import arrange
from glscl.cache.planning import begin, work_for
from glscl.cache.schema import Annotations, Status, TextItem, VideoItem
from glscl.cache.shard_arrays import decode_features, encode_features
from glscl.cache.store import Store
from glscl.common.errors import FingerprintError, Hint, InputError, NotFoundError, UsageError
from glscl.common.progress import Progress
from glscl.common.settings import as_dict, check
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.extract.captions import extract_captions
from glscl.extract.datasets.builder import NOT_LOOKED_FOR
from glscl.extract.datasets.text_files import examples, show
from glscl.extract.datasets.video_files import split_extension
from glscl.extract.importing.feature_files import Arrays, open_arrays
from glscl.extract.listing import Keyed, ListOrigin, assemble, current_list
from glscl.extract.pipeline import counted
from glscl.extract.settings import ImportSettings
from glscl.extract.videos import commit_videos

Readers = dict[str, Callable[[], np.ndarray]]  # id → reads its float32 rows, (n, D)


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
            float64, further axes of length 1 allowed, (D,) being one frame. Zero rows at the end are padding.
        text_features: the same for captions, (D,) by caption id or (n, D) by video id for its n captions; or one array
            (T, D) in the order of `annotations.texts`. None has them encoded by a backbone.
        token_features: (L, D) by caption id, or one array (T, L, D) in that order, zero rows at the end being padding;
            None makes a cache without tokens. Read only together with `text_features`.
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
    with ExitStack() as stack:
        frames_of = _videos(stack.enter_context(open_arrays(features)), annotations, notes)
        texts_of: Readers = {}
        tokens_of: Readers = {}
        if text_features is not None:
            texts_of = _texts(stack.enter_context(open_arrays(text_features)), annotations.texts, 1)
            annotations = _with_features(annotations, texts_of, notes)
        if token_features is not None:
            tokens_of = _texts(stack.enter_context(open_arrays(token_features)), annotations.texts, 2)
            lacking = [text.id for text in annotations.texts if text.id not in tokens_of]
            if lacking:
                raise InputError(
                    f"{token_features} has no token features of {len(lacking)} captions, for example {lacking[0]!r}",
                    hint="Give them for all captions that have text features, or leave `token_features` out",
                )
        embed_dim = _embed_dim(backbone, texts_of, frames_of)
        checked = _Checked(embed_dim, settings.dtype, progress)
        mark = checked.everything(annotations, frames_of, texts_of, tokens_of, str(features))
        notes += checked.notes()
        annotations = dataclasses.replace(
            annotations,
            notes=[*(line for line in annotations.notes if line != NOT_LOOKED_FOR), *notes],
        )
        library = _create(out, settings, mark, embed_dim, bool(tokens_of), backbone)
        return _fill(
            library, annotations, _Readers(frames_of, texts_of, tokens_of), settings, origin, backbone, progress
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
                str(error),
                hint=Hint("Say with `name` what made both, if one encoder did, or use another folder with `out`"),
            ) from None
        raise


class _Readers(NamedTuple):
    """id → reads its rows, of videos, captions and tokens of captions."""

    frames: Readers
    texts: Readers
    tokens: Readers

    def text_rows(self, id: str) -> np.ndarray:
        """Pooled feature and tokens of a caption, (1 + L, D)."""
        pooled = self.texts[id]()
        return np.concatenate([pooled, without_padding(self.tokens[id]())]) if self.tokens else pooled


def _fill(
    library: Library,
    annotations: Annotations,
    readers: _Readers,
    settings: ImportSettings,
    origin: ListOrigin | None,
    backbone: Backbone | None,
    progress: Progress,
) -> ImportSummary:
    """Make the list, and commit what of it is not there."""
    origin = dataclasses.replace(origin or ListOrigin(), **({"name": settings.list} if settings.list else {}))
    annotations = arrange(annotations)
    videos = {video.id: Keyed(_video_key(video, readers.frames, settings.fps)) for video in annotations.videos
              if video.id in readers.frames}  # fmt: skip
    made, captions = assemble(
        annotations,
        origin,
        library,
        videos,
        lambda text: (
            captioned_rows_key(text.text, readers.text_rows(text.id)) if readers.texts else text_key(text.text)
        ),
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
    encoded = {"videos": 0, "texts": 0}
    if not already:
        with filling(library, made, what="import-features"):
            if backbone is not None:
                library.write_backbone_tensors(backbone.tensors_for_heads())
            for stream, keys in wanted.items():
                size = settings.shard_videos if stream == "video" else settings.shard_texts
                places = begin(library, work_for(library, stream, keys), stream, shard_items=size)
                encoded[f"{stream}s"] = sum(len(place.items) for place in places)
                if stream == "video":
                    _commit_videos(library, places, video_of, readers.frames, settings.fps)
                elif backbone is not None:
                    texts = {key: text.text for key, text in captions.items()}
                    extract_captions(library, places, texts, backbone, settings, progress=progress)
                else:
                    _commit_texts(library, places, captions, readers)
    store = Store(library, made)
    return ImportSummary(
        cache=str(library.path),
        list=made.name,
        list_hash=made.hash,
        fingerprint=library.fingerprint,
        already_complete=already,
        encoded=encoded,
        reused=reused,
        notes=list(made.notes),
        **{key: value for key, value in counted(store).items() if key != "shards"},
    )


def _video_key(video: VideoItem, frames_of: Readers, fps: float) -> bytes:
    """Of its features without padding, or of all of them where they are nothing else."""
    rows = frames_of[video.id]()
    frames = without_padding(rows)
    return rows_key(frames if len(frames) else rows, fps, clip(video.start, None)[0])


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
            f"The {len(annotations.texts)} captions need features",
            hint="Give `text_features=PATH`, or `backbone=NAME` to encode them now",
        )


# --- which entry belongs to whom --------------------------------------------------------------------------------------


def match(names: Iterable[str], ids: Iterable[str], where: Path) -> dict[str, str]:
    """id → name of its entry: the same; failing that, the same but for folders in front, a video extension, or `v_`.

    Raises:
        InputError: several entries fit one id, or one entry fits several ids.
    """
    names, ids = list(names), list(dict.fromkeys(ids))
    known = set(names)
    found = {id: id for id in ids if id in known}
    whole: dict[str, list[str]] = defaultdict(list)  # an id may have more folders in front than the entry …
    end: dict[str, list[str]] = defaultdict(list)  # … or the entry more than the id
    for name in names:
        if name in found:
            continue
        for form in _forms(name):
            whole[form].append(name)
        parent = name.rpartition("/")[0]  # one array in a group, `video7/features`, stands for the group
        for tail in dict.fromkeys(form for part in (*_tails(name), *_tails(parent)) for form in _forms(part)):
            end[tail].append(name)
    owner: dict[str, str] = {}
    for id in ids:
        if id in found:
            continue
        candidates = {name: None for form in _forms(id) for name in end.get(form, ())}
        if not candidates:
            candidates = {name: None for tail in _tails(id) for form in _forms(tail) for name in whole.get(form, ())}
        if len(candidates) > 1:
            raise InputError(
                f"{where}: {len(candidates)} entries fit {show(id)}: {examples(map(show, candidates))}; expected one",
                hint="Name one array after each id",
            )
        for name in candidates:
            other = owner.setdefault(name, id)
            if other != id:
                raise InputError(
                    f"{where}: the entry {show(name)} fits both {show(other)} and {show(id)}",
                    hint="Name one array after each id",
                )
            found[id] = name
    return found


def _tails(name: str) -> list[str]:
    """`a/b/c` → `a/b/c`, `b/c`, `c`."""
    parts = name.split("/") if name else []
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _forms(name: str) -> list[str]:
    """A name as it stands, without its video extension, and both without `v_`."""
    name = unicodedata.normalize("NFC", name)
    short = split_extension(name)[0]
    if short == name:
        short = name.removesuffix(".null").removesuffix(".") or name
    both = [name, short]
    return list(dict.fromkeys([*both, *(form.removeprefix("v_") for form in both if len(form) > 2)]))


def _videos(arrays: Arrays, annotations: Annotations, notes: list[str]) -> Readers:
    """Readers of the videos that have features; notes how many entries belong to none."""
    ids = [video.id for video in annotations.videos]
    if "" in arrays.entries:
        raise InputError(
            f"{arrays.path} holds one array without a name, expected one for each video",
            hint="Give a folder with a file a video, or a file keyed by video",
        )
    found = match(arrays.entries, ids, arrays.path)
    if not found:
        raise NotFoundError(
            f"{arrays.path} has features of none of the {len(ids)} videos of {annotations.dataset}, for example "
            f"{ids[0]!r}; it has {examples(map(show, arrays.entries))}",
            hint="Name each file, or each entry, after the id of its video",
        )
    used = set(found.values())
    unused = [name for name in arrays.entries if name not in used]
    if unused:
        share = f"{len(unused)} of {len(arrays.entries)} entries of {arrays.path}"
        notes.append(f"{share} belong to no video that is listed: {examples(unused)}")
    return {id: partial(_rows, arrays, name) for id, name in found.items()}


def _texts(arrays: Arrays, texts: Sequence[TextItem], ndim: int) -> Readers:
    """Readers of the captions that have features: (1, D) for `ndim` 1, tokens (L, D) for 2."""
    by_caption = match(arrays.entries, (text.id for text in texts), arrays.path)
    if by_caption:
        return {id: partial(_rows, arrays, name) for id, name in by_caption.items()}
    captions_of: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        captions_of[text.video].append(text.id)
    groups = {name: captions_of[video] for video, name in match(arrays.entries, captions_of, arrays.path).items()}
    what = "captions of its video"
    if not groups and len(arrays.entries) == 1:
        groups = {next(iter(arrays.entries)): [text.id for text in texts]}
        what = "captions, in the order of the annotations"
    if not groups:
        raise NotFoundError(
            f"{arrays.path} has features of none of the {len(texts)} captions, for example {texts[0].id!r}; it has "
            f"{examples(map(show, arrays.entries))}",
            hint="Name each entry after its caption or video, or give one array with a row for each caption",
        )
    readers: Readers = {}
    for name, ids in groups.items():
        block = arrays.read(name)
        block = block.reshape(1, *block.shape) if block.ndim == ndim and len(ids) == 1 else block
        if block.ndim != ndim + 1 or len(block) != len(ids):
            expected = f"({len(ids)}, {'D' if ndim == 1 else 'L, D'})"
            raise InputError(f"{arrays.where(name)}: the shape is {block.shape}, expected {expected}: the {what}")
        readers.update({id: partial(_row, block, i, arrays.where(name)) for i, id in enumerate(ids)})
    return readers


def _row(block: np.ndarray, row: int, where: str) -> np.ndarray:
    return _two_axes(block[row], f"{where}, row {row}")


def _rows(arrays: Arrays, name: str) -> np.ndarray:
    return _two_axes(arrays.read(name), arrays.where(name))


def _two_axes(array: np.ndarray, where: str) -> np.ndarray:
    """(F, D) from (F, D), (F, 1, D), (1, F, D), … or (D,)."""
    if array.ndim == 0 or sum(length > 1 for length in array.shape[:-1]) > 1:
        raise InputError(f"{where}: the shape is {array.shape}, expected (F, D), or that with axes of length 1")
    return array.reshape(-1, array.shape[-1])


def _with_features(annotations: Annotations, readers: Readers, notes: list[str]) -> Annotations:
    """Without the captions that have no features."""
    lacking = [text.id for text in annotations.texts if text.id not in readers]
    if not lacking:
        return annotations
    share = f"{len(lacking)} of {len(annotations.texts)} captions"
    notes.append(f"left out {share} that have no features: {examples(lacking)}")
    return dataclasses.replace(annotations, texts=[text for text in annotations.texts if text.id in readers])


# --- checked before anything is written -------------------------------------------------------------------------------


def _embed_dim(backbone: Backbone | None, texts_of: Readers, frames_of: Readers) -> int:
    """D: the backbone's, else that of the first caption, else of the first video."""
    if backbone is not None:
        return backbone.embed_dim
    return next(iter((texts_of or frames_of).values()))().shape[1]


class _Checked:
    """Reads everything once: refuses what a cache must not hold, counts padding, and hashes what remains."""

    def __init__(self, embed_dim: int, dtype: str, progress: Progress) -> None:
        self.embed_dim, self.dtype, self.progress = embed_dim, dtype, progress
        self.digest = hashlib.sha256()
        self.padded: list[str] = []
        self.dropped = 0

    def everything(
        self, annotations: Annotations, frames_of: Readers, texts_of: Readers, tokens_of: Readers, source: str
    ) -> str:
        """Hash of all features by id, the same from whatever files they come."""
        usable = 0
        with self.progress.task("check", len(frames_of) + len(texts_of), "entries") as task:
            for video in annotations.videos:
                if video.id in frames_of:
                    rows = frames_of[video.id]()
                    frames = without_padding(rows)
                    usable += bool(len(frames))
                    if 0 < len(frames) < len(rows):
                        self.padded.append(video.id)
                        self.dropped += len(rows) - len(frames)
                    self._add("video", video.id, frames)
                    task.advance()
            for text in annotations.texts if texts_of else ():
                pooled = texts_of[text.id]()
                if len(pooled) != 1 or not pooled.any():
                    found = "zero everywhere" if len(pooled) == 1 else f"{len(pooled)} vectors"
                    raise InputError(f"The text feature of {text.id!r} is {found}, expected one vector")
                self._add("text", text.id, pooled)
                if tokens_of:
                    tokens = without_padding(tokens_of[text.id]())
                    if not len(tokens):
                        raise InputError(f"The token features of {text.id!r} are zero everywhere")
                    self._add("token", text.id, tokens)
                task.advance()
        if not usable:
            raise InputError(f"{source}: the features of all {len(frames_of)} videos are zero everywhere")
        return self.digest.hexdigest()[:16]

    def notes(self) -> list[str]:
        if not self.padded:
            return []
        where = f"the end of {len(self.padded)} videos"
        return [f"took {self.dropped} all-zero frames at {where} for padding: {examples(self.padded)}"]

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


def without_padding(rows: np.ndarray) -> np.ndarray:
    """Rows up to the last that is not all zero: no model gives a zero vector, but programs fill up with them."""
    real = np.flatnonzero(rows.any(axis=1))
    return rows[: real[-1] + 1] if len(real) else rows[:0]


# --- written ----------------------------------------------------------------------------------------------------------


def _record(video: VideoItem, frames_of: Readers, fps: float) -> EncodedVideo:
    rows = frames_of[video.id]()
    frames = without_padding(rows)
    if not len(frames):
        reason = f"its {len(rows)} frame features are zero everywhere, as for a video that could not be read"
        return EncodedVideo(frames, np.zeros(0, np.float32), Status.DECODE_ERROR, reason)
    times = (video.start or 0.0) + np.arange(len(frames)) / fps
    return EncodedVideo(
        frames,
        times.astype(np.float32),
        duration=len(frames) / fps,
        fps=fps,
        frames_total=len(frames),
        ledger={"decoder": "imported"},
    )


def _commit_videos(
    library: Library, places: Sequence[Place], video_of: Mapping[bytes, VideoItem], frames_of: Readers, fps: float
) -> None:
    for place in places:
        keys = library.stream("video").keys_at(place)
        commit_videos(library, place, [_record(video_of[key.tobytes()], frames_of, fps) for key in keys])


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
