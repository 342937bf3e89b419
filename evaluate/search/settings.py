"""What a search can be told: declared once, for the command line, for a settings file and for Python."""

from __future__ import annotations

from dataclasses import dataclass

from glscl.common.settings import setting


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How answers are found, and which of them are shown."""

    top: int = setting(10, "How many answers.", group="Answers", min=1)
    by: str = setting(
        "video", "Answers are videos, or the moments of all of them.", group="Answers", choices=("video", "moment")
    )
    moments: int = setting(1, "Moments shown of a video.", group="Answers", min=1)
    minimum: float | None = setting(None, "Only answers whose score is at least this.", group="Answers", name="min")
    split: str | None = setting(None, "Only videos of a split.", group="Data")
    folder: str | None = setting(None, "Only videos whose id or file lies below this folder.", group="Data")
    shortest: float | None = setting(None, "Only videos of at least so many seconds.", group="Data", min=0)
    longest: float | None = setting(None, "Only videos of at most so many seconds.", group="Data", min=0)
    exact: bool = setting(False, "Look at every frame, also where the cache has an approximate index.", group="How")
    normalise: str | None = setting(
        None,
        "Lower what answers too many queries, as a bank of training captions tells; judged as in an evaluation.",
        group="How",
        choices=("nnn", "qb-norm"),
    )
    max_frames: int | None = setting(
        None,
        "Look at so many frames of a video, evenly spread, as in an evaluation. Default: at every stored frame.",
        group="How",
        min=1,
    )
