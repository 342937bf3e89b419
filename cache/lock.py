"""One writer at a time: a file under <folder>/locks/ says who writes there, and is recognised as stale once they are gone.

So it is with a cache (`hold`), any other folder that is written (`hold_folder`: a run, a demo, exported vectors), and a
single file, whose locks lie beside it (`hold_file`). Every writer puts a file of its own name first and looks at the others afterwards, so of two that begin at the same
moment at least one sees the other. A file name is never used twice, so removing a stale one can never hit a live writer.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from glscl.cache.files import dump_json, half_written, load_json, refuse_link, refuse_links, remove, write_atomically
from glscl.cache.schema import DEPTH
from glscl.common.errors import BusyError, CacheBusyError, CacheFormatError, StorageError
from glscl.common.launch import launch

FOLDER = "locks"
PROGRAM = "glscl"  # what a lock names its writer by, with the name of the command
ATTEMPTS = 4  # of writers that begin at the same moment and stand back for each other
PUTS = 20  # of a lock file in a folder that comes and goes
_NAME = re.compile(r"(\d+)-of-(\d+)-[0-9a-f]{8}\.json")


class Lock(NamedTuple):
    """What a lock file says. `holder` is None where the file cannot be read."""

    file: Path
    part: tuple[int, int]
    holder: dict[str, Any] | None

    @property
    def stale(self) -> bool:
        """Whether the process that wrote it is certainly gone; False where that cannot be told from here."""
        if self.holder is None:
            return False
        if _is_earlier_start(self.holder.get("job"), _job()):
            return True
        if self.holder["host"] != socket.gethostname():
            return False
        if self.holder.get("boot") != _boot():
            return self.holder.get("boot") is not None and _boot() is not None  # the machine was started anew
        return self._within_sight and not _alive(self.holder["pid"], self.holder.get("started"))

    @property
    def _within_sight(self) -> bool:
        """Whether the number of its process means anything here: the same machine, and the same container."""
        holder = self.holder or {}
        return (holder.get("host"), holder.get("namespace")) == (socket.gethostname(), _namespace())

    def conflicts(self, part: tuple[int, int]) -> bool:
        """Parts of one division go together, unless they are the same; the whole goes with nothing."""
        return self.part[1] != part[1] or self.part[0] == part[0]

    def describe(self) -> str:
        """Who writes, in a few words."""
        if self.holder is None:
            return f"a writer that left {self.file} unreadable"
        part = f", part {self.part[0]}/{self.part[1]}" if self.part[1] > 1 else ""
        what, since = self.holder.get("what"), self.holder.get("since")
        return f"{what}{part} (process {self.holder['pid']} on {self.holder['host']}, since {since})"

    def hint(self) -> str:
        """What somebody can do who wants to write."""
        if self._within_sight and (self.holder or {}).get("started") is not None:
            return "Wait until it has finished, or stop it"
        return f"Wait until it has finished; if it no longer runs, delete {self.file}"


@contextlib.contextmanager
def hold(root: os.PathLike[str] | str, *, part: tuple[int, int] = (1, 1), what: str = "extract") -> Iterator[Path]:
    """Be the one writer of a cache, or of part i of n, until the block is left, by whatever way.

    Args:
        root: folder of the cache; made where it is not there.
        part: (i, n), 1 <= i <= n. (1, 1) stands for all of the cache.
        what: name of the command, for the line that others are refused with.

    Yields:
        The lock file. Locks of processes of this machine that are gone are removed on the way.

    Raises:
        CacheBusyError: somebody else writes this part, or the cache is being written in another division.
        StorageError: the lock cannot be written, or a link stands in the cache.
        ValueError: not a part.
    """
    root = Path(root)
    if not 1 <= part[0] <= part[1]:
        raise ValueError(f"part {part[0]} of {part[1]}")
    refuse_links(root, depth=DEPTH)
    with _held(root / FOLDER, root, part, what, CacheBusyError) as own:
        yield own


@contextlib.contextmanager
def hold_folder(folder: os.PathLike[str] | str, *, what: str) -> Iterator[None]:
    """Be the one writer of a folder that is no cache, until the block is left; nothing of the lock stays behind.

    What a writer before was writing aside when it was killed is removed.
    Of a launch of several processes the first holds it for all of them.

    Args:
        folder: made where it is not there, and removed again if it then stays empty.
        what: as in `hold`.

    Raises:
        BusyError: somebody else writes it.
        StorageError: the lock cannot be written, or a link stands in its place.
    """
    folder = Path(folder)
    there = folder.exists()
    try:
        with _hold_output(folder / FOLDER, folder, what):
            _sweep(half_written(folder))
            yield
    finally:
        if not there and launch().speaks:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def require_free(folder: os.PathLike[str] | str) -> None:
    """Raise BusyError where `hold_folder` would, before a command has begun anything."""
    if launch().speaks:
        for lock in _locks_in(Path(folder) / FOLDER):
            if not lock.stale:
                raise BusyError(f"{folder} is being written by {lock.describe()}", hint=lock.hint())


@contextlib.contextmanager
def hold_file(file: os.PathLike[str] | str, *, what: str) -> Iterator[None]:
    """Be the one writer of a file, which need not be there; all else as in `hold_folder`."""
    file = Path(file)
    with _hold_output(file.with_name(f".{file.name}.{FOLDER}"), file, what):
        _sweep(half_written(file.parent, name=file.name))
        yield


def _sweep(left: Iterable[Path]) -> None:
    """Remove what dead writers left; of several processes of one launch the first does."""
    for path in left if launch().speaks else ():
        if not path.is_symlink():  # which is refused, if it matters, and never removed
            remove(path, path.parent)


@contextlib.contextmanager
def _hold_output(folder: Path, written: Path, what: str) -> Iterator[None]:
    if not launch().speaks:
        yield
        return
    refuse_link(folder)
    try:
        with _held(folder, written, (1, 1), what, BusyError):
            yield
    finally:
        with contextlib.suppress(OSError, StorageError):  # another writer has come
            for left in half_written(folder):  # of a killed one; who is just beginning writes it again, see `_put`
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _held(folder: Path, written: Path, part: tuple[int, int], what: str, refusal: type[BusyError]) -> Iterator[Path]:
    """Hold a lock in `folder`; of `written` the refusal speaks."""
    own = _take(folder, written, part, what, refusal)
    owner = os.getpid()
    try:
        yield own
    finally:
        if os.getpid() == owner:  # a forked child that leaves the block gives nothing back
            _give_back(own)


def _take(folder: Path, written: Path, part: tuple[int, int], what: str, refusal: type[BusyError]) -> Path:
    """Put a lock file and stay if nobody is in the way, else take it back and try again a few times."""
    attempts = ATTEMPTS
    while True:
        own = folder / f"{part[0]}-of-{part[1]}-{uuid.uuid4().hex[:8]}.json"
        try:
            _put(own, dump_json(_holder(what)))  # no other ever has this name
            others = [lock for lock in _locks_in(folder) if lock.file != own]
            for lock in others:
                if lock.stale:
                    remove(lock.file, folder.parent, strict=True)
            blocking = [lock for lock in others if lock.conflicts(part) and not lock.stale]
        except BaseException:
            _give_back(own)
            raise
        if not blocking:
            return own
        _give_back(own)
        attempts -= 1
        if not attempts:
            raise refusal(f"{written} is being written by {blocking[0].describe()}", hint=blocking[0].hint())
        time.sleep(random.Random().uniform(0.02, 0.1))  # leaves the seeded generator alone


def _put(own: Path, data: bytes) -> None:
    """Write a lock file, though other writers that give theirs back may remove the folder, or what is aside in it, meanwhile."""
    for left in reversed(range(PUTS)):
        try:
            return write_atomically(own, data)
        except StorageError as error:  # that it exists is said of a folder that is gone a moment later, too
            if not left or not isinstance(error.__cause__, FileNotFoundError | FileExistsError):
                raise


def _give_back(own: Path) -> None:
    with contextlib.suppress(OSError):  # what stays behind is stale with this process
        own.unlink()


def locks(root: os.PathLike[str] | str) -> list[Lock]:
    """The locks of a cache, stale ones included, in the order of their names."""
    return _locks_in(Path(root) / FOLDER)


def _locks_in(folder: Path) -> list[Lock]:
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(folder)):
            match = _NAME.fullmatch(name)
            if match is None:
                continue
            try:
                holder = load_json(folder / name, "a lock of glscl")
            except FileNotFoundError:  # given back meanwhile
                continue
            except CacheFormatError:
                holder = None
            except OSError as error:
                raise StorageError(f"Cannot read {folder / name}: {error.strerror}") from error
            pid = None if holder is None else holder.get("pid")
            if holder is not None and not (
                type(pid) is int and 0 < pid < 2**31 and isinstance(holder.get("host"), str)
            ):
                holder = None
            found.append(Lock(folder / name, (int(match[1]), int(match[2])), holder))
    return found


def _holder(what: str) -> dict[str, Any]:
    return {
        "what": f"{PROGRAM} {what}",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": (_state(os.getpid()) or (None, None))[1],
        "boot": _boot(),
        "namespace": _namespace(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "job": _job(),
    }


def _job() -> list[Any] | None:
    """The job of Slurm that this is, and how often it was started again; None outside of one."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    if not job or not restarts.isdecimal():
        return None
    return [os.environ.get("SLURM_CLUSTER_NAME", ""), job, int(restarts)]


def _is_earlier_start(job: Any, own: list[Any] | None) -> bool:
    """Whether a job is this one before it was started again: Slurm runs a job once at a time, on whatever machine."""
    if own is None or not isinstance(job, list) or len(job) != 3 or type(job[2]) is not int:
        return False
    return job[:2] == own[:2] and job[2] < own[2]


def _boot() -> str | None:
    """Identity of this run of the machine, where the system tells (Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _namespace() -> str | None:
    """Whose process numbers ours are: containers may share a host name and not these."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _state(pid: int) -> tuple[str, int] | None:
    """State letter of a process and when it began, in clock ticks since the machine did; None where /proc does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


def _alive(pid: int, started: int | None) -> bool:
    """Whether the process that had this number then still has it; True where that cannot be told."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's, so it is there
    now = _state(pid)
    if now is None or started is None:
        return True
    return now[0] not in "ZX" and now[1] == started  # a dead process that nobody has fetched yet is gone
