"""A server of searches, asked from Python: the same answers as objects. Needs nothing that the server needs."""

from __future__ import annotations

import http.client
import json
import mimetypes
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlencode, urljoin, urlsplit

from glscl.common.arguments import types_checked
from glscl.common.errors import DecodeError, GlsclError, InputError, NotFoundError, UsageError

ERRORS = {400: UsageError, 401: UsageError, 403: UsageError, 404: NotFoundError, 413: InputError, 422: DecodeError}


class FoundMoment(NamedTuple):
    """A part of a video, in seconds, and the score of its best frame, which is at `time`."""

    start: float
    end: float
    score: float
    time: float


class Found(NamedTuple):
    """One video of an answer, best first.

    Attributes:
        path: where the file lies on the server's machine; None where it does not tell, or the file is gone.
        time: seconds from the start of the file, of the frame that fits best.
        moments: the parts that fit best.
        times, scores: of its frames over time, of long videos the best of each part.
        links: addresses on the server: `video`, `thumb`, `about`, `preview`, `similar`.
    """

    rank: int
    video: str
    path: str | None
    score: float
    time: float
    moments: tuple[FoundMoment, ...]
    split: str
    duration: float
    times: tuple[float, ...]
    scores: tuple[float, ...]
    links: Mapping[str, str]


class Client:
    """Asks a server that `serve` started.

        client = glscl.Client("http://127.0.0.1:8765/")
        for hit in client.search("a man is cooking", top=5):
            print(hit.rank, hit.video, hit.score, hit.moments[0].start)

    Args:
        url: as it was printed, with the token where there is one.
        timeout: seconds to wait for an answer.

    Raises (each method):
        NotFoundError: nothing answers there, or no such video, cache, list or head.
        UsageError: what cannot be asked so. InputError, DecodeError: a file that cannot be used.
        GlsclError: the server cannot answer now.
    """

    @types_checked
    def __init__(self, url: str, *, timeout: float = 120.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"the address of a server looks like http://127.0.0.1:8765/, not {url!r}")
        self.url = f"{parts.scheme}://{parts.netloc}/"
        self.timeout = timeout
        self._token = (parse_qs(parts.query).get("token") or [None])[0]

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def search(self, sentence: str, **options: Any) -> list[Found]:
        """Videos for a sentence.

        Args:
            options: parameters of the API, such as top, split, folder, min, head, list, cache, by, moments.
        """
        return _found(self._json("/api/search", {"q": sentence, **options}))

    def search_file(self, path: os.PathLike[str] | str, **options: Any) -> list[Found]:
        """Videos that look like a picture or a clip; `start` and `end` are of the clip, others as in `search`."""
        file = Path(path)
        try:
            data = file.read_bytes()
        except OSError as error:
            raise NotFoundError(f"{file} cannot be read: {error.strerror}") from error
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return _found(json.loads(self._ask("POST", "/api/search", options, data, {"Content-Type": kind})))

    def similar(self, video: str | Found, time: float | None = None, **options: Any) -> list[Found]:
        """Videos that look like one of the list, or like what it shows at a time in seconds."""
        return _found(self._json(_place("similar", video), {"t": time, **options}))

    def thumbnail(self, video: str | Found, time: float | None = None) -> bytes:
        """A JPEG of a video at a time in seconds; of an answer the frame that fits best."""
        if isinstance(video, Found) and time is None:
            return self._ask("GET", video.links["thumb"])
        place = video.links["thumb"] if isinstance(video, Found) else f"/thumb/{_coded(video)}"
        return self._ask("GET", place.partition("?")[0], {**_query_of(place), "t": time or 0.0})

    def caches(self) -> dict[str, Any]:
        """What can be searched: caches with their lists and heads."""
        return self._json("/api/caches")

    def about(self, video: str | Found) -> dict[str, Any]:
        """Split, captions and file of a video, and why it failed where it did."""
        return self._json(_place("about", video))

    def link(self, place: str) -> str:
        """The whole address of a link of an answer."""
        return urljoin(self.url, place)

    def _json(self, place: str, parameters: Mapping[str, Any] | None = None) -> Any:
        return json.loads(self._ask("GET", place, parameters))

    def _ask(
        self,
        method: str,
        place: str,
        parameters: Mapping[str, Any] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        path, query = place.partition("?")[0], {**_query_of(place), **(parameters or {})}
        query = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
        told = urlencode({name: value for name, value in query.items() if value is not None}, doseq=True)
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.timeout)
        shown = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            connection.request(method, f"{path}?{told}" if told else path, body, {**shown, **(headers or {})})
            with connection.getresponse() as answer:
                data, status = answer.read(), answer.status
        except (OSError, http.client.HTTPException, ssl.SSLError) as error:
            raise NotFoundError(f"{self.url} does not answer: {error}") from error
        finally:
            connection.close()
        if status == 200:
            return data
        raise ERRORS.get(status, GlsclError)(_error_of(data, status))


def _found(answer: Any) -> list[Found]:
    return [
        Found(
            *(hit[name] for name in ("rank", "video", "path", "score", "time")),
            moments=tuple(FoundMoment(**moment) for moment in hit["moments"]),
            split=hit["split"],
            duration=hit["duration"],
            times=tuple(hit["strip"]["times"]),
            scores=tuple(hit["strip"]["scores"]),
            links=hit["links"],
        )
        for hit in answer["hits"]
    ]


def _coded(id: str) -> str:
    """An id in a path; `.` and `..` stand behind it, for they are no names there."""
    if id in (".", ".."):
        return f"?{urlencode({'id': id})}"
    return quote(id.encode("utf-8", "surrogatepass"), safe="")


def _place(what: str, video: str | Found) -> str:
    place = {"similar": "/api/similar/", "about": "/api/video/"}[what]
    return video.links[what] if isinstance(video, Found) else f"{place}{_coded(video)}"


def _query_of(place: str) -> dict[str, list[str]]:
    return parse_qs(place.partition("?")[2])


def _error_of(data: bytes, status: int) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers with status {status}"
