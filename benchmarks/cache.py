"""The cache against the machine: writing, loading, gathering and scanning features, beside raw files and memory.

    python benchmarks/cache.py                    MSR-VTT's size: 10,000 videos, 200,000 captions, 512-d float16, 2.9 GB a format
    python benchmarks/cache.py --quick            a hundredth of it
    python benchmarks/cache.py --folder /data     on another disk

Standard output is the result, in Markdown. The features are random numbers, written through `filling` and `Library.commit` as an
extraction writes them: a first list of nine tenths of the videos, then one of all of them in another order. Raw is what the same
bytes cost without us: plain files written with fsync, every file of the cache read one after another into one array. A table that
is loaded lies in memory that the system had to find and clear first, so what it is compared with is the raw read into fresh memory
too; the raw read into memory that was used before stands beside it. All of a table's rows are measured in one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common import digits, machine, markdown, timed
from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.filling import filling
from glscl.cache.formats import STORES
from glscl.cache.keys import as_array, text_key, video_key
from glscl.cache.library import Library, Place, open_library
from glscl.cache.lists import CacheList, make_list
from glscl.cache.planning import begin, work_for
from glscl.cache.reading import read_arrays, read_rows
from glscl.cache.schema import STREAMS, Annotations, TextItem, VideoItem
from glscl.cache.shard_arrays import LAYOUT, numpy_dtype, pack_strings
from glscl.cache.store import Store, open_store
from glscl.cache.table import FeatureTable
from glscl.cache.upkeep.summary import summarise

BATCH = 128
FRAMES = 12  # a video, when the table is loaded


class Size(NamedTuple):
    videos: int
    captions: int
    dim: int

    @property
    def captions_of_video(self) -> int:
        return self.captions // self.videos


def annotations(size: Size) -> Annotations:
    """`size.videos` videos with the same number of captions each, nine tenths of them in "train"."""
    split = ["train" if i < 0.9 * size.videos else "test" for i in range(size.videos)]
    return Annotations(
        dataset="benchmark",
        videos=[VideoItem(f"video{i}", split[i], f"video{i}.mp4") for i in range(size.videos)],
        texts=[
            TextItem(f"video{i}#{k}", f"video{i}", split[i], f"somebody does thing {k} in video {i}")
            for i in range(size.videos)
            for k in range(size.captions_of_video)
        ],
    )


def listed(found: Annotations, name: str) -> CacheList:
    """A list of made-up contents."""
    contents = [hashlib.blake2b(video.id.encode(), digest_size=16).digest() for video in found.videos]
    return make_list(
        found,
        name=name,
        family="benchmark",
        recipe="",
        video_key=as_array(map(video_key, contents)),
        video_content=as_array(contents),
        text_key=as_array(text_key(text.text) for text in found.texts),
    )


def shard_arrays(library: Library, place: Place, captions: dict[bytes, str]) -> dict[str, np.ndarray]:
    """The arrays of one shard: 10 to 30 frames a video, 8 to 18 tokens a caption, features between 0 and 1."""
    stream, items = place.addition.stream, place.items
    rng = np.random.default_rng(place.shard)
    keys = library.stream(stream).keys_at(place)
    low, high = (10, 31) if stream == "video" else (8, 19)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(low, high, len(items)))])
    ids = pack_strings([key.tobytes().hex() for key in keys])
    arrays = {"offsets": offsets, "id_bytes": ids[0], "id_offsets": ids[1]}
    if stream == "text":
        arrays["text_bytes"], arrays["text_offsets"] = pack_strings([captions[key.tobytes()] for key in keys])
    for name, spec in LAYOUT[stream].items():
        if name in arrays:
            continue
        shape = (
            int(offsets[-1]) if spec.along == "rows" else len(items),
            *((library.embed_dim,) if spec.columns else ()),
        )
        dtype = numpy_dtype(spec, library.dtype)
        arrays[name] = rng.integers(0, 0x3C00, shape, np.uint16).view(dtype) if spec.columns else np.zeros(shape, dtype)
    return arrays


def write_cache(root: Path, size: Size, format: str) -> float:
    """Write a cache with two lists, "first" and "full"; seconds spent in `Library.commit` and around it."""
    library, whole = new_library(root, size.dim, format), annotations(size)
    few = int(0.9 * size.videos)
    first = dataclasses.replace(whole, videos=whole.videos[:few], texts=whole.texts[: few * size.captions_of_video])
    backwards = dataclasses.replace(whole, videos=whole.videos[::-1], texts=whole.texts[::-1])
    return extend(library, first, "first") + extend(library, backwards, "full")


def new_library(root: Path, dim: int, format: str) -> Library:
    """A cache without items."""
    spec = StoreSpec(configuration={"backbone": {"name": "random", "pretrained": "none"}}, embed_dim=dim)
    return create_library(root, spec, format)


def extend(library: Library, found: Annotations, name: str) -> float:
    """Write a list and the items of it that are not there; seconds spent in `Library.commit` and around it."""
    made, seconds = listed(found, name), 0.0
    captions = {key.tobytes(): text.text for key, text in zip(made.text_key, found.texts)}
    started = time.perf_counter()
    with filling(library, made):
        for stream, keys, items in (("text", made.text_key, 2048), ("video", made.video_key, 128)):
            for place in begin(library, work_for(library, stream, keys), stream, shard_items=items):
                seconds += time.perf_counter() - started
                arrays = shard_arrays(library, place, captions)
                started = time.perf_counter()
                library.commit(place.addition, place.shard, arrays)
    return seconds + time.perf_counter() - started


def data_files(root: Path) -> list[Path]:
    """The files that hold arrays."""
    return sorted(p for p in (root / "shards").rglob("*") if p.is_file() and p.suffix != ".json")


def read_raw(files: list[Path], into: np.ndarray | None = None) -> np.ndarray:
    """The bytes of all files, one after another; into fresh memory by default."""
    sizes = [file.stat().st_size for file in files]
    found = np.empty(sum(sizes), np.uint8) if into is None else into
    view, at = memoryview(found), 0
    for path, size in zip(files, sizes):
        with open(path, "rb", buffering=0) as file:
            while size:
                count = file.readinto(view[at : at + size])
                at, size = at + count, size - count
    return found


def write_raw(data: np.ndarray, sizes: list[int], folder: Path) -> None:
    """As many files as there are sizes."""
    for i, piece in enumerate(np.split(data, np.cumsum(sizes)[:-1])):
        with open(folder / str(i), "wb") as file:
            file.write(piece.data)
            os.fsync(file.fileno())


def forget(files: list[Path]) -> None:
    """Ask the system to drop what it remembers of the files, so that the next read goes to the disk."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def scan(library: Library) -> None:
    """Every shard's features once, one after another."""
    for stream in STREAMS:
        for place in library.stream(stream).committed():
            read_arrays(library, stream, ["values", "pooled"], place.items)


