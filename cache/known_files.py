"""Where contents were last seen: a memo, so that a file is hashed once, and a way back from an item to a file.

It stands in <cache>/files.jsonl, a line a file, is replaced in one step, and may be deleted: files are hashed again then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from glscl.cache.files import dump_json, write_atomically
from glscl.cache.keys import KEY_BYTES, Stat, content_of

FILE = "files.jsonl"
THREADS = 16  # hashing waits for the disk


class _Line(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    path: str
    size: int
    mtime_ns: int
    content: str


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
            lines = (root / FILE).read_bytes().split(b"\n")
        except OSError:
            return known
        decoder = msgspec.json.Decoder(_Line)
        for line in lines:
            try:
                row = decoder.decode(line)
                content = bytes.fromhex(row.content)
            except (msgspec.DecodeError, ValueError):  # a memo that is wrong in one place is a memo still
                continue
            if len(content) == KEY_BYTES:
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
            rows.append(dump_json([path, *stat, content.hex()], indent=None))
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
        name = os.path.abspath(path)
        known = self._seen.get(name)
        if known is not None and known[0] == Stat.of(name):
            return known[1]
        self._seen[name] = found = content_of(Path(name))
        self.hashed += 1
        self._paths = None
        return found[1]

    def contents(
        self, paths: Iterable[Path | str], *, progress: Callable[[], None] = lambda: None
    ) -> list[bytes | OSError]:
        """`content` of many files, in order, by several threads; the error in the place of one that cannot be read."""

        def looked_at(path: Path | str) -> bytes | OSError:
            try:
                return self.content(path)
            except OSError as error:
                return error
            finally:
                progress()

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(looked_at, paths))

    def paths_of(self, content: bytes) -> list[str]:
        """The files that had this content when they were hashed, whether or not they are there still."""
        if self._paths is None:
            self._paths = {}
            for path, (_, each) in self._seen.items():
                self._paths.setdefault(each, []).append(path)
        return self._paths.get(content, [])

    def path_of(self, content: bytes, *, like: str = "") -> Path | None:
        """A file with this content that is there still, as it was when it was hashed; None where none is known.

        Args:
            like: of several one whose path has this in it comes first.
        """
        for path in self.paths_of(content):
            try:
                if Stat.of(path) == self._seen[path][0]:
                    return Path(path)
            except OSError:
                continue
        return None

    def stat_of(self, path: Path | str) -> Stat | None:
        """What a file was when it was hashed; None where it never was."""
        known = self._seen.get(os.path.abspath(path))
        return None if known is None else known[0]
