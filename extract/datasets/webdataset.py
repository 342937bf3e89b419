"""Shards as video2dataset and webdataset write them: tar files of `key.mp4` with `key.txt` or `key.json` beside.

Videos are read from the shard where they lie, those of a compressed one from the plain tar that it is unpacked to, once.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from glscl.cache.schema import Annotations
from glscl.common.archive_limits import check_unpacked
from glscl.common.errors import GlsclError, InputError, NotFoundError, telling
from glscl.common.tables import amount
from glscl.common.tar_members import TarMember
from glscl.extract.datasets.annotation_rows import CheckedRow, RawRow, build_from_rows
from glscl.extract.datasets.columns import captions_of
from glscl.extract.datasets.own_videos import Archived, ContentHasher, OwnVideos
from glscl.extract.datasets.splits import SPLIT_NAMES, choose_protocol, split_name
from glscl.extract.datasets.text_files import check_relative_path, examples, fold, parse_json, refuse, show
from glscl.extract.datasets.unpacking import content_of_member, member_content, plain_tar, unpack
from glscl.extract.datasets.video_files import VIDEO_EXTENSIONS, VideoFiles, split_extension

SHARDS = (".tar", ".tar.gz", ".tgz")
HEADER_LIMIT = 2**17  # bytes of the names and attributes of a member
TEXT_LIMIT = 4 * 2**20  # bytes of one caption file; more is no caption
TEXTS = (
    "txt",
    "text",
    "caption",
    "captions",
    "caption.txt",
    "captions.txt",
    "text.txt",
)  # ends of a sample's captions …
OBJECTS = ("json", "caption.json", "captions.json")  # … and of objects that hold some


class _Sample(NamedTuple):
    key: str
    file: str  # what its video is called: `<shard>/<key>.<extension>`
    captions: list[str]
    split: str | None
    place: TarMember | None  # where its video lies; None in a compressed shard, without a folder to unpack it to
    archived: Archived | None  # what its video is as long as that is not unpacked


class _Header(tarfile.TarInfo):
    """What stands before a member: refused where reading it alone would take more memory than names need.

    tarfile reads long names, attributes and the map of a sparse member whole, and packed they are as small as one likes.
    """

    _NAMES = (
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    )
    _CONTINUED = 482  # of a sparse member: whether its map goes on in further blocks

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in cls._NAMES and header.size > HEADER_LIMIT:
            raise ValueError(f"a header of {header.size} bytes; at most {HEADER_LIMIT} are taken")
        if header.type == tarfile.GNUTYPE_SPARSE and buf[cls._CONTINUED]:
            raise ValueError(f"{show(header.name)} is sparse, in many pieces")
        return header

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise ValueError("a sparse member, in many pieces")


class _Unused:
    """Members and captions of shards that become nothing, each kind with how many there are."""

    def __init__(self) -> None:
        self.members: Counter[str] = Counter()
        self.alone: list[str] = []  # captions without a video
        self.other_captions: list[str] = []  # samples whose .json says something else than their .txt

    def notes(self) -> list[str]:
        notes = []
        if self.members:
            shown = ", ".join(f"{count} {kind}" for kind, count in sorted(self.members.items()))
            notes.append(f"members of the shards that are neither video nor caption, not used: {shown}")
        if self.alone:
            notes.append(f"dropped {amount(len(self.alone), 'sample')} without a video: {examples(self.alone)}")
        if self.other_captions:
            notes.append(
                f"{amount(len(self.other_captions), 'sample')} with other captions in .json than in .txt, of which those in .txt "
                f"are used: {examples(self.other_captions)}"
            )
        return notes


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
    write: bool = True,
    contents: ContentHasher | None = None,
    allow_shared: bool = False,
) -> Annotations:
    """List the samples of all shards, and unpack those shards that are compressed.

    A sample's caption is its `.txt`, or the captions of its `.json` where that holds all of them. If every shard lies in a
    first sub-folder named train, val or test, those are the splits; else as for `csv`.

    Args:
        annotations: a shard, or a folder with shards in it or below.
        videos: folder to unpack compressed shards into; made if need be. None reads of these the captions alone.
        splits: only these (all shards are unpacked).
        write: False unpacks nothing; the places are those that the videos would have.
        contents, allow_shared: see `DatasetEntry.read`.
    Raises:
        InputError: a damaged shard or sample, naming both.
        NotFoundError: no shard.
        StorageError: the disk is full or read-only, or a link stands in the folder to unpack into.
    """
    choose_protocol(protocol, (), "webdataset")
    if annotations is None:
        raise NotFoundError("webdataset: no shards were given", hint="Give `annotations=DIR` with .tar files.")
    folder, shards = _shards(annotations)
    split_of = {shard: SPLIT_NAMES.get(shard.split("/")[0].lower()) if "/" in shard else None for shard in shards}
    from_folders = all(split_of.values())
    rows, archived, paths, unused = [], dict[str, Archived](), dict[str, str](), _Unused()
    for shard, stem in shards.items():
        path = folder / shard
        for sample in _samples(path, stem, videos, write, unused):
            split = split_of[shard] if from_folders else sample.split
            raw = [RawRow(path, show(sample.key), sample.file, caption) for caption in sample.captions]
            for row in raw or [RawRow(path, show(sample.key), sample.file, None)]:
                rows.append(CheckedRow(row, sample.file, None, None, None, split))
            if sample.place is not None:
                paths[sample.file] = str(sample.place)
            if sample.archived is not None:
                archived[sample.file] = sample.archived
    notes = unused.notes()
    with telling(notes):
        if not rows:
            raise InputError(f"{annotations}: no video in {amount(len(shards), 'shard')}")
        found = OwnVideos(paths, contents, archived=archived, looked=len(paths) == len({row.file for row in rows}))
        return build_from_rows(
            "webdataset", annotations, rows, found, splits=splits, allow_shared=allow_shared, notes=notes
        )


def _shards(path: Path) -> tuple[Path, dict[str, str]]:
    """The folder of the shards, and the relative name of each with its stem, sorted."""
    if path.is_file():
        names, folder = [path.name], path.parent
    elif path.is_dir():
        names, folder = [name for name in VideoFiles(path).names if name.lower().endswith(SHARDS)], path
    else:
        raise NotFoundError(f"{path}: no such file or folder", hint="Give `annotations=DIR` with .tar files.")
    if not names:
        raise NotFoundError(f"{path} has no shard; expected files ending in {', '.join(SHARDS)}")
    stems: dict[str, str] = {}
    for name in names:
        suffix = next((suffix for suffix in SHARDS if name.lower().endswith(suffix)), "")
        stem = name[: len(name) - len(suffix)] if suffix else f"{name}.d"
        other = stems.setdefault(stem, name)
        if other != name:
            raise InputError(f"{folder}: the videos of {other} and of {name} would have the same names, {stem}/…")
    return folder, {name: stem for stem, name in stems.items()}


def _samples(shard: Path, stem: str, videos: Path | None, write: bool, unused: _Unused) -> list[_Sample]:
    """The samples of a shard in its order; a compressed one is unpacked into `videos` where that is wanted."""
    files: dict[str, str] = {}  # key → name of the video
    lies_in: dict[str, tarfile.TarInfo] = {}  # key → member
    texts: dict[str, tuple[int, bytes]] = {}  # name → size and content of what may be a caption file
    order: dict[str, None] = {}
    place = shard
    with _opened(shard) as archive:
        if not isinstance(archive.fileobj, io.BufferedReader):
            place = None if videos is None else plain_tar(shard, videos, stem)
    there = place is not None and place.is_file()
    with _opened(shard, place if there else None) as archive:
        for name, member in _members(archive, shard, unused):
            if name in order:
                refuse(shard, show(name), "stands twice in the shard; expected each name once")
            order[name] = None
            key, extension = split_extension(name)
            if extension:
                if key in files:
                    refuse(shard, show(key), f"two videos: {stem}/{files[key]} and {stem}/{name}")
                if member.issparse():
                    refuse(
                        shard,
                        show(name),
                        "is stored with holes",
                        hint="Write the shard so that no file in it is sparse",
                    )
                files[key], lies_in[key] = name, member
            elif name.lower().endswith((".txt", ".json", *(f".{end}" for end in TEXTS))):
                texts[name] = member.size, member_content(archive, member).read(TEXT_LIMIT)
            else:
                unused.members[_kind(name)] += 1
        _check_end(archive)
        if place is not None and write and not there:
            unpack(archive, place)
            there = True
    parts: dict[str, list[tuple[str, str]]] = defaultdict(list)  # key → end and content of its caption files
    for name, (size, data) in texts.items():
        key, end = _owner(name, files, shard)
        if key is None:
            unused.alone.append(f"{end} of {shard.name}")
        elif end in (*TEXTS, *OBJECTS):
            parts[key].append((end, _text(shard, name, size, data)))
        else:
            unused.members[f".{end}"] += 1
    unused.alone = list(dict.fromkeys(unused.alone))
    samples = []
    for key, name in files.items():
        captions, split = _captions(parts[key], shard, key, unused)
        member = lies_in[key]
        at = place and TarMember(os.path.abspath(place), name, member.offset_data, member.size)
        archived = None if there else Archived(member.size, partial(content_of_member, shard, member))
        samples.append(_Sample(key, f"{stem}/{name}", captions, split, at, archived))
    return samples


def _members(archive: tarfile.TarFile, shard: Path, unused: _Unused) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files of a shard with their checked names; what is no file is counted."""
    size = os.path.getsize(str(archive.name))
    for member in archive:
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (grows with every header)
        _check_growth(member, size, shard)
        if member.isdir():
            continue
        if not member.isreg():
            unused.members["links and devices"] += 1
            continue
        name = check_relative_path(member.name, shard, show(member.name))
        if name.rpartition("/")[2].startswith("."):
            unused.members["hidden files"] += 1
            continue
        yield name, member


