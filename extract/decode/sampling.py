"""Which frames of a video are taken: pure functions from presentation times to frame indices.

n frames of the video, all times in seconds from the start of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from glscl.common.errors import UsageError

TOLERANCE = 1e-6  # seconds: far below any frame distance, far above the rounding of pts * time_base
RULES = ("time", "public", "opencv")
MAX_REORDER = 16  # frames: the deepest reordering a codec in use allows


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The rule that picks frames; part of the fingerprint of a cache.

    Attributes:
        fps: frames a second; None takes every frame ("native").
        rule: "time" takes the frames presented nearest to start + 0, 1/fps, 2/fps, ... (of two equally near, the
            earlier). "public" is the rule of GLSCL's published program: every round(average rate / fps)-th frame,
            counted, whatever the time between them. "opencv" is that of its loader for DiDeMo and ActivityNet: the first
            `fps` of every int(average rate) frames, counted too, whole seconds from `start` to `end`, both included.
        max_frames: at most so many of the frames the rule picked, spread by linspace; None keeps all of them.

    Raises:
        UsageError: for a rate or a cap that is not positive, or an unknown rule.
    """

    fps: float | None = 1.0
    rule: str = "time"
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not (self.fps > 0 and np.isfinite(self.fps)):
            raise UsageError(f"sampling rate is {self.fps}; expected a number of frames a second above 0, or native")
        if self.rule not in RULES:
            raise UsageError(f"sampling rule is {self.rule!r}; expected one of {', '.join(RULES)}")
        if self.rule == "opencv" and self.fps is not None and (self.fps < 1 or self.fps % 1):
            raise UsageError(
                f"sampling rate is {self.fps}; expected a whole number of frames a second for the rule opencv"
            )
        if self.max_frames is not None and self.max_frames < 1:
            raise UsageError(f"max_frames is {self.max_frames}; expected at least 1")


def window(times: NDArray[np.float64], start: float | None, end: float | None) -> slice:
    """The frames with start <= time < end, as a slice of the ascending `times` (n,)."""
    first = 0 if start is None else int(np.searchsorted(times, start - TOLERANCE))
    last = len(times) if end is None else int(np.searchsorted(times, end - TOLERANCE))
    return slice(first, max(first, last))


def select_frames(
    times: NDArray[np.float64],
    sampling: Sampling,
    *,
    start: float | None = None,
    end: float | None = None,
    average_rate: float | None = None,
) -> NDArray[np.int64]:
    """Indices of the frames that `sampling` takes between `start` and `end`.

    Args:
        times: (n,) strictly ascending presentation times in seconds.
        start, end: seconds; frames with start <= time < end are candidates and the rule counts from `start`. The rule
            "opencv" counts all frames of the file instead.
        average_rate: frames a second the file declares, for rules that count; measured from `times` where None.

    Returns:
        (k,) strictly ascending int64 indices into `times`; empty only where no frame lies between start and end.
    """
    counted = sampling.rule == "opencv" and sampling.fps is not None
    part = slice(0, len(times)) if counted else window(times, start, end)
    count = part.stop - part.start
    if sampling.fps is None:
        picked = np.arange(count)
    elif counted:
        picked = _first_of_seconds(count, int(sampling.fps), average_rate or mean_rate(times), start or 0.0, end)
    elif sampling.rule == "public":
        rate = average_rate or mean_rate(times)
        picked = np.arange(0, count, max(1, round(rate / sampling.fps)))
    else:
        picked = _nearest(times[part] - (start or 0.0), sampling.fps)
    if sampling.max_frames is not None and len(picked) > sampling.max_frames:
        picked = picked[np.linspace(0, len(picked) - 1, sampling.max_frames, dtype=int)]
    return (picked + part.start).astype(np.int64)


def _first_of_seconds(count: int, fps: int, rate: float, start: float, end: float | None) -> NDArray[np.int64]:
    """Of `count` frames the first `fps`, evenly spread, of each `int(rate)`, as the public loader with OpenCV takes them."""
    second = max(1, int(rate))  # frames
    longest = -(-count // second)  # seconds
    seconds = np.arange(start, min(longest if end is None else end, longest) + 1)
    within = np.arange(0, second, max(1, second // fps))[:fps]
    picked = ((seconds * second).astype(np.int64)[:, None] + within).ravel()
    return np.unique(picked[picked < count])


def _nearest(times: NDArray[np.float64], fps: float) -> NDArray[np.int64]:
    """Indices of the frames nearest to 0, 1/fps, 2/fps, ... up to the last frame, each once.

    A frame is nearest to some sample exactly if one falls between the middles to its neighbours, so it is enough to
    count the samples up to each middle.
    """
    if not len(times):
        return np.zeros(0, np.int64)
    upper = np.append((times[:-1] + times[1:]) / 2, times[-1])  # (n,) where the next frame becomes the nearer one
    samples_up_to = np.floor((upper + TOLERANCE) * fps)
    return np.flatnonzero(np.diff(samples_up_to, prepend=-1.0) > 0)


def mean_rate(times: NDArray[np.float64]) -> float:
    """Frames a second over the span of `times` (n,); 0.0 for fewer than two frames."""
    return (len(times) - 1) / float(times[-1] - times[0]) if len(times) > 1 else 0.0


def first_stamp(raw: Sequence[float | None]) -> float | None:
    """The stamp of the first frame shown, of stamps in the order of `repair_times`; None where it has none."""
    if not raw or raw[0] is None:
        return None
    return min(stamp for stamp in raw[: MAX_REORDER + 1] if stamp is not None)


def repair_times(raw: Sequence[float | None], *, rate: float | None) -> NDArray[np.float64]:
    """Strictly ascending presentation times from what a decoder stamped on its frames, in the order it gave them.

    Decoders give frames in presentation order even where the container stamps them badly. Stamps that were only
    permuted (AVI with B-frames stores the order of decoding) are sorted; a stamp that is missing or does not move
    forward is replaced by the previous time plus the usual step.

    Args:
        raw: (n,) seconds or None.
        rate: frames a second the file declares, used where no two stamps tell the step.

    Returns:
        (n,) float64 seconds, strictly ascending, counted from the first frame.
    """
    stamps = np.array([np.nan if t is None else t for t in raw], dtype=np.float64)
    if not len(stamps):
        return stamps
    if not np.isnan(stamps).any():
        order = np.argsort(stamps, kind="stable")
        if np.abs(order - np.arange(len(order))).max() <= MAX_REORDER and (np.diff(stamps[order]) > TOLERANCE).all():
            return stamps[order] - stamps[order[0]]
    steps = np.diff(stamps)
    steps = steps[steps > TOLERANCE]  # comparisons with NaN are False
    step = float(np.quantile(steps, 0.5, method="lower")) if len(steps) else 1.0 / (rate or 25.0)
    times = np.empty(len(stamps))
    previous = np.nan
    for i, stamp in enumerate(stamps):
        forward = not np.isnan(stamp) and not stamp <= previous + TOLERANCE
        times[i] = previous = stamp if forward else (0.0 if np.isnan(previous) else previous + step)
    return times - times[0]
