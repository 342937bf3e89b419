"""What a cluster of many workers loses to failures, stragglers and the one who commits: a simulation; and rates measured here.

    python benchmarks/cluster.py                                   1,000 workers, 50,000 shards
    python benchmarks/cluster.py --measure                         also: uploads, commits, mirror, ranks by parts, on this machine

A worker takes a shard, is done after a random time, and hands it to who commits, who uploads a few at once. A worker dies at
random and is back after a while; what it had in hand is made again. Of the shards some take a few times as long.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import logging
import math
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import machine, markdown


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Seconds, unless it says otherwise.

    Attributes:
        shard: to make one; `spread` is the deviation of its logarithm.
        stragglers: share of the shards that take `slow` times as long.
        lifetime: of a worker on average; None for no failures. back: until it is there again.
        commit: to upload and commit a shard; `commits` are under way at once.
        lost: (when, how many workers): they go for good.
    """

    workers: int = 1000
    shards: int = 50_000
    shard: float = 60.0
    spread: float = 0.2
    stragglers: float = 0.01
    slow: float = 5.0
    lifetime: float | None = 24 * 3600.0
    back: float = 120.0
    commit: float = 0.1
    commits: int = 16
    lost: tuple[float, int] = (0.0, 0)


@dataclass
class Outcome:
    """Attributes:
    seconds: until the last commit. made_twice: worker-seconds of shards that were lost. idle: of workers that waited in
        the end. deaths: of workers. queue: most shards that waited for a commit.
    """

    seconds: float = 0.0
    made_twice: float = 0.0
    idle: float = 0.0
    deaths: int = 0
    queue: int = 0


def simulate(cluster: Cluster, seed: int = 0) -> Outcome:
    """One run, event by event."""
    rng, found = random.Random(seed), Outcome()
    left, done, waiting, committing = cluster.shards, 0, 0, 0
    ties = itertools.count()
    events: list[tuple[float, int, str, int, int]] = []  # when, tie, what, of which worker, in which of its lives
    life = [0] * cluster.workers
    free = set(range(cluster.workers))
    began: dict[int, float] = {}
    finished = [0.0] * cluster.workers

    def at(when: float, what: str, worker: int) -> None:
        heapq.heappush(events, (when, next(ties), what, worker, life[worker]))

    def begin(worker: int, now: float) -> None:
        began[worker] = now
        takes = cluster.shard * rng.lognormvariate(-(cluster.spread**2) / 2, cluster.spread)
        takes *= cluster.slow if rng.random() < cluster.stragglers else 1.0
        death = math.inf if cluster.lifetime is None else rng.expovariate(1 / cluster.lifetime)
        at(now + min(takes, death), "made" if takes < death else "died", worker)

    def die(worker: int, now: float) -> None:
        nonlocal left
        found.deaths, life[worker] = found.deaths + 1, life[worker] + 1
        free.discard(worker)
        if worker in began:
            found.made_twice += now - began.pop(worker)
            left += 1

    when, gone = cluster.lost
    if gone:
        at(when, "lost", 0)
    now = 0.0
    while done < cluster.shards:
        while left and free:
            left -= 1
            begin(free.pop(), now)
        now, _, what, worker, lived = heapq.heappop(events)
        if what in ("made", "died", "back") and lived != life[worker]:
            continue
        if what == "committed":
            done, committing = done + 1, committing - 1
        elif what == "made":
            del began[worker]
            finished[worker], waiting = now, waiting + 1
            free.add(worker)
        elif what == "died":
            die(worker, now)
            at(now + cluster.back, "back", worker)
        elif what == "back":
            free.add(worker)
        else:
            for each in range(min(gone, cluster.workers)):
                die(each, now)
        while waiting and committing < cluster.commits:
            waiting, committing = waiting - 1, committing + 1
            at(now + cluster.commit, "committed", 0)
        found.queue = max(found.queue, waiting)
    found.seconds = now
    found.idle = sum(now - each for each in finished)
    return found


def ideal(cluster: Cluster) -> float:
    """Seconds without failures, waiting and an uneven end: all shards' work over all workers."""
    each = cluster.shard * (1 + cluster.stragglers * (cluster.slow - 1))
    return cluster.shards * each / cluster.workers


