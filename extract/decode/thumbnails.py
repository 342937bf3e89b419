"""Pictures of the frames that a cache holds features of, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glscl.cache.schema import VideoItem
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask, decode_video

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 160  # pixels, the longer side


def thumbnails_of(
    configuration: Mapping[str, Any], folder: Path | None = None
) -> Callable[[VideoItem, Sequence[float]], list[Image] | None]:
    """A function that gives pictures of a cached video's frames.

    Args:
        configuration: of the cache; its sampling says which frames there are.
        folder: where the videos are now, below which a file of the same name or with the video's id as its name is
            looked for; None takes the path that extraction recorded.
    """
    rule = configuration.get("sampling")
    rule = rule if isinstance(rule, Mapping) else {}
    sampling = Sampling(fps=rule.get("fps", 4.0), rule=rule.get("rule", "time"), max_frames=rule.get("max_frames"))
    names: dict[str, Path] = {}
    if folder is not None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                names.setdefault(path.name, path)
                names.setdefault(path.stem, path)

    def pictures(video: VideoItem, times: Sequence[float]) -> list[Image] | None:
        recorded = Path(video.path) if video.path else None
        found = names.get(recorded.name) if recorded else None
        found = found or names.get(Path(video.id).name) or recorded
        return frame_pictures(video, times, found, sampling=sampling) if found is not None and found.is_file() else None

    return pictures


def frame_pictures(
    video: VideoItem, times: Sequence[float], path: Path, *, sampling: Sampling, size: int = SIZE
) -> list[Image] | None:
    """The sampled frames nearest to some times, at most `size` pixels long.

    Args:
        video: whose part [start, end) is decoded.
        times: seconds from the first frame of the file.
        path: the file.
        sampling: the rule that picked the frames.

    Returns:
        One picture a time; None where the file gives no frame.
    """
    from PIL.Image import fromarray

    def small(picture: Image) -> Image:
        picture.thumbnail((size, size))
        return picture

    wanted = np.asarray(times, np.float64)
    distance = np.full(len(wanted), np.inf)
    nearest: list[Any] = [None] * len(wanted)
    task = VideoTask(0, str(path), video.start, video.end)
    for part in decode_video(task, Decoding(sampling=sampling, prepare=small)):
        if not isinstance(part, FrameChunk):
            continue
        gap = np.abs(part.times[None, :] - wanted[:, None])  # (times, frames of the chunk)
        for i, j in enumerate(gap.argmin(1).tolist()):
            if gap[i, j] < distance[i]:
                distance[i], nearest[i] = gap[i, j], part.frames[j].copy()
    return [fromarray(frame) for frame in nearest] if all(frame is not None for frame in nearest) else None
