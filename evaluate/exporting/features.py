"""The features of a list as they are stored, by video and by caption, for programs that read arrays by name.

    frames/ID.npy, frames/ID.npz, frames.h5 or frames/00000.tar …    (F, D) each, or (D,) pooled
    texts/…, texts.h5                                                (D,) each, called ID#n
    tokens/…, tokens.h5                                              (L, D) each, called ID#n
    frames.parquet, frames.lance                                     a row a frame: name, split, time, vector (D,)
    texts.parquet, tokens.parquet, …lance                            a row a caption or token: name, text, vector (D,)
    captions.csv                                                     video, caption, split, id: what `import-features` takes

F frames, L tokens, D embed_dim.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from glscl.cache.files import dump_json, refuse_link, write_atomically
from glscl.cache.lock import hold_folder
from glscl.cache.reading import in_pieces, read_entries, without_padding
from glscl.cache.schema import Status
from glscl.cache.shard_arrays import decode_features
from glscl.cache.store import Store
from glscl.common.errors import InputError, UsageError
from glscl.common.versions import versions
from glscl.evaluate.exporting.frame_vectors import put_aside

FEATURE_FORMATS = ("npy-files", "npz", "h5", "webdataset", "parquet", "lance")
_ENDS = {"h5": ".h5", "parquet": ".parquet", "lance": ".lance"}
NAMES = ("id", "content")
BLOCK = 1 << 15  # rows that are held at once, one item at least
SAMPLES = 1000  # of an archive
_LONGEST = 200  # bytes of a part of a file's name


@dataclass(frozen=True, kw_only=True)
class ExportedFeatures:
    """What was written. `left_out`: videos and captions of the list that have no features."""

    out: Path
    files: tuple[str, ...]
    videos: int
    texts: int
    dim: int
    left_out: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "out": str(self.out), "files": list(self.files)}


class _Writer(Protocol):
    def add(self, name: str, array: np.ndarray, about: dict[str, Any]) -> None:
        """Keep an array; `about`: "times" (F,), and what is told of a sample beside."""
        ...

    def close(self) -> None: ...


def export_features(
    store: Store,
    out: Path,
    *,
    to: str,
    split: str | None = None,
    pooled: bool = False,
    names: str = "id",
    about: dict[str, Any] | None = None,
) -> ExportedFeatures:
    """Write frames, captions and tokens by name, in the type that they are stored in (bfloat16 as float32).

    Args:
        out: a folder; what an earlier export left there of the same name is replaced.
        to: "npy-files" and "npz": a file an item, of which `.npz` has `features`, and `times` in seconds of frames; "h5": a
            dataset an item; "webdataset": archives of `.npy`, `.txt` with a caption a line, and `.json`; "parquet" and "lance":
            tables with a row a frame, caption or token, the rows of an item one after another.
        split: only its videos and captions.
        pooled: of each video the mean of its frames, each of length 1 before and the mean after.
        names: what a video is called: its "id", or its "content": 32 hexadecimal digits, the same in every list.

    Raises:
        UsageError: no such format or names, what writes it is not installed, or `out` has something of the same name that is no export.
        InputError: no such split, an id that is no name of a file, or no frames.
        BusyError: another process writes `out`. StorageError: the disk is full or failing, or a link stands there.
    """
    if to not in FEATURE_FORMATS or names not in NAMES:
        raise UsageError(f"`to` is {to!r} and `names` {names!r}; expected {', '.join(FEATURE_FORMATS)}; id or content")
    _require_modules(to)
    store.require_complete()
    if split is not None and split not in store.splits:
        raise InputError(f"{store.place} has no split {split!r}; it has {', '.join(store.splits) or 'none'}")
    listed = _Listed(store, split, names)
    listed.check(to)
    out = Path(out)
    written = []
    told = {**(about or {}), "names": names, "pooled": pooled, "embed_dim": store.embed_dim, "versions": versions()}
    with hold_folder(out, what="export"):
        _require_ours(out, [*(f"{part}{_ENDS.get(to, '')}" for part in ("frames", "texts", "tokens")), "captions.csv"])
        write_atomically(out / "export.json", dump_json({**told, "complete": False}))
        for part, arrays in (
            ("frames", listed.frames(pooled)),
            ("texts", listed.texts("pooled")),
            ("tokens", listed.texts("values") if store.has_tokens else iter(())),
        ):
            if part == "tokens" and not store.has_tokens:
                continue
            file = f"{part}{_ENDS.get(to, '')}"
            put_aside(out / file, lambda path, arrays=arrays: _write(_WRITERS[to](path), arrays))
            written.append(file)
        write_atomically(out / "captions.csv", listed.table())
        if names == "content":
            told["video_ids"] = listed.ids
        write_atomically(out / "export.json", dump_json(told))
    return ExportedFeatures(
        out=out,
        files=(*written, "captions.csv", "export.json"),
        videos=len(listed.rows),
        texts=len(listed.captions),
        dim=store.embed_dim,
        left_out=listed.left_out,
    )


def listed_frames(store: Store, split: str | None) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """id, (F, D) and "split", "captions", "times" of each video with frames. Raises InputError: there are none."""
    yield from _Listed(store, split, "id").frames(pooled=False)


def _write(writer: _Writer, arrays: Iterator[tuple[str, np.ndarray, dict[str, Any]]]) -> None:
    try:
        for name, array, about in arrays:
            writer.add(name, array, about)
    finally:
        writer.close()


class _Listed:
    """What of a list is written, and what it is called.

    Attributes:
        rows: name of a video → its row. ids: name → ids. captions: (row, name `VIDEO#n`, name of the video) of the captions,
            numbered by video as the rows of the table stand.
    """

    def __init__(self, store: Store, split: str | None, names: str) -> None:
        self.store, run = store, store.everything if split is None else store.splits[split]
        usable = np.isin(store.status(), [status for status in Status if status.usable])
        keys, ids = store.list.video_key, store.ids("video")
        name_of = {
            row: keys[row].tobytes().hex() if names == "content" else ids[row]
            for row in range(run.videos.start, run.videos.stop)
            if usable[row]
        }
        if not name_of:
            raise InputError(f"{store.place}: there are no frames to export")
        self.rows: dict[str, int] = {}
        self.ids: dict[str, list[str]] = {}
        for row, name in name_of.items():
            self.rows.setdefault(name, row)
            self.ids.setdefault(name, []).append(ids[row])
        self.captions: list[tuple[int, str, str]] = []
        count: Counter[str] = Counter()
        for row in range(run.texts.start, run.texts.stop):
            name = name_of.get(int(store.list.text_video[row]))
            if name is not None and store.numbers["text"][row] >= 0:
                self.captions.append((row, f"{name}#{count[name]}", name))
                count[name] += 1
        self.without = [name for name in self.rows if not count[name]]
        self.split_of = {
            row: name
            for name, each in store.splits.items()
            for row in range(each.videos.start, each.videos.stop)
        }  # fmt: skip
        self.left_out = {
            "videos": len(run.videos) - len(name_of),
            "texts": len(run.texts) - len(self.captions),
        }

    def check(self, to: str) -> None:
        """Raise InputError for an id that cannot be a file, or a folder where another is a file."""
        for name in self.rows:
            parts = name.split("/")
            if any(part in ("", ".", "..") or len(part.encode("utf-8", "replace")) > _LONGEST for part in parts):
                raise _no_name(name)
            if not name.isprintable() or "\\" in name:
                raise _no_name(name)
            if to == "h5" and any("/".join(parts[:count]) in self.rows for count in range(1, len(parts))):
                raise _no_name(name)

    def table(self) -> bytes:
        """captions.csv."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["video", "caption", "split", "id"])
        captions = self.store.list.captions
        for row, _, name in self.captions:
            table.writerow([name, captions[row], self.split_of.get(self.rows[name], ""), name])
        for name in self.without:
            table.writerow([name, "", self.split_of.get(self.rows[name], ""), name])
        return text.getvalue().encode("utf-8", "replace")

    def frames(self, pooled: bool) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
        """Name, (F, D) or (D,), and what is known of each video."""
        store, names, rows = self.store, [*self.rows], np.array([*self.rows.values()])
        texts: dict[str, list[str]] = {}
        for row, _, name in self.captions:
            texts.setdefault(name, []).append(store.list.captions[row])
        numbers = store.numbers["video"][rows]
        counts = np.diff(read_entries(store.library, "video", ["offsets"], numbers)["offsets"])
        for chosen in in_pieces(np.arange(len(rows)), counts, BLOCK):
            found = read_entries(store.library, "video", ["values", "times"], numbers[chosen])
            values = decode_features(found["values"], store.dtype)
            for at, first, stop in zip(chosen, found["offsets"], found["offsets"][1:]):
                name, frames, times = names[at], values[first:stop], found["times"][first:stop]
                about = {
                    "video_id": self.ids[name][0],
                    "split": self.split_of.get(int(rows[at]), ""),
                    "captions": texts.get(name, []),
                    "times": times,
                }
                yield name, _mean(frames) if pooled else frames, about

    def texts(self, which: str) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
        """Name and (D,) `pooled` or (L, D) `values` of each caption."""
        store, rows = self.store, np.array([row for row, _, _ in self.captions], np.int64)
        for start in range(0, len(rows), 1024):
            numbers = store.numbers["text"][rows[start : start + 1024]]
            found = read_entries(store.library, "text", [which, "token_ids"], numbers)
            found = without_padding(found) if which == "values" else found
            values = decode_features(found[which], store.dtype)
            for at in range(len(numbers)):
                row, name, _ = self.captions[start + at]
                array = values[at] if which == "pooled" else values[found["offsets"][at] : found["offsets"][at + 1]]
                yield name, array, {"captions": [store.list.captions[row]]}