def strings(store: Store) -> tuple[list[str], list[str], list[str]]:
    return store.ids("video"), store.ids("text"), store.captions()


def table_bytes(table: FeatureTable) -> int:
    return sum(value.nbytes for value in vars(table).values() if isinstance(value, torch.Tensor))


def rate(bytes: int, seconds: float) -> str:
    return f"{bytes / seconds / 1e9:.2f} GB/s"


def reading_rows(root: Path, repeats: int) -> list[list[str]]:
    """What reading costs: load, scan and gather beside raw reads and copies, as rows of a table."""
    files = data_files(root)
    total = sum(file.stat().st_size for file in files)
    store = open_store(root, "first")
    other = open_store(root, "full")

    def cold(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(repeats):
            forget(files)
            seconds.append(timed(function, repeats=1, burn_in=0))
        return sorted(seconds)[len(seconds) // 2]

    raw = timed(lambda: read_raw(files), repeats=repeats)
    reused = _reused_seconds(files, repeats)
    raw_cold = cold(lambda: read_raw(files))
    copy = _copy_seconds(files, repeats)
    load = timed(lambda: FeatureTable.load(store, None, max_frames=None), repeats=repeats)
    load_cold = cold(lambda: FeatureTable.load(store, None, max_frames=None))
    second = timed(lambda: FeatureTable.load(other, None, max_frames=None), repeats=repeats)
    short = timed(lambda: FeatureTable.load(store, None, max_frames=FRAMES), repeats=repeats)
    table = FeatureTable.load(store, None, max_frames=FRAMES)
    loaded = table_bytes(table)
    scanned = timed(lambda: scan(open_library(root)), repeats=repeats)
    share = table_bytes(FeatureTable.load(store, None, max_frames=None))
    bytes_of_second = table_bytes(FeatureTable.load(other, None, max_frames=None))

    def row(what: str, bytes: int, seconds: float, beside: float) -> list[str]:
        return [what, digits(seconds), rate(bytes, seconds), f"{bytes / seconds / beside:.2f}"]

    warm, disk = total / raw, total / raw_cold
    return [
        row("copy from memory", total, copy, warm),
        row("raw read, in the page cache, into used memory", total, reused, warm),
        row("raw read, in the page cache", total, raw, warm),
        row("load the first list, every frame", share, load, warm),
        row("load the second, in another order, every frame", bytes_of_second, second, warm),
        row(f"load, {FRAMES} frames a video", loaded, short, warm),
        row("scan shard by shard", total, scanned, warm),
        row("raw read from the disk", total, raw_cold, disk),
        row("load from the disk, every frame", share, load_cold, disk),
        *gather_rows(store, table, repeats),
    ]


def _reused_seconds(files: list[Path], repeats: int) -> float:
    used = read_raw(files)
    return timed(lambda: read_raw(files, used), repeats=repeats)


def _copy_seconds(files: list[Path], repeats: int) -> float:
    held = read_raw(files)
    return timed(held.copy, repeats=repeats)


def gather_rows(store: Store, table: FeatureTable, repeats: int) -> list[list[str]]:
    """Random batches from the table and from the maps, beside a bare `index_select` of as many bytes."""
    generator = torch.Generator().manual_seed(0)
    steps = 20
    texts = [torch.randint(table.num_texts, (BATCH,), generator=generator) for _ in range(steps)]
    videos = [torch.randint(table.num_videos, (BATCH,), generator=generator) for _ in range(steps)]
    rows = [
        torch.cat([torch.arange(table.token_first[i], table.token_first[i] + table.token_count[i]) for i in batch])
        for batch in texts
    ]
    bare = timed(
        lambda: [(table.token_values[r].float(), table.frame_features[v].float()) for r, v in zip(rows, videos)],
        repeats=repeats,
    )
    ours = timed(lambda: [(table.texts(t, width=32), table.videos(v)) for t, v in zip(texts, videos)], repeats=repeats)
    numbers = np.sort(store.numbers["text"])
    mapped = timed(
        lambda: [read_rows(store.library, "text", "values", np.sort(r.numpy()), numbers) for r in rows],
        repeats=1,
        burn_in=1,
    )
    per = steps * BATCH
    return [
        [f"gather {BATCH} random pairs: bare index_select", digits(bare / steps), f"{per / bare:,.0f} pairs/s", "1.00"],
        [f"gather {BATCH} random pairs: the table's, padded to 32 words", digits(ours / steps),
         f"{per / ours:,.0f} pairs/s", f"{bare / ours:.2f}"],
        [f"gather {BATCH} random captions from the files' maps", digits(mapped / steps),
         f"{per / mapped:,.0f} captions/s", f"{bare / mapped:.2f}"],
    ]  # fmt: skip


def opening_rows(root: Path, repeats: int) -> list[list[str]]:
    """Seconds until a cache is open, until it is described, and until the command has said so."""
    command = [sys.executable, "-m", "glscl", "inspect", str(root)]

    def opened() -> Store:
        return open_store(root, "full")

    return [
        ["open_store", digits(timed(opened, repeats=repeats))],
        ["open_store, ids and captions", digits(timed(lambda: strings(opened()), repeats=repeats))],
        ["open_store and its plan (ids, captions, paths)", digits(timed(lambda: opened().plan, repeats=repeats))],
        ["summarise", digits(timed(lambda: summarise(open_library(root)), repeats=repeats))],
        [
            "`glscl inspect`, the whole process",
            digits(timed(lambda: subprocess.run(command, check=True, capture_output=True), repeats=repeats)),
        ],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for temporary files")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size")
    arguments = parser.parse_args()
    size = Size(arguments.videos, arguments.captions, arguments.dim)
    if arguments.quick:
        size = Size(max(20, size.videos // 100), max(40, size.captions // 100), size.dim)
    print("# The cache: writing, loading, gathering, opening\n")
    print(f"{time.strftime('%Y-%m-%d')}; {machine()}\n\n`python {shlex.join(sys.argv)}`\n")
    print(f"{size.videos:,} videos, {size.captions:,} captions, {size.dim}-d float16.")
    folder = Path(tempfile.mkdtemp(prefix="glscl-bench-", dir=arguments.folder))
    try:
        for format in STORES:
            root = folder / format
            written = write_cache(root, size, format)
            files = data_files(root)
            held = read_raw(files)
            total = len(held)
            (folder / "raw").mkdir()
            sizes = [file.stat().st_size for file in files]
            plain = timed(lambda h=held, s=sizes: write_raw(h, s, folder / "raw"), repeats=1, burn_in=0)
            del held
            shutil.rmtree(folder / "raw")
            print(f"\n## {format}: {total / 1e9:.2f} GB in {len(files)} files\n")
            rows = [
                ["raw write with fsync", digits(plain), rate(total, plain), "1.00"],
                ["append (commit of every shard)", digits(written), rate(total, written), f"{plain / written:.2f}"],
                *reading_rows(root, arguments.repeats),
            ]
            print(markdown(["", "s", "rate", "÷ raw"], rows))
            print("\n" + markdown(["opening", "s"], opening_rows(root, arguments.repeats)), flush=True)
            shutil.rmtree(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        "\nLoading reads with several threads, the raw read with one. Rates of loading count the bytes of the files (with fewer"
        "\nframes: of the tensors), so padding to the longest video is work that is not counted. In the group of gathers, ÷ raw"
        "\ncompares with the bare index_select of the same rows."
        "\nReading from the disk follows `posix_fadvise(DONTNEED)`; a disk behind another cache of its host may still be faster"
        "\nthan its medium. Not measured: object stores, several readers at once."
    )


if __name__ == "__main__":
    main()
