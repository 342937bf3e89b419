"""Stand-ins for `decode_video` that misbehave in the ways native decoders do; worker processes import this file."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator

import numpy as np

from glscl.cache.schema import Status
from glscl.extract.decode.video import FrameChunk, VideoDone


def act(task, decoding, *, resume_after, beat) -> Iterator:
    """Does what the name of the "file" says; words of a name are parted by spaces."""
    item, decoder = task.item, decoding.decoder
    word, *numbers = task.path.split()
    after = -1.0 if resume_after is None else resume_after
    count = int(numbers[0]) if numbers else 1
    if word.endswith("-if-decord") and decoder != "pyav":
        word = word.removesuffix("-if-decord")
    if word in ("crash", "hang", "abort", "exit"):
        # some chunks first, then the end; a second attempt goes on after the last one that arrived
        for i in range(1, count):
            if i > after:
                yield chunk(item, i)
        fail(word)
    if word == "slow":
        for _ in range(count):
            time.sleep(0.1)
            beat()
    if word == "greedy":
        yield from take_memory(item, count)
        return
    if word == "breaks":
        raise RuntimeError("a mistake in the program")
    total = 0
    for i in range(1, count + 1):
        beat()
        if i > after:
            total += 1
            yield chunk(item, i)
    yield account(item, Status.OK, None, total, decoder)


def fail(word: str) -> None:
    if word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "abort":
        os.abort()
    elif word == "exit":
        os._exit(7)
    while True:
        ctypes.PyDLL(None).sleep(1000)  # PyDLL keeps the interpreter's lock, as the worst native code does


def take_memory(item: int, megabytes: int) -> Iterator:
    try:
        held = [np.ones(1 << 20, np.uint8) for _ in range(megabytes)]
        reason = f"took {len(held)} MB"
    except MemoryError:
        reason = "out of memory"
    yield account(item, Status.DECODE_ERROR, reason, 0, "pyav")


def chunk(item: int, second: int) -> FrameChunk:
    frame = np.full((1, 8, 8, 3), second % 256, np.uint8)
    return FrameChunk(item, frame, np.array([second], np.float32))


def account(item, status, reason, frames, decoder) -> VideoDone:
    used = "pyav" if decoder == "pyav" else "decord"
    return VideoDone(item, status, reason, used, 1.0, 1.0, frames, "made", 0.0, frames)


class Shrink:
    """A preparation of pictures that can be pickled."""

    def __call__(self, image):
        return image.resize((16, 16))


class Unloadable:
    """Can be pickled, but not read back in a worker."""

    def __reduce__(self):
        return int, ("no number",)