def _no_name(id: str) -> InputError:
    return InputError(f"the id {id[:100]!r} cannot be the name of a file", hint="Call videos by `names=content`")


def _mean(frames: np.ndarray) -> np.ndarray:
    """(F, D) → (D,), of length 1, in the same type."""
    rows = frames.astype(np.float32)
    mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
    return (mean / np.linalg.norm(mean)).astype(frames.dtype)


# --- kinds of files ---------------------------------------------------------------------------------------------------


class _Files:
    """A file an item, below a folder."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self.suffix = folder, suffix
        folder.mkdir()

    def add(self, name: str, array: np.ndarray, about: dict[str, Any]) -> None:
        path = self.folder / f"{name}{self.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.suffix == ".npy":
            np.save(path, array)
        elif "times" in about and array.ndim == 2:
            np.savez(path, features=array, times=about["times"])
        else:
            np.savez(path, features=array)

    def close(self) -> None:
        pass


class _Datasets:
    """A dataset an item, in one HDF5 file."""

    def __init__(self, path: Path) -> None:
        import h5py

        self.file = h5py.File(path, "w")

    def add(self, name: str, array: np.ndarray, about: dict[str, Any]) -> None:
        self.file.create_dataset(name, data=array)

    def close(self) -> None:
        self.file.close()


class _Archives:
    """Archives of samples, as webdataset reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.archive: tarfile.TarFile | None = None
        folder.mkdir()

    def add(self, name: str, array: np.ndarray, about: dict[str, Any]) -> None:
        if self.count % SAMPLES == 0:
            self.close()
            self.archive = tarfile.open(self.folder / f"{self.count // SAMPLES:05d}.tar", "w")  # noqa: SIM115
        self.count += 1
        values = io.BytesIO()
        np.save(values, array)
        told = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in about.items()}
        captions = "\n".join(about["captions"]).encode("utf-8", "replace")
        for end, data in (("npy", values.getvalue()), ("txt", captions), ("json", json.dumps(told).encode())):
            assert self.archive is not None
            member = tarfile.TarInfo(f"{name}.{end}")
            member.size = len(data)
            self.archive.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        if self.archive is not None:
            self.archive.close()


