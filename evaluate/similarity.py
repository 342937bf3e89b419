"""Similarity of every text of a table with every video: as a matrix, or as ranks alone where the matrix is too large.

T texts, V videos, L tokens, F frames, D embed_dim; a tile is t texts by v videos.

Each side is encoded once; only `head.score` meets pairs. Both functions cut the table into the same tiles, so the ranks
of one equal those of the other's matrix to the last tie.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.devices import arithmetic
from glscl.common.errors import UsageError
from glscl.evaluate.ranks import RANKINGS, Span, pair, ranks_of_tiles, require_finite, spans

_ENCODER_COPIES = 16  # an encoder's working memory in copies of its input: a feed-forward of 4 D, in and out, and more

BATCHES = (512, 1024)  # most texts and videos a tile
PairsDone = Callable[[int, int], None]  # is called with pairs done and pairs in all


class Scoring(Protocol):
    """What scores pairs: a `glscl.train_head.heads.base.Head`, or several as one (`glscl.evaluate.ensemble.Ensemble`)."""

    @property
    def training(self) -> bool: ...

    @property
    def needs_tokens(self) -> bool: ...

    def encode_text(self, text: Any) -> Any: ...

    def encode_video(self, video: Any) -> Any: ...

    def score(self, encoded_text: Any, encoded_video: Any) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def to(self, device: torch.device) -> Any: ...


class Pairs(Protocol):
    """Texts and videos to score with each other; `glscl.cache.table.FeatureTable` holds such.

    `frame_mask` (V, F) and `token_count` (T,), where there are such, tell how long items are.
    """

    @property
    def num_texts(self) -> int: ...

    @property
    def num_videos(self) -> int: ...

    @property
    def video_of_text(self) -> Tensor: ...  # (T,) int64

    @property
    def text_ids(self) -> list[str]: ...

    @property
    def video_ids(self) -> list[str]: ...

    def texts(self, index: Any) -> TextFeatures: ...

    def videos(self, index: Any) -> tuple[Tensor, ...]: ...  # VideoFeatures, or what the head takes in their place


def similarity_matrix(
    head: Scoring,
    table: Pairs,
    *,
    batches: tuple[int, int] = BATCHES,
    device: torch.device | str | None = None,
    max_bytes: int | None = None,
    seconds: dict[str, float] | None = None,
    progress: PairsDone | None = None,
) -> Tensor:
    """Score every text with every video.

    Args:
        head: see `glscl.train_head.heads.base.Head`. It is used in evaluation mode, without gradients or autocast, and
            left as it was found.
        table: one split; the rows and columns are in its order.
        batches: most texts and most videos a tile.
        device: where to compute; None is where the head is. The head is moved there and back.
        max_bytes: working memory beside the table, the encoded videos, the result and what the head takes inside a tile
            (its `tile_bytes`); smaller tiles and batches are taken to stay below it. None is 256 MiB, on a GPU 4 GiB.
        seconds: where given, the seconds spent are added under "encode" and "score".
        progress: called with pairs done and pairs in all.

    Returns:
        (T, V) float32 on the CPU, before the logit scale.

    Raises:
        NonFiniteError: a score is NaN or infinite; names the text and the video.
        InputError: the table has no texts or no videos.
    """
    with scoring(
        head, table, batches, device=device, max_bytes=max_bytes, seconds=seconds, progress=progress
    ) as scorer:
        similarity = torch.empty((table.num_texts, table.num_videos), dtype=torch.float32)
        for texts in scorer.text_spans:
            rows = scorer.pairing.rows(texts)
            rows = rows if isinstance(rows, slice) else torch.from_numpy(rows)
            for videos in scorer.video_spans:
                similarity[rows, slice(*videos)] = scorer.tile(texts, videos).cpu()
    return similarity


def ranks(
    head: Scoring,
    table: Pairs,
    *,
    directions: Sequence[str] = RANKINGS,
    batches: tuple[int, int] = BATCHES,
    device: torch.device | str | None = None,
    max_bytes: int | None = None,
    seconds: dict[str, float] | None = None,
    progress: PairsDone | None = None,
) -> dict[str, np.ndarray]:
    """Ranks of every query without the matrix, equal to those of `similarity_matrix` with the same arguments.

    Two passes over the tiles: the scores of the pairs, then a count of the scores above and equal. The first touches
    only tiles that hold pairs; texts are visited in the order of their videos, so these are few. Encoded texts and
    tiles are kept from the first pass to the second as far as `max_bytes` goes, the rest is computed again.

    Args:
        directions: which of `RANKINGS`. The others as in
            `similarity_matrix`; comparing counts as "metrics" in `seconds`.

    Returns:
        What `glscl.evaluate.ranks.retrieval_ranks` returns.

    Raises:
        As `similarity_matrix`, and UsageError for an unknown direction.
    """
    unknown = [name for name in directions if name not in RANKINGS]
    if unknown or isinstance(directions, str):
        raise UsageError(f"directions are {', '.join(RANKINGS)}; found {directions!r}")
    clock = seconds if seconds is not None else {}
    with scoring(head, table, batches, device=device, max_bytes=max_bytes, seconds=clock, progress=progress) as scorer:
        scorer.free = scorer.max_bytes // 2
        before, started = clock["encode"] + clock["score"], time.perf_counter()
        result = ranks_of_tiles(
            scorer.tile,
            scorer.pairing,
            text_spans=scorer.text_spans,
            video_spans=scorer.video_spans,
            directions=directions,
        )
        elapsed = time.perf_counter() - started - (clock["encode"] + clock["score"] - before)
        clock["metrics"] = clock.get("metrics", 0.0) + elapsed
    return result


class Scorer:
    """Tiles of scores. Either side is encoded when a tile needs it; encoded videos are kept.

    Encoded texts and tiles are kept while `free` bytes last. Beyond, they are made anew when asked for again, so tiles
    are best asked for text span by text span: the last one's encoding is at hand in any case.
    """

    def __init__(
        self,
        head: Scoring,
        table: Pairs,
        *,
        batches: tuple[int, int],
        device: torch.device,
        max_bytes: int,
        seconds: dict[str, float],
        progress: PairsDone | None,
    ) -> None:
        self.head, self.table, self.device, self.max_bytes = head, table, device, max_bytes
        self.seconds, self.progress = seconds, progress
        self.watch: Callable[[Tensor, Span, Span], None] | None = getattr(head, "watch", None)
        self.pairing = pair(table.video_of_text, num_texts=table.num_texts, num_videos=table.num_videos)
        self.text_spans, self.video_spans = tile_spans(table, batches, max_bytes)
        self.needs_tokens = head.needs_tokens
        self.words = _words(table) if self.needs_tokens else None
        self.frames = _frames(table)
        self.free = 0
        self.kept_texts: dict[Span, Any] = {}
        self.kept_tiles: dict[tuple[Span, Span], Tensor] = {}
        self.last: tuple[Span, Any] = ((0, 0), None)
        self.seen = bytearray(len(self.text_spans) * len(self.video_spans))  # one byte a tile: whether it was made
        self.done = 0
        self.encoded_videos: dict[Span, Any] = {}

    def tile(self, texts: Span, videos: Span) -> Tensor:
        """(t, v) float32 scores of sorted texts [start, stop) and videos [start, stop), on the device."""
        if (texts, videos) in self.kept_tiles:
            return self.kept_tiles[texts, videos]
        encoded_texts, encoded_videos = self._encoded_texts(texts), self._encoded_videos(videos)
        with self._timed("score"):
            scores = self.head.score(encoded_texts, encoded_videos).float()
            require_finite(
                scores, lambda row: self._name_text(texts[0] + row), lambda row: self._name_video(videos[0] + row)
            )
        if self.watch is not None:
            self.watch(scores, texts, videos)
        number = texts[0] // self.text_spans[0][1] * len(self.video_spans) + videos[0] // self.video_spans[0][1]
        if self.progress is not None and not self.seen[number]:
            self.seen[number] = 1
            self.done += scores.numel()
            self.progress(self.done, self.table.num_texts * self.table.num_videos)
        if self._fits([scores]):
            self.kept_tiles[texts, videos] = scores
        return scores

    def _encoded_videos(self, videos: Span) -> Any:
        """Kept, whatever `free` says. Each span by itself, so that who scores some of them scores as who scores all."""
        if videos not in self.encoded_videos:
            with self._timed("encode"):
                rows = torch.arange(*videos)
                self.encoded_videos[videos] = self._encode(self.head.encode_video, self._videos, rows, self.frames)
        return self.encoded_videos[videos]

    def _encoded_texts(self, texts: Span) -> Any:
        if texts in self.kept_texts:
            return self.kept_texts[texts]
        if self.last[0] != texts:
            with self._timed("encode"):
                rows = self.pairing.rows(texts)
                rows = torch.arange(rows.start, rows.stop) if isinstance(rows, slice) else torch.from_numpy(rows)
                self.last = (texts, self._encode(self.head.encode_text, self._texts, rows, self.words))
            if self._fits(self.last[1]):
                self.kept_texts[texts] = self.last[1]
        return self.last[1]

    def _fits(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these may be kept; if so, their bytes are taken off `free`."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if size > self.free:
            return False
        self.free -= size
        return True

    def _encode(
        self, encode: Callable[[Any], Any], fetch: Callable[[Tensor], Any], rows: Tensor, lengths: Tensor | None
    ) -> Any:
        """One side of some items, in batches whose working memory fits.

        Items of like length go together, so that little of a batch is padding. The longest come first and show how large
        the whole becomes; the others fill it up, zero beyond their own length.

        Args:
            encode: of the head.
            fetch: features of the items in some rows, as long as the longest of them.
            rows: (N,) int64.
            lengths: real entries of every item of the table; None where all come equally long.
        """
        order = torch.arange(len(rows)) if lengths is None else lengths[rows].argsort(descending=True, stable=True)
        item = fetch(rows[order[:1]])
        item_bytes = _ENCODER_COPIES * sum(field.numel() * field.element_size() for field in item if field is not None)
        whole = None
        for start, stop in spans(len(rows), int(self.max_bytes / 4 // item_bytes)):
            chosen = order[start:stop]
            part = encode(fetch(rows[chosen]))
            if whole is None:
                whole = _map(lambda field: field.new_zeros(len(rows), *field.shape[1:]), part)
            chosen = chosen.to(self.device)
            for field, values in zip(whole, part):
                field[(chosen, *map(slice, values.shape[1:]))] = values
        return whole

    def _texts(self, rows: Tensor) -> TextFeatures:
        """Captions, padded as the longest of them is."""
        text = self.table.texts(rows)
        if not self.needs_tokens:
            text = TextFeatures(text.text_features)
        return _map(lambda field: field.to(self.device), text)

    def _videos(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Videos, cut where the longest of them ends."""
        video = self.table.videos(rows)
        if self.frames is not None and isinstance(video, VideoFeatures):
            width = max(1, int(self.frames[rows].max()))
            video = VideoFeatures(video.frame_features[:, :width], video.frame_mask[:, :width])
        return _map(lambda field: field.to(self.device), video)

    def _name_text(self, position: int) -> str:
        row = position if self.pairing.order is None else int(self.pairing.order[position])
        return f"text {row} ({self.table.text_ids[row]})"

    def _name_video(self, row: int) -> str:
        return f"video {row} ({self.table.video_ids[row]})"

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds[stage] += time.perf_counter() - started


