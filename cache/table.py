"""One split of a cache as contiguous tensors, from which a batch is one gather.

T texts, V videos, L tokens, F frames, D embed_dim, R token rows of all texts together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from glscl.cache.library import Library
from glscl.cache.lists import CacheList
from glscl.cache.reading import read_arrays, read_rows, unique_numbers, without_padding
from glscl.cache.sampler import CaptionSampler
from glscl.cache.schema import FramePosition, Split, Status, TextFeatures, VideoFeatures
from glscl.common.arguments import types_checked
from glscl.common.errors import CacheCorruptError, Hint, InputError, UsageError


class FeatureSource(Protocol):
    """What a table is read from: a list seen on a library, as `glscl.cache.store.Store` is one.

    `numbers`: "video" and "text" → (n,) int64, item of each entry of the list, negative where there is none.
    """

    library: Library
    list: CacheList
    numbers: dict[str, np.ndarray]

    @property
    def everything(self) -> Split: ...

    def require_complete(self, entries: Split | None = None) -> None: ...


def require_tokens(store: FeatureSource) -> None:
    """Raise UsageError where a cache holds no token features."""
    library = store.library
    if not library.has_tokens:
        imported = library.configuration.get("sampling", {}).get("source") == "imported"
        again = "Import with `token_features`" if imported else "Extract with `tokens`"
        raise UsageError(
            f"{library.place} is without token features",
            hint=Hint(f"{again} into another folder, or use a head that needs none"),
        )


def require_padding(store: FeatureSource) -> None:
    """Raise UsageError where a cache does not hold what GLSCL's program reads behind captions and frames."""
    require_tokens(store)
    library = store.library
    if not library.has_padding:
        raise UsageError(
            f"{library.place} does not hold what stands behind its captions, which `mask_padding=False` reads",
            hint=Hint("Extract with `pad_tokens` into another folder, or leave `mask_padding` as it is"),
        )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a table holds, and what its split should hold. The keys of `counts` in a result file."""

    texts: int
    videos: int
    texts_without_video: int = 0
    videos_failed: int = 0
    expected_texts: int | None = None
    expected_videos: int | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureTable:
    """Features of one split. A video without frames is not a row, nor is a caption whose video is not.

    Attributes:
        text_features: (T, D), float16, bfloat16 or float32.
        token_values: (R, D) of the same dtype, rows of texts one after another; None without tokens.
        token_first, token_count: (T,) int64; rows of text i are the `token_count[i]` from `token_first[i]` on. A sentence
            that stands for several texts has its rows once.
        frame_features: (V, F, D); padded frames are zero.
        frame_mask: (V, F) bool.
        frame_times: (V, F) float32, seconds; zero where padded.
        video_of_text: (T,) int64, row of the text's video.
        text_ids, video_ids, captions: T, V and T strings.
        counts: sizes, losses, published sizes.
        fingerprint: of the cache; "" for a table made from arrays.
        padded: whether padding has its features, as GLSCL's program reads it: captions are all of one length, of which no
            entry counts as padding, and padded frames, still masked, are features of a padded frame instead of zeros.
    """

    MADE_BY: ClassVar = "`Store.table`"

    text_features: torch.Tensor
    token_values: torch.Tensor | None
    token_first: torch.Tensor | None
    token_count: torch.Tensor | None
    frame_features: torch.Tensor
    frame_mask: torch.Tensor
    frame_times: torch.Tensor
    video_of_text: torch.Tensor
    text_ids: list[str]
    video_ids: list[str]
    captions: list[str]
    counts: Counts
    fingerprint: str = ""
    padded: bool = False

    @classmethod
    def load(
        cls,
        store: FeatureSource,
        split: str | None,
        *,
        max_frames: int | None = 12,
        frame_position: FramePosition = "uniform",
        tokens: bool = True,
        padded: bool = False,
        device: torch.device | str = "cpu",
    ) -> FeatureTable:
        """Read one split.

        Args:
            store: an open cache.
            split: a name in `store.splits`; None takes the whole cache.
            max_frames: frames kept a video; None keeps all of the longest video.
            frame_position: which frames where there are more: `uniform` is
                `np.linspace(0, n - 1, max_frames, dtype=int)`, the rule of the public programs.
            tokens: whether to read token features.
            padded: read what stands behind captions too, and fill videos up to `max_frames` (see `padded` above).
            device: where the tensors live.

        Raises:
            InputError: the cache has no such split.
            UsageError: tokens or padding are asked for and the cache holds none.
            CacheIncompleteError, CacheCorruptError: see `Store.arrays`.
        """
        library, run = store.library, split_of(store, split, tokens=tokens, padded=padded)
        videos = read_videos(
            library, store.numbers["video"][run.videos.start : run.videos.stop], max_frames, frame_position
        )
        rows = owners_of(store, split, run, videos.entries)
        numbers = store.numbers["text"][run.texts.start : run.texts.stop]
        texts = read_texts(library, numbers[rows.kept], tokens, padded)
        if padded:
            videos = filled(videos, library.backbone_tensors()["padded_frame"], max_frames)
        return cls(
            text_features=texts.pooled,
            token_values=texts.values,
            token_first=texts.first,
            token_count=texts.lengths,
            frame_features=videos.features,
            frame_mask=torch.from_numpy(videos.mask),
            frame_times=torch.from_numpy(videos.times),
            video_of_text=torch.from_numpy(rows.video_of_text),
            text_ids=rows.text_ids,
            video_ids=rows.video_ids,
            captions=rows.captions,
            counts=rows.counts,
            fingerprint=library.fingerprint,
            padded=padded,
        ).to(device)

    @classmethod
    def from_features(
        cls,
        text: TextFeatures,
        video: VideoFeatures,
        video_of_text: torch.Tensor | None = None,
        *,
        text_ids: list[str] | None = None,
        video_ids: list[str] | None = None,
        captions: list[str] | None = None,
    ) -> FeatureTable:
        """A table without a cache.

        Args:
            text: T captions.
            video: V videos.
            video_of_text: (T,) int64, row of the text's video; by default text i belongs to video i.
            text_ids, video_ids: by default the row numbers.
            captions: by default empty.
        """
        device = text.text_features.device
        T, V, F = len(text.text_features), *video.frame_features.shape[:2]
        if video_of_text is None:
            if T != V:
                raise ValueError(f"{T} texts and {V} videos need video_of_text")
            video_of_text = torch.arange(T, device=device)
        token_values = token_first = token_count = None
        if text.token_features is not None and text.token_mask is not None:
            token_values = text.token_features[text.token_mask]  # (R, D)
            token_count = text.token_mask.sum(1)
            token_first = token_count.cumsum(0) - token_count
        return cls(
            text_features=text.text_features,
            token_values=token_values,
            token_first=token_first,
            token_count=token_count,
            frame_features=video.frame_features * video.frame_mask[..., None],
            frame_mask=video.frame_mask,
            frame_times=torch.arange(F, dtype=torch.float32, device=device).expand(V, F) * video.frame_mask,
            video_of_text=video_of_text,
            text_ids=text_ids or [str(i) for i in range(T)],
            video_ids=video_ids or [str(i) for i in range(V)],
            captions=captions or [""] * T,
            counts=Counts(texts=T, videos=V),
        )

    def __repr__(self) -> str:
        tokens = "no tokens" if self.token_values is None else f"{len(self.token_values)} tokens"
        dtype = str(self.text_features.dtype).removeprefix("torch.")
        return (
            f"FeatureTable({self.num_texts} texts, {self.num_videos} videos, {self.frame_features.shape[1]} frames, "
            f"{tokens}, {self.embed_dim}-d {dtype} on {self.device})"
        )

    @property
    def num_texts(self) -> int:
        return len(self.text_features)

    @property
    def num_videos(self) -> int:
        return len(self.frame_features)

    @property
    def embed_dim(self) -> int:
        return self.text_features.shape[1]

    @property
    def device(self) -> torch.device:
        return self.text_features.device

    def texts(self, index: torch.Tensor | slice, *, width: int | None = None) -> TextFeatures:
        """A batch of captions as float32.

        Args:
            index: (B,) int64, or a slice.
            width: tokens to pad to, at least as many as the longest has; None asks the device for the longest, which
                makes the host wait for a GPU. At least one column comes back.
        """
        index = self._index(index, self.num_texts)
        pooled = self.text_features.index_select(0, index).float()
        if self.token_values is None or self.token_first is None or self.token_count is None:
            return TextFeatures(pooled)
        first, lengths = (rows.index_select(0, index) for rows in (self.token_first, self.token_count))  # (B,)
        return TextFeatures(pooled, *token_batch(self.token_values, first, lengths, width))

    def videos(self, index: torch.Tensor | slice) -> VideoFeatures:
        """A batch of videos as float32. `index`: (B,) int64, or a slice."""
        index = self._index(index, self.num_videos)
        return VideoFeatures(self.frame_features.index_select(0, index).float(), self.frame_mask.index_select(0, index))

    @types_checked
    def batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, same_video: str = "separate"
    ) -> Iterator[tuple[TextFeatures, VideoFeatures]]:
        """One epoch of training batches, shuffled: caption i of a batch belongs to video i of it.

        Args:
            batch_size: captions a batch, at most; see `glscl.cache.sampler.CaptionSampler`.
            seed: with `epoch` it decides the batches.
            epoch: number of the epoch.
            same_video: whether captions of one video may share a batch: "separate", "mask" or "negative"; the last two
                differ in what a loss makes of them, not here.

        Yields:
            Texts (B, …) and videos (B, …) as float32.

        Raises:
            InputError: the table holds no captions.
            UsageError: `batch_size` is below 1, or `same_video` unknown.
        """
        sampler = CaptionSampler(self.video_of_text.cpu().numpy(), batch_size, seed=seed, same_video=same_video)
        for rows in torch.from_numpy(sampler.epoch(epoch)).to(self.device):  # (B,)
            yield self.texts(rows), self.videos(self.video_of_text[rows])

    def dataset(self) -> CaptionDataset:
        """The table as a map-style dataset, an item a caption, for a `torch.utils.data.DataLoader`."""
        return CaptionDataset(self)

    def subset(self, video_rows: torch.Tensor) -> FeatureTable:
        """The table of some videos (rows, in the order given) and of their captions (in their own order)."""
        video_rows = video_rows.to(self.device)
        new_row = torch.full((self.num_videos,), -1, dtype=torch.int64, device=self.device)
        new_row[video_rows] = torch.arange(len(video_rows), device=self.device)
        kept = torch.nonzero(new_row[self.video_of_text] >= 0)[:, 0]
        token_values = token_first = token_count = None
        if self.token_values is not None and self.token_first is not None and self.token_count is not None:
            token_count = self.token_count[kept]
            token_values, token_first = _used_rows(self.token_values, self.token_first[kept], token_count)
        return replace(
            self,
            text_features=self.text_features[kept],
            token_values=token_values,
            token_first=token_first,
            token_count=token_count,
            frame_features=self.frame_features[video_rows],
            frame_mask=self.frame_mask[video_rows],
            frame_times=self.frame_times[video_rows],
            video_of_text=new_row[self.video_of_text[kept]],
            text_ids=[self.text_ids[i] for i in kept.tolist()],
            video_ids=[self.video_ids[i] for i in video_rows.tolist()],
            captions=[self.captions[i] for i in kept.tolist()],
            counts=Counts(texts=len(kept), videos=len(video_rows)),
        )

    def to(self, device: torch.device | str) -> FeatureTable:
        """The table on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    def _index(self, index: torch.Tensor | slice, length: int) -> torch.Tensor:
        if isinstance(index, slice):
            return torch.arange(*index.indices(length), device=self.device)
        return index.to(self.device)


