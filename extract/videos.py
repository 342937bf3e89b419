"""Videos, decoded, encoded and committed shard by shard."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from glscl.cache.encoded_items import EncodedVideo, NonFiniteItem, video_arrays
from glscl.cache.formats.blocks import Blocks
from glscl.cache.keys import Stat
from glscl.cache.library import Place
from glscl.cache.schema import Status
from glscl.common.errors import DecodeError, StorageError
from glscl.common.progress import Progress, Task
from glscl.common.staged import remote_file, stamp_of
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.batching import ShardInProgress, Stopwatch
from glscl.extract.decode.video import FrameChunk, VideoDone, VideoTask
from glscl.extract.engine import Destination, Pool
from glscl.extract.listing import Source
from glscl.extract.settings import ExtractSettings
from glscl.extract.shard_frames import ShardFrames

CHANGED = "its file changed while it was read"


class VideoExtraction:
    """Makes shards of videos, several of which may be under way at once.

    The videos of all of them are numbered through, shard after shard.

    Args:
        places: the shards to be made.
        sources: key → file, of all that stand in them.
        listed: what the file at a path was when its content was hashed. A file that is another when it has been decoded
            would be stored under a key that is not its own: its frames are thrown away, and it is asked for again next time.
        settings: of the extraction; `strict` raises DecodeError at the first video that gives no frames.
    """

    def __init__(
        self,
        library: Destination,
        places: Sequence[Place],
        sources: Mapping[bytes, Source],
        listed: Callable[[str], Stat | None],
        backbone: Backbone,
        settings: ExtractSettings,
    ) -> None:
        self.library, self.places, self.backbone, self.settings = library, places, backbone, settings
        about = library.stream("video")
        self.videos = [sources[key.tobytes()] for place in places for key in about.keys_at(place)]
        self._sources, self._listed = sources, listed
        self._shard_of = [shard for shard, place in enumerate(places) for _ in place.items]
        ends = itertools.accumulate(len(place.items) for place in places)
        self._items = [range(end - len(place.items), end) for end, place in zip(ends, places)]
        self.watch = Stopwatch()
        self._under_way: dict[int, ShardInProgress] = {}
        self._failed = 0

    def run(self, pool: Pool, progress: Progress) -> None:
        """Make all of them. `pool` is entered already.

        Raises:
            DecodeError: `strict`.
            StorageError: see `Library.commit`.
        """
        if not self.places:
            return
        with progress.task("videos", len(self.videos), "videos") as task:
            for event in self._timed(pool.decode(self._tasks())):
                shard = self._shard_of[event.item]
                if shard not in self._under_way:
                    self._begin(shard)
                if isinstance(event, FrameChunk):
                    self._under_way[shard].add(event)
                else:
                    self._decoded(self._unless_changed(event), task)

    def _tasks(self) -> Iterator[VideoTask]:
        for item, video in enumerate(self.videos):
            yield VideoTask(item, video.path, video.start, video.end, self._listed(video.path))

    def _timed(self, events: Iterator[FrameChunk | VideoDone]) -> Iterator[FrameChunk | VideoDone]:
        """The events, with the time that it takes until one comes."""
        while True:
            clock = time.perf_counter()
            event = next(events, None)
            self.watch.waiting += time.perf_counter() - clock
            if event is None:
                return
            yield event

    def _begin(self, shard: int) -> None:
        frames = ShardFrames(self.library.path, self.library.frames) if self.library.frames else None
        self._under_way[shard] = ShardInProgress(
            self._items[shard], self.backbone, self.settings.batch_frames, self.watch, frames
        )

    def _unless_changed(self, done: VideoDone) -> VideoDone:
        """What became of a video; MISSING where its file is not what it was when it was hashed."""
        path = self.videos[done.item].path
        try:
            address = remote_file(path)
            found = Stat.of(path) if address is None else Stat(*stamp_of(address, anew=True))
            same = found == self._listed(path)
        except StorageError:
            raise
        except OSError:
            same = False
        return done if same else done._replace(status=Status.MISSING, reason=CHANGED)

    def _decoded(self, done: VideoDone, task: Task) -> None:
        self.watch.decoding += done.seconds
        self.watch.decoding_cpu += done.cpu_seconds
        self._failed += not done.status.usable
        if self.settings.strict and not done.status.usable:
            raise DecodeError(f"{self.videos[done.item].id!r} gives no frames: {done.reason} (`strict`)")
        shard = self._shard_of[done.item]
        current = self._under_way[shard]
        current.close(done)
        if current.complete:
            clock = time.perf_counter()
            self._commit(shard, current)
            self.watch.writing += time.perf_counter() - clock
            del self._under_way[shard]
        task.advance(**({"failed": self._failed} if self._failed else {}))

    def _commit(self, shard: int, current: ShardInProgress) -> None:
        items, records, frames = self._items[shard], current.records(), current.frames
        arrays = frames.arrays(items) if frames is not None else {}
        try:
            commit_videos(self.library, self.places[shard], [records[i] for i in items], frames=arrays)
        except NonFiniteItem as error:
            raise error.named(self._sources[error.key].id) from None
        if frames is not None:
            frames.close()


def commit_videos(
    library: Destination,
    place: Place,
    records: Sequence[EncodedVideo],
    *,
    frames: Mapping[str, np.ndarray | Blocks] | None = None,
) -> None:
    """Commit the videos of a shard. `frames`: arrays of its stored frames, where the cache stores them."""
    keys = library.stream("video").keys_at(place)
    library.commit(
        place.addition,
        place.shard,
        {**video_arrays(keys, records, embed_dim=library.embed_dim, dtype=library.dtype), **(frames or {})},
        failures=[
            {"key": key.tobytes().hex(), "reason": record.reason, "status": Status(record.status).name.lower()}
            for key, record in zip(keys, records)
            if record.status != Status.OK
        ],
        ledger=[record.ledger or {} for record in records],
    )