@contextmanager
def scoring(
    head: Scoring,
    table: Pairs,
    batches: tuple[int, int] = BATCHES,
    *,
    device: torch.device | str | None = None,
    max_bytes: int | None = None,
    seconds: dict[str, float] | None = None,
    progress: PairsDone | None = None,
) -> Iterator[Scorer]:
    """A scorer on a head in evaluation mode, with arguments as in `similarity_matrix`.

    Afterwards the head is as before, on an error too.
    """
    if min(batches) < 1:
        raise UsageError(f"batches must be at least 1, found {batches}")
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"max_bytes must be at least 1, found {max_bytes}")
    seconds = {} if seconds is None else seconds
    for stage in ("encode", "score"):
        seconds.setdefault(stage, 0.0)
    home = next((parameter.device for parameter in head.parameters()), torch.device("cpu"))
    device = home if device is None else torch.device(device)
    if max_bytes is None:
        max_bytes = memory_on(device)
    training = [module for module in head.modules() if module.training]
    try:
        head.eval().to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False), arithmetic(device):
            yield Scorer(
                head,
                table,
                batches=batches,
                device=device,
                max_bytes=max_bytes,
                seconds=seconds,
                progress=progress,
            )
    finally:
        head.to(home)
        for module in training:
            module.training = True


