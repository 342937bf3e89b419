"""Extraction as a command against the loops that one would write, each from nothing to its files in a process of its own.

    python benchmarks/loops.py --videos DIR --weights FILE            all ways, ViT-B-32
    python benchmarks/loops.py … --ways glscl,opencv --log FILE       some of them; their lines are added to FILE
    python benchmarks/loops.py --table FILE                           the table of what FILE holds
    python benchmarks/loops.py --quick                                two clips and random weights, to see that it works

Standard output is the result, in Markdown: seconds of the clock and of the processor (all processes), the least of all rounds.

Every way takes one frame a second of every clip, preprocesses it as open_clip does, encodes it and writes features. The loops find
their frames by the average rate, as loops do, and encode full batches of 32 frames of whatever videos (on these machines the best of
32, 64, 128 and one video); decord, OpenCV and torchcodec decode with as many threads as they like. `clip-video-encode` is that
program's way: videos are read by OpenCV in a process a core and resized by it, frames go through a DataLoader with a worker a
core to batches of 256. With bf16 the loops' model is cast once, which is faster than autocast.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from common import digits, machine, markdown
from glscl.common.devices import cores

BACKBONE = "ViT-B-32"
PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h


# --- the loops, each in a process of its own -------------------------------------------------------------------------------


def by_opencv(path: str) -> list[np.ndarray]:
    import cv2

    video, found, number = cv2.VideoCapture(path), [], 0
    step = max(1, round(video.get(cv2.CAP_PROP_FPS) or 25))
    while video.grab():
        if number % step == 0:
            found.append(cv2.cvtColor(video.retrieve()[1], cv2.COLOR_BGR2RGB))
        number += 1
    return found


def by_decord(path: str) -> list[np.ndarray]:
    import decord

    reader = decord.VideoReader(path)
    return list(reader.get_batch(range(0, len(reader), max(1, round(reader.get_avg_fps())))).asnumpy())


def by_torchcodec(path: str) -> list[np.ndarray]:
    from torchcodec.decoders import VideoDecoder

    reader: Any = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=0)
    about = reader.metadata
    return list(reader.get_frames_at([*range(0, about.num_frames, max(1, round(about.average_fps)))]).data.numpy())


def by_opencv_small(path: str) -> list[np.ndarray]:
    """Resized and cropped as video2numpy does, which clip-video-encode reads through."""
    import cv2

    small = []
    for frame in by_opencv(path):
        height, width = frame.shape[:2]
        scale = 224 / min(height, width)
        frame = cv2.resize(frame, (max(224, round(width * scale)), max(224, round(height * scale))))
        top, left = (frame.shape[0] - 224) // 2, (frame.shape[1] - 224) // 2
        small.append(frame[top : top + 224, left : left + 224])
    return small


READERS = {"opencv": by_opencv, "decord": by_decord, "torchcodec": by_torchcodec}


@torch.inference_mode()
def loop(way: str, weights: str, folder: Path, out: Path, precision: str) -> int:
    """How many frames were encoded and written."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(BACKBONE, pretrained=weights)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = model.eval().to(dtype)

    def encode(pixels: torch.Tensor) -> np.ndarray:
        return model.encode_image(pixels.to(dtype)).float().numpy()

    features = {"clip-video-encode": in_blocks}.get(way, in_batches)(way, sorted(folder.iterdir()), preprocess, encode)
    for name, rows in features.items():
        np.save(out / f"{name}.npy", np.concatenate(rows))
    return sum(len(each) for rows in features.values() for each in rows)


Encode = Callable[[torch.Tensor], np.ndarray]
Features = dict[str, list[np.ndarray]]


def in_batches(way: str, clips: list[Path], preprocess: Any, encode: Encode, size: int = 32) -> Features:
    features, waiting = collections.defaultdict(list), []

    def flush() -> None:
        names, pixels = zip(*waiting[:size])
        for name, row in zip(names, encode(torch.stack(pixels))):
            features[name].append(row[None])
        del waiting[:size]

    for clip in clips:
        for frame in readable(READERS[way], clip):
            waiting.append((clip.name, preprocess(Image.fromarray(frame))))
            if len(waiting) >= size:
                flush()
    if waiting:
        flush()
    return features


class Frames(torch.utils.data.Dataset):
    def __init__(self, frames: np.ndarray, steps: Any) -> None:
        self.frames, self.steps = frames, steps

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.steps(Image.fromarray(self.frames[index]))


def in_blocks(way: str, clips: list[Path], preprocess: Any, encode: Encode) -> Features:
    from torchvision.transforms import Compose

    with ProcessPoolExecutor(cores()) as pool:
        found = dict(zip(clips, pool.map(readable, [by_opencv_small] * len(clips), clips)))
    names = [clip.name for clip, frames in found.items() for _ in frames]
    frames = Frames(np.stack([f for each in found.values() for f in each]), Compose(preprocess.transforms[-3:]))
    features: Features = collections.defaultdict(list)
    rows = (row for batch in torch.utils.data.DataLoader(frames, 256, num_workers=cores()) for row in encode(batch))
    for name, row in zip(names, rows):
        features[name].append(row[None])
    return features


