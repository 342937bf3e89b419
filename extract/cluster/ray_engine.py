"""The side of a cluster that asks: shards go to encoders that are free, come back, and are committed here.

An encoder is an actor of Ray: one a GPU of the cluster, or on a cluster without GPUs one a machine. Those that the cluster
has no room for yet wait, which is what lets a cluster that grows by itself grow. What dies costs the shards it had in hand.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from glscl.cache.keys import Stat
from glscl.cache.library import Library, Place
from glscl.common.errors import BackboneError, DecodeError, first_line
from glscl.common.progress import Progress
from glscl.common.ray_cluster import cause_of, connect
from glscl.common.tables import amount
from glscl.extract.batching import Stopwatch
from glscl.extract.engine import AboutBackbone
from glscl.extract.listing import Source
from glscl.extract.settings import ExtractSettings

AT_ONCE = 2  # shards of an encoder: one is encoded while another's frames come
DEATHS = 3  # of the encoders of one shard, after which it is given up
PATIENCE_SECONDS = 20.0  # until it is said that the cluster has no room


class RayEngine:
    """Shards made by encoders on a Ray cluster; see `glscl.extract.engine.Engine`.

    Args:
        settings: of the extraction; `workers` is how many videos are decoded at once on the whole cluster.
        address: of the cluster: "auto" is the one that this machine belongs to, "local" one of this machine alone.
        encoders: how many; by default one a GPU, or one a machine where there are none.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.

    Use it as a context manager; leaving it ends the encoders.
    """

    def __init__(self, settings: ExtractSettings, address: str = "auto", *, encoders: int | None = None) -> None:
        self._ray = ray = connect(address)
        there = ray.cluster_resources()
        self.gpus, self.cores = int(there.get("GPU", 0)), max(1, int(there.get("CPU", 1)))
        self.precision = "fp16" if self.gpus else "fp32"
        auto = settings.precision == "auto"
        self.settings = dataclasses.replace(settings, precision=self.precision if auto else settings.precision)
        machines = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        self.encoders = encoders or self.gpus or max(1, len(machines))
        smallest = min((int(node["Resources"]["CPU"]) for node in machines), default=1)
        self._cores_each = 0 if self.gpus else smallest // 2  # the others decode
        self._about: AboutBackbone | None = None
        self._starting: dict[Any, Any] = {}  # what an encoder will say of its backbone → the encoder
        self._free: deque[Any] = deque()

    def __repr__(self) -> str:
        return f"<RayEngine of {amount(self.encoders, 'encoder')}, {self.cores} cores, {amount(self.gpus, 'GPU')}>"

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *error: object) -> None:
        for encoder in {*self._starting.values(), *self._free}:
            self._ray.kill(encoder)
        self._starting, self._free = {}, deque()

    def backbone(self) -> AboutBackbone:
        """The backbone of the first encoder that is ready; the others are compared with it."""
        self._start()
        while self._about is None:
            ready, _ = self._ray.wait([*self._starting], num_returns=1)
            self._welcome(ready)
        return self._about

    def captions(
        self, library: Library, places: Sequence[Place], captions: Mapping[bytes, str], progress: Progress
    ) -> int:
        cut = 0
        with progress.task("captions", sum(len(place.items) for place in places), "captions") as task:
            for place, made in self._made(library, places, progress, captions=captions):
                library.commit(place.addition, place.shard, made.arrays)
                cut += made.cut
                task.advance(len(place.items))
        return cut

    def videos(
        self,
        library: Library,
        places: Sequence[Place],
        sources: Mapping[bytes, Source],
        listed: Callable[[str], Stat | None],
        progress: Progress,
    ) -> Stopwatch:
        watch, failed = Stopwatch(), 0
        with progress.task("videos", sum(len(place.items) for place in places), "videos") as task:
            for place, made in self._made(library, places, progress, sources=sources, listed=listed):
                clock = time.perf_counter()
                library.commit(place.addition, place.shard, made.arrays, failures=made.failures, ledger=made.ledger)
                made.watch.writing += time.perf_counter() - clock
                for each in dataclasses.fields(Stopwatch):
                    setattr(watch, each.name, getattr(watch, each.name) + getattr(made.watch, each.name))
                failed += len(made.failures)
                task.advance(len(place.items), **({"failed": failed} if failed else {}))
        return watch

    # --- who makes what --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Ask for as many encoders as there should be."""
        from glscl.extract.cluster.node import Encoder

        while len({*self._starting.values(), *self._free}) < self.encoders:
            actor = self._ray.remote(Encoder).options(
                num_cpus=self._cores_each,
                num_gpus=1 if self.gpus else 0,
                max_restarts=-1,
                max_concurrency=AT_ONCE,
                scheduling_strategy="SPREAD",
            )
            encoder = actor.remote(self.settings, "cuda" if self.gpus else "cpu")
            self._starting[encoder.about.remote()] = encoder

    def _made(
        self, library: Library, places: Sequence[Place], progress: Progress, **about: Any
    ) -> Iterator[tuple[Place, Any]]:
        """The shards as they come, in any order.

        Raises:
            DecodeError: the encoders of one shard died `DEATHS` times. Whatever its encoder raised.
        """
        ray, began, told = self._ray, time.monotonic(), False
        waiting = deque((place, 0) for place in places)
        running: dict[Any, tuple[Any, Place, int]] = {}
        decoders = max(2, 2 * (self.settings.workers or self.cores) // (AT_ONCE * self.encoders))
        while waiting or running:
            while waiting and self._free:
                encoder, (place, deaths) = self._free.popleft(), waiting.popleft()
                order = _order(library, place, **about)
                running[encoder.make.remote(order, decoders)] = encoder, place, deaths
            ready, _ = ray.wait([*running, *self._starting], num_returns=1, timeout=PATIENCE_SECONDS)
            if not ready and not running and not told and time.monotonic() - began > PATIENCE_SECONDS:
                each = "a GPU" if self.gpus else amount(self._cores_each, "core")
                progress.note(f"the cluster has no room for an encoder ({each}) yet; waiting")
                told = True
            self._welcome([ref for ref in ready if ref in self._starting])
            for ref in [ref for ref in ready if ref in running]:
                encoder, place, deaths = running.pop(ref)
                try:
                    made = ray.get(ref)
                except ray.exceptions.RayTaskError as error:
                    self._free.append(encoder)
                    raise cause_of(error) from error
                except ray.exceptions.RayError as error:
                    if deaths + 1 == DEATHS:
                        raise DecodeError(
                            f"A shard of {amount(len(place.items), place.addition.stream)} was lost {DEATHS} times with the "
                            f"process that made it: {first_line(error)}",
                            hint="See the log of Ray; if its memory was too small, lower `batch_frames`",
                        ) from error
                    progress.note(f"an encoder was lost ({type(error).__name__}); its shard is made again")
                    waiting.appendleft((place, deaths + 1))
                    if encoder not in self._starting.values():
                        self._free = deque(each for each in self._free if each != encoder)
                        self._starting[encoder.about.remote()] = encoder  # Ray starts it again
                else:
                    if encoder not in self._starting.values():
                        self._free.append(encoder)
                    yield place, made

    def _welcome(self, ready: Sequence[Any]) -> None:
        """Encoders whose backbone is loaded are free. Raises what loading raised, BackboneError where another came of it."""
        ray = self._ray
        for ref in ready:
            encoder = self._starting.pop(ref)
            try:
                about: AboutBackbone = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise cause_of(error) from error
            except ray.exceptions.RayError:  # it died; Ray starts it again
                self._starting[encoder.about.remote()] = encoder
                continue
            first = self._about = self._about or about
            if about.description != first.description:
                raise BackboneError(
                    f"The machines of the cluster loaded different backbones: {about.description} and {first.description}",
                    hint="Give all of them the same weights and the same versions of packages",
                )
            self._free.extend([encoder] * AT_ONCE)


def _order(
    library: Library,
    place: Place,
    *,
    captions: Mapping[bytes, str] | None = None,
    sources: Mapping[bytes, Source] | None = None,
    listed: Callable[[str], Stat | None] | None = None,
) -> Any:
    from glscl.extract.cluster.node import Order

    keys = np.ascontiguousarray(place.addition.keys_of(place.shard))
    found = {key.tobytes(): sources[key.tobytes()] for key in keys} if sources is not None else {}
    return Order(
        stream=place.addition.stream,
        keys=keys,
        captions={key.tobytes(): captions[key.tobytes()] for key in keys} if captions is not None else {},
        sources=found,
        listed={source.path: listed(source.path) for source in found.values()} if listed is not None else {},
        frames=library.frames,
        embed_dim=library.embed_dim,
        dtype=library.dtype,
    )
