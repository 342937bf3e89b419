"""A cache at an address (s3://, gs://, az://, hf://, https://): a folder here in which its files appear as they are needed.

A mirror is a cache folder like any other, with one file more, `mirrored.json`, which names the address. All but shards is
brought when the cache is opened, a shard when it is first read, and only after its bytes were compared with its commit. Nothing
of a cache is ever modified but which version of a list counts, so what is here stays true. What is made here is put there in
the order in which readers need it: a shard first, then its commit by a conditional put, at last the version that counts.

`glscl.common.remote` does the transfer, with bounded retries.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from pathlib import Path

from glscl.cache.files import dump_json, listed, load_json, storage_errors, write_atomically, written
from glscl.common.addresses import address_of, local_path, show_as
from glscl.common.errors import CacheCorruptError, NotFoundError, StorageError, UsageError
from glscl.common.remote import CONDITIONAL, Files, files_at, get_all, put_all, remote_errors, unsafe
from glscl.common.settings import home

MARK = "mirrored.json"
LATELY_SECONDS = 600.0  # a shard that was used since is not deleted to make room
LATEST_SECONDS = 3600.0  # a shard that was put since may be about to be committed, what is brought to appear
ROOM_GB = 100.0  # of shards of all mirrors together; $GLSCL_MIRROR_GB says otherwise
_OPENED = re.compile(
    r"store\.json|zarr\.json|(shards|shards/(video|text))/zarr\.json|(additions|commits|lists|backbone)/.+"
)
_IN_USE: set[Path] = set()  # shards of mirrors that this process has read
_PROBE = ".glscl-probe-"  # asks a store what it can do
_SHARD = re.compile(r"shards/(video|text)/[0-9a-f]{16}-\d{5,8}-[^/]+")
_TEMPORARY = re.compile(r"(^|/)\.[^/]+\.tmp$")
_COUNTS = re.compile(r"lists/[^/]+/current")


def cache_path(place: os.PathLike[str] | str, name: str = "cache", *, new: bool = False) -> Path:
    """The folder of a cache on this machine: its own, or of one at an address its mirror, looked at anew.

    Args:
        place: path or address.
        name: of the setting, for messages.
        new: nothing needs to be there yet.

    Raises:
        UsageError: an address of a kind that cannot be read, or one for which a package is missing.
        NotFoundError: there is nothing. StorageError: it cannot be reached, or not be written here.
    """
    address = address_of(place, name)
    return local_path(place, name) if address is None else Mirror.at(address).refresh(new=new)


class Mirror:
    """A cache at an address, and the folder on this machine that holds what was needed of it.

    Attributes:
        address: of the cache. root: the folder here.
        single_writer: whoever writes says that nobody else does, so that a store needs no conditional puts.
        there: name below the address → bytes, of all files, as last listed, and what was put since.
    """

    def __init__(self, address: str, root: Path) -> None:
        self.address, self.root = address, root
        self.single_writer = False
        self.there: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Mirror({self.address!r}, {str(self.root)!r})"

    @classmethod
    def at(cls, address: str) -> Mirror:
        """The mirror of an address, below `$GLSCL_HOME/mirror`."""
        name = re.sub(r"[^A-Za-z0-9._-]", "-", address.rpartition("/")[2]) or "cache"
        mark = hashlib.sha256(address.encode()).hexdigest()[:8]
        return cls(address, home().absolute() / "mirror" / f"{mark}-{name}")

    @classmethod
    def of(cls, root: Path) -> Mirror | None:
        """The mirror that a folder is; None where it is a cache of its own."""
        if not (root / MARK).is_file():
            return None
        address = load_json(root / MARK, "the mark of a mirrored cache").get("address")
        known = address_of(str(address), "cache")
        if known is None:
            raise CacheCorruptError(f"{root / MARK} names {str(address)[:100]!r}, expected an address")
        show_as(root, known)
        return cls(known, root)

    @cached_property
    def _files(self) -> Files:
        return files_at(self.address)

    def _into(self, root: Path) -> Mirror:
        """The same address, as it was listed, with another folder here."""
        other = Mirror(self.address, root)
        other.there, other._files = self.there, self._files
        return other

    # --- from there ------------------------------------------------------------------------------------------------

    def refresh(self, *, new: bool = False) -> Path:
        """List what is there and bring all of it that is needed to open the cache; the folder, or the flat file.

        Raises:
            NotFoundError: nothing is there, unless `new`. StorageError: it cannot be reached.
        """
        self._sweep()
        self.there = self.listing()
        if not self.there and not new:
            raise NotFoundError(f"There is no cache at {self.address}")
        if [*self.there] == [""]:
            return self._flat_file()
        if self.there and "store.json" not in self.there and "head/zarr.json" not in self.there:
            raise NotFoundError(f"{self.address} is not a glscl cache: it has no store.json")
        self._forget_another()
        show_as(self.root, self.address)
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not (self.root / MARK).exists():
                write_atomically(self.root / MARK, dump_json({"address": self.address}))
        flat = "head/zarr.json" in self.there
        self.bring(name for name in self.there if flat or _OPENED.fullmatch(name))
        return self.root

    def listing(self, below: str = "") -> dict[str, int]:
        """Name → bytes of all files at the address, or below a name there; "" is the address itself where it is a file."""
        with remote_errors(self.address, "list"):
            found = self._files.sizes(below)
        return {name: size for name, size in found.items() if not unsafe(name) and not _TEMPORARY.search(name)}

    def bring(self, names: Iterable[str], check: Callable[[Path], None] | None = None) -> None:
        """Bring files that are not here, each whole before it appears.

        Args:
            check: looks at the folder in which they are, as below the address, before they appear.
        """
        lacking = [name for name in names if not self._is_here(name)]
        if not lacking:
            return
        aside = self._incoming / uuid.uuid4().hex[:12]
        try:
            with storage_errors(self.root):
                for folder in {(aside / (name or "file")).parent for name in lacking}:
                    folder.mkdir(parents=True, exist_ok=True)
            with remote_errors(self.address, "read"):
                get_all(self._files, lacking, (aside / (name or "file") for name in lacking))
            for name in lacking:
                found = (aside / (name or "file")).stat().st_size
                if found != self.there[name]:
                    raise StorageError(
                        f"{self.address}/{name} came with {found} bytes, expected {self.there[name]}",
                        first="See that nobody is writing it anew",
                    )
            if check is not None:
                check(aside)
            with storage_errors(self.root):
                # in the order of the listing; a commit appears only where its shard can be brought
                for name in lacking:
                    (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(aside / (name or "file"), self.root / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def bring_shard(self, path: str, check: Callable[[Path], None]) -> None:
        """Bring a shard, a file or a folder, unless it is here. `check` raises where it is not as it was committed."""
        final = self.root / path
        if not final.exists():
            names = [name for name in self.there if name == path or name.startswith(f"{path}/")]
            if not names:
                found = self.listing(path)
                self.there |= found
                names = [*found]
            if not names:
                raise CacheCorruptError(f"{self.address}/{path} is committed but not there")
            self._make_room(sum(self.there[name] for name in names))
            self._bring_whole(path, names, check)
        _IN_USE.add(final)
        with contextlib.suppress(OSError):
            os.utime(final)  # the longest unused goes first

    def _bring_whole(self, path: str, names: list[str], check: Callable[[Path], None]) -> None:
        """A shard appears in one step, also where it is a folder of several files."""
        aside = self._into(self._incoming / f"shard-{uuid.uuid4().hex[:12]}" / "cache")
        try:
            aside.bring(names, lambda folder: check(folder / path))
            with storage_errors(self.root):
                (self.root / path).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.rename(aside.root / path, self.root / path)
                except OSError:
                    if not (self.root / path).exists():  # else another process was a moment faster
                        raise
        finally:
            shutil.rmtree(aside.root.parent, ignore_errors=True)

    @property
    def _incoming(self) -> Path:
        """Where files stand while they are brought; each download has a folder of its own there."""
        return self.root.parent / ".incoming"

    def _sweep(self) -> None:
        """Delete what killed downloads have left: nothing was written there for an hour."""
        for left in listed(self._incoming):
            with contextlib.suppress(OSError):  # one that is under way has just ended
                if max(path.stat().st_mtime for path in (left, *left.rglob("*"))) < time.time() - LATEST_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)

    def _is_here(self, name: str) -> bool:
        if name == "store.json" or _COUNTS.fullmatch(name):
            return False  # told anew each time: it may have been replaced
        with contextlib.suppress(OSError):
            return (self.root / name).stat().st_size == self.there[name]
        return False

    def _flat_file(self) -> Path:
        """The cache is one file at the address: brought whole, as it is not read in parts."""
        folder, name = self.root, self.address.rpartition("/")[2]
        whole = self._into(folder.with_name(f"{folder.name}.file") / name)
        whole._sweep()
        whole.bring([""])
        return whole.root

    def _forget_another(self) -> None:
        """Delete what is here of a cache that stood at the address before the one that stands there now."""
        here = self.root / "store.json"
        if "store.json" in self.there and written(here):
            with remote_errors(self.address, "read"):
                theirs = self._files.read("store.json")
            if theirs != here.read_bytes():
                shutil.rmtree(self.root)
        elif not self.there and written(here):
            shutil.rmtree(self.root)

    def _make_room(self, needed: int) -> None:
        """Delete the shards of mirrors that were not used for longest until `needed` bytes more are within the bound.

        Those that this process has read, or another has lately, stay: they are mapped.

        Raises:
            StorageError: there is no room for what is in use.
        """
        room = room_bytes()
        found = []
        for mirror in listed(self.root.parent):
            if (mirror / MARK).is_file():
                shards = [*listed(mirror / "shards" / "video", "*-*-*"), *listed(mirror / "shards" / "text", "*-*-*")]
                found += [(path.stat().st_mtime, _bytes_of(path), path) for path in shards]
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if total + needed <= room:
                return
            if path not in _IN_USE and used < time.time() - LATELY_SECONDS:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                total -= size
        if total + needed > room:
            raise StorageError(
                f"Shards of {self.address} do not fit: mirrors may take {room / 1e9:.3g} GB, and {total / 1e9:.3g} GB are in "
                f"use; expected room for {needed / 1e9:.3g} GB more",
                first="Let GLSCL_MIRROR_GB allow more",
            )

    # --- to there --------------------------------------------------------------------------------------------------

    def require_conditional_puts(self, single_writer: bool = False) -> None:
        """Raise UsageError where two writers could both put one commit, each taking the other's place.

        Args:
            single_writer: there is only one, as its user says; then nothing is asked of the store.
        """
        self.single_writer = single_writer
        if single_writer:
            return
        scheme = self.address.partition(":")[0]
        name = f"{_PROBE}{uuid.uuid4().hex[:12]}"
        holds = scheme in CONDITIONAL
        if holds:
            try:
                holds = self.put_if_absent(name, b"1") and not self.put_if_absent(name, b"2")
            except StorageError as error:
                if "not supported" not in str(error).lower() and "not implemented" not in str(error).lower():
                    raise
                holds = False
            finally:
                with contextlib.suppress(Exception):
                    self._files.delete([name])
                self.there.pop(name, None)
        if not holds:
            raise UsageError(
                f"{self.address} cannot be extracted into: a file that is there can be replaced there, so that two writers "
                "could lose each other's work; expected conditional puts (S3, GCS, Azure)",
                hint="Say with `single_writer` that only this command writes there, or extract into a folder here, and push that",
            )

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create a file at the address unless it is there; exactly one of several competing writers gets True."""
        with remote_errors(self.address, "write"):
            if self.single_writer:
                found = name in self.there or bool(self._files.sizes(name))
                if not found:
                    self._files.put(name, data)
                elif self._files.read(name) != data:
                    return False
                self.there[name] = len(data)
                return True
            # a put that was tried again after its answer was lost has found itself
            won = self._files.create(name, data) or self._files.read(name) == data
        if not won:
            return False
        self.there[name] = len(data)
        return True

    def put(self, name: str, source: Path | None = None) -> None:
        """Put a file, or a folder with all that is in it, that stands here; what is there with as many bytes stays.

        Args:
            source: where it stands here, unless under its name.
        """
        source = source or self.root / name
        paths = [path for path in sorted(source.rglob("*")) if path.is_file()] if source.is_dir() else [source]
        named = {f"{name}/{path.relative_to(source).as_posix()}".removesuffix("/."): path for path in paths}
        sizes = {each: path.stat().st_size for each, path in named.items()}
        lacking = [each for each, size in sizes.items() if self.there.get(each) != size]
        if lacking:
            with remote_errors(self.address, "write"):
                put_all(self._files, lacking, (named[each] for each in lacking))
            self.there |= {each: sizes[each] for each in lacking}

    def publish(self) -> None:
        """Put what tells of shards but is no commit: the head, additions, lists, and the tensors of the backbone."""
        for name in ("zarr.json", "shards/zarr.json", "shards/video/zarr.json", "shards/text/zarr.json"):
            if (self.root / name).is_file():
                self.put(name)
        for path in (*_below(self.root, "backbone"), *_below(self.root, "additions"), *_below(self.root, "lists")):
            name = path.relative_to(self.root).as_posix()
            record = name.startswith("lists/") and name.count("/") == 2 and name.endswith(".json")
            if not record and not _COUNTS.fullmatch(name):
                self.put(name)
        for path in listed(self.root / "lists"):
            for record in listed(path, "*.json"):
                self.put(record.relative_to(self.root).as_posix())

    def commit(self, shard: str, commit: str, data: bytes) -> bool:
        """Put a shard that stands here, then its commit; False where another writer's commit is there, which is brought."""
        self.put(shard)
        won = self.put_if_absent(commit, data)
        if not won:
            self.there |= self.listing(commit)
            self.bring([commit])
        return won

    def forgotten(self, named: Collection[str]) -> dict[str, int]:
        """Name → bytes of the shards there that are not `named`, which writers who were killed have put and not committed.

        Those of the last hour are left out: they may be committed yet.
        """
        found: dict[str, int] = {}
        for name, size in self.listing().items():
            match = _SHARD.match(name)
            if (match and match[0] not in named) or name.startswith(_PROBE):
                with remote_errors(self.address, "read"):
                    if self._files.age(name) > LATEST_SECONDS:
                        found[name] = size
        return found

    def delete(self, names: Iterable[str]) -> None:
        """Delete files there."""
        with remote_errors(self.address, "write"):
            self._files.delete([*names])

    def publish_gathered(self) -> None:
        """Put the files that hold all commits of an addition, which spare readers the single ones."""
        for path in _below(self.root, "commits"):
            name = path.relative_to(self.root).as_posix()
            if "-" not in path.stem and name not in self.there:
                self.put_if_absent(name, path.read_bytes())

    def make_current(self, list: str, version: str) -> None:
        """Let a version of a list count there."""
        with remote_errors(self.address, "write"):
            self._files.put(f"lists/{list}/current", f"{version}\n".encode())


def room_bytes() -> int:
    """Bytes that the shards of all mirrors may take. Raises UsageError."""
    text = os.environ.get("GLSCL_MIRROR_GB") or str(ROOM_GB)
    try:
        room = float(text)
        if not 0 < room < 1e9:
            raise ValueError
    except ValueError:
        raise UsageError(f"GLSCL_MIRROR_GB is {text[:40]!r}; expected gigabytes, such as 100") from None
    return int(room * 1e9)


def _below(root: Path, folder: str) -> list[Path]:
    found = (path for path in sorted((root / folder).rglob("*")) if path.is_file())
    return [path for path in found if not path.name.endswith(".tmp")]


def _bytes_of(path: Path) -> int:
    return (
        sum(each.stat().st_size for each in path.rglob("*") if each.is_file()) if path.is_dir() else path.stat().st_size
    )
