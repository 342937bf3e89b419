"""Progress on standard error: a bar with rate and remaining time on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TextIO


class Task(Protocol):
    """One stage that is under way."""

    def advance(self, count: int = 1, **info: Any) -> None:
        """`count` more units are done; `info` is shown behind the bar (`failed=2`)."""


class Progress:
    """Makes tasks. Library code gets one as an argument and needs to know nothing else.

    Args:
        stream: where to print; standard error by default.
        interval: seconds between plain lines where there is no terminal.
        quiet: print nothing.
        note: what is told to people besides, a line at a time; by default nobody is.
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        interval: float = 10.0,
        quiet: bool = False,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.stream, self.note = stream or sys.stderr, note
        self.interval = interval
        self.quiet = quiet

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        """Count `total` units of something; prints a closing line with the time and the rate."""
        if self.quiet or total == 0:
            yield _Silent()
        elif self.stream.isatty():
            with _Bar(name, total, unit, self.stream) as bar:
                yield bar
        else:
            lines = _Lines(name, total, unit, self.stream, self.interval)
            yield lines
            lines.close()


@contextmanager
def counted(progress: Progress, name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (units done, units in all) that becomes a task at its first call, and another one when the total changes."""
    with ExitStack() as stack:
        task, done, total = None, 0, 0

        def tell(now: int, of: int) -> None:
            nonlocal task, done, total
            if task is None or of != total or now < done:
                stack.close()
                task, done, total = stack.enter_context(progress.task(name, of, unit)), 0, of
            task.advance(now - done)
            done = now

        yield tell


class _Silent:
    def advance(self, count: int = 1, **info: Any) -> None:
        pass


class _Lines:
    def __init__(self, name: str, total: int, unit: str, stream: TextIO, interval: float) -> None:
        self.name, self.total, self.unit, self.stream, self.interval = name, total, unit, stream, interval
        self.done, self.info = 0, {}
        self.started = self.printed = time.monotonic()

    def advance(self, count: int = 1, **info: Any) -> None:
        self.done += count
        self.info.update(info)
        now = time.monotonic()
        if now - self.printed >= self.interval and self.done < self.total:
            self.printed = now
            rate = self.done / (now - self.started)
            left = (self.total - self.done) / rate if rate else float("inf")
            self._print(f"{self.done}/{self.total} {self.unit}  {rate:.1f} {self.unit}/s  {duration(left)} left")

    def close(self) -> None:
        seconds = time.monotonic() - self.started
        rate = self.done / seconds if seconds else float("inf")
        self._print(f"{self.done}/{self.total} {self.unit} in {duration(seconds)}  ({rate:.1f} {self.unit}/s)")

    def _print(self, text: str) -> None:
        info = "".join(f"  {key} {value}" for key, value in self.info.items())
        print(f"{self.name}: {text}{info}", file=self.stream, flush=True)


class _Bar:
    def __init__(self, name: str, total: int, unit: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self.unit, self.info = unit, {}
        self.rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
            console=Console(file=stream),
        )
        self.task = self.rich.add_task(name, total=total, rate="", info="")
        self.started, self.done = time.monotonic(), 0

    def __enter__(self) -> _Bar:
        self.rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rich.stop()

    def advance(self, count: int = 1, **info: Any) -> None:
        self.done += count
        self.info.update(info)
        rate = self.done / max(1e-9, time.monotonic() - self.started)
        text = "  ".join(f"{key} {value}" for key, value in self.info.items())
        self.rich.update(self.task, advance=count, rate=f"{rate:.1f} {self.unit}/s", info=text)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    if not seconds < 1e9:
        return "unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
