"""What every writer of a cache does: the list first, so that it tells what was wanted; the items; at last the list counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from glscl.cache.commits import all_commits_file
from glscl.cache.files import written
from glscl.cache.library import Library
from glscl.cache.lists import CacheList, make_current, write_list
from glscl.cache.lock import hold
from glscl.cache.remains import sweep
from glscl.cache.schema import STREAMS
from glscl.cache.store import Store


class Filling:
    """What came of a block of `filling`, once it is left.

    Attributes:
        finished: whether it was this writer that let the list count.
    """

    finished = False


@contextlib.contextmanager
def filling(
    library: Library,
    made: CacheList,
    *,
    part: tuple[int, int] = (1, 1),
    what: str = "extract",
    single_writer: bool = False,
) -> Iterator[Filling]:
    """Be the one writer of a cache while its items are encoded within the block; what killed ones left goes first.

    Args:
        made: the list that asks for them: written before, and made the one that counts afterwards if all of it is there.
        part, what: see `glscl.cache.lock.hold`.
        single_writer: see `glscl.cache.creation.create_library`.

    Raises:
        CacheBusyError, StorageError: see `hold`.
        UsageError: the cache is at an address without conditional puts.
    """
    if library.mirror is not None:
        library.mirror.require_conditional_puts(single_writer)
    with hold(library.path, part=part, what=what):
        library.refresh()
        if part[1] == 1:
            sweep(library)
        write_list(library.path, made, library.header["format"])
        if library.mirror is not None:
            library.mirror.publish()
        outcome = Filling()
        yield outcome
        library.refresh()
        for stream in STREAMS:
            for addition in library.stream(stream).additions:
                if not written(all_commits_file(library.path, stream, addition.name)):
                    library.settle(addition)
        complete = Store(library, made).complete
        if complete and library.mirror is not None:
            library.mirror.publish_gathered()
            library.mirror.make_current(made.name, made.hash)
        outcome.finished = complete and make_current(library.path, made)
