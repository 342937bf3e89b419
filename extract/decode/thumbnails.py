"""Pictures of the frames that a cache holds features of, for people to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glscl.cache.known_files import KnownFiles
from glscl.cache.schema import VideoItem
from glscl.cache.store import Store
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask, decode_video

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 160  # pixels, the longer side


def thumbnails_of(
    store: Store, folder: Path | None = None
) -> Callable[[VideoItem, Sequence[float]], list[Image] | None]:
    """A function that gives pictures of the frames of a list's videos; None for one whose file is not there.

    Args:
        store: the cache; its sampling says which frames there are.
        folder: where the videos are now, below which a file of the same content is looked for by its name or the video's id;
            None takes the places where their contents were last seen.
    """
    rule = store.configuration.get("sampling", {})
    sampling = Sampling(fps=rule.get("fps", 4.0), rule=rule.get("rule", "time"), max_frames=rule.get("max_frames"))
    known = KnownFiles.read(store.path)
    contents = {id: content.tobytes() for id, content in zip(store.list.video_ids, store.list.video_content)}
    names: dict[str, Path] = {}
    if folder is not None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                names.setdefault(path.name, path)
                names.setdefault(path.stem, path)

    def is_it(path: Path | None, id: str) -> bool:
        try:
            return path is not None and known.content(path) == contents.get(id)
        except OSError:
            return False

    def pictures(video: VideoItem, times: Sequence[float]) -> list[Image] | None:
        recorded = Path(video.path) if video.path else None
        places = (names.get(recorded.name) if recorded else None, names.get(Path(video.id).name), recorded)
        found = next((path for path in places if path is not None and is_it(path, video.id)), None)
        return None if found is None else frame_pictures(video, times, found, sampling=sampling)

    return pictures


def frame_pictures(
    video: VideoItem, times: Sequence[float], path: Path, *, sampling: Sampling, size: int = SIZE
) -> list[Image] | None:
    """The sampled frames nearest to some times, at most `size` pixels long.

    Args:
        video: whose part [start, end) is decoded.
        times: seconds from the start of the file.
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
