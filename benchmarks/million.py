"""Everything from features of others to exported vectors with a million videos: seconds and memory of every stage.

    python benchmarks/million.py                             100,000 and 1,000,000 videos, an hour on two cores, 5 GB of disk
    python benchmarks/million.py --videos 2000 20000         a look
    python benchmarks/million.py --folder /data --keep       elsewhere, and what was made stays
    python benchmarks/million.py --made                      the cache is written as an import would, which is left out

Made-up videos have 4 frames and one caption each, D = 64: the frames are noise around a vector of the video, the caption is near it. One
in twenty is a test video, and all of them are ranked among all of them. Frames come from an HDF5 file with a dataset a video, captions
from one array. Each stage is a process of its own, as it is typed. "Memory" is its resident memory at its highest, pages of mapped files
included; the bar is the size of the features as they are loaded and 2 GB, less where a stage loads less. "Growth" is the exponent
of its processor time between the sizes, without what it takes to start (`glscl doctor --help`); 1 is linear, and the ranks
of a split are quadratic in it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache import listed, new_library
from common import digits, machine, markdown
from glscl.cache.filling import filling
from glscl.cache.library import Place
from glscl.cache.lists import arrange
from glscl.cache.planning import begin, work_for
from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.cache.shard_arrays import encode_features, pack_strings
from glscl.extract.settings import ImportSettings

FRAMES, DIM = 4, 64
TEST = 20  # one video in so many
SPARE = 2e9  # bytes that a stage may take beside the features
OPEN = "import sys, glscl; print(glscl.open_cache(sys.argv[1]).table('test').num_videos)"


class Cost(NamedTuple):
    """Of a process: seconds by the clock and of all processors, and resident bytes at its highest."""

    wall: float
    cpu: float
    peak: int


def make(folder: Path, videos: int) -> None:
    """annotations.csv, frames.h5 and captions.npy."""
    import h5py

    rng = np.random.default_rng(0)
    captions = np.lib.format.open_memmap(folder / "captions.npy", "w+", np.float16, (videos, DIM))
    with open(folder / "annotations.csv", "w") as table, h5py.File(folder / "frames.h5", "w", libver="latest") as file:
        table.write("video,caption,split\n")
        space = h5py.h5s.create_simple((FRAMES, DIM))
        kind = h5py.h5t.py_create(np.dtype(np.float16))
        for start in range(0, videos, 4096):
            count = min(4096, videos - start)
            centre = rng.standard_normal((count, 1, DIM), np.float32)
            frames = (centre + rng.standard_normal((count, FRAMES, DIM), np.float32)).astype(np.float16)
            captions[start : start + count] = centre[:, 0] + rng.standard_normal((count, DIM), np.float32)
            for i in range(count):
                number = start + i
                dataset = h5py.h5d.create(file.id, b"video%d" % number, kind, space)
                dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, frames[i])
                table.write(f"video{number},thing {number} is shown,{'train' if number % TEST else 'test'}\n")


def make_cache(root: Path, videos: int) -> None:
    """A cache as the import makes it of such features."""
    split = ["test" if i % TEST == 0 else "train" for i in range(videos)]
    found = arrange(
        Annotations(
            dataset="csv",
            videos=[VideoItem(f"video{i}", split[i], None) for i in range(videos)],
            texts=[TextItem(f"video{i}#0", f"video{i}", split[i], f"thing {i} is shown") for i in range(videos)],
        )
    )
    made, library, size = listed(found, "made"), new_library(root, DIM, "zarr"), ImportSettings()
    with filling(library, made):
        for stream, keys, items in (
            ("text", made.text_key, size.shard_texts),
            ("video", made.video_key, size.shard_videos),
        ):
            for place in begin(library, work_for(library, stream, keys), stream, shard_items=items):
                library.commit(place.addition, place.shard, shard(place, keys, found.texts))


def shard(place: Place, keys: np.ndarray, texts: Sequence[TextItem]) -> dict[str, np.ndarray]:
    """The arrays of a shard; a caption is near the middle of its video."""
    items, count = slice(place.items.start, place.items.stop), len(place.items)
    block = ImportSettings().shard_videos  # divides the captions of a shard too
    blocks = range(items.start // block, -(-items.stop // block))
    middles = np.concatenate([np.random.default_rng(i).standard_normal((block, DIM), np.float32) for i in blocks])[
        :count
    ]
    rng, is_video = np.random.default_rng(place.shard), place.addition.stream == "video"
    rows = FRAMES if is_video else 0  # of each item
    values = (middles[:, None] + rng.standard_normal((count, rows, DIM), np.float32)).reshape(-1, DIM)
    pooled = (
        values.reshape(count, rows, DIM).mean(1)
        if is_video
        else middles + rng.standard_normal((count, DIM), np.float32)
    )
    ids = pack_strings([key.tobytes().hex() for key in keys[items]])
    arrays = {
        "values": encode_features(values, "float16"),
        "pooled": encode_features(pooled, "float16"),
        "offsets": np.arange(count + 1) * rows,
        "id_bytes": ids[0],
        "id_offsets": ids[1],
        "status": np.zeros(count, np.uint8),
    }
    if is_video:
        about = {"duration": np.float32(FRAMES), "fps": np.float32(1), "frames_total": np.int32(FRAMES)}
        told = {name: np.full(count, value) for name, value in about.items()}
        return arrays | told | {"times": np.tile(np.arange(FRAMES, dtype=np.float32), count)}
    words = pack_strings([text.text for text in texts[items]])
    return arrays | {"token_ids": np.zeros(0, np.int32), "text_bytes": words[0], "text_offsets": words[1]}


def run(command: Sequence[str], folder: Path) -> Cost:
    """Run a command to its end. Raises RuntimeError with its last words where it fails."""
    with open(folder / "log.txt", "w+") as log:
        started, peak, ended = time.perf_counter(), 0, 0
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        while not ended:
            peak = max(peak, high_water(process.pid))
            time.sleep(0.01)
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        wall = time.perf_counter() - started
        if status:
            log.seek(0)
            raise RuntimeError(f"{shlex.join(command)} ended with {status}:\n{log.read()[-2000:]}")
    return Cost(wall, used.ru_utime + used.ru_stime, peak)


def high_water(process: int) -> int:
    """Most resident bytes of a process since it began its program; what `wait4` tells begins with those of this one."""
    try:
        told = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.M)
    except OSError:
        return 0
    return int(told[1]) * 1024 if told else 0


def stages(folder: Path, videos: int) -> dict[str, list[str]]:
    """Stage → its command, in the order in which they need each other."""
    glscl = [sys.executable, "-m", "glscl"]
    cache, trained = str(folder / "cache"), str(folder / "run")
    own = ["--cache", cache, "--run", trained]
    return {
        "import-features": [
            *glscl, "import-features", "--dataset", "csv", "--annotations", "annotations.csv", "--features", "frames.h5",
            "--text-features", "captions.npy", "--out", cache,
        ],
        "the same again": [],
        "open_cache, table of the test split": [sys.executable, "-c", OPEN, cache],
        "inspect": [*glscl, "inspect", cache],
        "inspect --verify": [*glscl, "inspect", cache, "--verify"],
        "train-head, one epoch": [
            *glscl, "train-head", "--cache", cache, "--head", "projection", "--epochs", "1", "--captions-per-video", "1",
            "--batch-size", "1024", "--out", trained,
        ],
        f"eval, {videos // TEST:,} × {videos // TEST:,}": [*glscl, "eval", *own],
        "search, one query": [*glscl, "search", "--cache", cache, "--like", f"video{videos // 2}"],
        "search, one query through the head": [*glscl, "search", *own, "--like", f"video{videos // 2}"],
        "report": [*glscl, "report", trained, "--out", str(folder / "report")],
        "export, all": [*glscl, "export", *own, "--split", "all", "--out", str(folder / "vectors")],
    }  # fmt: skip


def measure(folder: Path, videos: int, *, imported: bool) -> dict[str, Cost]:
    """Stage → what it took."""
    found = {}
    commands = stages(folder, videos)
    commands["the same again"] = commands["import-features"]
    if not imported:
        del commands["import-features"], commands["the same again"]
    for stage, command in commands.items():
        found[stage] = run(command, folder)
        print(json.dumps({"videos": videos, "stage": stage, **found[stage]._asdict()}), file=sys.stderr, flush=True)
    return found


def growth(few: Cost, many: Cost, times: float, start: float) -> str:
    """Exponent of the processor time; nothing where starting up is most of what was measured."""
    if few.cpu - start < start / 2:
        return ""
    return f"{math.log((many.cpu - start) / (few.cpu - start)) / math.log(times):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[100_000, 1_000_000], help="numbers of videos")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for temporary files")
    parser.add_argument("--made", action="store_true", help="write the cache at once, without the import")
    parser.add_argument("--keep", action="store_true", help="leave what was made")
    arguments = parser.parse_args()
    print(f"# A million videos\n\n{machine()}\n\n`python {shlex.join(sys.argv)}`\n")
    root = Path(tempfile.mkdtemp(prefix="glscl-million-", dir=arguments.folder))
    found: dict[int, dict[str, Cost]] = {}
    try:
        start = min(run([sys.executable, "-m", "glscl", "inspect", "--help"], root).cpu for _ in range(3))
        for videos in arguments.videos:
            folder = root / str(videos)
            folder.mkdir()
            if arguments.made:
                make_cache(folder / "cache", videos)
            else:
                make(folder, videos)
            found[videos] = measure(folder, videos, imported=not arguments.made)
            if not arguments.keep:
                shutil.rmtree(folder)
    finally:
        if not arguments.keep:
            shutil.rmtree(root, ignore_errors=True)
    header = ["stage", *(f"{n:,}: s, CPU s, GB" for n in found), "growth", "bar GB", "met"]
    sizes = list(found)
    rows = []
    for costs in zip(*(each.items() for each in found.values())):
        stage, last = costs[-1]
        bar = (sizes[-1] * (FRAMES + 1) * DIM * 4 + SPARE) / 1e9
        cells = [f"{digits(c.wall)}, {digits(c.cpu)}, {c.peak / 1e9:.2f}" for _, c in costs]
        slope = growth(costs[0][1], last, sizes[-1] / sizes[0], start) if len(sizes) > 1 else ""
        rows.append([stage, *cells, slope, f"{bar:.2f}", "yes" if last.peak <= bar * 1e9 else "NO"])
    print(markdown(header, rows))


if __name__ == "__main__":
    main()
