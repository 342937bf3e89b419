"""A cache here, put at an address: whole, in the order in which readers need it, and going on where it was stopped.

The way back is a merge, of which a part may be at an address (`glscl.cache.upkeep.merge`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from glscl.cache.additions import addition_bytes
from glscl.cache.commits import all_commits_file, commit_file
from glscl.cache.files import refuse_links
from glscl.cache.fingerprint import differences
from glscl.cache.library import Library, Stream, open_library
from glscl.cache.lists import current_version, list_names
from glscl.cache.mirror import Mirror
from glscl.cache.schema import STREAMS
from glscl.cache.store import Store, open_store
from glscl.cache.upkeep.attempts import Brought, as_brought, brings_more
from glscl.common.addresses import address_of
from glscl.common.errors import FingerprintError, Hint, UsageError


@dataclass
class PushSummary:
    """What `push` did. `bytes` were sent; `there` shards stood at the address already; `lists`: name → version that counts;
    `forgotten`: files there that a killed writer has left, of more than an hour ago; repair deletes them."""

    cache: str
    address: str
    fingerprint: str
    shards: int = 0
    there: int = 0
    bytes: int = 0
    forgotten: int = 0
    lists: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def push(cache: os.PathLike[str] | str, address: str, *, progress: Callable[[], None] = lambda: None) -> PushSummary:
    """Put all of a cache at an address; what is there of it already is left out. Killed, it goes on when called again.

    Args:
        cache: a cache folder on this machine.
        address: where it goes: nothing yet, or a cache of the same encoder, which then holds what both hold.
        progress: called after each shard.

    Raises:
        UsageError: a flat file, or an address that cannot be written.
        FingerprintError: a cache of another encoder is there.
        StorageError: the address cannot be reached, or a link stands in the cache, and what it leads to would be sent.
    """
    known = address_of(address, "address")
    if known is None:
        raise UsageError(
            f"`address` is {address}, which is on this machine; expected s3://, gs:// or az://",
            hint=Hint("Bring caches here together with", "merge", {"": ["OUT", "PART"]}),
        )
    address, library = known, open_library(cache)
    if library.is_flat:
        raise UsageError(f"{library.place} is one flat file; copy it as it is, for it can be read at an address")
    refuse_links(library.path)
    mirror = Mirror(address, library.path)
    mirror.there = mirror.listing()
    header = (library.path / "store.json").read_bytes()
    theirs = None
    if mirror.there or not mirror.put_if_absent("store.json", header):  # first, so that no other encoder's can come
        theirs = _same_encoder(library, address)
    done = PushSummary(str(library.path), address, library.fingerprint)
    before = sum(mirror.there.values())
    mirror.publish()
    for stream in STREAMS:
        _push_shards(library, stream, mirror, theirs, done, progress)
    for name in list_names(library.path):
        version = current_version(library.path, name)
        if version is not None and Store(library, open_store(library.path, f"{name}@{version}").list).complete:
            mirror.make_current(name, version)
            done.lists[name] = version
    done.bytes = sum(mirror.there.values()) - before
    theirs = open_library(address)
    named = {commit.path for stream in STREAMS for commit in theirs.stream(stream).commits.values()}
    done.forgotten = len(mirror.forgotten(named))
    return done


def _push_shards(
    library: Library,
    stream: str,
    mirror: Mirror,
    theirs: Library | None,
    done: PushSummary,
    progress: Callable[[], None],
) -> None:
    """The shards of a stream; of an addition of which all are ours, the commits in one file as well.

    Args:
        theirs: what was at the address before. A shard that failed there stays, and ours stands beside it as another attempt.
    """
    about, others = library.stream(stream), set()
    there = Stream(stream, [], {}) if theirs is None else theirs.stream(stream)
    for place in about.committed():
        name = place.addition.name
        file = commit_file(library.path, stream, name, place.shard)
        told, gathered = (
            path.relative_to(library.path).as_posix() for path in (file, all_commits_file(library.path, stream, name))
        )
        is_there = told in mirror.there or gathered in mirror.there
        if is_there and not ((name, place.shard) in there.commits and brings_more(about, place, there)):
            done.there += 1
            others.add(name)
        else:
            if not _push_shard(library, as_brought(library, stream, place, there), mirror):
                others.add(name)
            done.shards += 1
        progress()
    for addition in about.additions:
        file = all_commits_file(library.path, stream, addition.name)
        if addition.name not in others and file.is_file():
            mirror.put(file.relative_to(library.path).as_posix())


def _push_shard(library: Library, shard: Brought, mirror: Mirror) -> bool:
    """Put a shard, then its commit; False where it is another attempt, or another writer has committed it meanwhile."""
    addition = shard.addition
    if shard.is_another_attempt:
        mirror.put_if_absent(f"additions/{addition.stream}/{addition.name}.txt", addition_bytes(addition))
    mirror.put(shard.path, library.shard_file(library.stream(addition.stream).commit_of(shard.place)))
    file = commit_file(library.path, addition.stream, addition.name, shard.shard).relative_to(library.path)
    return mirror.put_if_absent(file.as_posix(), shard.commit) and not shard.is_another_attempt


def _same_encoder(library: Library, address: str) -> Library:
    """The cache at the address. Raises FingerprintError or UsageError where it cannot hold what this one holds."""
    theirs = open_library(address)
    if theirs.fingerprint != library.fingerprint:
        lines = differences(theirs.configuration, library.configuration)
        raise FingerprintError(
            f"The cache at {address} was made by another encoder than {library.place} ({'; '.join(lines[:3])})",
            hint="Push to another address",
        )
    if (theirs.header["format"], theirs.header.get("stored_frames")) != (
        library.header["format"],
        library.header.get("stored_frames"),
    ):
        raise UsageError(
            f"The cache at {address} is {theirs.header['format']} or stores frames in another way than {library.place}",
            hint="Push to another address",
        )
    return theirs