@contextmanager
def _opened(shard: Path, place: Path | None = None) -> Iterator[tarfile.TarFile]:
    """A shard, or the plain tar that it was unpacked to; whatever is wrong with it is an InputError."""
    try:
        with tarfile.open(shard if place is None else place, tarinfo=_Header) as archive:
            yield archive
    except GlsclError:
        raise
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        RecursionError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise InputError(f"{shard}: a damaged or truncated shard: {reason}", hint="Fetch or write it again.") from None


def _kind(name: str) -> str:
    """What a note calls a member: its extension."""
    base = name.rpartition("/")[2].lower()
    return f".{base.rpartition('.')[2]}" if "." in base else "without extension"


def _owner(name: str, files: Mapping[str, str], shard: Path) -> tuple[str | None, str]:
    """The key of the sample that a caption file belongs to, and the rest of its name; None and the key without a video.

    The key is what the name has in common with that of a video (names may hold dots), or else what stands before the first
    dot, as webdataset has it.

    Raises:
        InputError: several videos fit.
    """
    folder, slash, base = name.rpartition("/")
    pieces = base.split(".")
    for count in range(len(pieces) - 1, 0, -1):
        key = f"{folder}{slash}{'.'.join(pieces[:count])}"
        if key in files:
            rest = pieces[count:]
            return key, ".".join(rest[1:] if rest[0].lower() in VIDEO_EXTENSIONS and rest[1:] else rest).lower()
    first = f"{folder}{slash}{pieces[0]}"
    alike = [key for key in files if key.startswith(f"{first}.")]
    if len(alike) > 1:
        refuse(shard, show(name), f"fits the videos {files[alike[0]]} and {files[alike[1]]}; expected one")
    return (alike[0], ".".join(pieces[1:]).lower()) if alike else (None, split_extension(name)[0].rpartition(".")[0])


