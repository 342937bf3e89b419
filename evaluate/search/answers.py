"""What a search answers: videos with their moments, moments of all videos, captions; and what it may choose from.

V videos of a list.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from glscl.cache.known_files import KnownFiles
from glscl.cache.store import Store
from glscl.common.errors import InputError, UsageError
from glscl.evaluate.search.moments import Moment
from glscl.evaluate.search.settings import SearchSettings


class VideoHit(NamedTuple):
    """One video of an answer, best first.

    Attributes:
        path: where the file was last seen; None where it is not there any more.
        score: the head's similarity, before the logit scale; without a run the cosine of the best frame.
        normalised: what the answer is ordered by where scores are normalised.
        time: seconds from the start of the file, of the frame nearest to the query.
        moments: the parts of it that fit best, best first.
    """

    rank: int
    video: str
    path: str | None
    score: float
    normalised: float | None
    time: float
    moments: tuple[Moment, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "moments": [moment._asdict() for moment in self.moments]}


class MomentHit(NamedTuple):
    """One moment of an answer, best first; see `Moment`. `score` is that of its best frame."""

    rank: int
    video: str
    path: str | None
    score: float
    moments: tuple[Moment]
    normalised: None = None

    @property
    def time(self) -> float:
        """Seconds from the start of the file, of its best frame."""
        return self.moments[0].time

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        shown = {name: getattr(self, name) for name in ("rank", "video", "path", "score", "time")}
        return {**shown, "moments": [self.moments[0]._asdict()]}


class CaptionHit(NamedTuple):
    """One caption of an answer, best first."""

    rank: int
    caption: str
    video: str
    score: float
    normalised: float | None


class Where(NamedTuple):
    """Which videos are searched.

    Attributes:
        split: only those of a split.
        folder: only those whose id, or whose file's path, lies below this folder.
        shortest, longest: only those that last so many seconds, as far as that is known.
    """

    split: str | None = None
    folder: str | None = None
    shortest: float | None = None
    longest: float | None = None

    @classmethod
    def of(cls, settings: SearchSettings) -> Where:
        """As the settings of a search say."""
        return cls(settings.split, settings.folder, settings.shortest, settings.longest)

    def entries(self, store: Store, files: ListedFiles) -> np.ndarray:
        """(n,) int64 rising rows of the list. Raises InputError for an unknown split, UsageError where nothing is left."""
        if self.split is not None and self.split not in store.splits:
            raise InputError(f"{store.place} has no split {self.split!r}; it has {', '.join(store.splits) or 'none'}")
        run = store.everything.videos if self.split is None else store.splits[self.split].videos
        rows = np.arange(run.start, run.stop)
        if self.folder is not None:
            rows = np.array([row for row in rows.tolist() if _lies_below(self.folder, store, files, row)], np.int64)
        if self.shortest is not None or self.longest is not None:
            seconds = store.arrays("video", ["duration"])["duration"][rows]
            low, high = self.shortest or 0.0, np.inf if self.longest is None else self.longest
            rows = rows[(seconds >= low) & (seconds <= high)]
        if not len(rows):
            asked = {
                "in split {}": self.split,
                "below {!r}": self.folder,
                "of at least {:g} s": self.shortest,
                "of at most {:g} s": self.longest,
            }
            narrowed = [words.format(value) for words, value in asked.items() if value is not None]
            raise UsageError(f"The list {store.list_name} has no video {', '.join(narrowed)}".rstrip())
        return rows


class ListedFiles:
    """Where the videos of a list are now, as far as that is known: by content, so renaming loses none."""

    def __init__(self, store: Store) -> None:
        self._store, self._known, self._found = store, KnownFiles.read(store.path), dict[int, str | None]()

    def path_of(self, row: int) -> str | None:
        """Absolute path of the file of a row of the list; None where none is known that is there unchanged."""
        if row not in self._found:
            made = self._store.list
            path = self._known.path_of(made.video_content[row].tobytes(), like=made.video_ids[row])
            self._found[row] = None if path is None else str(path)
        return self._found[row]


def _lies_below(folder: str, store: Store, files: ListedFiles, row: int) -> bool:
    """Whether the id of a video, or its file's path, lies below a folder. No file is looked at but those of the list."""
    if store.list.video_ids[row].startswith(folder.rstrip("/") + "/"):
        return True
    path = files.path_of(row)
    return path is not None and path.startswith(os.path.join(os.path.abspath(folder), ""))
