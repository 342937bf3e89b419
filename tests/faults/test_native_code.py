"""Files made to hurt native decoders go through the real pool under its limits: each costs itself, with a reason."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from pathlib import Path

import pytest

from glscl.cache.schema import Status
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.video import Decoding, VideoDone, VideoTask

MEMORY = 400 << 20  # bytes a worker may allocate beyond what it holds

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts everything on Linux alone"
)


def samples_claimed(path: Path, count: int) -> None:
    """Let the table of sample times of an mp4 speak of `count` frames."""
    data = bytearray(path.read_bytes())
    at = data.index(b"stts")
    data[at + 12 : at + 16] = struct.pack(">I", count)
    path.write_bytes(bytes(data))


def sizes_claimed(path: Path, count: int) -> None:
    """Let the table of sample sizes of an mp4 speak of `count` frames."""
    data = bytearray(path.read_bytes())
    at = data.index(b"stsz")
    data[at + 12 : at + 16] = struct.pack(">I", count)
    path.write_bytes(bytes(data))


def picture_of(path: Path, side: int) -> None:
    """Write an AVI of JPEG pictures that claim to be `side` pixels wide and high."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    at = data.find(b"\xff\xc0")
    while at >= 0:
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
        at = data.find(b"\xff\xc0", at + 2)
    path.write_bytes(bytes(data))


def test_files_that_claim_too_much_cost_only_themselves(tmp_path, make_video):
    good = make_video(tmp_path / "good.mp4", frames=8)
    names = ["good", "billion-times", "billion-sizes", "huge", "pipe", "gone", "good again"]
    paths = {name: tmp_path / f"{name}.mp4" for name in names}
    for name in ("billion-times", "billion-sizes", "good again"):
        shutil.copy(good, paths[name])
    samples_claimed(paths["billion-times"], 10**9)
    sizes_claimed(paths["billion-sizes"], 10**9)
    paths["huge"] = tmp_path / "huge.avi"
    picture_of(paths["huge"], 30_000)
    os.mkfifo(paths["pipe"])  # a stream without end, or beginning
    with DecodePool(Decoding(time_limit=20, video_limit=60, memory_limit=MEMORY), workers=2) as pool:
        tasks = [VideoTask(index, str(paths[name])) for index, name in enumerate(names)]
        done = {names[e.item]: e for e in pool.decode(tasks) if isinstance(e, VideoDone)}
    assert set(done) == set(names)
    assert (done["good"].status, done["good again"].status) == (Status.OK, Status.OK)
    assert done["gone"].status == Status.MISSING
    for name in ("billion-sizes", "huge", "pipe"):
        assert done[name].status in (Status.DECODE_ERROR, Status.TIMED_OUT, Status.PARTIAL), done[name]
        assert done[name].reason and "\n" not in done[name].reason
    # eight real frames are there whatever the table says of the rest
    assert done["billion-times"].frames <= 8
    assert all(event.frames <= 8 for event in done.values())
