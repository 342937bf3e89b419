"""The files of one's own videos: which names are one file, and which files are one content."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from glscl.common.staged import remote_file, stamp_of
from glscl.common.tar_members import TarMember
from glscl.extract.datasets.video_files import VideoFiles, split_extension

ContentHasher = Callable[[Sequence[str]], Sequence[bytes | OSError]]  # paths → hash of what is in each file


class Archived(NamedTuple):
    """A video in a compressed archive that is not unpacked: bytes, and its hash when it is asked for."""

    size: int
    content: Callable[[], bytes]


class OwnVideos:
    """Names in annotations, each with the file that was found for it.

    Args:
        paths: name → path; without the names that were not found.
        contents: hashes files; `glscl.cache.keys.content_of` by default.
        archived: name → what it is, of those whose path is not there yet.
        unseen: name → what tells it apart, of those whose file was looked for in vain.
        notes: what was noticed while they were looked for.
        looked: there was a folder to look in.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        contents: ContentHasher | None = None,
        *,
        archived: Mapping[str, Archived] | None = None,
        unseen: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
        looked: bool = True,
    ) -> None:
        self.paths, self.notes, self.looked = paths, notes, looked
        self._contents, self._archived, self._unseen = contents, archived or {}, unseen or {}
        self._hashed: dict[str, bytes | None] = {}
        self._files: dict[str, _File | None] = {}

    @classmethod
    def below(cls, folder: Path | None, names: Iterable[str], contents: ContentHasher | None = None) -> OwnVideos:
        """The files of some names below a folder; without one, those of absolute paths. Raises as `VideoFiles.locate`."""
        names = dict.fromkeys(names)
        if folder is None:
            found = {name: name for name in names if os.path.isabs(name) and os.path.isfile(name)}
            looked, notes = len(found) == len(names), []
        else:
            files = VideoFiles(folder)
            found, looked = files.locate(names, as_paths=True), True
            notes = [*files.notes, *files.strangers(found, names)]
        missing = [name for name in names if name not in found]
        unseen = _whole_names(missing)
        return cls(found, contents, unseen=unseen, notes=notes, looked=looked)

    def identity(self, name: str) -> Hashable:
        """Equal for names of one file: other spellings of it, and links. Where there is none, see `_whole_names`."""
        file = self._file(name)
        if file is None:
            return self.paths.get(name) or self._unseen.get(name) or unicodedata.normalize("NFC", name)
        return file.identity

    def size(self, name: str) -> int:
        """Bytes; 0 where there is no file."""
        if name in self._archived:
            return self._archived[name].size
        file = self._file(name)
        return 0 if file is None else file.size

    def contents(self, names: Sequence[str]) -> dict[str, bytes]:
        """Name → hash of its content, without those whose file is not there, empty, or cannot be read."""
        filled = [name for name in names if self.size(name)]
        new = [name for name in filled if name not in self._hashed]
        for name in new:
            if name in self._archived:
                self._hashed[name] = self._archived[name].content()
        files = [name for name in new if name not in self._archived]
        for name, found in zip(files, self._hash([self.paths[name] for name in files])):
            self._hashed[name] = None if isinstance(found, OSError) else found
        return {name: content for name in filled if (content := self._hashed[name]) is not None}

    def _hash(self, paths: Sequence[str]) -> Sequence[bytes | OSError]:
        if self._contents is None and paths:
            from glscl.cache.known_files import KnownFiles

            self._contents = KnownFiles().contents
        return self._contents(paths) if self._contents is not None else []

    def _file(self, name: str) -> _File | None:
        if name not in self._files:
            try:
                self._files[name] = _File.at(self.paths[name])
            except (KeyError, OSError):
                self._files[name] = None
        return self._files[name]


class _File(NamedTuple):
    """What tells a file, or a video in an archive, apart from others; and its bytes."""

    identity: Hashable
    size: int

    @classmethod
    def at(cls, path: str) -> _File:
        """Raises OSError."""
        if (address := remote_file(path)) is not None:
            return cls((address, *stamp_of(address)), stamp_of(address).size)
        member = TarMember.at(path)
        stat = os.stat(path if member is None else member.archive)
        # some network file systems give the same number to several files
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        return cls(identity, stat.st_size) if member is None else cls((*identity, member.offset), member.size)


def _whole_names(names: Iterable[str]) -> dict[str, str]:
    """Name → the same in composed Unicode, with the extension that it has elsewhere, if that is one: what tells it apart."""
    composed = {name: unicodedata.normalize("NFC", name) for name in names}
    whole: dict[str, set[str]] = defaultdict(set)
    for name in composed.values():
        stem, extension = split_extension(name)
        if extension:
            whole[stem].add(name)
    return {name: min(whole[plain]) if len(whole[plain]) == 1 else plain for name, plain in composed.items()}