def readable(read: Callable[[str], list[np.ndarray]], clip: Path) -> list[np.ndarray]:
    try:
        return read(str(clip))
    except Exception as error:  # other people's code, on files that may be anything
        print(f"{clip.name}: {str(error)[:80]}", file=sys.stderr)
        return []


# --- what measures them ---------------------------------------------------------------------------------------------------


def command_of(way: str, precision: str, weights: Path, clips: Path, out: Path) -> list[str]:
    if way == "glscl":
        options = ["--pretrained", weights, "--precision", precision, "--backbone", BACKBONE, "--json"]
        return [
            sys.executable,
            "-m",
            "glscl",
            "extract",
            "--dataset",
            "folder",
            "--videos",
            clips,
            "--out",
            out,
            *options,
        ]
    return [sys.executable, __file__, "--one", way, "--weights", weights, "--videos", clips, "--out", out,
            "--precisions", precision]  # fmt: skip


def measured(way: str, precision: str, weights: Path, clips: Path) -> dict[str, Any]:
    """One way from nothing to its files: seconds of the clock, of all processors, frames."""
    with tempfile.TemporaryDirectory(prefix="glscl-bench-") as scratch:
        before, started = children_seconds(), time.perf_counter()
        command = [*map(str, command_of(way, precision, weights, clips, Path(scratch)))]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        wall = time.perf_counter() - started
        with contextlib.suppress(ChildProcessError):  # what it left behind comes to us, with what it has used
            while True:
                os.waitpid(-1, 0)
        said = json.loads(done.stdout.splitlines()[-1])
    frames = said["encoded"]["frames"] if way == "glscl" else said["frames"]
    cpu = children_seconds() - before
    return {"way": way, "precision": precision, "seconds": wall, "cpu": cpu, "frames": frames}


def children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def table(lines: list[dict[str, Any]]) -> str:
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        key = line["way"], line["precision"]
        kept = best.setdefault(key, dict(line, rounds=0))
        kept |= {"rounds": kept["rounds"] + 1, **{name: min(kept[name], line[name]) for name in ("seconds", "cpu")}}
    ours = {precision: each["seconds"] for (way, precision), each in best.items() if way == "glscl"}
    rows = [
        [f"{way}, {precision}", digits(each["seconds"]), digits(each["cpu"]), str(each["frames"]), str(each["rounds"]),
         *(digits(each["seconds"] / seconds) for seconds in ours.values())]
        for (way, precision), each in sorted(best.items(), key=lambda item: item[1]["seconds"])
    ]  # fmt: skip
    return markdown(["", "s", "CPU s", "frames", "rounds", *(f"÷ glscl, {name}" for name in ours)], rows)


def rounds_of(arguments: argparse.Namespace, weights: Path, clips: Path) -> Iterator[dict[str, Any]]:
    for _ in range(arguments.rounds):
        for way in arguments.ways.split(","):
            for precision in arguments.precisions.split(","):
                yield measured(way, precision, weights, clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, help="folder with clips and nothing else")
    parser.add_argument("--weights", type=Path, help=f"file with weights of {BACKBONE}; default: random ones")
    parser.add_argument("--ways", default=",".join(["glscl", *READERS, "clip-video-encode"]))
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--log", type=Path, help="file of JSON lines that results are added to")
    parser.add_argument("--table", type=Path, help="print the table of such a file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.one:
        frames = loop(arguments.one, str(arguments.weights), arguments.videos, arguments.out, arguments.precisions)
        return print(json.dumps({"frames": frames}))
    if arguments.table:
        return print(table([json.loads(line) for line in arguments.table.read_text().splitlines()]))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    print(f"# Extraction against loops\n\n{machine()}\n\n`python {shlex.join(sys.argv)}`\n")
    with tempfile.TemporaryDirectory(prefix="glscl-bench-") as scratch:
        weights, clips = arguments.weights or Path(scratch, "random.pt"), arguments.videos or Path(scratch, "clips")
        if arguments.weights is None:
            import open_clip

            torch.save(open_clip.create_model(BACKBONE, pretrained=None).state_dict(), weights)
        if arguments.videos is None:
            from glscl.demo.corpus import render_corpus

            _, videos = render_corpus(Path(scratch, "corpus"), sizes={"train": 2, "val": 1, "test": 1})
            clips.mkdir()
            for clip in sorted(videos.rglob("*.mp4"))[:2]:
                clip.rename(clips / clip.name)
        if arguments.quick:
            arguments.rounds, arguments.ways = 1, "glscl,decord"
        lines = []
        for line in rounds_of(arguments, weights, clips):
            lines.append(line)
            if arguments.log:
                with arguments.log.open("a") as log:
                    print(json.dumps(line), file=log)
    print(table(lines))


if __name__ == "__main__":
    main()
