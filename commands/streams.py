"""Standard streams that nobody may be behind any more: work goes on though its lines reach no one.

A pipe whose reader has gone (`glscl … | head`), a terminal that was closed, a full disk under `> log`, a stream that was
closed from the start (`>&-`): none of them may stop a training half-way, and no file of a cache may be opened under the
number of a standard stream, where native libraries print.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Unbreakable:
    """A text stream whose writes never fail; all else is the stream's own.

    Attributes:
        lost: what the system said when it could not be written to; None as long as it can.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._noting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting():
            self._stream.flush()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error
            with contextlib.suppress(
                OSError, ValueError
            ):  # what is buffered, and what native code prints, goes nowhere
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def standard_streams() -> Iterator[Unbreakable]:
    """Standard output and standard error as `Unbreakable`, until the block is left; closed ones lead nowhere.

    Yields:
        Standard output; its `lost` tells whether all of it has arrived.
    """
    _fill_numbers()
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 (as long as the process)
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            # a name that the terminal's encoding lacks is no reason to fail, nor are bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (Unbreakable(each or open(os.devnull, "w")) for each in before[1:])  # noqa: SIM115
    out = sys.stdout
    try:
        yield out
    finally:
        out.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def _fill_numbers() -> None:
    """Let no file that is opened later get the number of a standard stream that was closed."""
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:
        os.set_inheritable(number, True)
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
