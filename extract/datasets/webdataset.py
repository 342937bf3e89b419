"""Shards as video2dataset and webdataset write them: tar files of `key.mp4` with `key.txt` or `key.json` beside.

Decoders want files, so the videos are unpacked once into the folder of videos, as `<shard>/<key>.<extension>`.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from glscl.cache.files import refuse_links
from glscl.cache.schema import Annotations
from glscl.common.archive_limits import check_unpacked
from glscl.common.errors import GlsclError, InputError, NotFoundError, StorageError
from glscl.extract.datasets.base import SPLIT_NAMES, choose_protocol, examples, split_name
from glscl.extract.datasets.csv_file import Entry, Row, gather_rows
from glscl.extract.datasets.text_files import check_relative_path, parse_json, refuse, show
from glscl.extract.datasets.video_files import VIDEO_EXTENSIONS, VideoFiles

SHARDS = (".tar", ".tar.gz", ".tgz")
TEXT_LIMIT = 4 * 2**20  # bytes of one caption file; more is no caption


class _Sample(NamedTuple):
    key: str
    file: str | None  # relative to the folder of videos; None for captions without a video
    captions: list[str]
    split: str | None


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
    unpack: bool = True,
) -> Annotations:
    """List the samples of all shards, and unpack the videos that are not yet there (whole, with the size they have).

    A sample's caption is its `.txt`, or "caption" or "captions" of its `.json`. If every shard lies in a first
    sub-folder named train, val or test, those are the splits; else as for `csv`.

    Args:
        annotations: a shard, or a folder with shards in it or below.
        videos: folder to unpack into; made if need be. None reads the captions alone.
        splits: only these (all shards are unpacked).
        unpack: False writes nothing; the paths are those the files would have.
    Raises:
        InputError: a damaged shard or sample, naming both.
        NotFoundError: no shard.
        StorageError: the disk is full or read-only, or a link stands in the folder to unpack into.
    """
    choose_protocol(protocol, (), "webdataset")
    if annotations is None:
        raise NotFoundError("webdataset: no shards were given", mend="Give --annotations DIR with .tar files.")
    folder, shards = _shards(annotations)
    if videos is not None and unpack:
        refuse_links(videos)
        _make(videos)
    split_of = {shard: SPLIT_NAMES.get(shard.split("/")[0].lower()) if "/" in shard else None for shard in shards}
    from_folders = all(split_of.values())
    entries = []
    alone = []
    for shard, stem in shards.items():
        path = folder / shard
        for sample in _samples(path, stem, videos if unpack else None):
            if sample.file is None:
                alone.append(f"{sample.key} of {shard}")
                continue
            split = split_of[shard] if from_folders else sample.split
            rows = [Row(path, show(sample.key), sample.file, caption) for caption in sample.captions]
            for row in rows or [Row(path, show(sample.key), sample.file, None)]:
                entries.append(Entry(row, sample.file, sample.file, None, None, split))
    if not entries:
        raise InputError(f"{annotations}: no video in {len(shards)} shard(s)")
    gather = gather_rows("webdataset", annotations, entries, splits)
    if alone:
        gather.note(f"dropped {len(alone)} sample(s) without a video: {examples(alone)}")
    located = {} if videos is None else {entry.file: os.path.join(videos.absolute(), entry.file) for entry in entries}
    return gather.annotations(videos, located=located)


def _shards(path: Path) -> tuple[Path, dict[str, str]]:
    """The folder of the shards, and the relative name of each with its stem, sorted."""
    if path.is_file():
        names, folder = [path.name], path.parent
    elif path.is_dir():
        names, folder = [name for name in VideoFiles(path).names if name.lower().endswith(SHARDS)], path
    else:
        raise NotFoundError(f"{path}: no such file or folder", mend="Give --annotations DIR with .tar files.")
    if not names:
        raise NotFoundError(f"{path} has no shard; expected files ending in {', '.join(SHARDS)}")
    stems: dict[str, str] = {}
    for name in names:
        suffix = next((suffix for suffix in SHARDS if name.lower().endswith(suffix)), "")
        stem = name[: len(name) - len(suffix)] if suffix else f"{name}.d"
        other = stems.setdefault(stem, name)
        if other != name:
            raise InputError(f"{folder}: the shards {other} and {name} would be unpacked into one folder, {stem}")
    return folder, {name: stem for stem, name in stems.items()}


def _samples(shard: Path, stem: str, videos: Path | None) -> list[_Sample]:
    """The samples of a shard in its order, their videos unpacked into `videos` where it is given."""
    files: dict[str, str] = {}
    captions: dict[str, dict[str, list[str]]] = {}
    splits: dict[str, str] = {}
    try:
        with tarfile.open(shard) as archive:
            size = shard.stat().st_size
            for member in archive:
                _check_growth(member, size, shard)
                if not member.isreg():  # folders; links and devices have no place in a shard
                    continue
                name = check_relative_path(member.name, shard, show(member.name))
                head, slash, base = name.rpartition("/")
                if base.startswith("."):
                    continue
                key, _, extension = base.partition(".")
                key = f"{head}{slash}{key}"
                kind = extension.lower().rpartition(".")[2]
                if kind in VIDEO_EXTENSIONS:
                    if files.setdefault(key, f"{stem}/{name}") != f"{stem}/{name}":
                        refuse(shard, show(key), f"two videos: {files[key]} and {stem}/{name}")
                    captions.setdefault(key, {})
                    if videos is not None:
                        _unpack(archive, member, videos, f"{stem}/{name}")
                elif extension in ("txt", "json"):
                    text = _small_text(archive, member, shard)
                    if extension == "txt":
                        captions.setdefault(key, {})["txt"] = [text]
                    else:
                        captions.setdefault(key, {})["json"], split = _from_json(text, shard, key)
                        if split:
                            splits[key] = split
            _check_end(archive)
    except GlsclError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, lzma.LZMAError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise InputError(f"{shard}: a damaged or truncated shard: {reason}", mend="Fetch or write it again.") from None
    return [
        _Sample(key, files.get(key), found.get("txt") or found.get("json") or [], splits.get(key))
        for key, found in captions.items()
    ]


def _check_growth(member: tarfile.TarInfo, size: int, shard: Path) -> None:
    """Refuse a shard of `size` bytes that claims, up to this member, to hold far more."""
    try:
        check_unpacked(member.offset_data + member.size, size)
    except ValueError as error:
        refuse(shard, show(member.name), str(error))


def _check_end(archive: tarfile.TarFile) -> None:
    """Refuse a shard that stops without its end mark, a block of zeros; to tarfile any damaged header is the end."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no further sample can be read, and there is no end mark")


