"""What benchmarks share: the machine they ran on, time with burn-in, peak memory, tables.

Import it from a script beside it: `from common import machine, timed, peak_memory`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from glscl.common.versions import versions


def machine(device: torch.device | str = "cpu") -> str:
    """One line for the head of a result: processor, cores, memory, threads, GPU, versions, date, how busy it was."""
    device = torch.device(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads"]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB")
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        parts.append(f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    used = versions()
    parts.append(", ".join(f"{name} {used[name]}" for name in ("python", "torch", "numpy", "glscl")))
    with contextlib.suppress(OSError, AttributeError):
        parts.append(f"load {os.getloadavg()[0]:.1f} when it began")
    parts.append(time.strftime("%Y-%m-%d"))
    return "; ".join(parts)


def synchronise(device: torch.device | str) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(
    function: Callable[[], object], *, repeats: int = 3, burn_in: int = 1, device: torch.device | str = "cpu"
) -> float:
    """Median seconds of a call, after calls that do not count."""
    for _ in range(burn_in):
        function()
    seconds = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        function()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


class Peak:
    """Bytes that were in use at most, above what was in use at the start; set when the block ends."""

    bytes: int = 0


@contextlib.contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """Measure the extra memory of a block.

    On a GPU what torch's allocator gave out; on Linux the resident memory of the process, whose high-water mark is
    reset at the start; elsewhere that mark cannot be reset, so a peak below an earlier one reads as 0.
    """
    device, peak = torch.device(device), Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    _give_back_freed_memory()
    linux = _reset_high_water()
    before = _status("VmRSS") if linux else _high_water()
    yield peak
    peak.bytes = max(0, (_status("VmHWM") if linux else _high_water()) - before)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def digits(value: float, count: int = 3) -> str:
    """`count` significant digits, without an exponent where numbers are of everyday size."""
    text = f"{value:.{count}g}"
    return f"{value:,.0f}" if "e" in text and 1 <= abs(value) < 1e12 else text


def _processor() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return " ".join(found[1].split())
    return platform.processor() or platform.machine()


def _give_back_freed_memory() -> None:
    """Ask the C library to return what Python has freed, so that it does not hide what the block takes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_high_water() -> bool:
    """Set VmHWM to VmRSS; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) * 1024 if found else 0


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
