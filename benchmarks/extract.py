"""Extraction against its own stages and against the loop one would write first, on the same clips in one run.

    python benchmarks/extract.py                          60 clips of the built-in corpus, ten times over; backbone demo
    python benchmarks/extract.py --backbone ViT-B-32      the same architecture as OpenAI's, with random weights
    python benchmarks/extract.py --videos DIR             your clips
    python benchmarks/extract.py --memory                 memory over 5,000 videos and through one of 20,000 frames
    python benchmarks/extract.py --quick                  few clips, to see that it works

Standard output is the result, in Markdown.

What extraction is compared with. Decoding alone is the decode pool with nothing behind it, encoding alone is the encoder on
frames that lie in memory. With the encoder on a GPU the two work beside each other, and the best possible time is that of the
slower. On one processor both want the same cores, each alone already keeps all of them busy, and the best possible time is
their sum. The plain loop takes one video after another: opens it with decord, takes the same frames, preprocesses them with
open_clip's transform, encodes them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import digits, machine, markdown, synchronise, timed
from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.demo.corpus import render_corpus
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.extract.backbone.loading import Loaded
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings

VIDEO_FILES = (".mp4", ".avi", ".webm", ".mkv", ".mov")


def backbone_for(name: str, device: str, preprocess: str) -> Backbone:
    """`demo`, or an open_clip architecture with random weights: they cost what trained ones do."""
    if name == "demo":
        return load_backbone("demo", device=device, preprocess=preprocess)
    import open_clip

    torch.manual_seed(0)
    return Backbone(
        Loaded(open_clip.create_model(name, pretrained=None), open_clip.get_tokenizer(name), name, "none"),
        words=32,
        device=torch.device(device),
        precision="fp16" if device.startswith("cuda") else "fp32",
        preprocess=preprocess,
    )


def made_clips(folder: Path, count: int) -> list[Path]:
    """The first `count` clips of the built-in corpus, rendered below `folder`."""
    _, videos = render_corpus(folder, sizes={"train": count, "val": 1, "test": 1})
    return sorted(videos.rglob("*.mp4"))[:count]


def listed(clips: list[Path], times: int) -> Annotations:
    """Every clip `times` times as a video of its own, with one caption each."""
    videos = [VideoItem(f"{n}-{clip.stem}", "test", str(clip)) for n in range(times) for clip in clips]
    return Annotations(
        dataset="benchmark",
        videos=videos,
        texts=[TextItem(f"{v.id}#0", v.id, "test", "something moves") for v in videos],
    )


def decode_alone(videos: list[VideoItem], pool: DecodePool) -> float:
    """Seconds until the pool, which is warm, has decoded all videos."""
    started = time.perf_counter()
    for _ in pool.decode(VideoTask(i, video.path) for i, video in enumerate(videos)):
        pass
    return time.perf_counter() - started


def encode_alone(frames: np.ndarray, total: int, backbone: Backbone, batch: int) -> float:
    """Seconds for `total` frames in batches, taken round and round from `frames` (n, S, S, 3)."""
    started = time.perf_counter()
    for start in range(0, total, batch):
        rows = np.arange(start, min(start + batch, total)) % len(frames)
        backbone.encode_frames(frames[rows])
    synchronise(backbone.device)
    return time.perf_counter() - started


@torch.inference_mode()
def plain_loop(videos: list[VideoItem], backbone: Backbone, rate: float) -> tuple[int, float]:
    """Frames and seconds of the loop one would write first."""
    import decord
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = image_transform_v2(PreprocessCfg(**backbone.model.visual.preprocess_cfg), is_train=False)
    started, frames = time.perf_counter(), 0
    for video in videos:
        reader = decord.VideoReader(video.path)
        wanted = np.arange(0, len(reader), max(1, round(reader.get_avg_fps() / rate)))
        pixels = torch.stack([preprocess(Image.fromarray(f)) for f in reader.get_batch(wanted).asnumpy()])
        backbone.model.encode_image(pixels.to(backbone.device), normalize=False).cpu()
        frames += len(wanted)
    return frames, time.perf_counter() - started


def throughput(arguments: argparse.Namespace, clips: list[Path], folder: Path) -> None:
    backbone = backbone_for(arguments.backbone, arguments.device, arguments.preprocess)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    annotations, sampling = listed(clips, arguments.times), Sampling(fps=arguments.fps)
    videos, workers = annotations.videos, arguments.workers
    pool = DecodePool(Decoding(sampling=sampling, prepare=backbone.transform), workers=workers)
    with pool:
        events = pool.decode(VideoTask(i, str(clip)) for i, clip in enumerate(clips))
        frames = np.concatenate([e.frames for e in events if isinstance(e, FrameChunk)])  # and the workers are awake
        decoding = decode_alone(videos, pool)
    total = len(frames) * arguments.times
    encode_alone(frames, arguments.batch_frames, backbone, arguments.batch_frames)
    encoding = encode_alone(frames, total, backbone, arguments.batch_frames)
    settings = ExtractSettings(fps=arguments.fps, workers=workers, batch_frames=arguments.batch_frames)
    extract(listed(clips[:1], 1), folder / "warm", settings, backbone=backbone)
    done = extract(annotations, folder / "cache", settings, backbone=backbone)
    assert done.frames == total and not done.failed
    first_frame = start_seconds(backbone, sampling, clips[0], workers)
    pipeline = done.seconds["total"] - done.seconds["texts"] - first_frame
    some = videos[: max(1, round(len(videos) * arguments.plain))]
    plain_frames, plain = plain_loop(some, backbone, arguments.fps)
    shared = not arguments.device.startswith("cuda")
    best = decoding + encoding if shared else max(decoding, encoding)
    rows = [
        ["decoding alone", digits(decoding), digits(total / decoding), ""],
        ["encoding alone", digits(encoding), digits(total / encoding), ""],
        ["best possible: " + ("both on the same cores, their sum" if shared else "the slower of the two"),
         digits(best), digits(total / best), "1.00"],
        ["extraction", digits(pipeline), digits(total / pipeline), f"{best / pipeline:.2f}"],
        [f"plain loop (on {len(some)} videos)", digits(plain * total / plain_frames), digits(plain_frames / plain),
         f"{best / (plain * total / plain_frames):.2f}"],
    ]  # fmt: skip
    print(
        f"{len(videos)} videos ({len(clips)} files), {total:,} frames at {arguments.fps:g} a second; backbone {arguments.backbone}, "
        f"--preprocess {arguments.preprocess}; {workers} workers, {torch.get_num_threads()} threads, batches of "
        f"{arguments.batch_frames} on {arguments.device}.\n"
    )
    print(markdown(["", "s", "frames/s", "best ÷ this"], rows))
    print(
        f"\nExtraction ÷ slower stage: {max(decoding, encoding) / pipeline:.2f}. Extraction against the plain loop: "
        f"{plain * total / plain_frames / pipeline:.1f} times as fast. Bound by {done.bound_by}.\n"
        f"Starting the workers took {first_frame:.1f} s and is left out of all rows.\n"
    )
    header = ["a frame of", "open_clip, ms", "fast, ms", "ratio", "grey levels apart, mean"]
    print(markdown(header, preprocessing_rows(arguments.backbone)))


def preprocessing_rows(backbone_name: str) -> list[list[str]]:
    """Milliseconds a frame of both ways of preprocessing on one thread, and how far apart their pixels are."""
    slow, fast = (backbone_for(backbone_name, "cpu", way).transform for way in ("open_clip", "fast"))
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)  # as in a decode worker
    for size in ((320, 240), (640, 360), (1920, 1080)):
        rng = np.random.default_rng(0)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        noisy = np.asarray(coarse).astype(int) + rng.integers(-20, 21, (size[1], size[0], 3))
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        a, b = (timed(lambda g=g, p=picture: g(p), repeats=9) for g in (slow, fast))
        apart = np.abs(slow(picture).astype(int) - fast(picture)).mean()
        rows.append([f"{size[0]} × {size[1]}", digits(a * 1e3), digits(b * 1e3), digits(a / b), f"{apart:.3f}"])
    torch.set_num_threads(threads)
    return rows


def start_seconds(backbone: Backbone, sampling: Sampling, clip: Path, workers: int) -> float:
    """Seconds from nothing to the first decoded video: what starting processes and importing decoders takes."""
    started = time.perf_counter()
    with DecodePool(Decoding(sampling=sampling, prepare=backbone.transform), workers=workers) as pool:
        for _ in pool.decode([VideoTask(0, str(clip))]):
            return time.perf_counter() - started
    return 0.0


# --- memory ------------------------------------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """Bytes of a process that are its own: anonymous memory, without shared libraries and mapped files."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0


