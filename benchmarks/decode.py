"""Decoding with a plan against full decoding and against other decoders, on the same clips in one run.

    python benchmarks/decode.py --videos DIR [DIR …]      your clips (the real ones of the test data)
    python benchmarks/decode.py --fps 2                   two frames a second; --fps native: all of them
    python benchmarks/decode.py --pixels --videos …       what resizing costs beside decoding, on clips of 720 lines and more
    python benchmarks/decode.py --quick                   clips of the built-in corpus, to see that it works

Standard output is the result, in Markdown. Seconds are those of the processor, one thread in a process for each way, the
least of `--repeats`; the ways take turns on every clip. All give the same frames as RGB arrays of the stored size: those presented nearest
to each sample, which every way is told beforehand (decord, OpenCV and torchcodec thus save what finding them would cost). A
frame counts as wrong where a bit differs from decoding everything with PyAV.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import digits, machine, markdown
from glscl.extract.decode.decoders import UprightRgb
from glscl.extract.decode.packets import read_index
from glscl.extract.decode.sampling import Sampling, select_frames
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask, decode, decode_video
from glscl.extract.settings import parse_rate

VIDEO_FILES = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".3gp")
Frames = list[np.ndarray]


def with_plan(path: Path, wanted: list[int], sampling: Sampling) -> Frames:
    events = decode_video(VideoTask(0, str(path)), Decoding(sampling=sampling))
    return [frame for event in events if isinstance(event, FrameChunk) for frame in event.frames]


def everything(path: Path, wanted: list[int], sampling: Sampling) -> Frames:
    import av

    numbers, found, rgb = set(wanted), [], UprightRgb()
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number in numbers:
                found.append(rgb(frame))
            if number >= wanted[-1]:
                break
    return found


def decord(path: Path, wanted: list[int], sampling: Sampling) -> Frames:
    import decord

    return list(decord.VideoReader(str(path), num_threads=1).get_batch(wanted).asnumpy())


def opencv(path: Path, wanted: list[int], sampling: Sampling) -> Frames:
    import cv2

    video, numbers, found, number = cv2.VideoCapture(str(path)), set(wanted), [], 0
    while number <= wanted[-1] and video.grab():
        if number in numbers:
            found.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
        number += 1
    return found


def torchcodec(path: Path, wanted: list[int], sampling: Sampling) -> Frames:
    from torchcodec.decoders import VideoDecoder

    reader = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    return list(reader.get_frames_at(wanted).data.numpy())


WAYS: dict[str, Callable[[Path, list[int], Sampling], Frames]] = {
    "PyAV, everything": everything,
    "auto": with_plan,
    "decord": decord,
    "OpenCV": opencv,
    "torchcodec": torchcodec,
}
MODULES = {
    "PyAV, everything": "av",
    "auto": "av",
    "decord": "decord",
    "OpenCV": "cv2",
    "torchcodec": "torchcodec.decoders",
}


def measured(way: str, path: Path, wanted: list[int], sampling: Sampling, repeats: int) -> tuple[float, list[bytes]]:
    """Least processor seconds, and a hash of every frame; run in a process of this way alone."""
    best, frames = np.inf, []
    for _ in range(repeats):
        started = time.process_time()
        frames = WAYS[way](path, wanted, sampling)
        best = min(best, time.process_time() - started)
    return best, [hashlib.sha1(np.ascontiguousarray(f), usedforsecurity=False).digest() for f in frames]


def import_packages(way: str) -> None:
    """What it needs, before the clock runs. Raises ImportError, OSError, RuntimeError."""
    __import__(MODULES[way])
    if way == "OpenCV":
        import cv2

        cv2.setNumThreads(1)


class Way:
    """A process in which one way decodes: the FFmpeg libraries that these packages bring do not get on with each other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        self.seconds: dict[Path, float] = {}
        self.failed = self.wrong = 0

    def works(self) -> bool:
        try:
            self.process.submit(import_packages, self.name).result()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{self.name} does not work here: {str(error).splitlines()[0]}\n", file=sys.stderr)
            return False
        return True

    def decode(self, clip: Path, wanted: list[int], sampling: Sampling, repeats: int) -> list[bytes]:
        try:
            self.seconds[clip], frames = self.process.submit(
                measured, self.name, clip, wanted, sampling, repeats
            ).result()
        except Exception as error:  # other people's code, on files that may be anything
            print(f"{self.name} fails on {clip.name}: {str(error)[:100]}", file=sys.stderr)
            self.failed, frames = self.failed + 1, []
        return frames


