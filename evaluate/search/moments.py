"""Moments: the runs of frames of a video that fit a query, each from where it begins to where the next frame follows.

n frames of a video.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SHARE = 0.75  # of the way from a video's middling frame to its best one that a frame of a moment reaches
GAP = 2  # frames below it in a row that do not end a moment


class Moment(NamedTuple):
    """A part of a video, in seconds from the start of the file, and the cosine of its best frame, which is at `time`."""

    start: float
    end: float
    score: float
    time: float


def moments_of(cosines: np.ndarray, times: np.ndarray, duration: float = 0.0, *, count: int = 1) -> list[Moment]:
    """The moments of a video that fit best, best first.

    Args:
        cosines: (n,) of its frames with the query.
        times: (n,) rising, seconds.
        duration: of the file, or of the part of it, in seconds; 0 where unknown.
        count: how many at most.
    """
    middle, best = float(np.median(cosines)), float(cosines.max())
    high = np.flatnonzero(cosines >= middle + SHARE * (best - middle))  # rising; the best frame is among them
    runs = np.split(high, np.flatnonzero(np.diff(high) > GAP + 1) + 1)
    if best == middle:  # all the same
        runs = [np.arange(len(cosines))]
    ends = np.append(times[1:], _end(times, duration))
    found = []
    for run in runs:
        at = run[np.argmax(cosines[run])]
        found.append(Moment(float(times[run[0]]), float(ends[run[-1]]), float(cosines[at]), float(times[at])))
    return sorted(found, key=lambda moment: -moment.score)[:count]


def _end(times: np.ndarray, duration: float) -> float:
    """Where the last frame ends: with the file, else as long after it as the others are apart."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    last = float(times[-1])
    return min(last + step, float(times[0]) + duration) if float(times[0]) + duration > last else last + step


def around_best(cosines: np.ndarray, count: int) -> np.ndarray:
    """(min(n, count),) rising positions of the frames around the best one, for a head that looks at `count`."""
    if len(cosines) <= count:
        return np.arange(len(cosines))
    start = int(np.clip(int(cosines.argmax()) - count // 2, 0, len(cosines) - count))
    return np.arange(start, start + count)
