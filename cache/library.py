"""The files of a cache: what encoders made of items, found by keys. It knows no list; see `glscl.cache.store`.

store.json                                     once: schema, format, configuration, fingerprint
additions/{video,text}/<a>.txt                 keys that are encoded together, cut into shards; <a> names the content
shards/{video,text}/<a>-<shard>-<attempt>[.h5] never modified
commits/{video,text}/<a>-<shard>.json          put-if-absent, last of all
commits/{video,text}/<a>.json                  all commits of an addition, once all are there
lists/<name>/                                  who asked for what (`glscl.cache.lists`)
files.jsonl                                    where contents were last seen (`glscl.cache.known_files`)
backbone/pieces.safetensors                    first text blocks, positions, logit_scale, feature of a black frame
partial/                                       where shards are written aside; left-overs of killed writers, safe to delete
locks/                                         who writes at the moment (`glscl.cache.lock`); readers ignore it
damaged/                                       what repair set aside; safe to delete

N items of all additions of a stream, numbered by the names of the additions: in memory only, stored nowhere.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glscl.cache.additions import WORST, Addition, KeyIndex, read_additions
from glscl.cache.backbone_tensors import read_tensors, write_tensors
from glscl.cache.commits import Commits, commit_file, flat_commits, read_commits, write_all_commits
from glscl.cache.files import (
    dump_json,
    load_json,
    put_if_absent,
    refuse_unread,
    remove,
    storage_errors,
    sync_directory,
    sync_tree,
)
from glscl.cache.fingerprint import fingerprint
from glscl.cache.formats import STORES
from glscl.cache.formats.blocks import Blocks
from glscl.cache.keys import from_array, from_lines
from glscl.cache.mirror import Mirror, cache_path
from glscl.cache.records import Commit, Failure, parse_commit, parse_header
from glscl.cache.schema import SCHEMA, STREAMS, Status
from glscl.cache.shard_arrays import LAYOUT, numpy_dtype
from glscl.cache.shards import Shard, describe_array, require_as_committed, shard_path
from glscl.common.errors import CacheCorruptError, CacheFormatError, Hint, NotFoundError, first_line

# Of several items of one key the most usable counts.
_RANKS = {Status.OK: 0, Status.PARTIAL: 1, Status.DECODE_ERROR: 2, Status.TIMED_OUT: 2, Status.MISSING: 3}
EARLIER = "glscl.cache/1"
FLAT = "flat"  # name of the one addition of a stream of a flat file


class Place(NamedTuple):
    """Where a shard stands among all of a stream: its addition, its number there, and the numbers of its items."""

    addition: Addition
    shard: int
    items: range


def open_library(path: os.PathLike[str] | str) -> Library:
    """The files of a cache, for reading and for committing what it lacks.

    Args:
        path: folder, flat file, or address; of a cache at an address what is needed is brought here (`glscl.cache.mirror`).

    Raises:
        NotFoundError: nothing is there. UsageError: an address of a kind that cannot be read.
        CacheFormatError: something else is there, or a schema this version cannot read.
        StorageError: the address cannot be reached.
    """
    root = cache_path(path)
    return Library(root, read_header(root))


def read_header(root: Path) -> dict[str, Any]:
    """The content of store.json, or the head of a flat file (see `glscl.cache.upkeep.convert`). Raises as `open_library`."""
    if not root.exists():
        raise NotFoundError(f"No cache at {root}", hint=Hint("Make one", "extract", {"dataset": "NAME", "out": root}))
    header = _flat_header(root)
    if header is None:
        if not (root / "store.json").is_file():
            raise CacheFormatError(f"{root} is not a glscl cache: it has no store.json")
        header = load_json(root / "store.json", "the head of a glscl cache")
    if header.get("schema") == EARLIER:
        raise CacheFormatError(
            f"{root} was made by an earlier version", hint="Extract again into another folder with `out`"
        )
    if header.get("schema") != SCHEMA:
        raise CacheFormatError(f"{root} has schema {header.get('schema')!r}; this version reads {SCHEMA!r}")
    return header


def _flat_header(path: Path) -> dict[str, Any] | None:
    """The head of a flat file; None where `path` is a folder that is not one."""
    if path.is_dir() and not (path / "head" / "zarr.json").is_file():
        return None
    format = STORES["zarr" if path.is_dir() else "hdf5"]
    try:
        with format.opened(path) as opened:
            header = json.loads(opened.read("head").tobytes())
    except Exception as error:  # libraries raise whatever they like on foreign files
        refuse_unread(error, path)
        raise CacheFormatError(f"{path} is not a glscl cache: {first_line(error)}") from error
    if not isinstance(header, dict) or not isinstance(header.get("commits"), dict):
        raise CacheFormatError(f"{path} is not a glscl cache: its head lists no commits")
    return header


class Library:
    """The files of one open cache, as they were when it was opened or last refreshed. Obtain it from `open_library`.

    Attributes:
        path: the folder, or the flat file.
        header: the content of store.json.
        format: how arrays become bytes, one of `glscl.cache.formats.STORES`.
        fingerprint: of the configuration.
        configuration: what decides the values: backbone, preprocessing, tokenizer, sampling, …
        embed_dim: D.
        dtype: of features: "float16", "float32" or "bfloat16".
        has_tokens: whether token features are stored.
        has_padding: whether what stands behind a caption is stored with them.
        frames: how frames are stored with the features; None where they are not.
        mirror: of a cache at an address, which brings its shards and takes what is made; None of one on this machine.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        try:
            if fingerprint(header["configuration"]) != header["fingerprint"]:
                raise CacheFormatError(
                    f"The head of {path} was changed: its configuration does not give its fingerprint"
                )
            self._about = parse_header(header)
        except CacheFormatError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CacheFormatError(f"The head of {path} is not that of a glscl cache: {first_line(error)}") from error
        about = self._about
        self.path = path
        self.mirror = Mirror.of(path)
        self.header = header
        self.format = STORES[about.format]
        self.fingerprint = about.fingerprint
        self.configuration: dict[str, Any] = header["configuration"]
        self.embed_dim = about.configuration.embed_dim
        self.dtype: str = about.configuration.dtype
        self.has_tokens = about.configuration.tokens
        self.has_padding = about.configuration.pad_tokens
        self.frames = about.stored_frames
        self._streams: dict[str, Stream] = {}
        self._shards: dict[str, Shard] = {}  # by path

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.stream(name).index)} {name} items" for name in STREAMS)
        return f"Library({str(self.path)!r}, {sizes}, fingerprint {self.fingerprint})"

    @property
    def place(self) -> str:
        """Where the cache is, for messages and records: its address, or its path."""
        return str(self.path) if self.mirror is None else self.mirror.address

    @property
    def is_flat(self) -> bool:
        """Whether it is one file or group, as conversion writes it, to which nothing can be committed."""
        return "commits" in self.header

    def stream(self, name: str) -> Stream:
        """What is there of "video" or "text". Raises CacheCorruptError where additions or commits cannot be read."""
        if name not in self._streams:
            if self.is_flat:
                additions = self._flat_additions(name)
                commits = flat_commits(self.path, self.header["commits"], additions, self._about, name)
            else:
                additions = read_additions(self.path, name)
                commits = read_commits(self.path, additions, self._about, name)
            self._streams[name] = Stream(name, additions, commits)
        return self._streams[name]

    def refresh(self) -> None:
        """Look again at what others have added and committed, also at an address."""
        if self.mirror is not None:
            self.mirror.refresh()
        self._streams = {}

    def shard(self, stream: str, place: Place) -> Shard:
        """A committed shard, for reading. Raises KeyError where it is not committed."""
        commit = self.stream(stream).commit_of(place)
        self.shard_file(commit)
        if commit.path not in self._shards:
            self._shards[commit.path] = Shard(self.path, commit, self.format)
        return self._shards[commit.path]

    def shard_file(self, commit: Commit) -> Path:
        """Where a committed shard is on this machine; of a cache at an address it is brought first.

        Raises:
            CacheCorruptError: it leads out of the cache, or came otherwise than it was committed.
            StorageError: the address cannot be reached.
        """
        if self.mirror is not None:  # asked each time: it may have had to make room
            self.mirror.bring_shard(commit.path, lambda path: require_as_committed(path, commit, self.format))
        return shard_path(self.path, commit)

    def commit_from_json(self, row: Any, addition: Addition) -> Commit:
        """A commit as its file tells it. Raises ValueError where it is none of this cache and addition."""
        return parse_commit(row, self._about, addition)

    def ledger(self, stream: str, place: Place) -> list[dict[str, Any]]:
        """How each video of a committed shard was decoded: decoder, codec, seconds, …; empty where that was not noted.

        Raises:
            CacheCorruptError: it cannot be read.
        """
        path = commit_file(self.path, stream, place.addition.name, place.shard)
        rows: Any = []
        try:
            if self.is_flat:
                path = self.path
                if self.header.get("ledger"):
                    with self.format.opened(path) as opened:
                        rows = json.loads(opened.read("ledger").tobytes())
            elif path.exists():
                rows = load_json(path, "a commit of a glscl cache").get("ledger", [])
        except Exception as error:  # libraries raise whatever they like on damaged files
            refuse_unread(error, path)
            raise CacheCorruptError(f"The ledger in {path} cannot be read: {first_line(error)}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise CacheCorruptError(f"The ledger in {path} cannot be read: it is no list of objects")
        return rows

    def backbone_tensors(self, names: Container[str] | None = None) -> dict[str, np.ndarray]:
        """Tensors of the backbone that heads start from (docs/cache-format.md); empty where none were stored.

        Args:
            names: of those that are wanted; None: all.

        Raises:
            CacheCorruptError: they cannot be read.
        """
        if not self.is_flat:
            return read_tensors(self.path, names)
        kept = [name for name in self.header.get("backbone", []) if names is None or name in names]
        if not kept:
            return {}
        try:
            with self.format.opened(self.path / "backbone") as opened:
                return {name: opened.read(name) for name in kept}
        except Exception as error:  # libraries raise whatever they like on damaged files
            refuse_unread(error, self.path)
            raise CacheCorruptError(
                f"The backbone's tensors in {self.path} cannot be read: {first_line(error)}"
            ) from error

    # --- writing -----------------------------------------------------------------------------------------------

    def add(self, addition: Addition) -> None:
        """Let this object know of an addition that was written since it was opened."""
        known = self.stream(addition.stream)
        if all(each.name != addition.name for each in known.additions):
            additions = sorted([*known.additions, addition], key=lambda each: each.name)
            self._streams[addition.stream] = Stream(addition.stream, additions, known.commits)

    def commit(
        self,
        addition: Addition,
        shard: int,
        arrays: Mapping[str, np.ndarray | Blocks],
        *,
        failures: Sequence[Mapping[str, Any]] = (),
        ledger: Sequence[Mapping[str, Any]] = (),
    ) -> bool:
        """Write one shard aside, make it durable, then commit it.

        Args:
            arrays: exactly the arrays of `LAYOUT`, in the stored dtypes (`glscl.cache.encoded_items` makes them),
                and for videos those of `frames.arrays`.
            failures: `{"key", "reason", "status"}` of the items that failed.
            ledger: one record an item: how it was decoded, how long it took.

        Returns:
            False where another writer has committed this shard first; its shard stands.

        Raises:
            StorageError: the disk is full or failing; everything committed stays as it is.
        """
        stream = addition.stream
        self._check_arrays(addition, shard, arrays)
        items = addition.shard_range(shard)
        name = f"{addition.name}-{shard:05d}-{uuid.uuid4().hex[:8]}{self.format.suffix}"
        aside = self.path / "partial" / name
        final = self.path / "shards" / stream / name
        attributes = {"schema": SCHEMA, "stream": stream, "fingerprint": self.fingerprint, "dtype": self.dtype}
        try:
            with storage_errors(self.path):
                aside.parent.mkdir(exist_ok=True)
                self.format.write(aside, arrays, attributes)
                sync_tree(aside)
                os.rename(aside, final)
                sync_directory(final.parent)
                row = {
                    "stream": stream,
                    "addition": addition.name,
                    "shard": shard,
                    "items": [items.start, items.stop],
                    "shard_items": addition.shard_items,
                    "attempt": addition.attempt,
                    "path": final.relative_to(self.path).as_posix(),
                    "arrays": {name: describe_array(array) for name, array in arrays.items()},
                    "failures": [dict(failure) for failure in failures],
                    "ledger": [dict(record) for record in ledger],
                    "host": socket.gethostname(),
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
                file, data = commit_file(self.path, stream, addition.name, shard), dump_json(row)
                won = put_if_absent(file, data) if self.mirror is None else self._commit_there(final, file, data)
        except BaseException:
            remove(aside, self.path)
            raise
        if won:
            known = self.stream(stream)
            commits = known.commits | {(addition.name, shard): self.commit_from_json(row, addition)}
            self._streams[stream] = Stream(stream, known.additions, commits)
        else:
            remove(final, self.path)
            self.refresh()
        return won

    def _commit_there(self, shard: Path, file: Path, data: bytes) -> bool:
        """Commit at the address, and only then here, so that nothing is taken for done that is not there."""
        assert self.mirror is not None
        put, told = (path.relative_to(self.path).as_posix() for path in (shard, file))
        return self.mirror.commit(put, told, data) and put_if_absent(file, data)

    def settle(self, addition: Addition) -> bool:
        """Gather the commits of an addition in one file where all of them are there; whether they are."""
        commits = self.stream(addition.stream).commits
        found = [commits.get((addition.name, shard)) for shard in range(addition.num_shards)]
        there = [commit for commit in found if commit is not None]
        if len(there) < len(found):
            return False
        write_all_commits(self.path, addition, there)
        return True

    def write_backbone_tensors(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Store the tensors that heads start from; once, the first writer's stay."""
        write_tensors(self.path, tensors)

    def _check_arrays(self, addition: Addition, shard: int, arrays: Mapping[str, np.ndarray | Blocks]) -> None:
        """Raise ValueError unless these are the arrays of a shard, each of its shape and dtype."""
        stream = addition.stream
        layout, count = LAYOUT[stream], len(addition.shard_range(shard))
        frames = self.frames if stream == "video" else None
        names = {*layout, *(frames.arrays if frames else ())}
        if set(arrays) != names:
            raise ValueError(f"a {stream} shard holds {sorted(names)}, given {sorted(arrays)}")
        rows = {name: _last(arrays[name]) for name, spec in layout.items() if spec.along == "boundaries"}
        for name, spec in layout.items():
            length = {"items": count, "boundaries": count + 1, "rows": rows.get(spec.boundaries or "")}[spec.along]
            expected = (length, self.embed_dim) if spec.columns else (length,)
            dtype = numpy_dtype(spec, self.dtype)
            if arrays[name].shape != expected or arrays[name].dtype != dtype:
                found = f"{arrays[name].dtype}{arrays[name].shape}"
                raise ValueError(f"{name} of {stream} shard {shard} is {found}, expected {dtype}{expected}")
        if frames:
            for name, expected in frames.shapes(rows["offsets"]).items():
                if None not in expected and arrays[name].shape != expected:
                    raise ValueError(
                        f"video shard {shard} has {rows['offsets']} rows; its frames are {arrays[name].shape}"
                    )

    def _flat_additions(self, stream: str) -> list[Addition]:
        """The one addition of a stream of a flat file: its keys are the ids of its items."""
        count = self.header["items"][stream]
        if not count:
            return []
        try:
            with self.format.opened(self.path / stream) as opened:
                digits = opened.read("id_bytes").reshape(count, -1)
            lines = np.concatenate([digits, np.full((count, 1), ord("\n"), np.uint8)], axis=1)
            return [Addition(FLAT, stream, count, 0, from_lines(lines.tobytes()))]
        except Exception as error:  # libraries raise whatever they like on damaged files
            raise CacheCorruptError(f"The keys in {self.path} cannot be read: {first_line(error)}") from error


class Stream:
    """The items of one stream: additions in the order of their names, and which of their shards are committed.

    Attributes:
        additions: by name.
        commits: (name of an addition, shard) → commit.
        places: all shards, committed or not, in the order of the items' numbers.
        starts: (S + 1,) int64, the number of the first item of each shard, and N.
    """

    def __init__(self, name: str, additions: list[Addition], commits: Commits) -> None:
        self.name, self.additions, self.commits = name, additions, commits
        self.places: list[Place] = []
        first = 0
        for addition in additions:
            for shard in range(addition.num_shards):
                items = addition.shard_range(shard)
                self.places.append(Place(addition, shard, range(first + items.start, first + items.stop)))
            first += len(addition.keys)
        self.starts = np.array([place.items.start for place in self.places] + [first], np.int64)

    def __repr__(self) -> str:
        return f"Stream({self.name}, {self.num_items} items, {len(self.commits)} of {len(self.places)} shards)"

    @property
    def num_items(self) -> int:
        """N, items of all additions, committed or not, each time they stand in one."""
        return int(self.starts[-1])

    @cached_property
    def keys(self) -> np.ndarray:
        """(N, 16) uint8."""
        found = [addition.keys for addition in self.additions]
        return np.concatenate(found) if found else np.zeros((0, 16), np.uint8)

    @cached_property
    def failures(self) -> dict[int, Failure]:
        """Number of a committed item without features, or with fewer than it should have → what was noted of it."""
        found: dict[int, Failure] = {}
        for place in self.committed():
            noted = self.commit_of(place).failures
            if noted:
                by_key = {bytes.fromhex(failure["key"]): failure for failure in noted}
                keys = zip(place.items, from_array(self.keys_at(place)))
                found |= {number: by_key[key] for number, key in keys if key in by_key}
        return found

    @cached_property
    def status(self) -> np.ndarray:
        """(N,) uint8 `Status`, of what is not committed MISSING."""
        status = np.where(self.is_committed, np.uint8(Status.OK), np.uint8(Status.MISSING))
        for number, failure in self.failures.items():
            status[number] = int(Status[failure["status"].upper()])
        return status

    @cached_property
    def rank(self) -> np.ndarray:
        """(N,) uint8, 0 for the most usable items, higher for less usable ones, `WORST` for those that are not committed."""
        ranks = np.full(256, WORST, np.uint8)
        for status, rank in _RANKS.items():
            ranks[int(status)] = rank
        return np.where(self.is_committed, ranks[self.status], np.uint8(WORST))

    @cached_property
    def index(self) -> KeyIndex:
        """Where keys stand among the committed items; of several items of a key the most usable."""
        return KeyIndex(self.keys, self.rank)

    @cached_property
    def is_committed(self) -> np.ndarray:
        """(N,) bool."""
        found = np.zeros(self.num_items, bool)
        for place in self.committed():
            found[place.items.start : place.items.stop] = True
        return found

    def committed(self) -> list[Place]:
        """The shards that are committed."""
        return [place for place in self.places if (place.addition.name, place.shard) in self.commits]

    def pending(self) -> list[Place]:
        """The shards that nobody has committed yet."""
        return [place for place in self.places if (place.addition.name, place.shard) not in self.commits]

    def commit_of(self, place: Place) -> Commit:
        """The commit of a shard. Raises KeyError where it is not committed."""
        return self.commits[place.addition.name, place.shard]

    def keys_at(self, place: Place) -> np.ndarray:
        """(n, 16) uint8, keys of the items of a shard."""
        return place.addition.keys_of(place.shard)


def _last(boundaries: np.ndarray | Blocks) -> int:
    if isinstance(boundaries, Blocks):
        raise ValueError("boundaries come as one array")
    return int(boundaries[-1])