def compare(clips: list[Path], sampling: Sampling, repeats: int) -> None:
    ways = [way for way in map(Way, WAYS) if way.works()]
    everything, auto = ways[:2]
    walking, frames_in_all = 0.0, 0
    for clip in clips:
        started = time.process_time()
        index = read_index(str(clip))
        walking += time.process_time() - started
        if index.irregular or index.headless:  # their frames have no numbers that all agree on
            print(f"{clip.name} is left out: {index.irregular or index.headless}", file=sys.stderr)
            continue
        wanted = select_frames(index.times, sampling, average_rate=index.average_rate).tolist()
        frames_in_all += len(wanted)
        reference = everything.decode(clip, wanted, sampling, repeats)
        for way in ways[1:]:
            frames = way.decode(clip, wanted, sampling, repeats)
            way.wrong += sum(a != b for a, b in zip_longest(reference, frames)) if frames else 0
    kept = list(everything.seconds)
    common = [clip for clip in kept if all(clip in way.seconds for way in ways)]
    total = {way.name: sum(way.seconds[clip] for clip in common) for way in ways}
    rows = [
        [way.name, digits(total[way.name]), f"{total[way.name] / total[everything.name]:.2f}",
         digits(frames_in_all / sum(way.seconds.values())) if not way.failed else "", str(way.failed), str(way.wrong)]
        for way in ways
    ]  # fmt: skip
    rate = "all frames" if sampling.fps is None else f"{sampling.fps:g} frames a second"
    print(
        f"{len(kept)} clips, {rate}: {frames_in_all:,} frames. Seconds are of the {len(common)} that no way fails on.\n"
    )
    print(markdown(["", "CPU s", "of everything", "frames/s a core", "files failed", "frames wrong"], rows))
    best = {clip: min(way.seconds[clip] for way in ways if clip in way.seconds) for clip in kept}
    regret = sum(auto.seconds[clip] for clip in kept) / sum(best.values()) - 1
    print(
        f"\nThe fastest way for each file takes {digits(sum(best.values()))} s in sum, right or wrong; `auto` takes "
        f"{100 * regret:.0f} % more. Walking over the packets is {digits(walking)} s of it.\n"
    )
    shares = {clip: auto.seconds[clip] / everything.seconds[clip] for clip in kept}
    worst = max(kept, key=lambda clip: shares[clip])
    print(
        f"Of decoding everything, `auto` takes {min(shares.values()):.2f} to {shares[worst]:.2f} ({worst.name}) on one file; "
        f"more than 1.00 on {sum(share > 1 for share in shares.values())} of {len(kept)}.\n"
    )
    slower = sorted(kept, key=lambda clip: best[clip] - auto.seconds[clip])[:5]
    print("Where `auto` loses most, CPU s:\n")
    cells = [[clip.name, *(f"{way.seconds.get(clip, np.nan):.3f}" for way in ways)] for clip in slower]
    print(markdown(["clip", *(way.name for way in ways)], cells))
    for way in ways:
        way.process.shutdown()


class Counted:
    """A preprocessing that counts the processor seconds that it takes."""

    def __init__(self, steps: Callable[[Any], np.ndarray]) -> None:
        self.steps, self.seconds = steps, 0.0

    def __call__(self, picture: Any) -> np.ndarray:
        started = time.process_time()
        result = self.steps(picture)
        self.seconds += time.process_time() - started
        return result


def pixels(clips: list[Path], repeats: int) -> None:
    """Processor milliseconds a wanted frame: decoding (with the conversion to RGB), and what a model does to its pixels."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from glscl.extract.backbone.fast_transform import FastTransform
    from glscl.extract.backbone.picture_transform import PictureTransform

    torch.set_num_threads(1)
    steps = image_transform_v2(PreprocessCfg(), is_train=False).transforms[:-3]
    ways = PictureTransform(steps, (224, 224)), FastTransform(steps, (224, 224))
    rows = []
    for clip in clips:
        if min(decode(clip)[0].shape[1:3]) < 720:
            continue
        for fps in (1.0, None):
            found = []
            for way in ways:
                best = (np.inf, np.inf)
                for _ in range(repeats):
                    counted, started = Counted(way), time.process_time()
                    frames, _ = decode(clip, fps, prepare=counted)
                    seconds = time.process_time() - started
                    best = min(best[0], seconds - counted.seconds), min(best[1], counted.seconds)
                found.append([1e3 * each / len(frames) for each in best])
            (decoding, exact), (_, fast) = found
            size = " × ".join(map(str, decode(clip)[0].shape[2:0:-1]))
            rate = "all" if fps is None else f"{fps:g}"
            rows.append(
                [f"{clip.name}, {size}", rate, *map(digits, (decoding, exact, fast)), f"{exact / decoding:.2f}"]
            )
    print(markdown(["clip", "frames/s", "decoding, ms", "open_clip, ms", "fast, ms", "open_clip ÷ decoding"], rows))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, nargs="+", help="folders with clips; default: rendered ones")
    parser.add_argument("--fps", type=parse_rate, default=1.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--pixels", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    print(f"`python benchmarks/decode.py {shlex.join(arguments or sys.argv[1:])}`\n\n{machine()}\n")
    with tempfile.TemporaryDirectory() as scratch:
        if options.videos:
            clips = sorted(p for folder in options.videos for p in folder.rglob("*") if p.suffix.lower() in VIDEO_FILES)
        else:
            from glscl.demo.corpus import render_corpus

            _, videos = render_corpus(Path(scratch), sizes={"train": 2 if options.quick else 20, "val": 1, "test": 1})
            clips = sorted(videos.rglob("*.mp4"))
        if options.pixels:
            return pixels(clips, options.repeats)
        compare(clips, Sampling(fps=options.fps), 1 if options.quick else options.repeats)


if __name__ == "__main__":
    main()