def _require_ours(out: Path, names: Sequence[str]) -> None:
    """Raise UsageError where somebody else's file or folder would be replaced: an export says in export.json that it is one."""
    there = [out / name for name in names if os.path.lexists(out / name)]
    if there and not (out / "export.json").is_file():
        raise UsageError(f"{there[0]} is there already and is no export", hint="Choose another folder with `out`")
    for path in there:
        refuse_link(path)


def _require_modules(to: str) -> None:
    names = {"parquet": ("pyarrow", "pyarrow.parquet"), "lance": ("lance", "pyarrow")}.get(to, ())
    try:
        for name in names:
            importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{to} needs {error.name}, which is not installed", hint=f"pip install 'glscl[{to}]'"
        ) from error


class _Table:
    """A row a frame, caption or token, in Parquet or Lance."""

    def __init__(self, path: Path, to: str) -> None:
        self.path, self.to = path, to
        self.rows = 0
        self.held: list[tuple[str, np.ndarray, dict[str, Any]]] = []
        self.writer: Any = None

    def add(self, name: str, array: np.ndarray, about: dict[str, Any]) -> None:
        self.held.append((name, np.atleast_2d(array), about))
        self.rows += len(self.held[-1][1])
        if self.rows >= BLOCK:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self.to == "parquet" and self.writer is not None:
            self.writer.close()

    def _flush(self) -> None:
        if not self.rows:
            return
        batch = self._batch()
        self.held, self.rows = [], 0
        if self.to == "lance":
            lance: Any = importlib.import_module("lance")
            mode = "create" if self.writer is None else "append"
            self.writer = lance.write_dataset(batch, str(self.path), mode=mode)
            return
        if self.writer is None:
            parquet: Any = importlib.import_module("pyarrow.parquet")
            self.writer = parquet.ParquetWriter(self.path, batch.schema)
        self.writer.write_table(batch)

    def _batch(self) -> Any:
        pa: Any = importlib.import_module("pyarrow")
        counts = [len(array) for _, array, _ in self.held]

        def column(values: list[str]) -> Any:
            return pa.array(np.repeat(np.array(values, object), counts), pa.string())

        vectors = np.concatenate([array for _, array, _ in self.held])
        flat = pa.array(np.ascontiguousarray(vectors).ravel())
        columns = {"name": column([_text(name) for name, *_ in self.held])}
        if "split" in self.held[0][2]:
            columns["split"] = column([about["split"] for *_, about in self.held])
            if len(self.held[0][2]["times"]) == len(self.held[0][1]):  # not pooled
                columns["time"] = pa.array(np.concatenate([about["times"] for *_, about in self.held]))
        else:
            columns["text"] = column([_text(about["captions"][0]) for *_, about in self.held])
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        return pa.table(columns)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


_WRITERS: dict[str, Callable[[Path], _Writer]] = {
    "npy-files": lambda path: _Files(path, ".npy"),
    "npz": lambda path: _Files(path, ".npz"),
    "h5": _Datasets,
    "webdataset": _Archives,
    "parquet": lambda path: _Table(path, "parquet"),
    "lance": lambda path: _Table(path, "lance"),
}