def descendants(pid: int) -> list[int]:
    parent_of = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent_of[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found, before = {pid}, 0
    while len(found) > before:
        before = len(found)
        found |= {child for child, parent in parent_of.items() if parent in found}
    return sorted(found - {pid})


@contextlib.contextmanager
def watched_memory(samples: list[tuple[float, int, int]], every: float = 0.2) -> Iterator[None]:
    """Note (seconds, bytes of this process, bytes of its largest descendant) again and again."""
    ended = threading.Event()
    started = time.perf_counter()

    def watch() -> None:
        while not ended.wait(every):
            largest = max(map(resident, descendants(os.getpid())), default=0)
            samples.append((time.perf_counter() - started, resident(os.getpid()), largest))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def long_video(path: Path, frames: int) -> Path:
    """A clip of many small frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        ramp = np.add.outer(np.arange(120), np.arange(160))
        for i in range(frames):
            picture = np.repeat(((ramp + i) % 256).astype(np.uint8)[..., None], 3, 2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def memory(arguments: argparse.Namespace, clips: list[Path], folder: Path) -> None:
    backbone = backbone_for(arguments.backbone, arguments.device, arguments.preprocess)
    many, frames = (200, 1000) if arguments.quick else (5000, 20_000)
    long = long_video(folder / "long.mp4", frames)
    runs = {
        f"{many:,} videos, {len(clips)} files again and again": (
            listed(clips, -(-many // len(clips))),
            ExtractSettings(max_frames=2, workers=arguments.workers),
        ),
        f"one video of {frames:,} frames, --fps native": (
            listed([long], 1),
            ExtractSettings(fps="native", workers=arguments.workers),
        ),
    }
    for number, (what, (corpus, settings)) in enumerate(runs.items()):
        samples: list[tuple[float, int, int]] = []
        with watched_memory(samples):
            done = extract(corpus, folder / f"memory{number}", settings, backbone=backbone)
        assert not done.failed
        chosen = [samples[round(k * (len(samples) - 1) / 9)] for k in range(10)] if samples else []
        print(f"\n## {what}: {done.frames:,} frames in {done.seconds['total']:.0f} s\n")
        rows = [[f"{at:.0f} s", f"{own / 2**20:.0f}", f"{largest / 2**20:.0f}"] for at, own, largest in chosen]
        print(markdown(["after", "main process, MiB", "largest other process, MiB"], rows))
        half = samples[len(samples) // 4 :]
        first, second = half[: len(half) // 2], half[len(half) // 2 :]
        for column, name in ((1, "main process"), (2, "largest other process")):
            a, b = (max((sample[column] for sample in part), default=0) / 2**20 for part in (first, second))
            print(
                f"\n{name}: at most {a:.0f} MiB up to five eighths of the time, at most {b:.0f} MiB afterwards", end=""
            )
        print(flush=True)
    print("\nCounted is anonymous memory (RssAnon): pages of libraries and of mapped files are not a process's own.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, help="folder with clips; default: rendered ones")
    parser.add_argument("--clips", type=int, default=60, help="clips rendered, or most clips taken from --videos")
    parser.add_argument("--times", type=int, default=10, help="how many times over they are extracted")
    parser.add_argument("--plain", type=float, default=0.1, help="share of the videos that the plain loop is given")
    parser.add_argument("--backbone", default="demo")
    parser.add_argument("--preprocess", default="open_clip", choices=("open_clip", "fast"))
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=int, help="torch's threads; default: torch's own choice")
    parser.add_argument("--batch-frames", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.clips, arguments.times = min(arguments.clips, 4), 2
    print(f"# Extraction: {'memory' if arguments.memory else 'stages, pipeline and the plain loop'}\n")
    print(f"{time.strftime('%Y-%m-%d')}; {machine(arguments.device)}\n\n`python {shlex.join(sys.argv)}`\n")
    with tempfile.TemporaryDirectory(prefix="glscl-bench-") as scratch:
        folder = Path(scratch)
        if arguments.videos:
            clips = [p for p in sorted(arguments.videos.rglob("*")) if p.suffix in VIDEO_FILES][: arguments.clips]
        else:
            clips = made_clips(folder / "corpus", arguments.clips)
        (memory if arguments.memory else throughput)(arguments, clips, folder)
    if not arguments.memory:
        print(
            "\nNot measured: clips on a slow or remote disk, several GPUs, and on a processor alone anything that a GPU would change."
            if arguments.device == "cpu"
            else "\nNot measured: clips on a slow or remote disk, several GPUs."
        )


if __name__ == "__main__":
    main()
