"""Ctrl-C, SIGTERM and SIGHUP wait until a step is done, or until locks are given back that other threads need.

Python may raise KeyboardInterrupt between any two steps of the main thread, also between the one that takes a lock and the
one that sees to it being given back. A lock of a queue or a future that is lost so stops the threads of a process pool for
good. Within `Interrupts.held` the signal is only noted, and acts when the block is left.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # that ask a process to stop


class Deferred(threading.Event):
    """Set by the first signal that asks to stop; see `interrupts_deferred`."""

    acts = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that may be given up at any moment: within the block the signal raises KeyboardInterrupt, or has before it."""
        self.acts = True
        try:
            if self.is_set():
                raise KeyboardInterrupt
            yield
        finally:
            self.acts = False


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[Deferred]:
    """SIGINT, SIGTERM and SIGHUP only set the event, so that a step ends before the run stops; a second Ctrl-C acts.

    Schedulers and launchers send what asks to stop more than once: to the process and to its group, SIGTERM and then SIGHUP.
    """
    event = Deferred()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # None: installed outside Python, and not ours to touch; ignored ones stay so, as `nohup` and a shell's `&` want it
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def note(number: int, frame: FrameType | None) -> None:
        event.set()
        if signal.SIGINT in before:
            signal.signal(signal.SIGINT, before[signal.SIGINT])
        if event.acts:
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupts:
    """The handlers of these signals from `watch` to `release`, which hand on what comes outside of `held`.

    Handlers that Python does not run (the system's own, or ignored signals) stay as they are, and so does everything
    outside the main thread, which no signal interrupts.

    Attributes:
        continued: when this process last went on after it had been stopped (Ctrl-Z, SIGSTOP), by `time.monotonic`.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._depth = 0
        self._noted: int | None = None
        self.continued = -math.inf
        self._note_bound = self._note  # one object, to be known again

    def watch(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._note_bound)
        if hasattr(signal, "SIGCONT") and signal.getsignal(signal.SIGCONT) is signal.SIG_DFL:
            self._before[signal.SIGCONT] = signal.SIG_DFL
            signal.signal(signal.SIGCONT, self._note_bound)

    def release(self) -> None:
        """Put the handlers back, but for those that somebody else has set meanwhile."""
        for number, handler in self._before.items():
            if signal.getsignal(number) is self._note_bound:
                signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Signals wait until the (outermost) block is left; then the handler from before is called once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth and self._noted is not None:
                number, self._noted = self._noted, None
                self._before[number](number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGCONT", None):
            self.continued = time.monotonic()
        elif self._depth:
            self._noted = number
        else:
            self._before[number](number, frame)
