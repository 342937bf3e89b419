"""Puts a cache in order again: drops what killed writers left, and sets damaged files aside, to be made again.

Nothing that was ever committed is deleted: a damaged shard and its commit move to <cache>/damaged/, and so do additions, lists
and backbone tensors that are not what they were written as.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from glscl.cache.additions import Addition, KeyIndex, addition_of, folder, write_addition
from glscl.cache.backbone_tensors import tensors_file
from glscl.cache.commits import COMMIT_NAME, all_commits_file, commit_file
from glscl.cache.files import (
    dump_json,
    half_written,
    listed,
    put_if_absent,
    refuse_links,
    refuse_unread,
    remove,
    storage_errors,
    sync_directory,
    written,
)
from glscl.cache.keys import from_lines, has_key
from glscl.cache.library import Library, open_library
from glscl.cache.lists import list_names, read_record
from glscl.cache.lock import FOLDER as LOCKS
from glscl.cache.lock import hold, locks
from glscl.cache.mirror import Mirror
from glscl.cache.records import Commit
from glscl.cache.remains import SHARD_NAME, record_folders, temporary_files, unreferenced
from glscl.cache.schema import STREAMS
from glscl.cache.shard_arrays import unpack_strings
from glscl.cache.store import resume_hint
from glscl.cache.upkeep.contents import Contents, ShardName, is_gathered, parse_commit, read_contents
from glscl.cache.upkeep.summary import bytes_on_disk
from glscl.cache.upkeep.verification import verify_commit
from glscl.common.errors import CacheBusyError, CacheCorruptError, Hint, UsageError


@dataclass(kw_only=True)
class RepairReport:
    """What was done, or with `dry_run` what would be; paths below the cache.

    Attributes:
        partial: shards and lists that were being written when their writer died.
        unreferenced: whole shards that no commit names, and arrays of lists that have no record.
        temporary: other half-written files.
        freed_bytes: of all these.
        locks: of processes that are gone.
        damaged: shards set aside with their commits: `stream`, `addition`, `shard`, `items` (None where that is lost),
            `problems` (lines).
        requeued: `{"video": names, "text": names}` of these shards: the next extraction makes what they held.
        aside: `{file: problem}` of additions, lists and backbone tensors, set aside.
        restored: files written again from what other files know: commits, gathered commits, additions.
        withdrawn: gathered commits of additions that lost a shard, set aside.
        resume: what makes again what is lost, one for each list that misses something.
    """

    cache: str
    dry_run: bool
    partial: list[str] = field(default_factory=list)
    unreferenced: list[str] = field(default_factory=list)
    temporary: list[str] = field(default_factory=list)
    freed_bytes: int = 0
    locks: list[str] = field(default_factory=list)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    requeued: dict[str, list[str]] = field(default_factory=lambda: {stream: [] for stream in STREAMS})
    aside: dict[str, str] = field(default_factory=dict)
    restored: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    resume: list[Hint] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether there was nothing to do."""
        remains = (self.partial, self.unreferenced, self.temporary, self.locks)
        return not any((*remains, self.damaged, self.aside, self.restored, self.withdrawn))

    def as_dict(self) -> dict[str, Any]:
        """As JSON, but for `resume`."""
        return {**{key: value for key, value in asdict(self).items() if key != "resume"}, "clean": self.clean}


def repair(
    root: os.PathLike[str] | str, *, dry_run: bool = False, progress: Callable[[], None] = lambda: None
) -> RepairReport:
    """Read a cache back, drop uncommitted remains, and set damaged files aside so that the next extraction makes them.

    What is good is not touched. What one file lost and others know is written again: a commit from those gathered of its
    addition, an addition from the keys of its shards.

    Args:
        root: folder of the cache; or of the mirror of one at an address, where only remains of more than an hour ago are
            dropped. What is damaged there is mended by pulling it, repairing that, and pushing it to another address.
        dry_run: only say what would be done; writes nothing.
        progress: called after each shard that was read.

    Raises:
        CacheBusyError: a process writes the cache.
        CacheFormatError, NotFoundError: not a cache, or its head (store.json) is damaged.
        UsageError: a flat file, which has no shards to make again.
        StorageError: it cannot be written, a link stands in it, or something could not be read for a reason that says nothing
            of its content (not allowed, too many open files, a network that is gone): nothing is touched then.
    """
    root = Path(root)
    refuse_links(root)
    library = open_library(root)
    if library.mirror is not None:
        return _sweep_there(library, library.mirror, dry_run)
    if library.is_flat:
        again = Hint("Make it again", "convert", {"": ["CACHE", "OUT"]})
        raise UsageError(f"{root} is one flat file, not a cache folder", hint=again)
    report = RepairReport(cache=str(root), dry_run=dry_run)
    for lock in locks(root):  # before our own is there; taking it removes the stale ones
        if lock.stale:
            report.locks.append(lock.file.relative_to(root).as_posix())
        elif dry_run:
            raise CacheBusyError(f"{root} is being written by {lock.describe()}", hint=lock.hint())
    with nullcontext() if dry_run else hold(root, what="repair"), storage_errors(root, "repair"):
        _Repair(library, report, progress).run()
    return report


