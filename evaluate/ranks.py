"""Ranks of every query of a similarity matrix, or of its tiles, in both directions.

T texts, V videos, G groups (the videos that have a caption, in rising order). Texts are rows, videos are columns.

The rank of a query is 1 + the gallery entries scored strictly above its target + half of the other entries that tie
with the target: entries that tie share their mean rank, so a constant matrix scores like chance. Every query counts
once.

    text to video             every text ranks its video among all videos
    video to text, "group"    a group's score is the best of its captions; every video that has captions ranks its own
                              group among the groups (what CLIP4Clip and GLSCL print)
    video to text, "caption"  every video that has captions ranks the best of them among all captions (what
                              collaborative-experts and QB-Norm print). Its other captions are no competitors: they
                              count neither as better nor as ties. Hence R@1 is the same in both conventions.

A video without captions is no query and no group, but stays in the gallery of text to video.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glscl.common.errors import Hint, InputError, NonFiniteError, UsageError

TEXT_TO_VIDEO, VIDEO_TO_TEXT, VIDEO_TO_TEXT_CAPTION = "text_to_video", "video_to_text", "video_to_text_caption"
DIRECTIONS = (TEXT_TO_VIDEO, VIDEO_TO_TEXT)  # what tables show
RANKINGS = (*DIRECTIONS, VIDEO_TO_TEXT_CAPTION)  # what is ranked: keys of a result
CONVENTIONS = {"group": VIDEO_TO_TEXT, "caption": VIDEO_TO_TEXT_CAPTION}  # of video to text -> ranking
_TILE = 1 << 21  # entries of the matrix looked at together

Span = tuple[int, int]  # start, stop
Tile = Callable[[Span, Span], Tensor]


def retrieval_ranks(
    similarity: Any, video_of_text: Any = None, *, conventions: Sequence[str] = ("group", "caption")
) -> dict[str, np.ndarray]:
    """Rank of every query, under the keys of `glscl.evaluate.metrics.retrieval_metrics`; arguments and errors as there.

    Returns:
        float64 arrays: (T,) for text to video, in the order of the rows; (G,) for video to text, in the order of
        `query_videos(video_of_text)`.
    """
    return _ranks_of_matrix(similarity, video_of_text, (TEXT_TO_VIDEO, *_directions(conventions)))


def query_videos(video_of_text: Any) -> np.ndarray:
    """(G,) int64: the videos that have a caption, rising; the queries of video to text."""
    return np.unique(as_integers(video_of_text))


class Pairing(NamedTuple):
    """Which text belongs to which video, with the texts sorted by video, so that a group's captions are neighbours.

    Attributes:
        order: (T,) int64, row of the i-th text of the sorted order; None where the rows are sorted already.
        video_of_text: (T,) int64, rising.
        num_videos: V.
    """

    order: np.ndarray | None
    video_of_text: np.ndarray
    num_videos: int

    def rows(self, span: Span) -> slice | np.ndarray:
        """Rows of the sorted texts [start, stop) in the caller's order."""
        return slice(*span) if self.order is None else self.order[slice(*span)]

    def texts_of(self, videos: Sequence[Span]) -> Span:
        """The sorted texts of consecutive spans of videos."""
        first, last = np.searchsorted(self.video_of_text, [videos[0][0], videos[-1][1]])
        return int(first), int(last)


def pair(video_of_text: Any, *, num_texts: int, num_videos: int) -> Pairing:
    """Check a text-to-video mapping and sort it (stable). None stands for the identity.

    Raises:
        InputError: no texts or no videos, a wrong number of entries, or a video that does not exist.
    """
    if not num_texts or not num_videos:
        raise InputError(
            f"nothing to rank: {num_texts} texts and {num_videos} videos",
            hint=Hint(
                "Captions with videos of their own are needed (docs/datasets.md); videos alone can be searched",
                "search",
            ),
        )
    if video_of_text is None:
        if num_texts != num_videos:
            raise InputError(
                f"similarity is {num_texts} texts by {num_videos} videos, not square",
                hint="Say which video each text belongs to: video_of_text",
            )
        return Pairing(None, np.arange(num_texts), num_videos)
    video = as_integers(video_of_text)
    if video.shape != (num_texts,):
        raise InputError(f"video_of_text has shape {video.shape}, expected one entry for each of {num_texts} texts")
    wrong = np.flatnonzero((video < 0) | (video >= num_videos))
    if len(wrong):
        raise InputError(f"text {wrong[0]} belongs to video {video[wrong[0]]}, there are videos 0 to {num_videos - 1}")
    if (video[1:] >= video[:-1]).all():
        return Pairing(None, video, num_videos)
    order = np.argsort(video, kind="stable")
    return Pairing(order, video[order], num_videos)


