"""The frames that models of one list look at: the approximate index of the cache where it has one, else all of them, read once."""

from __future__ import annotations

from functools import cached_property

import torch

from glscl.cache.store import Store
from glscl.common.errors import CacheError, GlsclError, UsageError
from glscl.evaluate.search.answers import ListedFiles, Where
from glscl.evaluate.search.approximate import index_of
from glscl.evaluate.search.frame_index import FrameIndex

EVERYWHERE = Where()
CHOICES_KEPT = 32  # of videos among those of an index, for the next query


class Indexes:
    """Obtain an index with `get`.

    Attributes:
        problem: why the approximate index that the cache has is not used; known once one was asked for.
    """

    def __init__(self, store: Store, files: ListedFiles, device: torch.device) -> None:
        self._store, self._files, self._device = store, files, device
        self.problem: GlsclError | None = None
        self._kept: dict[tuple[Where, bool], FrameIndex] = {}

    @cached_property
    def approximate(self) -> FrameIndex | None:
        """None where there is none, or none that can be used; then `problem` says why."""
        try:
            return index_of(self._store, device=self._device)
        except (CacheError, UsageError) as error:
            self.problem = error
            return None

    def get(self, where: Where = EVERYWHERE, *, exact: bool = False) -> FrameIndex:
        """The frames of the videos chosen.

        Args:
            exact: all of them, also where there is an approximate index.

        Raises:
            InputError, UsageError: there are none. CacheIncompleteError, CacheCorruptError: they cannot be read.
        """
        approximate = None if exact else self.approximate
        key = where, approximate is None
        if key not in self._kept:
            whole = approximate or self._kept.get((EVERYWHERE, True))
            rows = where.entries(self._store, self._files)
            if whole is None:
                made = FrameIndex.load(self._store, rows, device=self._device)
            else:
                made = whole if where == EVERYWHERE else whole.among(rows)
                for oldest in [each for each in self._kept if each[0] != EVERYWHERE][:-CHOICES_KEPT]:
                    del self._kept[oldest]
            self._kept[key] = made
        return self._kept[key]
