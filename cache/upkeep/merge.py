"""Parts of one extraction, made in folders of their own, as one cache.

A shard is never modified, so the merged cache holds the very files of the parts, by hard links where the file system has
them and by copies where it does not. Nothing is decoded, encoded or checked bit by bit; `glscl.cache.upkeep.verification` does that.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glscl.cache.creation import create_store
from glscl.cache.files import (
    load_json,
    put_if_absent,
    refuse_links,
    remove,
    storage_errors,
    sync_directory,
    sync_tree,
    written,
)
from glscl.cache.fingerprint import differences
from glscl.cache.lock import hold
from glscl.cache.schema import STREAMS
from glscl.cache.shards import see_damage
from glscl.cache.store import Store, open_store
from glscl.cache.upkeep.convert import spec_of
from glscl.common.errors import CacheCorruptError, CacheIncompleteError, FingerprintError, Hint, UsageError


@dataclass(frozen=True, kw_only=True)
class MergeSummary:
    """What a merge brought: shards that are new in the cache, how many of their files were linked and how many copied."""

    cache: str
    fingerprint: str
    shards: int
    linked: int
    copied: int
    videos: int
    texts: int


def merge(parts: Sequence[Path], out: Path, *, copy: bool = False, command: str | None = None) -> MergeSummary:
    """Gather the shards of several caches that were begun with the same command but for `part` and `out`.

    Args:
        parts: their folders. Where two hold the same shard, the higher revision counts, else the one named first.
        out: folder of the merged cache; may be there already, as one of the parts or as an earlier merge.
        copy: copy the files even where they could be linked.
        command: written down in a new cache as what it was made with; by default that of the first part.

    Raises:
        UsageError: no part, a flat file, or parts of another format, shard size or way of storing frames.
        FingerprintError: parts that were made with different configurations.
        CacheIncompleteError: shards are still missing; what the parts had is merged, and more parts can be added.
        CacheCorruptError: a shard is committed and not there.
        CacheBusyError: another process writes `out`.
        StorageError: it cannot be written, or a link stands in it or in a part.
    """
    if not parts:
        raise UsageError(
            "There is nothing to merge",
            hint=Hint("Name the folders of the parts", "merge", {"": ["OUT", "PART", "PART"]}),
        )
    for part in parts:
        refuse_links(part)
    stores = [open_store(part) for part in parts]
    if written(out / "store.json"):
        stores.insert(0, open_store(out))
    for store in stores:
        _require_same(stores[0], store)
    target = open_store(out) if written(out / "store.json") else _begin(stores[0], out, command)
    with hold(out, what="merge"):
        target.refresh()
        for store in stores:
            target.write_backbone_tensors(store.backbone_tensors())
        tally = _Tally()
        for store in stores:
            if not _same_folder(store.path, out):
                tally.add(_take_shards(store, target, copy=copy))
        target.refresh()
        missing = {stream: len(target.pending(stream)) for stream in STREAMS}
        if any(missing.values()):
            total = ", ".join(f"{missing[s]} of {target.num_shards(s)} {s} shards" for s in STREAMS if missing[s])
            raise CacheIncompleteError(
                f"{out} holds all that the parts have; {total} are in none of them",
                hint=target.resume_hint("Merge the other parts into it as well, or finish it"),
            )
        target.finish()
    return MergeSummary(
        cache=str(out),
        fingerprint=target.fingerprint,
        shards=tally.shards,
        linked=tally.linked,
        copied=tally.copied,
        videos=target.num_items["video"],
        texts=target.num_items["text"],
    )


def _require_same(first: Store, other: Store) -> None:
    if other.is_flat:
        raise UsageError(f"{other.path} is one flat file; only folders, as extraction makes them, can be merged")
    if first.fingerprint != other.fingerprint:
        lines = differences(other.configuration, first.configuration)
        raise FingerprintError(
            f"{other.path} is no part of what {first.path} is ({'; '.join(lines[:3])})",
            hint=Hint("Merge only folders made by one command that differs in `part` and `out` alone"),
        )
    for key in ("format", "streams", "splits", "stored_frames"):
        if first.header.get(key) != other.header.get(key):
            raise UsageError(
                f"{other.path} has {key} {_short(other.header.get(key))}; {first.path} has {_short(first.header.get(key))}",
                hint=Hint("Extract the parts with the same `format`, `shard_videos`, `shard_texts` and `store_frames`"),
            )


def _short(value: Any) -> str:
    return str(value)[:120]


def _same_folder(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _begin(first: Store, out: Path, command: str | None) -> Store:
    """A cache without shards that is otherwise as a part is."""
    spec = spec_of(first)
    provenance = spec.provenance if command is None else {**spec.provenance, "command": command}
    return create_store(out, replace(spec, provenance=provenance), first.header["format"])


@dataclass
class _Tally:
    shards: int = 0
    linked: int = 0
    copied: int = 0

    def add(self, other: _Tally) -> None:
        self.shards += other.shards
        self.linked += other.linked
        self.copied += other.copied


def _take_shards(part: Store, target: Store, *, copy: bool) -> _Tally:
    """Bring the committed shards of a part that the target lacks, or has in a lower revision."""
    tally = _Tally()
    for stream in STREAMS:
        for commit_file in sorted((part.path / "commits" / stream).glob("[0-9]*.json")):
            own = target.path / "commits" / stream / commit_file.name
            if written(own):
                continue
            try:
                name = Path(
                    part.commit_from_json(stream, load_json(commit_file, "a commit of a glscl cache")).path
                ).name
            except ValueError as error:
                raise CacheCorruptError(f"{commit_file} cannot be read: {error}") from error
            source, final = part.path / "shards" / stream / name, target.path / "shards" / stream / name
            if not source.exists():
                raise CacheCorruptError(
                    f"{source} is committed but not there",
                    hint=see_damage(part.path),
                )
            with storage_errors(target.path):
                if not final.exists():
                    _bring(source, final, target.path / "partial", copy, tally)
                put_if_absent(own, commit_file.read_bytes())
            tally.shards += 1
    return tally


def _bring(source: Path, final: Path, partial: Path, copy: bool, tally: _Tally) -> None:
    """Link or copy a shard aside, make it durable, then let it appear under its name."""
    partial.mkdir(exist_ok=True)
    aside = partial / f"{final.name}.{uuid.uuid4().hex[:8]}"

    def link_or_copy(file: str, to: str) -> str:
        if not copy:
            try:
                os.link(file, to)
            except OSError:
                pass  # another file system, or one without hard links
            else:
                tally.linked += 1
                return to
        tally.copied += 1
        return shutil.copyfile(file, to)

    try:
        if source.is_dir():
            shutil.copytree(source, aside, copy_function=link_or_copy)
        else:
            link_or_copy(str(source), str(aside))
        sync_tree(aside)
        os.rename(aside, final)
        sync_directory(final.parent)
    except BaseException:
        remove(aside, partial.parent)
        raise