def ranks_of_tiles(
    tile: Tile,
    pairing: Pairing,
    *,
    text_spans: Sequence[Span],
    video_spans: Sequence[Span],
    directions: Sequence[str],
) -> dict[str, np.ndarray]:
    """Ranks from tiles of the matrix, holding one tile at a time.

    Two passes: the first reads the scores of the pairs, only from tiles that hold any; the second compares every score
    with its target. Both read a score from the same tile, so the result is exact whatever rounding the tiles have. What is
    counted of parts of the matrix adds up: `pair_scores` and `counts` of parts, joined by `Targets.of` and `ranks_of_counts`,
    give the same (`glscl.evaluate.parts`).

    Args:
        tile: (texts, videos) -> scores (t, v) of these sorted texts and videos; all finite (see `require_finite`), of one
            dtype, and the same when asked for again.
        pairing: see `pair`.
        text_spans, video_spans: consecutive [start, stop) that cover the sorted texts and the videos. Tiles are asked
            for text span by text span.
        directions: which of `RANKINGS` to compute.

    Returns:
        See `retrieval_ranks`.
    """
    targets = Targets.of(pair_scores(tile, pairing, text_spans=text_spans, video_spans=video_spans), pairing)
    found = counts(tile, pairing, targets, text_spans=text_spans, video_spans=video_spans, directions=directions)
    return ranks_of_counts(found, targets, pairing)


class Targets(NamedTuple):
    """What other scores are compared with.

    Attributes:
        own: (T,) score of each sorted text with its own video.
        best: (V,) of each video with its own captions, -inf without any.
        own_ties: (V,) int64, how many of its own captions have that score.
    """

    own: Tensor
    best: Tensor
    own_ties: Tensor

    @classmethod
    def of(cls, own: Tensor, pairing: Pairing) -> Targets:
        video = torch.from_numpy(pairing.video_of_text).to(own.device)
        best = own.new_full((pairing.num_videos,), -torch.inf).scatter_reduce(0, video, own, "amax")
        return cls(own, best, torch.bincount(video[own == best[video]], minlength=pairing.num_videos))


def pair_scores(tile: Tile, pairing: Pairing, *, text_spans: Sequence[Span], video_spans: Sequence[Span]) -> Tensor:
    """Score of each text of the videos in `video_spans` with its video, in sorted order; other arguments as in `ranks_of_tiles`.

    As texts are sorted by video, those of consecutive videos are consecutive.
    """
    first, last = pairing.texts_of(video_spans)
    own = torch.empty(0)
    for start, stop in text_spans:
        for begin, end in video_spans:
            low, high = (max(start, min(stop, each)) for each in pairing.texts_of([(begin, end)]))
            if low >= high:
                continue
            scores = tile((start, stop), (begin, end))
            if not len(own):
                own = torch.empty(last - first, dtype=scores.dtype, device=scores.device)
            video = torch.from_numpy(pairing.video_of_text[low:high]).to(scores.device)
            own[low - first : high - first] = scores[low - start : high - start].gather(1, video[:, None] - begin)[:, 0]
    return own


