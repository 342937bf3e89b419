"""A cache on disk: a directory of immutable shards that become visible one by one, each by one atomic commit.

store.json                      written once: schema, format, configuration, fingerprint, splits, sizes
plan/{video,text}.jsonl         ordered items; shard i = items [i·K, (i+1)·K)
shards/{stream}/<shard>-<attempt>[.h5]      never modified
commits/{stream}/<shard>[.r<revision>].json put-if-absent, last of all; the highest revision counts
backbone/pieces.safetensors     first text blocks, positions, logit_scale, feature of a black frame
partial/                        where shards are written aside; left-overs of killed writers, safe to delete
locks/                          who writes at the moment (`glscl.cache.lock`); readers ignore it
damaged/                        what `glscl repair` set aside; safe to delete
manifest.json                   all commits, when complete; with store.json all that a reader needs
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache.backbone_tensors import pack_pieces
from glscl.cache.commits import Commits, commit_file, read_commit_files, read_commits
from glscl.cache.files import (
    dump_json,
    load_json,
    put_if_absent,
    remove,
    storage_errors,
    sync_directory,
    sync_tree,
    utf8_name,
    write_atomically,
    written,
)
from glscl.cache.fingerprint import fingerprint
from glscl.cache.formats import STORES
from glscl.cache.formats.blocks import Blocks
from glscl.cache.formats.rows import RowReader
from glscl.cache.frame_format import FrameSpec
from glscl.cache.plan import Split, read_plan
from glscl.cache.reading import read_arrays, read_rows
from glscl.cache.records import Commit, check_header, parse_commit
from glscl.cache.resuming import going_on
from glscl.cache.schema import SCHEMA, STREAMS, Annotations, Expected, Status
from glscl.cache.shard_arrays import FLOAT, LAYOUT, decode_features, numpy_dtype, unpack_strings
from glscl.common.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    NotFoundError,
    first_line,
)


def open_store(path: os.PathLike[str] | str) -> Store:
    """Open a cache for reading (and for committing what it lacks).

    Raises:
        NotFoundError: nothing is there.
        CacheFormatError: something else is there, or a schema this version cannot read.
    """
    root = Path(path)
    if not root.exists():
        raise NotFoundError(f"No cache at {root}", mend="Make one: glscl extract --dataset NAME --out " + str(root))
    header = _flat_header(root)
    if header is None:
        if not (root / "store.json").is_file():
            raise CacheFormatError(f"{root} is not a glscl cache: it has no store.json")
        header = load_json(root / "store.json", "the head of a glscl cache")
    if header.get("schema") != SCHEMA:
        raise CacheFormatError(f"{root} has schema {header.get('schema')!r}; this version reads {SCHEMA!r}")
    try:
        if header["format"] not in STORES:
            raise CacheFormatError(f"{root} has format {header['format']!r}; known are {', '.join(STORES)}")
        if fingerprint(header["configuration"]) != header["fingerprint"]:
            raise CacheFormatError(f"The head of {root} was changed: its configuration does not give its fingerprint")
        check_header(header)
        return Store(root, header)
    except CacheFormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheFormatError(f"The head of {root} is not that of a glscl cache: {first_line(error)}") from error


def _flat_header(path: Path) -> dict[str, Any] | None:
    """The head of a flat file (see `glscl.cache.upkeep.convert`); None where `path` is a folder that is not one."""
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


class Store:
    """One open cache. Obtain it from `open_store` or `create_store`.

    Attributes:
        path: the folder.
        header: the content of store.json.
        splits: name → Split.
        frames: how frames are stored beside the features; None where they are not.
        plan: the annotations with the files as this run found them (after `create_store`), else as recorded.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.header = header
        self.format = STORES[header["format"]]
        self.fingerprint: str = header["fingerprint"]
        self.configuration: dict[str, Any] = header["configuration"]
        self.embed_dim: int = int(header["configuration"]["embed_dim"])
        self.dtype: str = header["configuration"]["dtype"]
        self.has_tokens: bool = bool(header["configuration"]["tokens"])
        self.num_items = {stream: int(header["streams"][stream]["items"]) for stream in STREAMS}
        self.shard_items = {stream: int(header["streams"][stream]["shard_items"]) for stream in STREAMS}
        self.splits = {
            name: Split(
                range(*entry["videos"]),
                range(*entry["texts"]),
                Expected(entry["expected_captions"], entry["expected_videos"]),
            )
            for name, entry in header["splits"].items()
        }
        self.frames = FrameSpec.from_header(header.get("stored_frames"))
        self._commits: Commits | None = None
        self._readers: dict[str, dict[str, RowReader]] = {}  # by the path of a shard

    # --- what is there -----------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> Annotations:
        return Annotations(
            dataset=self.configuration["dataset"],
            videos=self.plan_items("video"),
            texts=self.plan_items("text"),
            expected={name: split.expected for name, split in self.splits.items()},
            notes=list(self.header.get("notes", [])),
        )

    def plan_items(self, stream: str) -> list[Any]:
        """The items of one stream as plan/ records them, VideoItems or TextItems. Raises CacheCorruptError."""
        return read_plan(self.path, stream, self.num_items[stream])

    @property
    def everything(self) -> Split:
        """All items of all splits."""
        videos, texts = (range(self.num_items[stream]) for stream in STREAMS)
        return Split(videos, texts, Expected(None, None))

    def num_shards(self, stream: str) -> int:
        return -(-self.num_items[stream] // self.shard_items[stream])

    def shard_range(self, stream: str, shard: int) -> range:
        size = self.shard_items[stream]
        return range(shard * size, min((shard + 1) * size, self.num_items[stream]))

    def commits(self, stream: str) -> dict[int, Commit]:
        """Committed shards by number, the highest revision of each."""
        if self._commits is None:
            self._commits = read_commits(self.path, self.header)
        return self._commits[stream]

    def refresh(self) -> None:
        """Look again at what other writers have committed."""
        self._commits = None

    def pending(self, stream: str) -> list[int]:
        """Numbers of the shards that nobody has committed yet."""
        return [shard for shard in range(self.num_shards(stream)) if shard not in self.commits(stream)]

    @property
    def complete(self) -> bool:
        return not any(self.pending(stream) for stream in STREAMS)

    def require_complete(self) -> None:
        """Raise CacheIncompleteError, saying how much is there, unless every shard is committed."""
        for stream in STREAMS:
            for shard in self.pending(stream)[:1]:
                self.committed(stream, shard)

    def failures(self) -> list[dict[str, Any]]:
        """`[{"id", "reason", "status"}]` of every item without features, or with fewer than it should have."""
        return [failure for shard in sorted(self.commits("video")) for failure in self.commits("video")[shard].failures]

    def commit_from_json(self, stream: str, row: Any) -> Commit:
        """A commit as its file or the manifest tells it. Raises ValueError where it is none of this cache."""
        return parse_commit(row, self.header, stream=stream)

    # --- reading -----------------------------------------------------------------------------------------------

    def arrays(
        self,
        stream: str,
        names: Sequence[str] | None = None,
        *,
        items: range | None = None,
        raw: bool = False,
    ) -> dict[str, np.ndarray]:
        """Arrays over all shards (or over a run of items), boundaries made to fit.

        Args:
            stream: "video" or "text".
            names: which arrays; all by default, but for stored frames, which `glscl.cache.frames` reads.
            items: item numbers, a contiguous range; all by default.
            raw: bfloat16 stays uint16 and `video_index` stays as planned.

        Returns:
            name → array: `values` (R, D), `offsets` (n + 1,) int64, `pooled` (n, D), `status` (n,) uint8, … as
            docs/cache-format.md lists them. bfloat16 comes as float32. In `video_index` a caption whose video gave no
            frames has −1.

        Raises:
            CacheIncompleteError: a shard that is needed is not committed.
            CacheCorruptError: a shard contradicts its commit.
        """
        names = list(LAYOUT[stream]) if names is None else list(names)
        items = range(self.num_items[stream]) if items is None else items
        found = read_arrays(self, stream, names, items)
        for name, array in found.items():
            if raw:
                break
            if LAYOUT[stream][name].dtype == FLOAT:
                found[name] = decode_features(array, self.dtype)
            elif name == "video_index":
                usable = np.isin(self.arrays("video", ["status"])["status"], [s for s in Status if s.usable])
                found[name] = np.where((array >= 0) & usable[array], array, -1) if len(usable) else array * 0 - 1
        return found

    def take_rows(self, stream: str, name: str, rows: np.ndarray, *, items: range | None = None) -> np.ndarray:
        """Some rows of a ragged array; where they are few, without reading the others.

        Args:
            rows: (k,) int64, never falling; numbered within `items`, as the `offsets` of `arrays(stream, items=items)` do.

        Returns:
            (k, …) in the stored dtype.
        """
        return read_rows(self, stream, name, rows, range(self.num_items[stream]) if items is None else items)

    def ids(self, stream: str, items: range | None = None) -> list[str]:
        found = self.arrays(stream, ["id_bytes", "id_offsets"], items=items)
        return unpack_strings(found["id_bytes"], found["id_offsets"])

    def captions(self, items: range | None = None) -> list[str]:
        found = self.arrays("text", ["text_bytes", "text_offsets"], items=items)
        return unpack_strings(found["text_bytes"], found["text_offsets"])

    def ledger(self, shard: int) -> list[dict[str, Any]]:
        """How each video of a shard was decoded: decoder, codec, seconds, … Empty where that was not written down.

        Raises:
            CacheIncompleteError: the shard is not committed.
            CacheCorruptError: it cannot be read.
        """
        revision = self.committed("video", shard).revision
        path = commit_file(self.path, "video", shard, revision)
        try:
            if "commits" in self.header:
                path, rows = self.path, []
                if self.header.get("ledger"):
                    with self.format.opened(path) as opened:
                        rows = json.loads(opened.read("ledger").tobytes())
            else:
                rows = load_json(path, "a commit of a glscl cache").get("ledger", []) if path.exists() else []
        except Exception as error:  # libraries raise whatever they like on damaged files
            raise CacheCorruptError(f"The ledger in {path} cannot be read: {first_line(error)}") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise CacheCorruptError(f"The ledger in {path} cannot be read: it is no list of objects")
        return rows

    def backbone_pieces(self) -> dict[str, np.ndarray]:
        """Tensors of the backbone that heads start from (docs/cache-format.md); empty where none were stored."""
        if "commits" in self.header:
            return self._flat_backbone_pieces()
        from safetensors.numpy import load_file

        path = self.path / "backbone" / "pieces.safetensors"
        if not written(path):
            return {}
        try:
            with utf8_name(path) as name:
                return load_file(name)
        except Exception as error:  # safetensors raises its own, undocumented type
            raise CacheCorruptError(f"{path} cannot be read: {first_line(error)}") from error

    def _flat_backbone_pieces(self) -> dict[str, np.ndarray]:
        names = self.header.get("backbone", [])
        if not names:
            return {}
        try:
            with self.format.opened(self.path / "backbone") as opened:
                return {name: opened.read(name) for name in names}
        except Exception as error:  # libraries raise whatever they like on damaged files
            raise CacheCorruptError(
                f"The backbone's pieces in {self.path} cannot be read: {first_line(error)}"
            ) from error

    def frame_rows(self, shard: int) -> dict[str, RowReader]:
        """Readers of the stored frames of a video shard, by the names of `FrameSpec.arrays`.

        Raises:
            CacheIncompleteError: the shard is not committed.
            CacheCorruptError: it is not there or cannot be read.
        """
        return self.readers(self.committed("video", shard), list(self.frames.arrays) if self.frames else [])

    def readers(self, commit: Commit, names: list[str]) -> dict[str, RowReader]:
        """Readers of arrays of a shard, looked up once: a shard is never modified.

        Raises:
            CacheCorruptError: it is not there or cannot be read, or an array is not what the commit says.
        """
        known = self._readers.setdefault(commit.path, {})
        missing = [name for name in names if name not in known]
        if missing:
            for name, reader in self.reading(commit, lambda where: self.format.rows(where, missing)).items():
                expected, dtype = commit.arrays[name], reader.dtype.name
                if list(reader.shape) != list(expected["shape"]) or dtype != expected["dtype"]:
                    raise self.contradiction(
                        commit,
                        f"{name} is {dtype}{list(reader.shape)}, expected {expected['dtype']}{expected['shape']}",
                    )
                known[name] = reader
        return {name: known[name] for name in names}

    def committed(self, stream: str, shard: int) -> Commit:
        commit = self.commits(stream).get(shard)
        if commit is None:
            done = len(self.commits(stream))
            raise CacheIncompleteError(
                f"{self.path} is not complete: {done} of {self.num_shards(stream)} {stream} shards are there",
                mend=f"Finish it: {self.resume_command}",
            )
        return commit

    @property
    def resume_command(self) -> str:
        """What goes on with this cache, where it stands now."""
        return going_on(self.header.get("provenance", {}).get("command"), self.path, self.header["format"])

    @property
    def recipe(self) -> str:
        """Name of the training recipe that fits: the dataset's, as extraction recorded it."""
        return self.header.get("provenance", {}).get("recipe") or self.configuration["dataset"]

    def reading(self, commit: Commit, read: Callable[[Path], Any]) -> Any:
        """What `read` gives for the place of a shard; CacheCorruptError where it fails."""
        where = self.place(commit)
        try:
            return read(where)
        except FileNotFoundError as error:
            raise CacheCorruptError(f"{where} is committed but not there", mend=self._look_closer) from error
        except Exception as error:  # libraries raise whatever they like on damaged files
            raise CacheCorruptError(f"{where} cannot be read: {first_line(error)}", mend=self._look_closer) from error

    def place(self, commit: Commit) -> Path:
        """Where a shard stands. Raises CacheCorruptError where a link leads out of the cache."""
        where = self.path / commit.path
        below = [where, *where.parents][: commit.path.count("/") + 1]
        if any(map(os.path.islink, below)) and not Path(os.path.realpath(where)).is_relative_to(
            os.path.realpath(self.path)
        ):
            raise CacheCorruptError(f"{where} is reached by a link that leads out of the cache", mend=self._look_closer)
        return where

    @property
    def _look_closer(self) -> str:
        return f"See what is damaged: glscl inspect {self.path} --verify"

    def contradiction(self, commit: Commit, what: str) -> CacheCorruptError:
        """The error of a shard that holds something else than its commit says."""
        return CacheCorruptError(f"{self.path / commit.path}: {what}", mend=self._look_closer)

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
            arrays: exactly the arrays of `LAYOUT[stream]`, in the stored dtypes (`glscl.cache.encode_shard` makes them), and
                for videos those of `frames.arrays`.
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
            self._commits = read_commit_files(self.path, self.header)
            self.require_complete()
            streams = {s: [c._asdict() for _, c in sorted(self.commits(s).items())] for s in STREAMS}
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

    def write_backbone_pieces(self, pieces: Mapping[str, np.ndarray]) -> None:
        """Store the tensors that heads start from; once, the first writer's stand."""
        path = self.path / "backbone" / "pieces.safetensors"
        if pieces and not written(path):
            put_if_absent(path, pack_pieces(pieces))

    def _check_arrays(self, stream: str, shard: int, arrays: Mapping[str, np.ndarray | Blocks]) -> None:
        layout, count = LAYOUT[stream], len(self.shard_range(stream, shard))
        frames = self.frames if stream == "video" else None
        names = {*layout, *(frames.arrays if frames else ())}
        if set(arrays) != names:
            raise ValueError(f"a {stream} shard holds {sorted(names)}, given {sorted(arrays)}")
        rows = int(arrays["offsets"][-1])
        if frames and (
            arrays[frames.arrays[-1]].shape != ((rows, *frames.size, 3) if frames.encoding == "uint8" else (rows + 1,))
        ):
            raise ValueError(f"video shard {shard} has {rows} rows; its frames are {arrays[frames.arrays[-1]].shape}")
        for name, spec in layout.items():
            lengths = {"items": count, "boundaries": count + 1}
            length = int(arrays[spec.boundaries][-1]) if spec.boundaries else lengths[spec.along]
            expected = (length, self.embed_dim) if spec.columns else (length,)
            dtype = numpy_dtype(spec, self.dtype)
            if arrays[name].shape != expected or arrays[name].dtype != dtype:
                raise ValueError(
                    f"{name} of {stream} shard {shard} is {arrays[name].dtype}{arrays[name].shape}, expected {dtype}{expected}"
                )


def describe_array(array: np.ndarray | Blocks) -> dict[str, Any]:
    """What a commit says of an array: shape, dtype, CRC-32 of its raw bytes (of `Blocks`: after they were written)."""
    checksum = array.crc32 if isinstance(array, Blocks) else zlib.crc32(np.ascontiguousarray(array))
    return {"shape": list(array.shape), "dtype": array.dtype.name, "crc32": checksum}
