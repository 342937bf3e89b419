"""Which packets of a video must be decoded for some of its frames, so that these are what decoding everything would give.

m packets of the stream in the order of decoding, n frames shown, g groups of pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glscl.extract.decode.packets import VideoIndex

HOLE = 1.5  # usual steps between two frames, from which on one may be missing


class DecodePlan(NamedTuple):
    """What is fed to the decoder.

    Attributes:
        runs: packets [first, last] between which the decoder is kept going; behind each it is emptied and starts anew.
        feeds: (m,) bool, packets of the runs that are fed.
        stamps: (m,) int64 of all packets, to know where seeking ends.
        strict: whether the decoder is to report what it would else paint over, as it must where a stream begins in the
            midst of a group.
    """

    runs: list[tuple[int, int]]
    feeds: NDArray[np.bool_]
    stamps: NDArray[np.int64]
    strict: bool

    @classmethod
    def of(cls, index: VideoIndex, targets: NDArray[np.int64]) -> DecodePlan | None:
        """The plan for the frames stamped `targets` (k,); None where everything must be decoded.

        Of each group that has a target it takes what lies before the last of them, and of the group before that too where the
        target refers to it. Pictures that no other refers to are left out, but not around a hole: if frames are
        missing there, the decoder makes them up from whatever it has seen.
        """
        if not len(index.groups):
            return None
        count = len(index.fed)
        by_stamp = np.argsort(index.fed)
        places = np.sort(by_stamp[np.searchsorted(index.fed, targets, sorter=by_stamp)])  # (k,)
        group_of = np.searchsorted(index.groups, np.arange(count), side="right") - 1  # (m,)
        firsts = index.groups[np.maximum(group_of[places] - index.leading[places], 0)]  # (k,)
        runs: list[tuple[int, int]] = []
        for first, last in zip(firsts.tolist(), places.tolist()):
            if runs and first <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], last)
            else:
                runs.append((first, last))
        feeds = np.zeros(count, bool)
        for first, last in runs:
            feeds[first : last + 1] = True
            if first:  # leading pictures of the first group refer to what is not fed
                feeds[first : last + 1] &= ~(index.leading & (group_of == group_of[first]))[first : last + 1]
        spare = index.unused & ~_holed(index, group_of)[group_of]
        spare[places] = False
        return cls(runs, feeds & ~spare, index.fed, index.headless is None)


def _holed(index: VideoIndex, group_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(g,) bool: groups around a hole, and a first one whose beginning is missing."""
    holed = np.zeros(len(index.groups), bool)
    holed[0] = index.headless is not None
    by_stamp = np.argsort(index.fed)
    steps = np.diff(index.fed[by_stamp])
    if len(steps):
        before = np.flatnonzero(steps > HOLE * np.median(steps))
        holed[group_of[by_stamp[before]]] = holed[group_of[by_stamp[before + 1]]] = True
    return holed