def _sweep_there(library: Library, mirror: Mirror, dry_run: bool) -> RepairReport:
    """Delete what killed writers left at an address; what is committed there is neither read nor touched."""
    named = {commit.path for stream in STREAMS for commit in library.stream(stream).commits.values()}
    found = mirror.forgotten(named)
    if found and not dry_run:
        mirror.delete(found)
    freed = sum(found.values())
    return RepairReport(cache=mirror.address, dry_run=dry_run, unreferenced=[*found], freed_bytes=freed)


class _Repair:
    """One repair: first all is read, then acted in an order that loses nothing whenever it is cut short."""

    def __init__(self, library: Library, report: RepairReport, progress: Callable[[], None]) -> None:
        self.library, self.root, self.report, self.progress = library, library.path, report, progress
        self.aside = _unused(self.root / "damaged" / time.strftime("%Y%m%dT%H%M%S"))
        self.contents: Contents = read_contents(library)
        self.good: dict[ShardName, Commit] = {}
        self.additions: list[Addition] = []  # to be written again
        self.commits: dict[Path, Commit] = {}  # files to be written again
        self.gathered: list[Path] = []  # files of all commits of an addition that are wrong, or no longer true
        self.moved: list[Path] = []  # what else goes to `aside`, commits before their shards

    def run(self) -> None:
        self._choose_commits()
        self._recover_additions()
        self._lose_unreadable_commits()
        self._set_lists_aside()
        remains = self._remains()
        self.report.damaged.sort(key=lambda entry: (entry["stream"], entry["addition"], entry["shard"]))
        for entry in self.report.damaged:
            self.report.requeued[entry["stream"]].append(f"{entry['addition']}-{entry['shard']:05d}")
        self._tell()
        if not self.report.dry_run:
            self._act(remains)

    # --- what is there -------------------------------------------------------------------------------------------

    def _choose_commits(self) -> None:
        """Of what is said of each shard the good; the other goes, and is written again from it."""
        for shard, files in sorted(self.contents.commits.items()):
            self._choose(shard, self.contents.additions[shard[:2]], files)
            self.progress()

    def _choose(self, shard: ShardName, addition: Addition, files: Mapping[Path, Commit]) -> None:
        own, said = commit_file(self.root, *shard), all_commits_file(self.root, *shard[:2])
        problems: dict[Path, list[str]] = {}
        for file in (own, said):
            if file in files:
                first = self.good.get(shard)
                if first is not None and _same(first, files[file]):
                    continue
                problems[file] = verify_commit(self.library, files[file], addition.keys)
                if first is None and not problems[file]:
                    self.good[shard] = files[file]
                elif first is not None or problems[file]:
                    self._discard(file, files[file])
        if shard not in self.good:
            self._damaged(shard, [*dict.fromkeys(line for lines in problems.values() for line in lines)])
            if said.exists() and said not in self.gathered:
                self.gathered.append(said)
        elif own not in files or own in self.moved:
            self.commits[own] = self.good[shard]

    def _discard(self, file: Path, commit: Commit) -> None:
        """What is said of a shard in one file is wrong: that goes, with the shard unless another commit names it."""
        if is_gathered(file):
            if file not in self.gathered:
                self.gathered.append(file)
        else:
            self.moved.append(file)
        self.moved.append(self.root / commit.path)

    def _recover_additions(self) -> None:
        """Write additions that are lost again, from the keys of all of their shards; or set what is left of them aside."""
        for (stream, name), files in sorted(self.contents.lost.items()):
            singles = {int(match[2]): row for path, row in files.items() if (match := COMMIT_NAME.fullmatch(path.name))}
            for path, row in files.items():
                if is_gathered(path):
                    rows = row.get("commits") if isinstance(row, dict) else None
                    for number, each in enumerate(rows if isinstance(rows, list) else []):
                        singles.setdefault(number, each)
            addition = rebuilt_addition(self.library, stream, name, singles)
            if addition is None:
                self._lose_addition(stream, name, files, singles)
                continue
            self.additions.append(addition)
            self.contents.additions[stream, name] = addition
            for number, row in sorted(singles.items()):
                shard = (stream, name, number)
                said = {
                    path: parse_commit(self.library, row, addition)
                    for path in files
                    if path == commit_file(self.root, *shard) or is_gathered(path)
                }
                self._choose(shard, addition, said)

    def _lose_addition(self, stream: str, name: str, files: Mapping[Path, Any], rows: Mapping[int, Any]) -> None:
        for number, row in sorted(rows.items()):
            items = row.get("items") if isinstance(row, dict) else None
            self._damaged((stream, name, number), ["its addition is lost"], items if _is_run(items) else None)
        self.gathered += [path for path in files if is_gathered(path)]
        self.moved += [path for path in files if not is_gathered(path)]
        self.moved += self._shards(stream, name)

    def _lose_unreadable_commits(self) -> None:
        """Shards of which the only commit cannot be read."""
        for path, problem in self.contents.damaged.items():
            stream = path.parent.name
            if path.parent.parent != self.root / "commits":
                continue
            if is_gathered(path):
                if path not in self.gathered:
                    self.gathered.append(path)
                named = {self.root / commit.path for commit in self.good.values()}
                addition = path.stem
                for left in self._shards(stream, addition):
                    number = int(left.name.split("-")[1])
                    if left not in named and left not in self.moved and (stream, addition, number) not in self.good:
                        self._damaged((stream, addition, number), [f"{self._name(path)}: {problem}"])
                        self.moved.append(left)
                continue
            match = COMMIT_NAME.fullmatch(path.name)
            if match is None:
                continue
            shard = (stream, match[1], int(match[2]))
            self.moved.insert(0, path)
            if shard not in self.good:
                self._damaged(shard, [f"{self._name(path)}: {problem}"])
                self.moved += [left for left in self._shards(stream, match[1], shard[2]) if left not in self.moved]

    def _set_lists_aside(self) -> None:
        """Lists, additions and tensors that are not what they were written as."""
        lists = self.root / "lists"
        rebuilt = {*map(self._file, self.additions)}
        for path, problem in sorted(self.contents.damaged.items()):
            if path.parent.parent == self.root / "commits":
                continue
            if path not in rebuilt:
                self.report.aside[self._name(path)] = problem
            self.moved.append(path)
            if path.parent.parent == lists and path.suffix == ".json":
                arrays = path.with_name(path.stem + self.library.format.suffix)
                current = path.with_name("current")
                self.moved.append(arrays)
                if self.contents.current.get(path.parent.name) == path.stem:
                    self.report.aside[self._name(current)] = "it names a version that is damaged"
                    self.moved.insert(0, current)

    def _damaged(self, shard: ShardName, problems: list[str], items: list[int] | None = None) -> None:
        stream, name, number = shard
        if any((e["stream"], e["addition"], e["shard"]) == shard for e in self.report.damaged):
            return
        addition = self.contents.additions.get((stream, name))
        if addition is not None and number < addition.num_shards:
            run = addition.shard_range(number)
            items = [run.start, run.stop]
        entry = {"stream": stream, "addition": name, "shard": number, "items": items}
        self.report.damaged.append(entry | {"problems": problems})

    def _shards(self, stream: str, addition: str, number: int | None = None) -> list[Path]:
        name = f"{addition}-{'' if number is None else f'{number:05d}-'}*"
        return [path for path in listed(self.root / "shards" / stream, name) if SHARD_NAME.fullmatch(path.name)]

    def _remains(self) -> list[Path]:
        """What killed writers left; told in the report."""
        named = {self.root / commit.path for commit in self.good.values()}
        self.moved = list(dict.fromkeys(path for path in self.moved if path not in named))
        kept = named | set(self.moved)
        partial, forgotten = listed(self.root / "partial"), unreferenced(self.root, kept)
        temporary = [*temporary_files(self.root), *half_written(self.root / LOCKS)]
        written_again = {*self.commits, *self.gathered, *map(self._file, self.additions)}
        reserved = [path for each in record_folders(self.root) for path in _reserved(self.root / each)]
        temporary += [path for path in reserved if path not in written_again]
        self.report.partial, self.report.unreferenced, self.report.temporary = (
            [self._name(path) for path in paths] for paths in (partial, forgotten, temporary)
        )
        found = [*partial, *forgotten, *temporary]
        self.report.freed_bytes = sum(bytes_on_disk(path) for path in found)
        return found

    # --- what is told --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Which files are written again or withdrawn, and what makes again what is lost."""
        whole = {name for name, addition in self.contents.additions.items() if self._is_whole(*name, addition)}
        said = {path: (path.parent.name, path.stem) for path in self.gathered}
        self.report.withdrawn = sorted(self._name(path) for path, name in said.items() if name not in whole)
        restored = [
            *map(self._file, self.additions),
            *self.commits,
            *(path for path, name in said.items() if name in whole),
        ]
        self.report.restored = sorted(self._name(path) for path in restored)
        names = dict.fromkeys(self._lists_that_miss_something())
        self.report.resume = list({str(hint): hint for hint in map(self._hint, names)}.values())

    def _is_whole(self, stream: str, name: str, addition: Addition) -> bool:
        return all((stream, name, number) in self.good for number in range(addition.num_shards))

    def _hint(self, name: str) -> Hint:
        """How a list is finished, where its record can be read by the command that made it."""
        command = ""
        for path in listed(self.root / "lists" / name, "*.json"):
            with contextlib.suppress(CacheCorruptError):
                command = read_record(path).command or command
        return resume_hint(self.library, name, "", command=command)

    def _lists_that_miss_something(self) -> Iterator[str]:
        for path in self.report.aside:
            if path.startswith("lists/"):
                yield path.split("/")[1]
        if not self.report.damaged and not self.report.aside:
            return
        counting = [
            made for made in self.contents.lists if self.contents.current.get(made.name, made.hash) == made.hash
        ]
        if self._name(tensors_file(self.root)) in self.report.aside:
            yield from (made.name for made in counting[:1])
        for stream in STREAMS:
            there = [
                self.contents.additions[shard[:2]].keys[slice(*commit.items)]
                for shard, commit in self.good.items()
                if shard[0] == stream
            ]
            keys = np.concatenate([np.zeros((0, 16), np.uint8), *there])
            index = KeyIndex(keys, np.zeros(len(keys), np.uint8))
            for made in counting:
                wanted = made.video_key if stream == "video" else made.text_key
                if (index.find(wanted[has_key(wanted)]) < 0).any():
                    yield made.name

    # --- what is done --------------------------------------------------------------------------------------------

    def _act(self, remains: list[Path]) -> None:
        written_again = {*self.commits, *map(self._file, self.additions)}
        for addition in self.additions:  # before anything that names them
            self._move_aside(self._file(addition))
            write_addition(
                self.root, addition.stream, addition.keys, shard_items=addition.shard_items, attempt=addition.attempt
            )
        for file, commit in self.commits.items():  # the gathered commits may be all that knows of them
            self._move_aside(file)
            put_if_absent(file, dump_json(msgspec.to_builtins(commit)))
        for path in self.gathered:
            self._move_aside(path)
        for path in self.moved:
            if path not in written_again:
                self._move_aside(path)
        for path in remains:
            remove(path, self.root, strict=True)
        for name in list_names(self.root):
            with contextlib.suppress(OSError):  # not empty
                (self.root / "lists" / name).rmdir()
        self.library.refresh()
        for path in self.gathered:
            addition = self.contents.additions.get((path.parent.name, path.stem))
            if addition is not None:
                self.library.settle(addition)

    def _move_aside(self, path: Path) -> None:
        if os.path.lexists(path):
            target = self.aside / self._name(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, target)
            sync_directory(path.parent)

    def _file(self, addition: Addition) -> Path:
        return folder(self.root, addition.stream) / f"{addition.name}.txt"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def rebuilt_addition(library: Library, stream: str, name: str, rows: Mapping[int, Any]) -> Addition | None:
    """An addition from the keys in its shards; None unless they are all of it, as its name proves.

    Args:
        rows: number of a shard → its commit, as JSON.
    """
    try:
        if sorted(rows) != [*range(len(rows))] or not rows:
            return None
        keys = np.concatenate([_keys_in(library, stream, name, number, row) for number, row in sorted(rows.items())])
        shard_items = int(rows[0].get("shard_items") or rows[0]["items"][1])
        addition = addition_of(stream, keys, shard_items=shard_items, attempt=int(rows[0].get("attempt") or 0))
        if addition.name != name:
            return None
        for row in rows.values():
            parse_commit(library, row, addition)
    except Exception as error:  # libraries raise whatever they like on damaged files
        refuse_unread(error, library.path)
        return None
    return addition


def _keys_in(library: Library, stream: str, name: str, number: int, row: Mapping[str, Any]) -> np.ndarray:
    """(n, 16) uint8, keys as a shard itself tells them. Raises whatever damaged files provoke."""
    path = row["path"]
    if not re.fullmatch(rf"shards/{stream}/{name}-{number:05d}-[^/]+", path):
        raise ValueError("it names no shard of this cache")
    with library.format.opened(library.path / path) as shard:
        told = unpack_strings(shard.read("id_bytes"), shard.read("id_offsets"))
    return from_lines("".join(f"{key}\n" for key in told).encode())


def _same(one: Commit, other: Commit) -> bool:
    return (one.path, one.arrays, one.failures) == (other.path, other.arrays, other.failures)


def _is_run(items: Any) -> bool:
    return isinstance(items, list) and len(items) == 2 and all(isinstance(item, int) for item in items)


def _reserved(folder: Path) -> list[Path]:
    """Names that a killed writer took and did not fill (see `files.written`)."""
    files = [path for path in listed(folder) if path.suffix in (".txt", ".json") and path.is_file()]
    return [path for path in files if not written(path)]


def _unused(path: Path) -> Path:
    """The path, or with a number behind it where something stands there: two repairs in a second, or a clock set back."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())
