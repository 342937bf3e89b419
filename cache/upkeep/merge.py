"""Caches of one encoder, made in folders of their own, as one cache.

A shard is never modified, so the merged cache holds the very files of the parts, by hard links where the file system has
them and by copies where it does not. Lists and additions are small and written again. Nothing is decoded, encoded or checked
bit by bit; `glscl.cache.upkeep.verification` does that.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glscl.cache.additions import Addition, write_addition
from glscl.cache.commits import commit_file
from glscl.cache.creation import create_library
from glscl.cache.files import (
    put_if_absent,
    refuse_links,
    refuse_unread,
    remove,
    storage_errors,
    sync_directory,
    sync_tree,
    written,
)
from glscl.cache.fingerprint import differences
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import Library, open_library
from glscl.cache.lists import CacheList, current_version, list_names, make_current, read_list, versions_of, write_list
from glscl.cache.lock import hold
from glscl.cache.mirror import cache_path
from glscl.cache.remains import sweep
from glscl.cache.schema import STREAMS
from glscl.cache.shards import see_damage
from glscl.cache.store import PENDING, Store, resume_hint
from glscl.cache.upkeep.attempts import Brought, as_brought, brings_more
from glscl.cache.upkeep.convert import spec_of
from glscl.common.errors import CacheCorruptError, FingerprintError, Hint, UsageError


@dataclass(kw_only=True)
class MergeSummary:
    """What a merge brought, and what is there now.

    Attributes:
        shards: that are new in the cache; `linked` and `copied` count their files.
        videos, texts: different items of the cache.
        lists: name → hash of the version that counts.
        pending: what lists still wait for: `list`, `hash`, and how many `video` and `text` entries.
        notes: lists of which two parts have different versions.
        resume: what finishes the lists of `pending`.
    """

    cache: str
    fingerprint: str
    shards: int = 0
    linked: int = 0
    copied: int = 0
    videos: int = 0
    texts: int = 0
    lists: dict[str, str] = field(default_factory=dict)
    pending: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resume: list[Hint] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON, but for `resume`."""
        return {key: value for key, value in asdict(self).items() if key != "resume"}


def merge(parts: Sequence[Path], out: Path, *, copy: bool = False) -> MergeSummary:
    """Bring the lists and items of several caches of one encoder together, in any order, again at any time.

    A shard is left out where all that it holds is there already, as usable or more. The version of a list that counts stays; a list without one
    gets the part's, of two parts that of the one named first.

    Args:
        parts: their folders.
        out: folder of the merged cache; may be there already, as one of the parts or as an earlier merge.
        copy: copy the files even where they could be linked.

    Raises:
        UsageError: no part, a flat file, or parts of another format or way of storing frames.
        FingerprintError: parts that were made by different encoders.
        CacheCorruptError: a shard is committed and not there, or a part's records cannot be read.
        CacheBusyError: another process writes `out`.
        StorageError: it cannot be written, or a link stands in it or in a part.
    """
    if not parts:
        raise UsageError(
            "There is nothing to merge",
            hint=Hint("Name the folders of the parts", "merge", {"": ["OUT", "PART", "PART"]}),
        )
    parts = [cache_path(part) for part in parts]
    for part in parts:
        refuse_links(part)
    libraries = [open_library(part) for part in parts]
    if written(out / "store.json"):
        libraries.insert(0, open_library(out))
    for library in libraries:
        _require_same(libraries[0], library)
    target = create_library(out, spec_of(libraries[0]), libraries[0].header["format"])
    others = [library for library in libraries if library.path.resolve() != out.resolve()]
    with hold(out, what="merge"):
        target.refresh()
        sweep(target)
        return _Merge(target, copy=copy).run(others)


def _require_same(first: Library, other: Library) -> None:
    if other.is_flat:
        raise UsageError(f"{other.path} is one flat file; only folders, as extraction makes them, can be merged")
    if first.fingerprint != other.fingerprint:
        lines = differences(other.configuration, first.configuration)
        raise FingerprintError(
            f"{other.path} is no part of what {first.path} is ({'; '.join(lines[:3])})",
            hint="Merge only caches that one encoder made, with the same settings",
        )
    for key in ("format", "stored_frames"):
        if first.header.get(key) != other.header.get(key):
            raise UsageError(
                f"{other.path} has {key} {_short(other.header.get(key))}; {first.path} has {_short(first.header.get(key))}",
                hint=_same_format(first, other)
                if key == "format"
                else "Extract the parts with the same `store_frames` and `frame_quality`",
            )


def _same_format(first: Library, other: Library) -> Hint:
    """How two caches come to one format: what has its lists can be written again, a part that has not is made again."""
    for library in (other, first):
        names = list_names(library.path)
        if names and all(current_version(library.path, name) for name in names):
            return Hint("Write it in the other format first", "convert", {"": [str(library.path), "FOLDER"]})
    return Hint(
        f"Extract all parts with the same `format`; one with `format={first.header['format']}` in place of {other.path}"
    )


def _short(value: Any) -> str:
    return str(value)[:120]


