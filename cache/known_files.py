"""Where contents were last seen: a memo, so that a file is hashed once, and a way back from an item to a file.

It stands in <cache>/files.jsonl, a line a file, is replaced in one step, and may be deleted: files are hashed again then.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from glscl.cache.files import dump_json, plain, write_atomically
from glscl.cache.keys import KEY_BYTES, Stat, content_of
from glscl.common.errors import StorageError
from glscl.common.staged import remote_file

FILE = "files.jsonl"
THREADS = 16  # hashing waits for the disk


class _Line(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    path: str
    size: int
    mtime_ns: int
    content: str
    check: str

    @property
    def sum(self) -> str:
        """What `check` says of an undamaged line: a bit that tipped must not become another file's content."""
        return f"{zlib.crc32(repr((self.path, self.size, self.mtime_ns, self.content)).encode()):08x}"


class KnownFiles:
    """Files by path, with what they were when they were hashed.

    Attributes:
        hashed: how many files this object has read to hash them.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Stat, bytes]] = {}
        self._paths: dict[bytes, list[str]] | None = None  # by content, made when it is asked for
        self.hashed = 0

    def __repr__(self) -> str:
        return f"KnownFiles({len(self._seen)} files)"

    @classmethod
    def read(cls, root: Path) -> KnownFiles:
        """The memo of a cache; empty where there is none, and without the lines that cannot be read."""
        known = cls()
        try:
            lines = plain(root / FILE).read_bytes().split(b"\n")
        except OSError:
            return known
        decoder = msgspec.json.Decoder(_Line)
        for line in lines:
            try:
                row = decoder.decode(line)
                content = bytes.fromhex(row.content)
            except (msgspec.DecodeError, ValueError):  # a memo that is wrong in one place is a memo still
                continue
            if row.check == row.sum and len(content) == KEY_BYTES and "\0" not in row.path:
                known._seen[row.path] = Stat(row.size, row.mtime_ns), content
        return known

    def save(self, root: Path) -> None:
        """Write the memo, in one step. Names that are no text are left out: they are hashed again. Raises StorageError."""
        rows = []
        for path, (stat, content) in sorted(self._seen.items()):
            try:
                path.encode()
            except UnicodeEncodeError:
                continue
            line = _Line(path, *stat, content.hex(), "")
            rows.append(dump_json([path, *stat, line.content, line.sum], indent=None))
        write_atomically(root / FILE, b"".join(rows))

    def unite(self, other: KnownFiles, contents: Set[bytes] | None = None) -> bool:
        """Take over the files that are not known here (with `contents`, those of them); whether there were any."""
        new = {
            path: seen
            for path, seen in other._seen.items()
            if path not in self._seen and (contents is None or seen[1] in contents)
        }
        self._seen |= new
        self._paths = None
        return bool(new)

    def content(self, path: Path | str) -> bytes:
        """Hash of the content of a file, (16,) bytes, from the memo where path, size and time agree. Raises OSError."""
        found = self.contents([path])[0]
        if isinstance(found, OSError):
            raise found
        return found

    def contents(
        self, paths: Iterable[Path | str], *, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[bytes | OSError]:
        """`content` of many files, in order, by several threads; the error in the place of one that cannot be read.

        Args:
            progress: told how many of the files that the memo does not know have been read.
        """
        names = [_absolute(path) for path in paths]
        with ThreadPoolExecutor(THREADS) as pool:
            remembered = dict(zip(names, pool.map(self._remembered, names)))
            found = {name: content for name, content in remembered.items() if content is not None}
            unknown = [name for name in remembered if name not in found]
            for done, (name, read) in enumerate(zip(unknown, pool.map(_read, unknown)), start=1):
                if not isinstance(read, OSError):
                    self._seen[name] = read
                    self.hashed += 1
                    self._paths = None
                found[name] = read if isinstance(read, OSError) else read[1]
                progress(done, len(unknown))
        return [found[name] for name in names]

    def _remembered(self, name: str) -> bytes | OSError | None:
        """The content of a file that is still what it was when it was hashed; None where it has to be read."""
        known = self._seen.get(name)
        try:
            return known[1] if known is not None and known[0] == Stat.of(name) else None
        except StorageError:
            raise
        except OSError as error:
            return error

    def remembered(self, path: Path | str) -> bytes | None:
        """What is known of a file or folder that is still what it was then; None where nothing is."""
        found = self._remembered(_absolute(path))
        return None if isinstance(found, OSError) else found

    def remember(self, path: Path | str, content: bytes) -> None:
        """Know that of a file or folder as it is now. Raises OSError."""
        self._seen[_absolute(path)] = Stat.of(path), content
        self._paths = None

    def paths_of(self, content: bytes) -> list[str]:
        """The files that had this content when they were hashed, whether or not they are there still."""
        if self._paths is None:
            self._paths = {}
            for path, (_, each) in self._seen.items():
                self._paths.setdefault(each, []).append(path)
        return self._paths.get(content, [])

    def path_of(self, content: bytes, *, like: str = "") -> Path | None:
        """A file here with this content that is there still, as it was when it was hashed; None where none is known.

        Args:
            like: of several one whose path has this in it comes first.
        """
        for path in sorted(self.paths_of(content), key=lambda each: like not in each):
            try:
                if remote_file(path) is None and Stat.of(path) == self._seen[path][0]:
                    return Path(path)
            except OSError:
                continue
        return None

    def stat_of(self, path: Path | str) -> Stat | None:
        """What a file was when it was hashed; None where it never was."""
        known = self._seen.get(_absolute(path))
        return None if known is None else known[0]


def _absolute(path: Path | str) -> str:
    return remote_file(path) or os.path.abspath(path)


def _read(name: str) -> tuple[Stat, bytes] | OSError:
    try:
        return content_of(name)
    except StorageError:  # the network, and no fault of the file
        raise
    except OSError as error:
        return error
