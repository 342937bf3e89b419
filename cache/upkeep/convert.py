"""Zarr ↔ HDF5, caches without what no list names any more, and caches as one ordinary file.

A cache folder that is converted holds the items of its lists in one addition a stream, in the order in which the lists name
them: what was encoded bit by bit lies together afterwards, and what nobody asks for is left behind.

A flat file holds one list: the groups `video` and `text` with every array of its items, `list` with the list's arrays,
`backbone`, `head`, the JSON that tells the rest (bytes of UTF-8), and likewise `ledger`, how each video was decoded. It is opened
by `open_store` like a cache of one shard a stream, and never written to again.

n items, D embed_dim.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from glscl.cache.additions import Addition, addition_of, write_addition
from glscl.cache.creation import StoreSpec, create_library, foreign_names
from glscl.cache.files import dump_json, remove, storage_errors, sync_directory, sync_tree, written
from glscl.cache.formats import STORES
from glscl.cache.formats.blocks import Blocks
from glscl.cache.frame_format import FrameSpec
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import FLAT, Library, Place, open_library
from glscl.cache.lists import (
    CacheList,
    current_version,
    list_arrays,
    list_names,
    list_record,
    make_current,
    versions_of,
    write_list,
)
from glscl.cache.lock import hold, hold_file
from glscl.cache.reading import read_entries
from glscl.cache.remains import sweep
from glscl.cache.schema import STREAMS
from glscl.cache.shard_arrays import LAYOUT
from glscl.cache.shards import describe_array, see_damage
from glscl.cache.store import Store, choose_list
from glscl.cache.upkeep.verification import verify_commit
from glscl.common.errors import CacheCorruptError, UsageError

FLAT_SUFFIXES = {".h5": "hdf5", ".hdf5": "hdf5", ".zarr": "zarr"}
SHARD_ITEMS = {"video": 128, "text": 2048}  # of a folder made from a flat file, which has no shards


def check_name(out: Path, format: str | None) -> str | None:
    """The format of a flat file by its name, None for a cache folder. Raises UsageError where `format` contradicts it."""
    flat = FLAT_SUFFIXES.get(out.suffix.lower())
    if flat and format not in (None, flat):
        raise UsageError(f"{out.name} will be {flat} by its name; `format` says {format}")
    return flat


def convert(library: Library, out: Path, *, format: str | None = None, lists: Sequence[str] = ()) -> Path:
    """Write lists and their items again, in another format or as one flat file.

    A cache folder that an earlier attempt began is gone on with; of a flat file, which begins anew, the remains are removed.

    Args:
        library: an open cache.
        out: `*.h5` or `*.zarr` makes one flat file or group, of one list; any other name a cache folder.
        format: of a cache folder; the other one by default.
        lists: which lists, each as `open_store` takes it; by default all that have a version that counts.

    Returns:
        `out`.

    Raises:
        CacheIncompleteError: a list is not complete, or none was ever finished.
        CacheCorruptError: something that is needed is damaged; damage is not carried over.
        NotFoundError: there is no such list.
        UsageError: `out` exists, and is no conversion of these lists that was stopped, or lies in the cache; or `format`
            contradicts its name; or a flat file is asked for and there are several lists.
        BusyError: another process writes `out`.
        StorageError: it cannot be written.
    """
    flat = check_name(out, format)
    if flat and len(lists) > 1:
        raise UsageError(f"{out.name} holds one list; asked for {len(lists)}", hint="Choose one with `list`")
    if out.resolve().is_relative_to(library.path.resolve()):
        raise UsageError(f"{out} lies in the cache that is converted", hint="Choose a folder outside with `out`")
    chosen = _chosen(library, lists, one=flat is not None)
    for made in chosen:
        Store(library, made).require_complete()
    items = {stream: _Items(library, stream, chosen) for stream in STREAMS}
    format = format or next(name for name in STORES if name != library.header["format"])
    if os.path.lexists(out) and (flat or not _was_begun(library, out, format, chosen, items)):
        raise _there_already(out)
    for each in items.values():
        each.require_whole()
    if flat:
        return _write_flat(library, out, flat, chosen[0], items)
    return _write_cache(library, out, format, chosen, items)


def spec_of(library: Library) -> StoreSpec:
    """What `create_library` needs to begin a cache like this one."""
    own = ("embed_dim", "dtype", "tokens")
    return StoreSpec(
        configuration={k: v for k, v in library.configuration.items() if k not in own},
        embed_dim=library.embed_dim,
        dtype=library.dtype,
        tokens=library.has_tokens,
        frames=library.frames,
        versions=library.header.get("versions", {}),
    )


def _chosen(library: Library, asked: Sequence[str], *, one: bool) -> list[CacheList]:
    """The versions that are converted, in order."""
    if asked or one or library.is_flat:
        found = [choose_list(library, each) for each in asked or (None,)]
        names = [made.name for made in found]
        if len(set(names)) < len(names):
            raise UsageError(
                f"A list is named twice: {', '.join(names)}", hint="Choose one version of each list with `list`"
            )
        return found
    names = list_names(library.path)
    counting = [name for name in names if current_version(library.path, name)]
    return [choose_list(library, name) for name in counting or names[:1] or [None]]  # of what never counted, why not


class _Items:
    """The items of some lists in a stream, each once, in the order in which the lists name them.

    Attributes:
        numbers: (n,) int64, of the items in the library.
    """

    def __init__(self, library: Library, stream: str, lists: Sequence[CacheList]) -> None:
        self.library, self.stream, self.about = library, stream, library.stream(stream)
        named = np.concatenate([np.zeros(0, np.int64), *(Store(library, made).numbers[stream] for made in lists)])
        named = named[named >= 0]
        self.numbers = named[np.sort(np.unique(named, return_index=True)[1])]
        self._ledgers: dict[int, list[dict[str, Any]]] = {}  # position of a shard → its ledger

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def keys(self) -> np.ndarray:
        """(n, 16) uint8."""
        return self.about.keys[self.numbers]

    def addition(self) -> Addition | None:
        """The one addition that they become; None of no items."""
        if not len(self):
            return None
        sizes = [SHARD_ITEMS[self.stream]] if self.library.is_flat else [a.shard_items for a in self.about.additions]
        return addition_of(self.stream, self.keys, shard_items=max(sizes))

    def require_whole(self) -> None:
        """Raise CacheCorruptError where a shard that holds some of them is damaged: what is read is written with new checksums."""
        for position in np.unique(self._positions(self.numbers)).tolist():
            place = self.about.places[position]
            commit = self.about.commit_of(place)
            problems = verify_commit(self.library, commit, place.addition.keys)
            if problems:
                raise CacheCorruptError(f"{self.library.place}: {problems[0]}", hint=see_damage(self.library.path))

    def arrays(self, run: slice) -> dict[str, np.ndarray | Blocks]:
        """The arrays of a run of the items as one shard holds them."""
        numbers = self.numbers[run]
        found: dict[str, np.ndarray | Blocks] = {}
        found |= read_entries(self.library, self.stream, list(LAYOUT[self.stream]), numbers)
        if self.stream == "video" and self.library.frames is not None:
            found |= self._stored_frames(self.library.frames, numbers)
        return found

    def failures(self, run: slice) -> list[dict[str, Any]]:
        """What the commits say of those that failed, in order."""
        noted = self.about.failures
        return [dict(noted[number]) for number in self.numbers[run].tolist() if number in noted]

    def ledger(self, run: slice) -> list[dict[str, Any]]:
        """How each was decoded; empty where that was noted of none."""
        numbers, rows = self.numbers[run], []
        for number, position in zip(numbers.tolist(), self._positions(numbers).tolist()):
            place = self.about.places[position]
            if position not in self._ledgers:
                self._ledgers[position] = self.library.ledger(self.stream, place)
            ledger, row = self._ledgers[position], number - place.items.start
            rows.append(ledger[row] if row < len(ledger) else {})
        return rows if any(rows) else []

    def _positions(self, numbers: np.ndarray) -> np.ndarray:
        """Where among all shards that of each item is."""
        return np.searchsorted(self.about.starts, numbers, side="right") - 1

    def _stored_frames(self, spec: FrameSpec, numbers: np.ndarray) -> dict[str, np.ndarray | Blocks]:
        """The stored frames of some items, read an item at a time."""
        runs = list(self._rows(numbers))

        def blocks(name: str) -> Callable[[], Iterator[np.ndarray]]:
            def make() -> Iterator[np.ndarray]:
                for place, rows in runs:
                    readers = self.library.shard(self.stream, place).readers(spec.arrays)
                    if name == "frames":
                        yield readers[name].read(rows.start, rows.stop)
                    elif len(rows):
                        bounds = readers["frame_offsets"].read(rows.start, rows.stop + 1)
                        yield readers[name].read(int(bounds[0]), int(bounds[-1]))

            return make

        if spec.encoding == "uint8":
            shape = (sum(len(rows) for _, rows in runs), *spec.size, 3)
            return {"frames": Blocks(shape, np.uint8, blocks("frames"))}
        lengths = [np.zeros(1, np.int64)]
        for place, rows in runs:
            reader = self.library.shard(self.stream, place).readers(["frame_offsets"])["frame_offsets"]
            lengths.append(np.diff(reader.read(rows.start, rows.stop + 1)))
        offsets = np.cumsum(np.concatenate(lengths))
        return {
            "frame_bytes": Blocks((int(offsets[-1]),), np.uint8, blocks("frame_bytes")),
            "frame_offsets": offsets,
        }

    def _rows(self, numbers: np.ndarray) -> Iterator[tuple[Place, range]]:
        """Of each item its shard, and its rows there."""
        for number, position in zip(numbers.tolist(), self._positions(numbers).tolist()):
            place = self.about.places[position]
            offsets, row = self.library.shard(self.stream, place).boundaries("offsets"), number - place.items.start
            yield place, range(int(offsets[row]), int(offsets[row + 1]))


_AllItems = Mapping[str, _Items]  # by stream


def _was_begun(library: Library, out: Path, format: str, chosen: Sequence[CacheList], items: _AllItems) -> bool:
    """Whether a conversion of these lists to this folder was stopped before its end."""
    if not out.is_dir():
        return False
    if not written(out / "store.json"):
        return not foreign_names(out)  # empty folders come first
    begun = open_library(out)
    if begun.is_flat or begun.header["format"] != format:
        return False
    if any(begun.header.get(key) != library.header.get(key) for key in ("fingerprint", "stored_frames")):
        return False
    wanted = {(made.name, made.hash) for made in chosen}
    there = {(name, version) for name in list_names(out) for version in versions_of(out, name)}
    additions = {each.name for stream in STREAMS for each in begun.stream(stream).additions}
    planned = {addition.name for each in items.values() if (addition := each.addition())}
    done = all(current_version(out, made.name) == made.hash for made in chosen)
    return there <= wanted and additions <= planned and not done


def _write_cache(library: Library, out: Path, format: str, chosen: Sequence[CacheList], items: _AllItems) -> Path:
    target = create_library(out, spec_of(library), format)
    with hold(out, what="convert"):
        target.refresh()
        sweep(target)
        target.write_backbone_tensors(library.backbone_tensors())
        for made in chosen:
            write_list(out, made, format)
        known = KnownFiles.read(out)
        contents = {content.tobytes() for made in chosen for content in made.video_content}
        if known.unite(KnownFiles.read(library.path), contents):
            known.save(out)
        for each in items.values():
            if planned := each.addition():
                write_addition(out, each.stream, planned.keys, shard_items=planned.shard_items)
        target.refresh()
        for each in items.values():
            for place in target.stream(each.stream).pending():
                items_of_shard = place.addition.shard_range(place.shard)
                run = slice(items_of_shard.start, items_of_shard.stop)
                ledger = each.ledger(run) if each.stream == "video" else ()
                target.commit(place.addition, place.shard, each.arrays(run), failures=each.failures(run), ledger=ledger)
            for addition in target.stream(each.stream).additions:
                target.settle(addition)
        for made in chosen:
            make_current(out, made)
    return out


def _write_flat(library: Library, out: Path, format: str, made: CacheList, items: _AllItems) -> Path:
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(out), hold_file(out, what="convert"):
        if os.path.lexists(out):  # another conversion was faster
            raise _there_already(out)
        try:
            STORES[format].write_groups(aside, _groups(library, format, made, items))
            sync_tree(aside)
            os.rename(aside, out)
            sync_directory(out.parent)
        except BaseException:
            remove(aside, out.parent)
            raise
    return out


def _there_already(out: Path) -> UsageError:
    return UsageError(f"{out} exists already", hint="Choose another name, or delete it first")


def _groups(
    library: Library, format: str, made: CacheList, items: _AllItems
) -> Iterator[tuple[str, Mapping[str, np.ndarray | Blocks]]]:
    """The groups of a flat file, made one after another; the head comes last, for it lists what was written."""
    commits = {}
    for stream, each in items.items():
        whole = slice(0, len(each))
        arrays = each.arrays(whole)
        yield stream, arrays
        if not len(each):
            continue
        commits[stream] = {
            "stream": stream,
            "addition": FLAT,
            "shard": 0,
            "items": [0, len(each)],
            "path": stream,
            "arrays": {name: describe_array(array) for name, array in arrays.items()},
            "failures": each.failures(whole),
        }
    told = list_arrays(made)
    yield "list", told
    tensors = library.backbone_tensors()
    yield "backbone", tensors
    ledger = items["video"].ledger(slice(0, len(items["video"])))
    head: dict[str, Any] = {
        **library.header,
        "format": format,
        "ledger": bool(ledger),
        "items": {stream: len(each) for stream, each in items.items()},
        "commits": commits,
        "list": msgspec.to_builtins(list_record(made, told, "list")),
        "backbone": sorted(tensors),
    }
    json = {"head": head, "ledger": ledger} if ledger else {"head": head}
    yield "/", {name: np.frombuffer(dump_json(value, indent=None), np.uint8) for name, value in json.items()}