def scenarios(cluster: Cluster) -> list[tuple[str, Cluster]]:
    """What is changed, and the cluster with that changed."""
    quiet = replace(cluster, stragglers=0.0, lifetime=None)
    return [
        ("nothing goes wrong", quiet),
        (
            f"{cluster.stragglers:.0%} of the shards take {cluster.slow:g} times as long",
            replace(cluster, lifetime=None),
        ),
        ("a worker dies once a day", replace(cluster, stragglers=0.0)),
        ("a worker dies once an hour", replace(cluster, stragglers=0.0, lifetime=3600.0)),
        ("stragglers, and a death a day", cluster),
        (
            "a node of 8 workers is lost for good half-way",
            replace(quiet, lost=(ideal(quiet) / 2, min(8, cluster.workers // 2))),
        ),
        (
            f"a rack of {cluster.workers // 10} workers is lost for good half-way",
            replace(quiet, lost=(ideal(quiet) / 2, cluster.workers // 10)),
        ),
        ("a commit takes 1 s, 16 at once", replace(quiet, commit=1.0)),
        ("shards ten times as large", replace(cluster, shard=10 * cluster.shard, shards=cluster.shards // 10)),
    ]


def rows(cluster: Cluster) -> list[list[str]]:
    """A row a scenario: hours, share of the ideal throughput, work made twice, deaths, queue at who commits."""
    found = []
    for name, each in scenarios(cluster):
        seen, best = simulate(each), ideal(each)
        found.append(
            [
                name,
                f"{seen.seconds / 3600:.2f}",
                f"{best / seen.seconds:.1%}",
                f"{seen.made_twice / 3600:.1f}",
                f"{seen.deaths:,}",
                f"{seen.queue:,}",
            ]
        )
    return found


# --- measured -----------------------------------------------------------------------------------------------------------


def measure(scratch: Path, videos: int) -> list[list[str]]:
    """Rates of this machine against an S3 server in this process, and of ranks by parts beside ranks at once."""
    import os
    import urllib.request

    import numpy as np
    import torch
    from moto.server import ThreadedMotoServer

    from cache import Size, write_cache
    from glscl.cache.mirror import Mirror
    from glscl.cache.store import open_store
    from glscl.cache.stored_table import StoredTable
    from glscl.cache.upkeep.transfer import push
    from glscl.evaluate.parts import ByParts
    from glscl.evaluate.similarity import ranks
    from glscl.evaluate.watched import Watched
    from glscl.train_head.heads import build_head

    logging.getLogger("werkzeug").setLevel("ERROR")
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "GLSCL_HOME": str(scratch / "home"),
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT"))
    found: list[list[str]] = []
    try:
        path = scratch / "cache"
        write_cache(path, Size(videos, videos, 512), "zarr")
        began = time.perf_counter()
        sent = push(path, "s3://bucket/cache")
        seconds = time.perf_counter() - began
        found.append(["upload of a cache", f"{sent.bytes / 1e6:.0f} MB", f"{sent.bytes / 1e6 / seconds:.0f} MB/s"])
        found.append(["its shards committed", f"{sent.shards}", f"{sent.shards / seconds:.1f} a second"])
        mirror, began = Mirror.at("s3://bucket/commits"), time.perf_counter()
        for number in range(200):
            mirror.put_if_absent(f"commits/{number}.json", b"x" * 400)
        found.append(
            ["conditional puts, one after another", "200", f"{200 / (time.perf_counter() - began):.0f} a second"]
        )
        began = time.perf_counter()
        store = open_store("s3://bucket/cache", "full")
        table = store.table(None, frames=12)
        seconds = time.perf_counter() - began
        size = table.frame_features.numel() * 2
        found.append(["mirror, and load", f"{size / 1e6:.0f} MB of frames", f"{size / 1e6 / seconds:.0f} MB/s"])
    finally:
        server.stop()
    head, pairs = build_head("mean_pool", embed_dim=store.embed_dim), table.num_texts * table.num_videos
    began = time.perf_counter()
    whole = ranks(head, table)
    found.append(["ranks at once", f"{pairs:,} pairs", f"{pairs / 1e6 / (time.perf_counter() - began):.0f} M pairs/s"])
    stored, began = StoredTable(store, None, tokens=False), time.perf_counter()
    parts = ByParts(_Here(), spans=(4, 4)).ranks(Watched(head), stored)
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    seconds = time.perf_counter() - began
    found.append(["ranks by parts, one worker", f"{pairs:,} pairs", f"{pairs / 1e6 / seconds:.0f} M pairs/s"])
    found.append(["threads of torch", str(torch.get_num_threads()), ""])
    return found


class _Here:
    """A cluster of this process alone."""

    gpus = 0

    def map(self, function, calls, *shared):  # type: ignore[no-untyped-def]
        return ((number, function(call, *shared)) for number, call in enumerate(calls))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=50_000)
    parser.add_argument("--measure", action="store_true", help="also measure rates, which needs moto and obstore")
    parser.add_argument("--videos", type=int, default=8000, help="of the cache that is measured with")
    asked = parser.parse_args(arguments)
    print("# A cluster with failures and stragglers (simulated), and rates (measured)\n")
    print(f"{time.strftime('%Y-%m-%d')}; {machine('cpu')}\n\n`python {shlex.join(sys.argv)}`\n")
    cluster = Cluster(workers=asked.workers, shards=asked.shards)
    print(f"Simulated: {cluster.workers:,} workers, {cluster.shards:,} shards of {cluster.shard:g} s on average.\n")
    print(
        markdown(
            ["what goes wrong", "hours", "of the ideal", "worker hours made twice", "deaths", "queue"], rows(cluster)
        )
    )
    if asked.measure:
        with tempfile.TemporaryDirectory(prefix="glscl-bench-") as scratch:
            print("\nMeasured here, against moto's S3 server in the same process:\n")
            print(markdown(["what", "how much", "rate"], measure(Path(scratch), asked.videos)))


if __name__ == "__main__":
    main()