class CaptionDataset(Dataset[tuple[TextFeatures, VideoFeatures]]):
    """Captions of a table, each with its video, as a map-style dataset.

        loader = DataLoader(dataset, batch_size=128, shuffle=True, collate_fn=dataset.collate)

    Item i is caption i without an axis for the batch: text_features (D,), token_features (L, D), token_mask (L,); and its
    video: frame_features (F, D), frame_mask (F,); as float32.
    """

    def __init__(self, table: FeatureTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return self.table.num_texts

    def __repr__(self) -> str:
        return f"CaptionDataset({self.table!r})"

    def __getitem__(self, index: int) -> tuple[TextFeatures, VideoFeatures]:
        row = range(len(self))[index]
        text = self.table.texts(slice(row, row + 1))
        video = self.table.videos(self.table.video_of_text[row : row + 1])
        tokens, mask = text.token_features, text.token_mask
        return TextFeatures(
            text.text_features[0], None if tokens is None else tokens[0], None if mask is None else mask[0]
        ), VideoFeatures(video.frame_features[0], video.frame_mask[0])

    @staticmethod
    def collate(items: Sequence[tuple[TextFeatures, VideoFeatures]]) -> tuple[TextFeatures, VideoFeatures]:
        """Items as a batch, tokens padded to the longest caption: texts (B, …) and videos (B, …)."""
        texts, videos = zip(*items)
        video = VideoFeatures(*(torch.stack(tensors) for tensors in zip(*videos)))
        pooled = torch.stack([text.text_features for text in texts])
        tokens = [text.token_features for text in texts if text.token_features is not None]
        masks = [text.token_mask for text in texts if text.token_mask is not None]
        if not tokens:
            return TextFeatures(pooled), video
        return TextFeatures(pooled, pad_sequence(tokens, True), pad_sequence(masks, True)), video


def token_batch(
    values: torch.Tensor, first: torch.Tensor, lengths: torch.Tensor, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, L, D) float32, zero where padded, and the mask (B, L) of the real ones.

    Args:
        values: (R, D). first, lengths: (B,) int64, first row of each text and how many it has.
        width: L, the longest by default, at least 1.
    """
    width = max(1, width if width is not None else int(lengths.max()) if len(lengths) else 0)
    steps = torch.arange(width, device=values.device)  # (L,)
    mask = steps < lengths[:, None]  # (B, L)
    rows = torch.where(mask, first[:, None] + steps, 0)
    values = values if len(values) else values.new_zeros(1, values.shape[1])
    tokens = values.index_select(0, rows.flatten()).view(*rows.shape, values.shape[1])  # (B, L, D)
    return tokens.float() * mask[..., None], mask


def split_of(store: FeatureSource, split: str | None, *, tokens: bool, padded: bool) -> Split:
    """The entries of a split (None: of all), complete, in a cache that has what is asked of it; errors as of `FeatureTable.load`."""
    splits = store.list.splits
    if split is not None and split not in splits:
        raise InputError(f"{store.library.place} has no split {split!r}; it has {', '.join(splits) or 'none'}")
    if padded:
        require_padding(store)
    elif tokens:
        require_tokens(store)
    run = splits[split] if split is not None else store.everything
    store.require_complete(run)
    return run


class RowsOfSplit(NamedTuple):
    """Which captions of a split are rows, `kept` (T,) of its entries, and what the list says of the rows; see `FeatureTable`."""

    kept: np.ndarray
    video_of_text: np.ndarray
    text_ids: list[str]
    video_ids: list[str]
    captions: list[str]
    counts: Counts


def owners_of(store: FeatureSource, split: str | None, run: Split, entries: np.ndarray) -> RowsOfSplit:
    """The rows of a split whose videos with frames are the `entries` (V,). Raises CacheCorruptError."""
    names = store.list
    owners = names.text_video[run.texts.start : run.texts.stop]
    foreign = owners[(owners >= 0) & ((owners < run.videos.start) | (owners >= run.videos.stop))]
    if len(foreign):
        raise CacheCorruptError(
            f"{store.library.place}: captions of split {split} name video {foreign[0]} of another split"
        )
    row_of_entry = np.full(len(run.videos) + 1, -1, np.int64)  # the last entry stands for "no such video"
    row_of_entry[entries] = np.arange(len(entries))
    video_of_text = row_of_entry[np.where(owners >= 0, owners - run.videos.start, len(run.videos))]
    kept = np.flatnonzero((video_of_text >= 0) & (store.numbers["text"][run.texts.start : run.texts.stop] >= 0))
    return RowsOfSplit(
        kept,
        video_of_text[kept],
        text_ids=_named(names.text_ids[run.texts.start : run.texts.stop], kept),
        video_ids=_named(names.video_ids[run.videos.start : run.videos.stop], entries),
        captions=_named(names.captions[run.texts.start : run.texts.stop], kept),
        counts=Counts(
            texts=len(kept),
            videos=len(entries),
            texts_without_video=len(owners) - len(kept),
            videos_failed=len(run.videos) - len(entries),
            expected_texts=run.expected.captions,
            expected_videos=run.expected.videos,
        ),
    )


def frame_positions(count: int, width: int, position: FramePosition) -> np.ndarray:
    """Which of `count` frames to keep: all where they fit in `width`, else `width` of them, int64, rising."""
    if count <= width or position == "first":
        return np.arange(min(count, width))
    if position == "last":
        return np.arange(count - width, count)
    if position == "uniform":
        return np.linspace(0, count - 1, width, dtype=np.int64)
    raise UsageError(f"Unknown frame position {position!r}; there are uniform, first, last")


def _frame_view(
    first: np.ndarray, count: np.ndarray, width: int, position: FramePosition
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (V, F) int64 of the frames to keep, the last one repeated, and the mask (V, F) of those that are real."""
    rows = np.zeros((len(first), width), np.int64)
    mask = np.zeros((len(first), width), bool)
    for n in np.unique(count):
        chosen = frame_positions(int(n), width, position)
        same = np.flatnonzero(count == n)
        padded = np.pad(chosen, (0, width - len(chosen)), mode="edge")
        rows[same] = first[same, None] + padded
        mask[same, : len(chosen)] = True
    return rows, mask


def _used_rows(values: torch.Tensor, first: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the rows (R, D) those that texts have, each once and in order, and where each text's begin among them, (T,).

    Args:
        first, count: (T,) int64, each text's first row and how many it has; several texts may have the same.
    """
    users = count.new_zeros(len(values) + 1)  # of each row: one more where a text begins, one fewer behind its end
    users.index_add_(0, first, torch.ones_like(first)).index_add_(0, first + count, torch.ones_like(first), alpha=-1)
    used = users.cumsum(0)[:-1] > 0  # (R,)
    before = torch.nn.functional.pad(used.cumsum(0), (1, 0))  # (R + 1,), used rows before each row
    return values[used], before[first]


class _Videos(NamedTuple):
    """Videos of a split that gave frames."""

    entries: np.ndarray  # (V,) int64, rising: which entries of the split they are
    features: torch.Tensor  # (V, F, D)
    mask: np.ndarray  # (V, F) bool
    times: np.ndarray  # (V, F) float32


class _Texts(NamedTuple):
    """Captions; see `FeatureTable`."""

    pooled: torch.Tensor
    values: torch.Tensor | None = None
    first: torch.Tensor | None = None
    lengths: torch.Tensor | None = None


def read_videos(library: Library, numbers: np.ndarray, max_frames: int | None, position: FramePosition) -> _Videos:
    """The frames of some entries, read once for each item and in stored order; (n,) numbers of their items."""
    items, place = unique_numbers(numbers)
    found = read_arrays(library, "video", ["offsets", "status", "times"], items)
    frames_of = np.diff(found["offsets"])
    usable = np.isin(found["status"], [s for s in Status if s.usable]) & (frames_of > 0)
    used = np.flatnonzero(usable)
    width = max(1, min(int(frames_of.max(initial=1)), max_frames or np.iinfo(np.int64).max))
    rows, mask = _frame_view(found["offsets"][used], frames_of[used], width, position)
    features = read_rows(library, "video", "values", rows.ravel(), items).reshape(*rows.shape, library.embed_dim)
    times = found["times"][rows] if rows.size else np.zeros(rows.shape, np.float32)  # (U, F)
    if not mask.all():
        features[~mask] = 0
        times[~mask] = 0
    place = np.arange(len(numbers)) if place is None else place
    entries = np.flatnonzero(np.append(usable, False)[place])  # a place of −1 takes the last
    wanted = (np.cumsum(usable) - 1)[place[entries]]  # (V,) rows of what was read
    if not np.array_equal(wanted, np.arange(len(used))):
        features, mask, times = features[wanted], mask[wanted], times[wanted]
    return _Videos(entries, stored_tensor(features, library.dtype), mask, times)


def filled(videos: _Videos, padded_frame: np.ndarray, max_frames: int | None) -> _Videos:
    """The videos with `max_frames` frames each, or as many as they have, of which the padded are one and the same (D,)."""
    lacking = max(0, (max_frames or 0) - videos.mask.shape[1])
    mask = np.pad(videos.mask, ((0, 0), (0, lacking)))
    features = torch.nn.functional.pad(videos.features, (0, 0, 0, lacking))
    features[~torch.from_numpy(mask)] = torch.from_numpy(padded_frame).to(features.dtype)
    return _Videos(videos.entries, features, mask, np.pad(videos.times, ((0, 0), (0, lacking))))


def read_texts(library: Library, numbers: np.ndarray, tokens: bool, padded: bool) -> _Texts:
    """Captions by the (T,) numbers of their items; the tokens of a sentence that stands for several are read once."""
    items, place = unique_numbers(numbers)
    names = ["pooled", *(["offsets", "values"] if tokens or padded else [])]
    left_out = library.has_padding and not padded and tokens
    found = read_arrays(library, "text", [*names, *(["token_ids"] if left_out else [])], items)
    if left_out:
        found = without_padding(found)
    pooled = stored_tensor(found["pooled"] if place is None else found["pooled"][place], library.dtype)
    if not tokens and not padded:
        return _Texts(pooled)
    first, lengths = found["offsets"][:-1], np.diff(found["offsets"])
    if place is not None:
        first, lengths = first[place], lengths[place]
    values = stored_tensor(found["values"], library.dtype)
    return _Texts(pooled, values, torch.from_numpy(first.copy()), torch.from_numpy(lengths))


def _named(names: list[str], rows: np.ndarray) -> list[str]:
    return names if len(rows) == len(names) else [names[i] for i in rows.tolist()]


def stored_tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    """Features as they are read raw, in the dtype of their cache: float16, float32, or bfloat16, which is stored as uint16."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