def counts(
    tile: Tile,
    pairing: Pairing,
    targets: Targets,
    *,
    text_spans: Sequence[Span],
    video_spans: Sequence[Span],
    directions: Sequence[str],
) -> dict[str, Tensor]:
    """Of each query in these spans, how many scores among them are above its target, and how many equal to it.

    Args:
        text_spans: where a span is the last of some, the captions of a video may not go on behind it.
        The others: as in `ranks_of_tiles`.

    Returns:
        Direction → (2, n) int64, above and equal: of the n texts in the spans for text to video, else of the n videos.
    """
    (low, high), (left, right) = whole(text_spans), whole(video_spans)
    own, best = targets.own[low:high], targets.best[left:right]
    video = torch.from_numpy(pairing.video_of_text[low:high]).to(own.device)
    tallies = {name: _Tally(high - low if name == TEXT_TO_VIDEO else right - left, own.device) for name in directions}
    groups = {span: _GroupMaxima() for span in video_spans}
    for start, stop in text_spans:
        texts = slice(start - low, stop - low)
        for begin, end in video_spans:
            scores, videos = tile((start, stop), (begin, end)), slice(begin - left, end - left)
            for direction, tally in tallies.items():
                if direction == TEXT_TO_VIDEO:
                    tally.add(scores, own[texts, None], at=texts, dim=1)
                elif direction == VIDEO_TO_TEXT_CAPTION:
                    tally.add(scores, best[videos], at=videos, dim=0)
                else:
                    complete = groups[begin, end].push(scores, video[texts], last=stop == high)  # (g, v)
                    tally.add(complete, best[videos], at=videos, dim=0)
    return {name: tally.counts for name, tally in tallies.items()}


def ranks_of_counts(counted: Mapping[str, Tensor], targets: Targets, pairing: Pairing) -> dict[str, np.ndarray]:
    """Ranks, 1 + above + half the ties, as `retrieval_ranks` returns them, from what is counted of all texts and videos."""
    asked = np.unique(pairing.video_of_text)  # (G,)
    ranks = {}
    for direction, (above, equal) in counted.items():
        own = (
            targets.own_ties if direction == VIDEO_TO_TEXT_CAPTION else 1
        )  # of the equal scores those of the query itself
        found = (1 + above).cpu().numpy() + (equal - own).cpu().numpy() / 2
        if direction == TEXT_TO_VIDEO:
            ranks[direction] = np.empty(len(found))
            ranks[direction][pairing.rows((0, len(found)))] = found
        else:
            ranks[direction] = found[asked]
    return ranks


def whole(spans: Sequence[Span]) -> Span:
    """What consecutive spans cover."""
    return spans[0][0], spans[-1][1]


