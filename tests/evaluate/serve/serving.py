"""Servers for tests, asked over real connections, and videos that they have trouble with."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import torch

from glscl.evaluate.serve.app import Site
from glscl.evaluate.serve.served_caches import open_catalog
from glscl.evaluate.serve.server import Server, ServerAddress
from glscl.evaluate.serve.settings import ServeSettings

MARKUP = "<img src=x onerror=document.title='hit'>"
HOSTILE = (MARKUP, "..", "a/../../etc/passwd", "two\nlines", "quo\"te'&amp;", "half\udc80", "?a=b#c%2f", "=SUM(A1)")


def mpeg4(path: Path, *, seconds: int = 6, rate: int = 10) -> Path:
    """A video that no browser plays; its frames grow lighter."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(seconds * rate):
            frame = np.full((120, 160, 3), 10 + 235 * number // (seconds * rate), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode(None))
    return path


def h264(path: Path, *, begins: float, white: Iterable[int], frames: int = 60, rate: int = 10) -> Path:
    """A video that browsers play, whose own clock begins late: blue, but for some white frames."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        white = set(white)
        for number in range(frames):
            colour = (255, 255, 255) if number in white else (10, 10, 200)
            frame = av.VideoFrame.from_ndarray(np.full((96, 96, 3), colour, np.uint8), format="rgb24")
            frame.pts = round(begins * rate) + number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


class Made(NamedTuple):
    """Where the cache and the videos are; `gone` is the id whose file was deleted since."""

    root: Path
    cache: Path
    videos: dict[str, Path]
    gone: str


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A running server, asked over a real connection."""

    def __init__(self, site: Site, place: ServerAddress) -> None:
        self.site, self.place = site, place
        self.url = place.url.partition("?")[0].rstrip("/")

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
        """`headers`: with `_` for `-`."""
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        with connection.getresponse() as answer:
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


@contextmanager
def running(caches: list[Path], runs: list[Path] | None = None, **settings: Any) -> Iterator[Served]:
    asked = ServeSettings(**{"port": 0, "workers": 1, **settings})
    place = ServerAddress(asked)
    site = Site(open_catalog(caches, runs or [], device=torch.device("cpu")), asked, paths=not place.public)
    site.warm()
    ready = threading.Event()
    server = Server(site, place, ready=ready.set)
    thread = threading.Thread(target=server.serve_requests)
    thread.start()
    try:
        assert ready.wait(30)
        yield Served(site, place)
    finally:
        server.should_exit = True
        thread.join(30)
