"""Ctrl-C, SIGTERM and a closed terminal while a step is under way."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from glscl.common.launch import SIGNALS


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[threading.Event]:
    """The first SIGINT, SIGTERM or SIGHUP only sets the event, so that a step ends before the run stops; a second one acts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # None: installed outside Python, and not ours to touch; ignored ones stay so, as `nohup` and a shell's `&` want it
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def note(number: int, frame: Any) -> None:
        event.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
