"""A data set of the Hugging Face Hub, or a folder that its `datasets` reads: a column of videos, and captions beside it.

Rows are streamed: videos that are files of their own are read where they are, those inside the rows are written into the folder of videos.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from glscl.cache.files import write_atomically
from glscl.cache.keys import stream_content
from glscl.cache.schema import Annotations
from glscl.common.addresses import address_of
from glscl.common.errors import GlsclError, InputError, StorageError, UsageError, first_line, telling
from glscl.common.remote import remote_errors
from glscl.extract.datasets.annotation_rows import CheckedRow, RawRow, build_from_rows
from glscl.extract.datasets.columns import NAMES
from glscl.extract.datasets.own_videos import Archived, ContentHasher, OwnVideos
from glscl.extract.datasets.splits import SPLIT_NAMES, choose_protocol
from glscl.extract.datasets.text_files import check_relative_path, listing

CAPTIONS = (*NAMES["caption"], "captions", "sentences", "texts")


class _Video(NamedTuple):
    """A video of a row: where it is, or its bytes; and what it is called."""

    name: str
    path: str | None
    data: bytes | None


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    repo: str,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
    write: bool = True,
    contents: ContentHasher | None = None,
    allow_shared: bool = False,
) -> Annotations:
    """Read the rows of all splits. A set of one split alone is divided as `csv` divides rows without one.

    Args:
        annotations: not used.
        videos: folder for the videos that stand inside the rows; made if need be. None reads of these the captions alone.
        repo: USER/NAME on the Hub, or a folder here.
        write: False writes no video.
        splits, contents, allow_shared: see `DatasetEntry.read`.
    Raises:
        UsageError: the package `datasets` is missing. NotFoundError: no such data set, or none that one may see.
        StorageError: the Hub cannot be reached. InputError: no column of videos, or a row that is not as it should be.
    """
    choose_protocol(protocol, (), f"hf:{repo}")
    where = Path(f"hf:{repo}")
    found = _opened(repo)
    known = {name: SPLIT_NAMES.get(name.lower()) for name in found}
    if len(found) == 1:
        known = dict.fromkeys(found)
    elif unknown := [name for name, split in known.items() if split is None]:
        raise InputError(f"{where} has the splits {listing([*found])}; expected train, val and test, not {unknown[0]}")
    rows, paths, archived = [], dict[str, str](), dict[str, Archived]()
    notes: list[str] = []
    with telling(notes):
        for part, data in found.items():
            for number, (video, captions) in enumerate(_rows(where, part, data)):
                name = check_relative_path(f"{part}/{video.name}", path=where, row=number)
                if name in paths or name in archived:
                    name = f"{part}/{number:06d}-{video.name}"
                if video.path is not None:
                    paths[name] = video.path
                elif video.data is not None:
                    archived[name] = _kept(video.data)
                    if videos is not None:
                        paths[name] = str(videos / name)
                        _write(videos / name, video.data, write)
                for caption in captions or [None]:
                    raw = RawRow(where, number, name, caption)
                    rows.append(CheckedRow(raw, name, None, None, None, known[part]))
        if not rows:
            raise InputError(f"{where}: it has no rows")
        there = OwnVideos(paths, contents, archived={} if write else archived, looked=True)
        return build_from_rows("hf", where, rows, there, splits=splits, allow_shared=allow_shared, notes=notes)


def _opened(repo: str) -> Mapping[str, Any]:
    """Split → its rows, streamed, with videos as they are stored."""
    try:
        datasets: Any = import_module("datasets")
        kind = datasets.Video(decode=False)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"hf:{repo} needs the package datasets, 5.0 or newer: {first_line(error)}",
            hint="pip install 'glscl[datasets]'",
        ) from error
    address = f"hf://datasets/{repo}"
    with remote_errors(address, "read"):
        try:
            found = datasets.load_dataset(repo, streaming=True)
        except (GlsclError, FileNotFoundError):
            raise
        except (ValueError, RuntimeError) as error:  # no data files of a known kind, a script that would be run
            if isinstance(error, (OSError, ConnectionError)):
                raise
            raise InputError(f"{address} cannot be read as a data set: {first_line(error)}") from error
    for name, data in found.items():
        for column, about in (data.features or {}).items():
            if type(about).__name__ == "Video":
                found[name] = found[name].cast_column(column, kind)
    return found


def _rows(where: Path, part: str, data: Any) -> Iterator[tuple[_Video, list[str]]]:
    columns = dict(data.features or {})
    videos = [name for name, about in columns.items() if type(about).__name__ == "Video"]
    videos += [name for name in NAMES["video"] if name in columns and name not in videos]
    if not videos:
        raise InputError(
            f"{where}, split {part}: its columns are {listing([*columns]) if columns else 'none'}; expected one of videos",
            hint="Export it as a table and use `dataset=csv` where the videos are files of yours",
        )
    captions = next((name for name in CAPTIONS if name in columns), None)
    iterator = iter(data)
    number = 0
    while True:
        with remote_errors(f"hf://datasets/{str(where).removeprefix('hf:')}", "read"):
            row = next(iterator, None)
        if row is None:
            return
        yield _video(where, number, row[videos[0]]), _captions(where, number, row.get(captions or ""))
        number += 1


def _video(where: Path, number: int, cell: Any) -> _Video:
    if isinstance(cell, bytes):
        cell = {"bytes": cell, "path": None}
    if isinstance(cell, str):
        cell = {"bytes": None, "path": cell}
    path, data = (cell.get("path"), cell.get("bytes")) if isinstance(cell, dict) else (None, None)
    name = os.path.basename(path or "") or f"{number:06d}.mp4"
    if data is not None:
        return _Video(name, None, data)
    if not path or "::" in path:  # in an archive
        raise InputError(
            f"{where}, row {number}: the video is {path or 'not there'}; expected a file, or its bytes in the row",
            hint="Download the data set, unpack its archives and use `dataset=folder` or `dataset=csv`",
        )
    return _Video(name, address_of(path, "dataset") or os.path.abspath(path), None)


def _captions(where: Path, number: int, cell: Any) -> list[str]:
    captions = [] if cell is None else [cell] if isinstance(cell, str) else cell
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{where}, row {number}: the caption is {str(cell)[:80]!r}, expected text or a list of texts")
    return captions


def _kept(data: bytes) -> Archived:
    return Archived(len(data), lambda: stream_content(io.BytesIO(data), len(data)))


def _write(path: Path, data: bytes, write: bool) -> None:
    try:
        there = path.stat().st_size == len(data)
    except OSError:
        there = False
    if write and not there:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{path.parent} cannot be made: {error.strerror}", first="Give another folder"
            ) from error
        write_atomically(path, data, durable=False)
