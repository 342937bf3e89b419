"""Files at addresses that are read like files here: told apart, hashed in parts, and brought here for as long as they are needed.

What is brought stands in `$GLSCL_HOME/staged`, of at most `GLSCL_STAGE_GB` (by default 20) at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from glscl.common.addresses import address_of, show_as
from glscl.common.errors import NotFoundError, StorageError, UsageError
from glscl.common.remote import Files, Stamp, files_at, get_all, remote_errors, unsafe
from glscl.common.settings import home

STAGE_GB = 20.0  # of files here at once; $GLSCL_STAGE_GB says otherwise
_LISTED: dict[str, Stamp] = {}  # address of a file → what it was when its folder was listed


def remote_file(path: os.PathLike[str] | str) -> str | None:
    """The address of a file that is not on this machine; None for a path. Raises UsageError for a kind that cannot be read."""
    return address_of(path, "videos")


def list_folder(address: str) -> dict[str, int]:
    """Name → bytes of all files below an address; "" where it is a file itself. They are known as they are now.

    Raises:
        NotFoundError: nothing is there. StorageError: it cannot be reached. UsageError: a package is missing.
    """
    with remote_errors(address, "list"):
        found = files_at(address).stamps("")
    if not found:
        raise NotFoundError(f"There is nothing at {address}")
    _LISTED.update({f"{address}/{name}" if name else address: stamp for name, stamp in found.items()})
    return {name: stamp.size for name, stamp in found.items()}


def stamp_of(address: str, *, anew: bool = False) -> Stamp:
    """What a file at an address is, as it was when its folder was listed, or `anew`. Raises NotFoundError, StorageError."""
    if anew or address not in _LISTED:
        files, name = _split(address)
        with remote_errors(address, "read"):
            found = files.stamps(name)
        if name not in found:
            raise NotFoundError(f"There is nothing at {address}")
        _LISTED[address] = found[name]
    return _LISTED[address]


class Reading(io.RawIOBase):
    """A file at an address, of which parts are read. Raises StorageError where they cannot be."""

    def __init__(self, address: str) -> None:
        self._address, self._at = address, 0
        self._files, self._name = _split(address)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only positions from the start can be sought")
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise io.UnsupportedOperation("only parts are read")
        if size == 0:
            return b""
        with remote_errors(self._address, "read"):
            data = self._files.part(self._name, self._at, size)
        self._at += len(data)
        return data


def bring(address: str, target: Path) -> None:
    """Bring a file to a path here. Raises NotFoundError, StorageError: it is not as it was listed, or does not come."""
    files, name = _split(address)
    with remote_errors(address, "read"):
        files.get(name, target)
    if (found := target.stat().st_size) != (expected := stamp_of(address).size):
        raise StorageError(
            f"{address} came with {found} bytes, expected {expected}", first="See that nobody is writing it anew"
        )


def brought(place: os.PathLike[str] | str, name: str) -> Path:
    """A path here for a file or folder that may be at an address: what changed since it was brought is brought again.

    Args:
        name: of the setting, for messages.

    Raises:
        NotFoundError: nothing is there. StorageError: it cannot be reached, or is more than may be kept here.
        UsageError: an address of a kind that cannot be read, or a package is missing.
    """
    address = address_of(place, name)
    if address is None:
        return Path(place)
    sizes = list_folder(address)
    require_room(address, sum(sizes.values()))
    mark = hashlib.sha256(address.encode()).hexdigest()[:8]
    root = home().absolute() / "staged" / f"{mark}"
    whole = root / (re.sub(r"[^A-Za-z0-9._-]", "-", address.rpartition("/")[2]) or "files")
    show_as(whole, address)
    bring_below(address, [each for each in sizes if not unsafe(each)], whole)
    return whole


def bring_below(address: str, names: Iterable[str], folder: Path) -> None:
    """Bring files below an address into a folder, a few at once, each whole before it appears; those that are there stay."""
    lacking = []
    for name in names:
        stamp, path = stamp_of(f"{address}/{name}" if name else address), folder / name
        with contextlib.suppress(OSError):
            found = path.stat()
            if (found.st_size, found.st_mtime_ns) == (stamp.size, stamp.mark) and stamp.mark:
                continue
        lacking.append((name, path, stamp))
    if not lacking:
        return
    aside = folder.parent / f".incoming-{uuid.uuid4().hex[:12]}"
    try:
        aside.mkdir(parents=True)
        with remote_errors(address, "read"):
            get_all(files_at(address), [name for name, *_ in lacking], [aside / str(i) for i in range(len(lacking))])
        for i, (name, path, stamp) in enumerate(lacking):
            if (found := (aside / str(i)).stat().st_size) != stamp.size:
                raise StorageError(
                    f"{address}/{name} came with {found} bytes, expected {stamp.size}",
                    first="See that nobody is writing it anew",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / str(i), path)
            os.utime(path, ns=(stamp.mark, stamp.mark))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_room(address: str, size: int) -> None:
    """Raise StorageError where so many bytes are more than may be kept here, or than there is room for."""
    if size > stage_bytes():
        raise StorageError(
            f"{address} has {size / 1e9:.3g} GB; {stage_bytes() / 1e9:.3g} GB may be kept here at once",
            first="Let GLSCL_STAGE_GB allow more",
        )
    folder = home().absolute()
    while not folder.exists():
        folder = folder.parent
    if size > (free := shutil.disk_usage(folder).free):
        raise StorageError(
            f"{address} has {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free at {folder}", first="Free some space"
        )


def stage_bytes() -> int:
    """Bytes that may be kept here at once. Raises UsageError where $GLSCL_STAGE_GB is no number above 0."""
    given = os.environ.get("GLSCL_STAGE_GB")
    try:
        found = STAGE_GB if given is None else float(given)
    except ValueError:
        found = 0.0
    if not found > 0:
        raise UsageError(f"GLSCL_STAGE_GB is {given!r}; expected a number of gigabytes above 0")
    return int(found * 1e9)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder below `staged` for as long as it is needed; those that killed processes left are deleted first."""
    from filelock import FileLock, Timeout

    parent = home().absolute() / "staged"
    parent.mkdir(parents=True, exist_ok=True)
    for lock in parent.glob("videos-*.lock"):
        with contextlib.suppress(OSError, Timeout), FileLock(lock, timeout=0):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
    folder = parent / f"videos-{uuid.uuid4().hex[:12]}"
    lock = FileLock(f"{folder}.lock")
    with lock:
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(lock.lock_file).unlink(missing_ok=True)


@lru_cache(64)
def _root(root: str) -> Files:
    return files_at(root)


def _split(address: str) -> tuple[Files, str]:
    """The files of a bucket or host, and the name of a file in it."""
    scheme, _, rest = address.partition("://")
    root, _, name = rest.partition("/")
    return _root(f"{scheme}://{root}"), name
