"""What a cache that many lists share promises: opening, nothing to do, hashing, loading, memory, each beside its bar.

    python benchmarks/library.py                      10,000 videos, 200,000 captions; writes 11 GB for a while
    python benchmarks/library.py --quick              a hundredth of it
    python benchmarks/library.py --annotations DIR    MSR-VTT and MSVD as they are published; default: $GLSCL_REAL_DATA/annotations

Standard output is the result, in Markdown. What stands beside each other in a row was measured in turns in one run. Without real
annotations the lists are made up: 20 captions a video, of which as many stand twice. Features are random numbers. Opening, listing
and planning look at no shard: the caches of these rows have lists, additions and commits alone.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cache import FRAMES, extend, forget, listed, new_library, table_bytes
from common import digits, machine, markdown, peak_memory, timed
from glscl.cache.additions import Addition, write_addition
from glscl.cache.commits import write_all_commits
from glscl.cache.known_files import THREADS, KnownFiles
from glscl.cache.library import Library, open_library
from glscl.cache.lists import CacheList, arrange, make_current, write_list
from glscl.cache.planning import work_for
from glscl.cache.records import Commit
from glscl.cache.schema import STREAMS, Annotations, TextItem, VideoItem
from glscl.cache.shard_arrays import LAYOUT, numpy_dtype
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable
from glscl.extract.datasets import DATASETS
from glscl.extract.listing import ListOrigin, list_of

CAPTIONS = 20  # a video
TWICE = 0.17  # of the captions of MSR-VTT stand somewhere else too
FILE_BYTES = 700_000
SHARD_ITEMS = {"video": 128, "text": 2048}


class Row(NamedTuple):
    """A promise, its bar, and what was measured."""

    promise: str
    bar: str
    found: str
    met: bool

    def cells(self) -> list[str]:
        return [self.promise, self.bar, self.found, "yes" if self.met else "NO"]


# --- lists ---------------------------------------------------------------------------------------------------------------


def made_up(videos: int, *, twice: float = TWICE, paths: Sequence[Path | None] = ()) -> Annotations:
    """Videos with 20 captions each, nine tenths of them in "train"; so many of the captions are those of other videos."""
    rng = np.random.default_rng(0)
    split = ["train" if i < 0.9 * videos else "test" for i in range(videos)]
    again = rng.random((videos, CAPTIONS)) < twice
    return Annotations(
        dataset="benchmark",
        videos=[VideoItem(f"video{i}", split[i], str(paths[i]) if paths else None) for i in range(videos)],
        texts=[
            TextItem(
                f"video{i}#{k}",
                f"video{i}",
                split[i],
                f"somebody does thing {k} in video {i // 2 if again[i, k] else i}",
            )
            for i in range(videos)
            for k in range(CAPTIONS)
        ],
    )


def lists_to_load(annotations: Path | None, videos: int) -> dict[str, Annotations]:
    """MSR-VTT as it is trained on, and all of it; or as much that is made up, the second in another order."""
    if annotations is not None:
        read = DATASETS["msrvtt"].read
        return {each: arrange(read(annotations / "MSRVTT", None, protocol=each)) for each in ("9k", "full")}
    whole = made_up(videos)
    few = int(0.9 * videos)
    first = Annotations(dataset="benchmark", videos=whole.videos[:few], texts=whole.texts[: few * CAPTIONS])
    return {"9k": first, "full": Annotations(dataset="benchmark", videos=whole.videos[::-1], texts=whole.texts[::-1])}


# --- caches without shards -----------------------------------------------------------------------------------------------


def committed_only(root: Path, made: CacheList, *, additions: int = 1, format: str = "zarr") -> Library:
    """A cache as it is opened: a list that counts, additions of its items, and the commits of all their shards."""
    library = new_library(root, 512, format)
    for stream, keys in (("video", made.video_key), ("text", made.text_key)):
        unique = keys[np.sort(np.unique(keys.view("V16")[:, 0], return_index=True)[1])]
        for piece in np.array_split(unique, min(additions, len(unique))):
            addition = write_addition(root, stream, piece, shard_items=SHARD_ITEMS[stream])
            commits = [said(addition, shard, library) for shard in range(addition.num_shards)]
            write_all_commits(root, addition, commits)
    write_list(root, made, format)
    make_current(root, made)
    return library


def said(addition: Addition, shard: int, library: Library) -> Commit:
    """What a commit would say of a shard whose items have 12 rows each."""
    items, arrays = addition.shard_range(shard), {}
    lengths = {"items": len(items), "boundaries": len(items) + 1, "rows": 12 * len(items)}
    for name, spec in LAYOUT[addition.stream].items():
        shape = [lengths[spec.along], *([library.embed_dim] if spec.columns else [])]
        arrays[name] = {"shape": shape, "dtype": numpy_dtype(spec, library.dtype).name, "crc32": 0}
    path = f"shards/{addition.stream}/{addition.name}-{shard:05d}-00000000{library.format.suffix}"
    return Commit(
        stream=addition.stream,
        addition=addition.name,
        shard=shard,
        items=(items.start, items.stop),
        path=path,
        arrays=arrays,
        failures=[],
        shard_items=addition.shard_items,
    )


# --- rows of the result --------------------------------------------------------------------------------------------------


def opening(folder: Path, captions: int, bar: float, *, additions: int = 1, repeats: int = 3) -> list[Row]:
    """Seconds until a list with its captions is open."""
    made, rows = listed(made_up(captions // CAPTIONS, twice=0.0), "made"), []
    for format in ("zarr", "hdf5"):
        root = folder / f"{format} {captions} {additions}"
        committed_only(root, made, additions=additions, format=format)

        def opened(root: Path = root) -> None:
            store = open_store(root)
            assert store.complete and len(store.captions()) == len(store.ids("text")) == captions

        seconds = timed(opened, repeats=repeats)
        shutil.rmtree(root)
        what = f"open {captions:,} captions in {additions:,} addition{'s' if additions > 1 else ''} a stream, {format}"
        rows.append(Row(what, f"{bar:g} s", f"{digits(seconds)} s", seconds <= bar))
    return rows


def nothing_to_do(folder: Path, files: int, *, repeats: int = 3) -> Row:
    """Seconds until a list of known files is made and found to want nothing."""
    videos = folder / "videos"
    videos.mkdir()
    paths = [videos / f"video{i}.mp4" for i in range(files)]
    for i, path in enumerate(paths):
        path.write_bytes(b"%d" % i)
    asked, known, origin = made_up(files, paths=paths), KnownFiles(), ListOrigin(name="made")
    root = folder / "known"
    committed_only(root, list_of(asked, known, origin).made)
    known.save(root)

    def planned() -> None:
        known, library = KnownFiles.read(root), open_library(root)
        listing = list_of(asked, known, origin, library)
        work = [work_for(library, stream, listing.wanted[stream]) for stream in STREAMS]
        assert known.hashed == 0 and not any(len(each.new) or each.finish for each in work)

    seconds = timed(planned, repeats=repeats)
    what = f"nothing to do, {files:,} known files and {len(asked.texts):,} captions"
    return Row(what, "2 s", f"{digits(seconds)} s", seconds <= 2)


def hashing(folder: Path, files: int, *, repeats: int = 3) -> list[Row]:
    """Seconds to hash files beside seconds to read them, both with as many threads; from the disk and from the page cache."""
    videos, data = folder / "hashed", bytearray(os.urandom(FILE_BYTES))
    videos.mkdir()
    paths = [videos / f"{i}.mp4" for i in range(files)]
    for i, path in enumerate(paths):
        data[:8] = i.to_bytes(8, "little")
        path.write_bytes(data)
    os.sync()

    def read() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            assert sum(pool.map(lambda path: len(path.read_bytes()), paths)) == files * FILE_BYTES

    def hash() -> None:
        assert len(set(KnownFiles().contents(paths))) == files

    rows = []
    for where, before in (("the disk", forget), ("the page cache", lambda _: None)):
        raw, ours = in_turns([read, hash], lambda before=before: before(paths), repeats)
        found = f"{ours / raw:.2f} ({digits(ours)} s, {digits(raw)} s)"
        what = f"hash {files:,} files of {FILE_BYTES / 1e6:g} MB from {where}, × reading them"
        rows.append(Row(what, "1.3" if where == "the disk" else "", found, where != "the disk" or ours <= 1.3 * raw))
    shutil.rmtree(videos)
    return rows


def in_turns(work: Sequence[Callable[[], object]], before: Callable[[], object], repeats: int) -> list[float]:
    """Median seconds of each, one after the other as often as asked."""
    seconds: list[list[float]] = [[] for _ in work]
    for _ in range(repeats):
        for found, function in zip(seconds, work):
            before()
            started = time.perf_counter()
            function()
            found.append(time.perf_counter() - started)
    return [float(np.median(found)) for found in seconds]


def loading(folder: Path, asked: Mapping[str, Annotations], dim: int, format: str, *, repeats: int = 3) -> list[Row]:
    """Loading a first list, and one that shares its items, beside a copy of the tensors in memory; and what memory it takes."""
    root, rows = folder / f"loaded {format}", []
    library = new_library(root, dim, format)
    for name, found in asked.items():
        extend(library, found, name)
    for name in asked:
        store = open_store(root, name)

        def load(store=store) -> FeatureTable:
            return FeatureTable.load(store, None, max_frames=FRAMES)

        with peak_memory() as peak:
            table = load()
        arrays = [value.numpy() for value in vars(table).values() if isinstance(value, torch.Tensor)]
        size, shape = table_bytes(table), f"{table.num_texts:,} captions, {table.num_videos:,} videos"
        copied, loaded = in_turns([lambda a=arrays: [array.copy() for array in a], load], lambda: None, repeats)
        what = f"load {name} ({shape}), {format}"
        found = f"{copied / loaded:.2f} ({digits(loaded)} s, {digits(copied)} s; {size / 1e9:.2f} GB)"
        rows.append(Row(f"{what}, × a copy's speed", "0.7", found, copied >= 0.7 * loaded))
        beyond = (peak.bytes - size) / 1e9
        rows.append(Row(f"{what}, memory beyond the table", "0.3 GB", f"{beyond:.2f} GB", beyond <= 0.3))
        del table, arrays
    shutil.rmtree(root)
    return rows


def repeated(annotations: Path) -> list[Row]:
    """How many captions are not encoded because they stand there already; a number, not a time."""
    rows = []
    for name, folder, bar in (("msrvtt", "MSRVTT", 17), ("msvd", "MSVD", 23)):
        options = {"protocol": "full"} if name == "msrvtt" else {}
        texts = [text.text for text in DATASETS[name].read(annotations / folder, None, **options).texts]
        share = 100 * (1 - len(set(texts)) / len(texts))
        found = f"{share:.1f} % ({len(texts):,} captions, {len(set(texts)):,} texts)"
        rows.append(Row(f"captions of {name} that are not encoded again", f"{bar} %", found, round(share) >= bar))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--annotations", type=Path, help="folder of MSRVTT and MSVD; default: $GLSCL_REAL_DATA/annotations"
    )
    parser.add_argument(
        "--only", nargs="+", choices=("open", "known", "hash", "load", "texts"), help="these rows alone"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's folder for temporary files")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, with lists that are made up")
    arguments = parser.parse_args()
    real = arguments.annotations
    if real is None and not arguments.quick and (home := os.environ.get("GLSCL_REAL_DATA")):
        real = Path(home, "annotations")
    scale = 100 if arguments.quick else 1
    repeats, chosen = arguments.repeats, arguments.only or ("open", "known", "hash", "load", "texts")
    print("# A cache that many lists share\n")
    print(f"{machine()}\n\n`python {shlex.join(sys.argv)}`\n")
    folder = Path(tempfile.mkdtemp(prefix="glscl-bench-", dir=arguments.folder))
    rows: list[Row] = []
    try:
        if "open" in chosen:
            for captions, bar, additions in (
                (200_000, 0.5, 1),
                (200_000, 0.5, 400),
                (1_000_000, 3, 1),
                (1_000_000, 3, 400),
            ):
                rows += opening(folder, captions // scale, bar, additions=additions, repeats=repeats)
        if "known" in chosen:
            rows.append(nothing_to_do(folder, 10_000 // scale, repeats=repeats))
        if "hash" in chosen:
            rows += hashing(folder, 10_000 // scale, repeats=repeats)
        if "load" in chosen:
            for format in ("zarr", "hdf5"):
                rows += loading(folder, lists_to_load(real, 10_000 // scale), 512, format, repeats=repeats)
        if "texts" in chosen and real is not None:
            rows += repeated(real)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(markdown(["promise", "bar", "measured", "met"], [row.cells() for row in rows]))
    print(
        "\nIn brackets the seconds that a ratio comes from. Hashing reads with 16 threads, and so does what it is compared with; reading"
        "\nfrom the disk follows `posix_fadvise(DONTNEED)`. A copy is numpy's, of every array of the table into fresh memory; loading"
        "\nreads files that are in the page cache. Not measured: network disks, object stores, several readers at once."
    )


if __name__ == "__main__":
    main()