def _captions(parts: Sequence[tuple[str, str]], shard: Path, key: str, unused: _Unused) -> tuple[list[str], str | None]:
    """Captions and split of a sample from its caption files."""
    split = None
    texts = [text for end, text in parts if end in TEXTS]
    filled = list(dict.fromkeys(text for text in texts if text.strip()))
    others: list[str] = []
    for _, text in (part for part in parts if part[0] in OBJECTS):
        content = parse_json(text, shard / f"{key}.json")
        if not isinstance(content, dict):
            refuse(shard, show(key), f"its .json is {show(content)}, expected an object")
        others += captions_of(content, shard, show(key))
        given = content.get("split")
        split = split if given is None else split_name(given, shard, show(key))
    if not any(other.strip() for other in others):
        return filled or others or texts[:1], split
    known = {fold(text) for text in others}
    if filled and not known.issuperset(map(fold, filled)):
        unused.other_captions.append(f"{key} of {shard.name}")
        return filled, split
    return others, split


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


def _text(shard: Path, name: str, size: int, data: bytes) -> str:
    if size > TEXT_LIMIT:
        refuse(shard, show(name), f"{size} bytes, expected a caption of at most {TEXT_LIMIT}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(shard, show(name), f"byte 0x{data[error.start]:02x} is not UTF-8")
