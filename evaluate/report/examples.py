"""What the examples of a report show: captions, the videos found for them, and their frames as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glscl.cache.schema import VideoItem
from glscl.evaluate.evaluated_run import RunForReport
from glscl.evaluate.report.attention import COSINE
from glscl.evaluate.report.closeup import CloseUp, Example
from glscl.evaluate.result_tables import minus

if TYPE_CHECKING:
    from PIL.Image import Image

# A video and seconds of its frames -> pictures of them, or None where the file cannot be had.
Thumbnails = Callable[[VideoItem, Sequence[float]], "Sequence[Image] | None"]

_FRAMES_SHOWN = 12
_THUMBNAIL = 120  # pixels, the longer side


class Pictures:
    """Thumbnails as data URIs, each made once."""

    def __init__(self, make: Thumbnails | None) -> None:
        self._make = make
        self._made: dict[tuple[str, tuple[float, ...]], list[str]] = {}
        self._lost: set[str] = set()

    def of(self, video: VideoItem | None, times: tuple[float, ...]) -> list[str]:
        """One URI a frame; empty where there are none to be had."""
        if self._make is None or video is None:
            return []
        if (video.id, times) not in self._made:
            pictures = self._make(video, times)
            if pictures is None or len(pictures) != len(times):
                self._lost.add(video.id)
                pictures = []
            self._made[video.id, times] = [_data_uri(picture) for picture in pictures]
        return self._made[video.id, times]

    def notes(self, runs: Sequence[RunForReport]) -> list[tuple[str, str]]:
        if not any(run.closeup is not None and run.closeup.sources for run in runs):
            return []
        if self._make is None:
            return [
                ("Examples", "Without the videos there are no pictures of frames. Give their folder: --videos DIR.")
            ]
        if self._lost:
            some = ", ".join(sorted(self._lost)[:3])
            note = f"{len(self._lost)} videos gave no pictures of frames, for example {some}. Give their folder: --videos DIR."
            return [("Examples", note)]
        return []


def _data_uri(picture: Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def has_examples(closeup: CloseUp) -> bool:
    """Whether there is a caption to show."""
    return bool(closeup.best or closeup.worst)


def examples_context(run: RunForReport, pictures: Pictures) -> dict[str, Any]:
    """What the template shows of a run that was examined: its best and worst captions, with pictures of their frames."""
    closeup = run.closeup
    assert closeup is not None
    kinds = {"Found most clearly": closeup.best, "Furthest from found": closeup.worst}
    return {
        "run": run.name,
        "meaning": closeup.weights_meaning,
        "kinds": [
            (title, [_example_context(example, closeup, pictures) for example in of])
            for title, of in kinds.items()
            if of
        ],
    }


def _example_context(example: Example, closeup: CloseUp, pictures: Pictures) -> dict[str, Any]:
    shares = closeup.weights_meaning != COSINE
    answers = []
    largest = (
        max((0.0, *(weight for video in example.retrieved for weight in video.weights))) or 1.0
    )  # one scale a query
    for video in example.retrieved:
        count = len(video.times)
        kept = np.unique(np.linspace(0, count - 1, min(count, _FRAMES_SHOWN)).round().astype(int)) if count else []
        times, weights = (tuple(of[i] for i in kept) for of in (video.times, video.weights))
        uris = pictures.of(closeup.sources.get(video.id), times)
        frames = [
            {
                "uri": uris[i] if uris else "",
                "time": f"{times[i]:.1f} s",
                "weight": f"{weights[i] * 100:.0f} %" if shares else minus(f"{weights[i]:.2f}"),
                "height": round(max(0.0, weights[i]) / largest * 100, 1),
            }
            for i in range(len(times))
        ]
        answers.append(
            {
                "id": video.id,
                "rank": f"{video.rank:g}",
                "correct": video.correct,
                "score": minus(f"{video.score:.3f}"),
                "frames": frames,
                "left_out": count - len(times),
            }
        )
    return {"caption": example.caption, "id": example.text_id, "rank": f"{example.rank:g}", "answers": answers}
