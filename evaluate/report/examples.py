"""What the examples of a report show: captions, the videos found for them, and their frames as pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from glscl.cache.schema import VideoItem
from glscl.common.tables import amount, minus
from glscl.evaluate.evaluated_run import EvaluatedRun
from glscl.evaluate.report.attention import COSINE
from glscl.evaluate.report.examination import Examination, Example, examination_of

if TYPE_CHECKING:
    from PIL.Image import Image

# A video and seconds of its frames -> pictures of them, or None where the file cannot be had.
ThumbnailReader = Callable[[VideoItem, Sequence[float]], "Sequence[Image] | None"]

_FRAMES_SHOWN = 12
_THUMBNAIL = 120  # pixels, the longer side


class Pictures:
    """Thumbnails as data URIs, each made once."""

    def __init__(self, make: ThumbnailReader | None) -> None:
        self._make = make
        self._made: dict[tuple[str, tuple[float, ...]], list[str]] = {}
        self._lost: set[str] = set()

    def uris(self, video: VideoItem | None, times: tuple[float, ...]) -> list[str]:
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

    def notes(self, runs: Sequence[EvaluatedRun]) -> list[tuple[str, str]]:
        """What must be said of the pictures, as (name, sentence)."""
        if not any((found := examination_of(run)) is not None and found.sources for run in runs):
            return []
        give = "Give the folder with the videos."
        if self._make is None:
            return [("Examples", f"Without the videos there are no pictures of frames. {give}")]
        if self._lost:
            some = ", ".join(sorted(self._lost)[:3])
            return [
                (
                    "Examples",
                    f"{amount(len(self._lost), 'video')} gave no pictures of frames, for example {some}. {give}",
                )
            ]
        return []


def _data_uri(picture: Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def examples_context(runs: Sequence[EvaluatedRun], pictures: Pictures) -> list[dict[str, Any]]:
    """What the template shows of the runs that were examined: best and worst captions, with pictures of their frames."""
    shown = []
    for run in runs:
        examination = examination_of(run)
        if examination is None or not (examination.best or examination.worst):
            continue
        kinds = {"Found most clearly": examination.best, "Furthest from found": examination.worst}
        shown.append(
            {
                "run": run.name,
                "meaning": examination.weights_meaning,
                "kinds": [
                    (title, [_example_context(example, examination, pictures) for example in examples])
                    for title, examples in kinds.items()
                    if examples
                ],
            }
        )
    return shown


def _example_context(example: Example, examination: Examination, pictures: Pictures) -> dict[str, Any]:
    shares = examination.weights_meaning != COSINE
    answers = []
    largest = (
        max((0.0, *(weight for video in example.retrieved for weight in video.weights))) or 1.0
    )  # one scale a query
    for video in example.retrieved:
        count = len(video.times)
        kept = np.unique(np.linspace(0, count - 1, min(count, _FRAMES_SHOWN)).round().astype(int)) if count else []
        times, weights = (tuple(values[i] for i in kept) for values in (video.times, video.weights))
        uris = pictures.uris(examination.sources.get(video.id), times)
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