def _from_json(text: str, shard: Path, key: str) -> tuple[list[str], str | None]:
    """Captions and split of a sample's JSON file."""
    content = parse_json(text, shard)
    if not isinstance(content, dict):
        refuse(shard, show(key), f"its .json is {show(content)}, expected an object")
    value = content.get("caption", content.get("captions"))
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(caption, str) for caption in values):
        refuse(shard, show(key), f"the caption is {show(value)}, expected a string or a list of strings")
    split = content.get("split")
    return values, None if split is None else split_name(split, shard, show(key))


def _small_text(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> str:
    if member.size > TEXT_LIMIT:
        refuse(shard, show(member.name), f"{member.size} bytes, expected a caption of at most {TEXT_LIMIT}")
    data = _content(archive, member).read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(shard, show(member.name), f"byte 0x{data[error.start]:02x} is not UTF-8")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    return content


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, videos: Path, name: str) -> None:
    """Write a video aside and move it into place, unless it is there with the size it should have."""
    target = videos / name
    with suppress(OSError):
        if target.stat().st_size == member.size:
            return
    _make(target.parent)
    aside = target.with_name(f".{os.getpid()}.part")
    content = _content(archive, member)
    try:
        with open(aside, "wb") as out:
            while block := _block(content):
                out.write(block)
        if aside.stat().st_size != member.size:
            raise tarfile.ReadError(f"{member.name} ends early")
        os.replace(aside, target)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _block(content: IO[bytes]) -> bytes:
    """The next megabyte of a member; a shard that cannot be read is no fault of the disk written to."""
    try:
        return content.read(2**20)
    except OSError as error:
        raise tarfile.ReadError(str(error)) from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror or error}") from None
