"""Searching every frame of caches of made-up vectors: time and memory of first and following queries, the index, and a server under load.

    python benchmarks/search.py                               10,000, 100,000 and 1,000,000 frames of 512 dimensions; 2 GB of disk
    python benchmarks/search.py --frames 10000 --no-load
    python benchmarks/search.py --index 100000                an approximate index too, for caches of up to so many frames
    python benchmarks/search.py --clients 50 --seconds 60     the load: everybody asks, waits for the answer, and asks again
    python benchmarks/search.py --serve CACHE                 the load on a cache of one's own, with its captions as sentences

Standard output is the result, in Markdown. Videos have 100 frames that lie around a direction of their own, captions lie around those
directions and, as sentences do, all of them apart from the frames. A cache is written, forgotten by the system, and opened by a process of its
own, which says how long its queries take and how much memory it has at most. The load asks a server in another process for videos
that look like one second of a video: the same scan as a sentence, and nothing to encode.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import numpy as np
import torch

from cache import data_files, forget, listed, new_library
from common import digits, machine, markdown, peak_memory
from glscl.cache.encoded_items import EncodedText, EncodedVideo, text_arrays, video_arrays
from glscl.cache.filling import filling
from glscl.cache.library import Library, Place
from glscl.cache.planning import begin, work_for
from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.cache.store import open_store

DIM, FRAMES, CAPTIONS = 512, 100, 2000  # dimensions, frames a video, captions at most
QUERIES = 20


def made_up(videos: int) -> Annotations:
    return Annotations(
        dataset="benchmark",
        videos=[VideoItem(f"folder{i % 50}/video{i}", "test", None) for i in range(videos)],
        texts=[
            TextItem(f"{i}", f"folder{i % 50}/video{i}", "test", f"thing {i}") for i in range(min(videos, CAPTIONS))
        ],
        expected={},
        notes=[],
    )


def direction(name: bytes, dim: int) -> np.ndarray:
    """(D,) of a video: of few degrees of freedom, as what is filmed has."""
    inner = np.random.default_rng(int.from_bytes(name, "little")).standard_normal(24).astype(np.float32)
    return inner @ np.random.default_rng(1).standard_normal((24, dim)).astype(np.float32) / 24**0.5


def write_cache(root: Path, frames: int, dim: int = DIM) -> Library:
    """A cache of so many frames."""
    library, found = new_library(root, dim, "zarr"), made_up(max(1, frames // FRAMES))
    made = listed(found, "made")
    name_of = {key.tobytes(): f"{i}".encode() for i, key in enumerate(made.video_key)}
    name_of |= {key.tobytes(): text.id.encode() for key, text in zip(made.text_key, found.texts)}
    text_of = {key.tobytes(): text.text for key, text in zip(made.text_key, found.texts)}
    apart = 3 * np.random.default_rng(2).standard_normal(dim).astype(np.float32)

    def arrays(place: Place) -> dict[str, np.ndarray]:
        stream, rng = place.addition.stream, np.random.default_rng(place.shard)
        keys = library.stream(stream).keys_at(place)
        middles = [direction(name_of[key.tobytes()], dim) for key in keys]
        if stream == "text":
            none = np.zeros((0, dim), np.float32), np.zeros(0, np.int32)
            rows = [m + apart + rng.standard_normal(dim).astype(np.float32) for m in middles]
            texts = [text_of[key.tobytes()] for key in keys]
            return text_arrays(keys, texts, [EncodedText(row, *none) for row in rows], embed_dim=dim, dtype="float16")
        times = np.arange(FRAMES, dtype=np.float32)
        videos = [
            EncodedVideo(m + rng.standard_normal((FRAMES, dim), np.float32), times, duration=float(FRAMES))
            for m in middles
        ]
        return video_arrays(keys, videos, embed_dim=dim, dtype="float16")

    with filling(library, made):
        for stream, keys, items in (("text", made.text_key, 2048), ("video", made.video_key, 128)):
            for place in begin(library, work_for(library, stream, keys), stream, shard_items=items):
                library.commit(place.addition, place.shard, arrays(place))
    return library


# --- queries -------------------------------------------------------------------------------------------------------------


def asked(path: Path, exact: bool) -> dict[str, float]:
    """Milliseconds of the first query, the median and the worst of the following, those computed, and megabytes: in this process."""
    from glscl.evaluate.search.model import Query, zero_shot

    seconds, computing = [], []
    with peak_memory() as peak:
        began = time.perf_counter()
        store = open_store(path)
        model = zero_shot(store)
        vectors = torch.from_numpy(store.arrays("text", ["pooled"])["pooled"][: QUERIES + 1]).float()
        for vector in vectors:
            busy = time.process_time()
            model.find(Query(vector), exact=exact)
            computing.append(time.process_time() - busy)
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    following = sorted(seconds[1:])
    return {
        "first": 1e3 * seconds[0],
        "median": 1e3 * following[len(following) // 2],
        "worst": 1e3 * following[-1],
        "computing": 1e3 * sorted(computing[1:])[len(following) // 2],
        "megabytes": peak.bytes / 1e6,
        "exact": float(model.index(exact=exact).is_exact),
    }


def in_a_process(path: Path, *, exact: bool) -> dict[str, float]:
    words = [sys.executable, __file__, "--asked", str(path), *(["--exact"] if exact else [])]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)


def row_of(what: str, told: dict[str, float]) -> list[str]:
    return [what, *(digits(told[name], 3) for name in ("first", "median", "worst", "computing", "megabytes"))]


def read_all(path: Path) -> float:
    """Milliseconds to read as many bytes as the scan does once from memory: its bound."""
    store = open_store(path)
    rows = torch.ones(store.count_frames(), store.embed_dim, dtype=torch.bfloat16)
    view = rows.view(torch.float32)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        view.amax()
        seconds.append(time.perf_counter() - began)
    return 1e3 * min(seconds)


# --- load ----------------------------------------------------------------------------------------------------------------


def load(cache: Path, *, clients: int, seconds: float, sentences: bool) -> dict[str, float]:
    """Everybody asks a server of a process of its own, waits for the answer, and asks again; milliseconds."""
    store = open_store(cache)
    words = [sys.executable, "-m", "glscl", "serve", str(cache), "--list", store.list_name, "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        where = urlsplit(server.stdout.readline().split()[1])
        asks = _sentences(store) if sentences else _moments(store)
        found, errors = [], []
        end = time.monotonic() + seconds

        def client(number: int) -> None:
            connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=600)
            while time.monotonic() < end:
                began = time.perf_counter()
                try:
                    connection.request("GET", asks[(number + len(found)) % len(asks)])
                    answer = connection.getresponse()
                    body = answer.read()
                    if answer.status != 200 or not json.loads(body)["hits"]:
                        errors.append(f"{answer.status}: {body[:100]!r}")
                except Exception as error:
                    errors.append(str(error))
                    connection.close()
                found.append(1e3 * (time.perf_counter() - began))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
    for line in errors[:5]:
        print(line, file=sys.stderr)
    found.sort()

    def at(share: float) -> float:
        return found[min(len(found) - 1, int(share * len(found)))]

    return {"answers": len(found), "errors": len(errors), "p50": at(0.5), "p95": at(0.95), "worst": found[-1]}


def _moments(store: Any) -> list[str]:
    return [
        f"/api/similar/{quote(id, safe='')}?t={17 + i % 60}&top=24" for i, id in enumerate(store.ids("video")[:500])
    ]


def _sentences(store: Any) -> list[str]:
    return [f"/api/search?{urlencode({'q': caption, 'top': 24})}" for caption in store.captions()[:500]]


def load_row(what: str, told: dict[str, float], seconds: float) -> list[str]:
    rate = digits(told["answers"] / seconds, 3)
    return [
        what,
        f"{told['answers']:,.0f}",
        f"{told['errors']:.0f}",
        rate,
        *(digits(told[n], 3) for n in ("p50", "p95", "worst")),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--index", type=int, default=0, metavar="FRAMES")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--load", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--load-frames", type=int, default=100_000, help="of the cache that the load asks")
    parser.add_argument("--serve", type=Path, help="a cache with captions and its backbone, for the load")
    parser.add_argument("--folder", type=Path, help="where caches are written")
    parser.add_argument("--asked", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.asked is not None:
        print(json.dumps(asked(given.asked, given.exact)))
        return
    print(f"{machine()}\n\n`python {shlex.join(sys.argv)}`\n")
    folder = Path(tempfile.mkdtemp(prefix="glscl-search-", dir=given.folder))
    try:
        rows, indexed, loads = [], [], []
        for frames in given.frames:
            cache = folder / f"{frames}"
            print(f"{frames:,} frames", file=sys.stderr)
            write_cache(cache, frames)
            forget(data_files(cache))
            rows.append(row_of(f"{frames:,} frames", in_a_process(cache, exact=True)))
            rows[-1].append(digits(read_all(cache), 3))
            if given.load and given.serve is None and frames == given.load_frames:
                told = load(cache, clients=given.clients, seconds=given.seconds, sentences=False)
                loads.append(load_row(f"{frames:,} frames, like a moment", told, given.seconds))
            if frames <= given.index:
                began = time.perf_counter()
                words = [sys.executable, "-m", "glscl", "index", str(cache), "--json"]
                about = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
                spent = time.perf_counter() - began
                told = in_a_process(cache, exact=False)
                said = [f"{about['count']:,} of which {about['probes']:,} a query", f"{100 * about['recall']:.1f} %"]
                indexed.append([*row_of(f"{frames:,} frames", told), *said, digits(spent, 3)])
            shutil.rmtree(cache)
        head = ["", "first query, ms", "following, median", "worst of 20", "CPU ms, median", "memory, MB"]
        print(markdown([*head, "reading the rows once, ms"], rows))
        if indexed:
            print("\nWith an index:\n\n" + markdown([*head, "cells", "recall@10", "to make it, s"], indexed))
        if given.load and given.serve is not None:
            told = load(given.serve, clients=given.clients, seconds=given.seconds, sentences=True)
            frames = open_store(given.serve).count_frames()
            loads.append(load_row(f"{frames:,} frames, sentences", told, given.seconds))
        if loads:
            print(f"\n{given.clients} clients for {given.seconds:.0f} s:\n")
            print(markdown(["", "answers", "errors", "a second", "median, ms", "p95", "worst"], loads))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
