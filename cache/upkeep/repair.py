"""Puts a cache in order again: drops what killed writers left, and makes damaged shards pending.

Nothing that was ever committed is deleted: a damaged shard and its commit move to <cache>/damaged/, and so do damaged files
of plan/ and backbone/.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from glscl.cache.backbone_tensors import tensors_file
from glscl.cache.commits import commit_file
from glscl.cache.files import (
    dump_json,
    half_written,
    load_json,
    put_if_absent,
    refuse_links,
    remove,
    storage_errors,
    sync_directory,
)
from glscl.cache.library import Library, open_library
from glscl.cache.lock import FOLDER as LOCKS
from glscl.cache.lock import hold, locks
from glscl.cache.records import Commit
from glscl.cache.schema import STREAMS
from glscl.cache.upkeep.summary import bytes_on_disk
from glscl.cache.upkeep.verification import damaged_files, verify_commit
from glscl.common.errors import CacheBusyError, CacheFormatError, Hint, UsageError

_COMMIT_NAME = re.compile(r"(\d+)(?:\.r(\d+))?\.json")


@dataclass(kw_only=True)
class RepairReport:
    """What was done, or with `dry_run` what would be; paths below the cache.

    Attributes:
        partial: shards that were being written when their writer died.
        unreferenced: whole shards that no commit names.
        temporary: other half-written files.
        freed_bytes: of all these.
        locks: of processes that are gone.
        damaged: shards and commits set aside: `stream`, `shard`, `revision`, `items`, `problems` (lines).
        requeued: `{"video": [numbers], "text": […]}` of shards that the next extraction makes again.
        aside: `{file: problem}` of plan and backbone, set aside; the next extraction writes them again.
        restored: commits that were missing or unreadable and are known from the manifest.
        manifest: "kept", "withdrawn" (something is pending again), "written" or "none" (the cache is not complete).
        resume: what makes the re-queued shards.
    """

    cache: str
    dry_run: bool
    partial: list[str] = field(default_factory=list)
    unreferenced: list[str] = field(default_factory=list)
    temporary: list[str] = field(default_factory=list)
    freed_bytes: int = 0
    locks: list[str] = field(default_factory=list)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    requeued: dict[str, list[int]] = field(default_factory=lambda: {stream: [] for stream in STREAMS})
    aside: dict[str, str] = field(default_factory=dict)
    restored: list[str] = field(default_factory=list)
    manifest: str = "kept"
    resume: Hint = Hint("")

    @property
    def clean(self) -> bool:
        """Whether there was nothing to do."""
        remains = (self.partial, self.unreferenced, self.temporary, self.locks, self.damaged, self.aside, self.restored)
        return not any(remains) and self.manifest in ("kept", "none")

    def as_dict(self) -> dict[str, Any]:
        """As JSON, but for `resume`."""
        return {**{key: value for key, value in asdict(self).items() if key != "resume"}, "clean": self.clean}


def repair(
    root: os.PathLike[str] | str, *, dry_run: bool = False, progress: Callable[[], None] = lambda: None
) -> RepairReport:
    """Read a cache back, drop uncommitted remains, and set damaged shards aside so that the next extraction makes them.

    Good shards are not touched. Where several revisions of a shard are there, a damaged one gives way to the one before.

    Args:
        root: folder of the cache.
        dry_run: only say what would be done; writes nothing.
        progress: called after each shard that was read.

    Raises:
        CacheBusyError: a process writes the cache.
        CacheFormatError, NotFoundError: not a cache, or its head (store.json) is damaged.
        UsageError: a flat file, which has no shards to make again.
        StorageError: it cannot be written, or a link stands in it.
    """
    root = Path(root)
    refuse_links(root)
    library = open_library(root)
    if library.is_flat:
        again = Hint("Make it again", "convert", {"": ["CACHE", "OUT"]})
        raise UsageError(f"{root} is one flat file, not a cache folder", hint=again)
    report = RepairReport(cache=str(root), dry_run=dry_run, resume=library.resume_hint(""))
    for lock in locks(root):  # before our own is there; taking it removes the stale ones
        if lock.stale:
            report.locks.append(lock.file.relative_to(root).as_posix())
        elif dry_run:
            raise CacheBusyError(f"{root} is being written by {lock.describe()}", hint=lock.hint())
    with nullcontext() if dry_run else hold(root, what="repair"), storage_errors(root, "repair"):
        _Repair(library, report, progress).run()
    return report


class _Repair:
    """One repair: first all is read, then acted in an order that leaves a readable cache whenever it is cut short."""

    def __init__(self, library: Library, report: RepairReport, progress: Callable[[], None]) -> None:
        self.library, self.root, self.report, self.progress = library, library.path, report, progress
        self.acting = not report.dry_run
        self.aside = _unused(self.root / "damaged" / time.strftime("%Y%m%dT%H%M%S"))
        self.commits: dict[tuple[str, int], dict[int, Commit]] = {}  # (stream, shard) → revision → commit
        self.moved: list[Path] = []  # what goes to `aside`, commits first

    def run(self) -> None:
        listed, readable = self._read_manifest()
        self._read_commits(listed)
        for key in sorted(self.commits):
            self._verify(*key)
            self.progress()
        for stream in STREAMS:
            lost = {entry["shard"] for entry in self.report.damaged if entry["stream"] == stream}
            self.report.requeued[stream] = sorted(shard for shard in lost if not self.commits.get((stream, shard)))
        damaged = damaged_files(self.library)
        self.report.aside = {self._name(path): problem for path, problem in damaged.items()}
        self.moved += [path for path in damaged if path.exists()]
        remains = self._remains()
        whole = all(self.commits.get((s, n)) for s in STREAMS for n in range(self.library.num_shards(s)))
        complete = whole and not damaged and not self._awaited()
        self._settle_manifest(listed, readable, complete)
        if self.acting:
            self._move_aside()
            for path in remains:
                remove(path, self.root, strict=True)
            self._write_restored()
            self.library.refresh()
            if self.report.manifest == "written":
                self.library.finish()

    # --- what is there -------------------------------------------------------------------------------------------

    def _read_manifest(self) -> tuple[list[Commit], bool]:
        """Commits that the manifest lists, and whether there is one that can be read."""
        path = self.root / "manifest.json"
        try:
            manifest = load_json(path, "the manifest of a glscl cache")
            if manifest["fingerprint"] != self.library.fingerprint:
                return [], False
            return [self._commit(row, s) for s in STREAMS for row in manifest["streams"][s]], True
        except (FileNotFoundError, CacheFormatError, KeyError, TypeError, ValueError, AttributeError, IndexError):
            return [], False

    def _read_commits(self, listed: list[Commit]) -> None:
        for commit in listed:
            self.commits.setdefault((commit.stream, commit.shard), {})[commit.revision] = commit
        for stream in STREAMS:
            for path in sorted((self.root / "commits" / stream).glob("[0-9]*.json")):
                name = _COMMIT_NAME.fullmatch(path.name)
                if name is None:
                    continue
                shard, revision = int(name[1]), int(name[2] or 0)
                try:
                    commit = self._commit(load_json(path, "a commit of a glscl cache"), stream)
                    if (commit.shard, commit.revision) != (shard, revision):
                        raise ValueError("it belongs to another shard")
                except (CacheFormatError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                    self.moved.append(path)
                    if revision not in self.commits.get((stream, shard), {}):
                        self._damaged(stream, shard, revision, [f"{self._name(path)}: {error}"])
                        self.moved += sorted((self.root / "shards" / stream).glob(f"{shard:05d}-*"))
                    continue
                self.commits.setdefault((stream, shard), {})[revision] = commit
        whole = {self._commit_file(c) for revisions in self.commits.values() for c in revisions.values()}
        self.report.restored = sorted(self._name(p) for p in whole if p in self.moved or not p.exists())
        # of a shard that lost one record of several, what the others name stays where it is
        named = {self.root / c.path for revisions in self.commits.values() for c in revisions.values()}
        self.moved = [path for path in self.moved if path not in named]

    def _commit(self, row: dict[str, Any], stream: str) -> Commit:
        """A commit that speaks of this cache and of a shard inside it; raises what broken ones provoke."""
        commit = self.library.commit_from_json(stream, row)
        if not re.fullmatch(rf"shards/{stream}/{commit.shard:05d}-[^/]+", commit.path):
            raise ValueError("it names no shard of this cache")
        return commit

    def _verify(self, stream: str, shard: int) -> None:
        """Take the damaged revisions of a shard out of `commits`."""
        revisions = self.commits[stream, shard]
        for revision in sorted(revisions, reverse=True):
            problems = verify_commit(self.library, revisions[revision])
            if not problems:
                continue
            commit = revisions.pop(revision)
            self._damaged(stream, shard, revision, problems)
            file = self._commit_file(commit)
            self.report.restored = [name for name in self.report.restored if name != self._name(file)]
            self.moved += [path for path in (file, self.root / commit.path) if path not in self.moved]

    def _damaged(self, stream: str, shard: int, revision: int, problems: list[str]) -> None:
        items = self.library.shard_range(stream, shard)
        entry = {"stream": stream, "shard": shard, "revision": revision, "items": [items.start, items.stop]}
        self.report.damaged.append(entry | {"problems": problems})

    def _remains(self) -> list[Path]:
        """What killed writers left; told in the report."""
        named = {self.root / c.path for revisions in self.commits.values() for c in revisions.values()}
        kept = named | set(self.moved)
        partial = sorted((self.root / "partial").glob("*"))
        shards = [p for s in STREAMS for p in sorted((self.root / "shards" / s).glob("[0-9]*-*")) if p not in kept]
        folders = (".", "plan", "backbone", LOCKS, *(f"commits/{stream}" for stream in STREAMS))
        temporary = [path for name in folders for path in half_written(self.root / name)]
        self.report.partial, self.report.unreferenced, self.report.temporary = (
            [self._name(path) for path in paths] for paths in (partial, shards, temporary)
        )
        found = [*partial, *shards, *temporary]
        self.report.freed_bytes = sum(bytes_on_disk(path) for path in found)
        return found

    def _awaited(self) -> bool:
        """Whether the next extraction has to write another file than shards, as after an earlier repair."""
        tensors = tensors_file(self.root)
        return not all((self.root / "plan" / f"{stream}.jsonl").exists() for stream in STREAMS) or (
            not tensors.exists() and any(self.root.glob(f"damaged/*/{self._name(tensors)}"))
        )

    # --- what is done --------------------------------------------------------------------------------------------

    def _settle_manifest(self, listed: list[Commit], readable: bool, complete: bool) -> None:
        path = self.root / "manifest.json"
        chosen = {key: revisions[max(revisions)] for key, revisions in self.commits.items() if revisions}
        if (
            readable
            and not self.report.aside
            and chosen == {(commit.stream, commit.shard): commit for commit in listed}
        ):
            self.report.manifest = "kept"
            return
        self.report.manifest = "written" if complete else "withdrawn" if path.exists() else "none"
        if self.acting:
            self._write_restored(only_missing=True)  # the manifest may be all that knows of them
            path.unlink(missing_ok=True)
            sync_directory(self.root)

    def _move_aside(self) -> None:
        for path in self.moved:
            if path.exists():
                target = self.aside / self._name(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(path, target)
                sync_directory(path.parent)

    def _write_restored(self, *, only_missing: bool = False) -> None:
        """Commit files again from the manifest; `only_missing` leaves those whose unreadable file still stands there."""
        names = set(self.report.restored)
        for revisions in self.commits.values():
            for commit in revisions.values():
                file = self._commit_file(commit)
                if self._name(file) in names and not (only_missing and file.exists()):
                    put_if_absent(file, dump_json(msgspec.structs.asdict(commit)))

    def _commit_file(self, commit: Commit) -> Path:
        return commit_file(self.root, commit.stream, commit.shard, commit.revision)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _unused(path: Path) -> Path:
    """The path, or with a number behind it where something stands there: two repairs in a second, or a clock set back."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())