def spans(total: int, step: int) -> list[Span]:
    """Consecutive [start, stop) of at most `step`, even in size, that cover `range(total)`."""
    count = -(-total // max(1, step))
    size = -(-total // max(1, count))
    return [(start, min(start + size, total)) for start in range(0, total, max(1, size))]


def require_finite(scores: Tensor, name_text: Callable[[int], str], name_video: Callable[[int], str]) -> Tensor:
    """The same scores (t, v), checked.

    Args:
        name_text, name_video: how to call row i and column j in the message.

    Raises:
        NonFiniteError: NaN or infinity, naming the first text and video.
    """
    low, high = torch.aminmax(scores)  # NaN passes through both
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = ~torch.isfinite(scores)
        row, column = torch.nonzero(bad)[0].tolist()
        raise NonFiniteError(
            f"the score of {name_text(row)} with {name_video(column)} is {scores[row, column].item()}; "
            f"{int(bad[row].sum())} of the text's scores and {int(bad[:, column].sum())} of the video's are not finite "
            f"among the {bad.shape[0]} x {bad.shape[1]} looked at"
        )
    return scores


def as_scores(similarity: Any, *, what: str = "similarity") -> Tensor:
    """A numpy array, tensor or nested list as a 2-d floating tensor, without a copy where possible.

    Raises:
        InputError: not 2-d, or not real numbers.
    """
    if not isinstance(similarity, Tensor):
        array = np.asarray(similarity)
        if array.dtype.kind not in "fiub":
            raise InputError(f"{what} has dtype {array.dtype}, expected real numbers")
        native = array.dtype.kind == "f" and array.dtype.itemsize <= 8 and array.dtype.isnative
        array = array if native else array.astype(np.float64)
        if any(stride < 0 for stride in array.strides):
            array = array.copy()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")  # nothing here writes to it
            similarity = torch.from_numpy(array)
    similarity = similarity.detach()
    if similarity.is_complex():
        raise InputError(f"{what} has dtype {similarity.dtype}, expected real numbers")
    if similarity.ndim != 2:
        raise InputError(f"{what} has shape {tuple(similarity.shape)}, expected 2 dimensions, texts by videos")
    return similarity if similarity.is_floating_point() else similarity.double()


def as_integers(video_of_text: Any) -> np.ndarray:
    """An array, tensor or list of integers as int64.

    Raises:
        InputError: not integers.
    """
    array = video_of_text.detach().cpu().numpy() if isinstance(video_of_text, Tensor) else np.asarray(video_of_text)
    if array.dtype.kind not in "iu" and array.size:
        raise InputError(f"video_of_text has dtype {array.dtype}, expected integers")
    return array.astype(np.int64)


class _Tally:
    """For each query: how many scores are above its target, and how many are equal to it."""

    def __init__(self, queries: int, device: torch.device) -> None:
        self.counts = torch.zeros(2, queries, dtype=torch.int64, device=device)
        self.scratch = torch.empty(0, dtype=torch.float32, device=device)

    def add(self, scores: Tensor, target: Tensor, *, at: slice, dim: int) -> None:
        """Count along `dim` of a tile; `target` broadcasts over it, `at` says whose counts these are."""
        if not scores.numel():
            return
        if self.scratch.numel() < scores.numel():  # float32 counts exactly up to 2^24, more than a tile is long
            self.scratch = self.scratch.new_empty(scores.numel())
        marks = self.scratch[: scores.numel()].view(scores.shape)
        self.counts[0, at] += torch.gt(scores, target, out=marks).sum(dim).long()
        self.counts[1, at] += torch.eq(scores, target, out=marks).sum(dim).long()


class _GroupMaxima:
    """Best score of each group's captions with each video, from tiles of sorted texts; a group may span tiles."""

    def __init__(self) -> None:
        self.pending: Tensor | None = None  # (v,) of the group the last tile ended in
        self.video = -1  # that group

    def push(self, scores: Tensor, video_of_text: Tensor, *, last: bool) -> Tensor:
        """(g, v): the groups that are complete after this tile (t, v), whose texts belong to `video_of_text` (t,)."""
        video, group = torch.unique_consecutive(video_of_text, return_inverse=True)
        if len(video) == len(scores):
            maxima = scores
        else:
            maxima = scores.new_full((len(video), scores.shape[1]), -torch.inf)
            maxima = maxima.scatter_reduce_(0, group[:, None].expand_as(scores), scores, "amax")
        if self.pending is not None:
            if self.video == video[0]:
                maxima = torch.cat([torch.maximum(self.pending, maxima[0])[None], maxima[1:]])
            else:
                maxima = torch.cat([self.pending[None], maxima])
        if last:
            return maxima
        self.pending, self.video = maxima[-1].clone(), int(video[-1])
        return maxima[:-1]


def _ranks_of_matrix(similarity: Any, video_of_text: Any, directions: Sequence[str]) -> dict[str, np.ndarray]:
    scores = as_scores(similarity)
    pairing = pair(video_of_text, num_texts=scores.shape[0], num_videos=scores.shape[1])

    def tile(texts: Span, videos: Span) -> Tensor:
        rows = pairing.rows(texts)
        part = scores[rows, slice(*videos)] if isinstance(rows, slice) else scores[torch.from_numpy(rows)]
        return require_finite(
            part,
            lambda row: f"text row {texts[0] + row if pairing.order is None else pairing.order[texts[0] + row]}",
            lambda column: f"video column {videos[0] + column}",
        )

    T, V = scores.shape
    return ranks_of_tiles(tile, pairing, text_spans=spans(T, _TILE // V), video_spans=[(0, V)], directions=directions)


def _directions(conventions: Sequence[str]) -> list[str]:
    unknown = [name for name in conventions if name not in CONVENTIONS]
    if isinstance(conventions, str) or unknown:
        raise UsageError(f"conventions are {', '.join(CONVENTIONS)}; found {conventions!r}")
    return [CONVENTIONS[name] for name in dict.fromkeys(conventions)]