class _Merge:
    def __init__(self, target: Library, *, copy: bool) -> None:
        self.target, self.root, self.copy = target, target.path, copy
        self.done = MergeSummary(cache=str(target.path), fingerprint=target.fingerprint)

    def run(self, parts: Sequence[Library]) -> MergeSummary:
        for part in parts:
            self.target.write_backbone_tensors(part.backbone_tensors())
            for stream in STREAMS:
                self._take_items(part, stream)
            self.target.refresh()
        for stream in STREAMS:
            for addition in self.target.stream(stream).additions:
                self.target.settle(addition)
        known = KnownFiles.read(self.root)
        if any([known.unite(KnownFiles.read(part.path)) for part in parts]):  # all of them, so no generator
            known.save(self.root)
        for part in parts:
            self._take_lists(part)
        self._finish_lists()
        self.done.videos, self.done.texts = (len(self.target.stream(stream).index) for stream in STREAMS)
        return self.done

    # --- items -----------------------------------------------------------------------------------------------------

    def _take_items(self, part: Library, stream: str) -> None:
        """Bring the committed shards of a part that hold anything the target has not, and the additions they are of."""
        theirs, own = part.stream(stream), self.target.stream(stream)
        wanted = [place for place in theirs.committed() if brings_more(theirs, place, own)]
        named = {place.addition.name for place in [*wanted, *theirs.pending()]}
        for addition in theirs.additions:
            if addition.name in named:
                self._write_addition(addition)
        for place in wanted:
            self._take_shard(part, as_brought(part, stream, place, own))

    def _write_addition(self, addition: Addition) -> None:
        keys, shard_items = addition.keys, addition.shard_items
        write_addition(self.root, addition.stream, keys, shard_items=shard_items, attempt=addition.attempt)

    def _take_shard(self, part: Library, shard: Brought) -> None:
        stream = shard.addition.stream
        source = part.shard_file(part.stream(stream).commit_of(shard.place))
        if not source.exists():
            raise CacheCorruptError(f"{source} is committed but not there", hint=see_damage(part.path))
        if shard.is_another_attempt:
            self._write_addition(shard.addition)
        with storage_errors(self.root):
            if not (self.root / shard.path).exists():
                self._bring(source, self.root / shard.path)
            put_if_absent(commit_file(self.root, stream, shard.addition.name, shard.shard), shard.commit)
        self.done.shards += 1

    def _bring(self, source: Path, final: Path) -> None:
        """Link or copy a shard aside, make it durable, then let it appear under its name."""
        partial = self.root / "partial"
        partial.mkdir(exist_ok=True)
        aside = partial / f"{final.name}.{uuid.uuid4().hex[:8]}"
        try:
            if source.is_dir():
                shutil.copytree(source, aside, copy_function=self._link_or_copy)
            else:
                self._link_or_copy(str(source), str(aside))
            sync_tree(aside)
            os.rename(aside, final)
            sync_directory(final.parent)
        except BaseException as error:
            remove(aside, self.root)
            if isinstance(error, shutil.Error):  # of copytree: (from, to, what it says) of each
                refuse_unread(error, error.args[0][0][0])
            elif getattr(error, "filename", None) == str(source):
                refuse_unread(error, source)
            raise

    def _link_or_copy(self, file: str, to: str) -> str:
        if not self.copy:
            try:
                os.link(file, to)
            except OSError:
                pass  # another file system, or one without hard links
            else:
                self.done.linked += 1
                return to
        self.done.copied += 1
        return shutil.copyfile(file, to)

    # --- lists -----------------------------------------------------------------------------------------------------

    def _take_lists(self, part: Library) -> None:
        """Bring all versions of all lists; one counts from now on where none did and all that it names is there."""
        format = self.target.header["format"]
        for name in list_names(part.path):
            counting = current_version(part.path, name)
            for version in versions_of(part.path, name):
                made = read_list(part.path, name, version, format)
                write_list(self.root, made, format)
                if version != counting:
                    continue
                own = current_version(self.root, name)
                if own is None and Store(self.target, made).complete:
                    make_current(self.root, made)
                elif own not in (None, version):
                    self.done.notes.append(
                        f"{part.path} has another version of the list {name} ({version}) than {self.root}, "
                        f"which stays with {own}; the other can be had as {name}@{version}"
                    )

    def _finish_lists(self) -> None:
        """Lists that no part finished and that are whole now; and what the others wait for."""
        format = self.target.header["format"]
        for name in list_names(self.root):
            counting = current_version(self.root, name)
            versions = [read_list(self.root, name, each, format) for each in versions_of(self.root, name)]
            whole = [made for made in versions if Store(self.target, made).complete]
            if counting is None and len(whole) == 1:
                make_current(self.root, whole[0])
                counting = whole[0].hash
            if counting is not None:
                self.done.lists[name] = counting
            for made in versions:
                if counting in (None, made.hash):
                    self._tell_pending(made)
            if counting is None and len(whole) > 1:
                self.done.notes.append(f"The list {name} has {len(whole)} versions that are whole, and none counts yet")

    def _tell_pending(self, made: CacheList) -> None:
        store = Store(self.target, made)
        pending = {stream: int((store.numbers[stream] == PENDING).sum()) for stream in STREAMS}
        if any(pending.values()):
            self.done.pending.append({"list": made.name, "hash": made.hash, **pending})
            text = "Merge the other parts into it as well, or finish it"
            self.done.resume.append(resume_hint(self.target, made.name, text, command=made.command))
