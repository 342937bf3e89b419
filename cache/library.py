"""The files of a cache: a folder of immutable shards that become visible one by one, each by one atomic commit.

store.json                      written once: schema, format, configuration, fingerprint, splits, sizes
plan/{video,text}.jsonl         ordered items; shard i = items [i·K, (i+1)·K)
shards/{stream}/<shard>-<attempt>[.h5]      never modified
commits/{stream}/<shard>[.r<revision>].json put-if-absent, last of all; the highest revision counts
backbone/pieces.safetensors     first text blocks, positions, logit_scale, feature of a black frame
partial/                        where shards are written aside; left-overs of killed writers, safe to delete
locks/                          who writes at the moment (`glscl.cache.lock`); readers ignore it
damaged/                        what repair set aside; safe to delete
manifest.json                   all commits, when complete; with store.json all that a reader needs
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from glscl.cache.backbone_tensors import read_tensors, write_tensors
from glscl.cache.commits import Commits, commit_file, flat_commits, read_commit_files, read_commits
from glscl.cache.files import (
    dump_json,
    load_json,
    put_if_absent,
    remove,
    storage_errors,
    sync_directory,
    sync_tree,
    write_atomically,
)
from glscl.cache.fingerprint import fingerprint
from glscl.cache.formats import STORES
from glscl.cache.formats.blocks import Blocks
from glscl.cache.records import Commit, Failure, parse_commit, parse_header
from glscl.cache.schema import SCHEMA, STREAMS
from glscl.cache.shard_arrays import LAYOUT, numpy_dtype
from glscl.cache.shards import Shard, describe_array
from glscl.common.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    Hint,
    NotFoundError,
    first_line,
)


def open_library(path: os.PathLike[str] | str) -> Library:
    """The files of a cache, for reading and for committing what it lacks.

    Raises:
        NotFoundError: nothing is there.
        CacheFormatError: something else is there, or a schema this version cannot read.
    """
    return Library(Path(path), read_header(Path(path)))


def read_header(root: Path) -> dict[str, Any]:
    """The content of store.json, or the head of a flat file (see `glscl.cache.upkeep.convert`). Raises as `open_library`."""
    if not root.exists():
        raise NotFoundError(f"No cache at {root}", hint=Hint("Make one", "extract", {"dataset": "NAME", "out": root}))
    header = _flat_header(root)
    if header is None:
        if not (root / "store.json").is_file():
            raise CacheFormatError(f"{root} is not a glscl cache: it has no store.json")
        header = load_json(root / "store.json", "the head of a glscl cache")
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
        raise CacheFormatError(f"{path} is not a glscl cache: {first_line(error)}") from error
    if not isinstance(header, dict) or not isinstance(header.get("commits"), dict):
        raise CacheFormatError(f"{path} is not a glscl cache: its head lists no commits")
    return header


class Library:
    """The files of one open cache. Obtain it from `open_library`; a `glscl.cache.store.Store` is one, too.

    Attributes:
        path: the folder, or the flat file.
        header: the content of store.json.
        format: how arrays become bytes, one of `glscl.cache.formats.STORES`.
        fingerprint: of the configuration.
        configuration: what decides the values: backbone, preprocessing, tokenizer, sampling, …
        embed_dim: D.
        dtype: of features: "float16", "float32" or "bfloat16".
        has_tokens: whether token features are stored.
        num_items: "video" and "text" → items.
        shard_items: "video" and "text" → items of each shard but the last.
        frames: how frames are stored with the features; None where they are not.
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
        self.header = header
        self.format = STORES[about.format]
        self.fingerprint = about.fingerprint
        self.configuration: dict[str, Any] = header["configuration"]
        self.embed_dim = about.configuration.embed_dim
        self.dtype: str = about.configuration.dtype
        self.has_tokens = about.configuration.tokens
        self.num_items = {stream: about.streams[stream].items for stream in STREAMS}
        self.shard_items = {stream: about.streams[stream].shard_items for stream in STREAMS}
        self.frames = about.stored_frames
        self._commits: Commits | None = None
        self._shards: dict[str, Shard] = {}  # by path

    def __repr__(self) -> str:
        sizes = f"{self.num_items['video']} videos, {self.num_items['text']} texts"
        return f"{type(self).__name__}({str(self.path)!r}, {sizes}, fingerprint {self.fingerprint})"

    @property
    def is_flat(self) -> bool:
        """Whether it is one file or group, as conversion writes it, to which nothing can be committed."""
        return "commits" in self.header

    # --- what is there -----------------------------------------------------------------------------------------

    def num_shards(self, stream: str) -> int:
        """How many shards there will be, committed or not."""
        return -(-self.num_items[stream] // self.shard_items[stream])

    def shard_range(self, stream: str, shard: int) -> range:
        """Numbers of the items of a shard."""
        return self._about.streams[stream].shard(shard)

    def commits(self, stream: str) -> dict[int, Commit]:
        """Committed shards by number, the highest revision of each."""
        if self._commits is None:
            if self.is_flat:
                self._commits = flat_commits(self.path, self.header["commits"], self._about)
            else:
                self._commits = read_commits(self.path, self._about)
        return self._commits[stream]

    def refresh(self) -> None:
        """Look again at what other writers have committed."""
        self._commits = None

    def pending(self, stream: str) -> list[int]:
        """Numbers of the shards that nobody has committed yet."""
        return [shard for shard in range(self.num_shards(stream)) if shard not in self.commits(stream)]

    @property
    def complete(self) -> bool:
        """Whether every shard is committed."""
        return not any(self.pending(stream) for stream in STREAMS)

    def require_complete(self) -> None:
        """Raise CacheIncompleteError, saying how much is there, unless every shard is committed."""
        for stream in STREAMS:
            for shard in self.pending(stream)[:1]:
                self.committed(stream, shard)

    def resume_hint(self, text: str = "Finish it") -> Hint:
        """What goes on with this cache: the command that was typed, with the folder and format that are true now."""
        typed = self._about.provenance.command
        if not typed:
            return Hint(text, "extract", {"out": self.path})
        return Hint(text, typed, {"out": self.path, "format": self._about.format})

    def failures(self) -> list[Failure]:
        """Every item without features, or with fewer than it should have."""
        return [failure for shard in sorted(self.commits("video")) for failure in self.commits("video")[shard].failures]

    # --- reading one shard -------------------------------------------------------------------------------------

    def committed(self, stream: str, shard: int) -> Commit:
        """The commit of a shard. Raises CacheIncompleteError where there is none."""
        commit = self.commits(stream).get(shard)
        if commit is None:
            done = len(self.commits(stream))
            raise CacheIncompleteError(
                f"{self.path} is not complete: {done} of {self.num_shards(stream)} {stream} shards are there",
                hint=self.resume_hint(),
            )
        return commit

    def shard(self, stream: str, shard: int) -> Shard:
        """A committed shard, for reading. Raises CacheIncompleteError where it is not committed."""
        commit = self.committed(stream, shard)
        if commit.path not in self._shards:
            self._shards[commit.path] = Shard(self.path, commit, self.format)
        return self._shards[commit.path]

    def commit_from_json(self, stream: str, row: Any) -> Commit:
        """A commit as its file or the manifest tells it. Raises ValueError where it is none of this cache."""
        return parse_commit(row, self._about, stream=stream)

    def ledger(self, shard: int) -> list[dict[str, Any]]:
        """How each video of a shard was decoded: decoder, codec, seconds, … Empty where that was not written down.

        Raises:
            CacheIncompleteError: the shard is not committed.
            CacheCorruptError: it cannot be read.
        """
        path = commit_file(self.path, "video", shard, self.committed("video", shard).revision)
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
            raise CacheCorruptError(f"The ledger in {path} cannot be read: {first_line(error)}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise CacheCorruptError(f"The ledger in {path} cannot be read: it is no list of objects")
        return rows

    def backbone_tensors(self) -> dict[str, np.ndarray]:
        """Tensors of the backbone that heads start from (docs/cache-format.md); empty where none were stored.

        Raises:
            CacheCorruptError: they cannot be read.
        """
        if not self.is_flat:
            return read_tensors(self.path)
        names = self.header.get("backbone", [])
        if not names:
            return {}
        try:
            with self.format.opened(self.path / "backbone") as opened:
                return {name: opened.read(name) for name in names}
        except Exception as error:  # libraries raise whatever they like on damaged files
            raise CacheCorruptError(
                f"The backbone's tensors in {self.path} cannot be read: {first_line(error)}"
            ) from error

    # --- writing -----------------------------------------------------------------------------------------------

    def commit(
        self,
        stream: str,
        shard: int,
        arrays: Mapping[str, np.ndarray | Blocks],
        *,
        failures: Sequence[Mapping[str, Any]] = (),
        ledger: Sequence[Mapping[str, Any]] = (),
        revision: int = 0,
    ) -> bool:
        """Write one shard aside, make it durable, then commit it.

        Args:
            arrays: exactly the arrays of `LAYOUT[stream]`, in the stored dtypes (`glscl.cache.encoded_items` makes them),
                and for videos those of `frames.arrays`.
            failures: `{"id", "reason", "status"}` of the items that failed.
            ledger: one record an item: how it was decoded, how long it took.
            revision: 0 at first; a higher one replaces the shard for every reader that opens the cache afterwards.

        Returns:
            False where another writer has committed this shard (and revision) first; its shard stands.

        Raises:
            StorageError: the disk is full or failing; everything committed stays as it is.
        """
        self._check_arrays(stream, shard, arrays)
        items = self.shard_range(stream, shard)
        name = f"{shard:05d}-{uuid.uuid4().hex[:8]}{self.format.suffix}"
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
                    "shard": shard,
                    "revision": revision,
                    "items": [items.start, items.stop],
                    "path": final.relative_to(self.path).as_posix(),
                    "arrays": {name: describe_array(array) for name, array in arrays.items()},
                    "failures": [dict(failure) for failure in failures],
                    "ledger": [dict(record) for record in ledger],
                    "host": socket.gethostname(),
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
                won = put_if_absent(commit_file(self.path, stream, shard, revision), dump_json(row))
        except BaseException:
            remove(aside, self.path)
            raise
        if won:
            self.commits(stream)[shard] = self.commit_from_json(stream, row)
        else:
            remove(final, self.path)
            self.refresh()
        return won

    def finish(self, *, clear: bool = True) -> bool:
        """Write manifest.json.

        Args:
            clear: remove what killed writers left behind; not while others write.

        Returns:
            Whether there was no manifest before: of several writers that finish together, exactly one gets True.

        Raises:
            CacheIncompleteError: a shard is missing.
        """
        path, first, content = self.path / "manifest.json", False, b""
        while True:
            self._commits = read_commit_files(self.path, self._about)
            self.require_complete()
            streams = {s: [msgspec.structs.asdict(c) for _, c in sorted(self.commits(s).items())] for s in STREAMS}
            manifest = {"schema": SCHEMA, "fingerprint": self.fingerprint, "complete": True, "streams": streams}
            if dump_json(manifest) == content:  # nobody committed a revision meanwhile
                break
            content = dump_json(manifest)
            if clear:
                remove(self.path / "partial", self.path)
            if put_if_absent(path, content):
                first = True
            else:
                write_atomically(path, content)
        return first

    def write_backbone_tensors(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Store the tensors that heads start from; once, the first writer's stay."""
        write_tensors(self.path, tensors)

    def _check_arrays(self, stream: str, shard: int, arrays: Mapping[str, np.ndarray | Blocks]) -> None:
        """Raise ValueError unless these are the arrays of a shard, each of its shape and dtype."""
        layout, count = LAYOUT[stream], len(self.shard_range(stream, shard))
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


def _last(boundaries: np.ndarray | Blocks) -> int:
    if isinstance(boundaries, Blocks):
        raise ValueError("boundaries come as one array")
    return int(boundaries[-1])
