"""How much memory there is to take, an error of ours where it does not suffice, and that what was freed is kept.

A limit may be the machine's, that of a control group (a container, a job of Slurm), of the process (`ulimit -v`), or a GPU's.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from pathlib import Path

from glscl.common.errors import Hint, OutOfMemoryError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h
HEAP = 64 << 20  # bytes, the largest heap of a thread
_CGROUPS = Path("/sys/fs/cgroup")
# How libraries say it where they raise nothing of their own: torch on the host and on GPUs, its allocators, the system.
_SAYINGS = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "bad_alloc",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED and its like
    "unable to allocate",
    "can't start new thread",
    "failed to map segment",  # a library, below `ulimit -v`
)


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, in whatever words."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError | ImportError) and any(
        each in str(error).lower() for each in _SAYINGS
    )


def require_memory(needed: int, what: str, *, hint: Hint | str) -> None:
    """Refuse what cannot be held, before a control group ends the process in the middle of it without a word.

    Args:
        needed: bytes.
        what: needs them, for the message.

    Raises:
        OutOfMemoryError: names both sizes.
    """
    there = available()
    if there is not None and needed > there:
        raise OutOfMemoryError(f"{what} takes {_size(needed)} of memory; {_size(there)} can be had", hint=hint)


def available() -> int | None:
    """Bytes that this process can still take: the least of what all limits leave. None where the system tells nothing."""
    left = [found for found in (_of_machine(), *_of_groups(), _of_process()) if found is not None]
    return max(0, min(left)) if left else None


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**8 else f"{count / 1e6:,.0f} MB"


def _of_machine() -> int | None:
    """What the system could give without paging out, the file cache included."""
    found = _fields(Path("/proc/meminfo")).get("MemAvailable:")
    return None if found is None else found << 10


def _of_process() -> int | None:
    """What `ulimit -v` leaves."""
    limit = process_limit()
    try:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
    return None if limit is None else limit - taken


def process_limit() -> int | None:
    """Bytes of addresses that `ulimit -v` allows this process; None where it is not set."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, OSError):
        return None
    return None if limit == resource.RLIM_INFINITY else limit


def _of_groups() -> list[int]:
    """What the control groups that hold this process leave, each apart from its file cache, which it gives back."""
    try:
        named = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, path in (each for each in named if len(each) == 3):
        root = _CGROUPS if not controllers else _CGROUPS / "memory" if "memory" in controllers.split(",") else None
        if root is None:
            continue
        limit, used = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = Path(path.lstrip("/"))
        for folder in (root / group, *(root / parent for parent in group.parents)):
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None:
                cached = _fields(folder / "memory.stat")
                left.append(most - now + cached.get("inactive_file", 0) + cached.get("active_file", 0))
    return left


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, or no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Name → number of a file of lines that begin with both."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


@functools.cache
def keep_freed_memory() -> bool:
    """Have this process keep memory that it freed, for as long as it lives; whether that could be arranged (glibc alone).

    By default every array above some megabytes goes back to the system when it is freed, and the next one is made of
    pages that must be zeroed and mapped again: a network that makes the same arrays batch after batch spends a
    quarter of its time on that. The process then holds as much as it once needed.
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  other C libraries take the call and do nothing
        wanted = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, HEAP))
        return all([library.mallopt(name, value) for name, value in wanted])
    return False