def memory_on(device: torch.device | str) -> int:
    """Working memory of scoring, bytes, where none is said."""
    return 1 << 32 if torch.device(device).type == "cuda" else 1 << 28


def tile_spans(table: Pairs, batches: tuple[int, int], max_bytes: int) -> tuple[list[Span], list[Span]]:
    """How texts and videos are cut into tiles."""
    # A quarter of the memory is for a batch being encoded, a quarter for a tile and the three like it that its
    # comparison takes, half for what is kept.
    side = max(1, int((max_bytes / 4 / (4 * 4)) ** 0.5))
    return spans(table.num_texts, min(batches[0], side)), spans(table.num_videos, min(batches[1], side))


def _map(function: Callable[[Tensor], Tensor], side: Any) -> Any:
    """The same NamedTuple with `function` over its tensors; absent fields stay absent."""
    return type(side)(*(None if field is None else function(field) for field in side))


def _words(table: Pairs) -> Tensor:
    """(T,) tokens of every caption, on the CPU; zeros without tokens."""
    counts = getattr(table, "token_count", None)
    if counts is not None:
        return counts.cpu()
    masks = (table.texts(slice(*texts)).token_mask for texts in spans(table.num_texts, 256))
    found = [mask.sum(1).cpu() for mask in masks if mask is not None]
    return torch.cat(found) if found else torch.zeros(table.num_texts, dtype=torch.int64)


def _frames(table: Pairs) -> Tensor | None:
    """(V,) where the last real frame of every video stands, from 1, on the CPU; None where the table does not say."""
    counts = getattr(table, "frame_count", None)
    if counts is not None:
        return None if getattr(table, "padded", False) else counts
    mask = None if getattr(table, "padded", False) else getattr(table, "frame_mask", None)
    return None if mask is None else (mask.cpu() * torch.arange(1, mask.shape[1] + 1)).amax(1)
