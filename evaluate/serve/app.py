"""The page and the API of a server, as an ASGI application: requests in, answers of others out; nothing is computed here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import pickle
import tempfile
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from glscl.common.errors import (
    BackboneError,
    DecodeError,
    GlsclError,
    InputError,
    NotFoundError,
    UsageError,
    first_line,
)
from glscl.common.tar_members import TarMember
from glscl.evaluate.serve.answering import Answers, to_json
from glscl.evaluate.serve.asking import MOST, PART, SEARCH, SENTENCES, WHERE, Asked, read_parameters
from glscl.evaluate.serve.moment_pictures import Abandoned, Thumbnails
from glscl.evaluate.serve.openapi import describe
from glscl.evaluate.serve.playback import Previews, media_type, member_response
from glscl.evaluate.serve.served_caches import Catalog, Collection
from glscl.evaluate.serve.settings import ServeSettings
from glscl.extract.decode.jobs import JobPool
from glscl.extract.decode.pool import modules_of
from glscl.extract.decode.previews import late_start
from glscl.extract.decode.stills import frames_of_upload
from glscl.extract.decode.video import Decoding

WAITING = 64  # searches that may wait for their turn
UPLOADS = 8  # at once
UPLOAD_PAUSE = 20.0  # seconds that a sender may say nothing
LOOK_LIMIT = 5.0  # seconds to look at the header of a video
UPLOAD_LIMIT = 90.0  # seconds to decode what was sent
UPLOAD_FRAMES = 256  # of a clip, evenly spread
FAILURES = 1000  # that are listed
PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

Endpoint = Callable[[Request], Awaitable[Response]]


class TooLarge(GlsclError):
    """More was sent than is read."""


class TooMany(GlsclError):
    """So many ask that waiting has no sense."""


STATUS = {
    Abandoned: 499,
    NotFoundError: 404,
    UsageError: 400,
    InputError: 400,
    DecodeError: 422,
    BackboneError: 422,
    TooLarge: 413,
    TooMany: 503,
}


class AnyId(Convertor[str]):
    """An id in a path, with slashes, line breaks and all."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", AnyId())


class Site:
    """What requests are answered from.

    Args:
        catalog: what is searched.
        paths: whether answers tell where files lie.
        note: told of errors that are nobody's fault who asks.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: ServeSettings,
        *,
        paths: bool = True,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.catalog, self.settings, self._note, self._paths = catalog, settings, note, paths
        self.answers = Answers(catalog, paths=paths)
        self._computer = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._turn = asyncio.Lock()  # fair: who comes first is answered first
        self._waiting = self._uploads = 0
        transforms = [each.encoder.backbone.transform for each in catalog.collections if each.encoder.backbone]
        self._jobs = JobPool(settings.workers, preload=modules_of(pickle.dumps(transforms)))
        self.thumbnails = Thumbnails(self._jobs, max_bytes=settings.max_thumbnails << 20)
        self.previews = Previews(self._jobs, max_bytes=settings.max_previews << 20)

    def warm(self) -> None:
        """Whoever asks first waits for nothing: the frames are read while the process that decoders are forked from comes up."""
        self._jobs.wake()
        self.answers.warm()

    def app(self) -> Starlette:
        """The application; its lifespan starts and ends the processes that decode."""
        routes = [
            *(Route(path, self._asset(*asset)) for path, asset in PAGE.items()),
            Route("/openapi.json", self._answered(self._openapi)),
            Route("/api/caches", self._answered(self._caches)),
            Route("/api/failures", self._answered(self._failures)),
            Route("/api/search", self._answered(self._search)),
            Route("/api/search", self._answered(self._sent), methods=["POST"]),
            Route("/api/similar/{id:id}", self._answered(self._similar)),
            Route("/api/video/{id:id}", self._answered(self._about)),
            Route("/api/preview/{id:id}", self._answered(self._preview)),
            Route("/preview/{name}", self._answered(self._part)),
            Route("/thumb/{id:id}", self._answered(self._thumb)),
            Route("/video/{id:id}", self._answered(self._video)),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _no_such_place})

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        with self._jobs:
            warming = asyncio.get_running_loop().run_in_executor(None, self._jobs.warm)
            try:
                yield
            finally:
                with contextlib.suppress(Exception):
                    await warming
                self._computer.shutdown(wait=False, cancel_futures=True)
                self.thumbnails.close()
                self.previews.close()

    # --- searching ---------------------------------------------------------------------------------------------

    async def _search(self, request: Request) -> Response:
        asked = _asked(request, *SENTENCES, *WHERE, *SEARCH)
        return await self._computed(request, self.answers.of_sentence, asked)

    async def _similar(self, request: Request) -> Response:
        asked = _asked(request, "t", "id", *WHERE, *SEARCH)
        return await self._computed(request, self.answers.of_listed, _id(request), asked)

    async def _sent(self, request: Request) -> Response:
        """A picture or a clip as the body, decoded in a process of its own."""
        asked = _asked(request, *WHERE, *SEARCH, *PART)
        where = self.catalog.find(asked.cache, asked.list)
        backbone = where.encoder.backbone
        if backbone is None or not where.encoder.sees:
            raise UsageError(f"{where.cache} cannot be asked with pictures: how its frames were encoded is not known")
        decoding = Decoding.of_cache(where.store.configuration["sampling"], prepare=backbone.transform)
        most = min(decoding.sampling.max_frames or UPLOAD_FRAMES, UPLOAD_FRAMES)
        decoding = replace(decoding, sampling=replace(decoding.sampling, max_frames=most))
        if self._uploads >= UPLOADS:
            raise TooMany("others are sending files; try again in a moment")
        self._uploads += 1
        try:
            with tempfile.NamedTemporaryFile(prefix="glscl-upload-") as file:
                await self._receive(request, file)
                job = self._jobs.submit(
                    frames_of_upload, file.name, decoding, asked.start, asked.end, limit=UPLOAD_LIMIT
                )
                kind, frames = await asyncio.wrap_future(job)
        finally:
            self._uploads -= 1
        return await self._computed(request, self.answers.of_frames, kind, frames, asked)

    async def _receive(self, request: Request, file: Any) -> None:
        """The body of a request into a file. Raises TooLarge, UsageError; ClientDisconnect where it stops coming."""
        most, size = self.settings.max_upload << 20, 0
        told = request.headers.get("content-length", "0")
        if told.isdigit() and int(told) > most:
            raise TooLarge(f"the file has more than {self.settings.max_upload} MB")
        parts, loop = request.stream(), asyncio.get_running_loop()
        while True:
            try:
                part = await asyncio.wait_for(anext(parts), UPLOAD_PAUSE)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise ClientDisconnect from None
            size += len(part)
            if size > most:
                raise TooLarge(f"the file has more than {self.settings.max_upload} MB")
            await loop.run_in_executor(None, file.write, part)
        if not size:
            raise UsageError("nothing was sent: the body is the picture or the clip")
        file.flush()

    async def _computed(self, request: Request, function: Callable[..., Any], *arguments: Any) -> Response:
        """What a function gives, as JSON, computed in the one thread that does, in the order of asking."""
        if self._waiting >= WAITING:
            raise TooMany("so many searches wait already; try again in a moment")
        self._waiting += 1
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                computing = functools.partial(_json_of, function, *arguments)
                return _json(await asyncio.get_running_loop().run_in_executor(self._computer, computing))
        finally:
            self._waiting -= 1

    # --- what is there -----------------------------------------------------------------------------------------

    async def _openapi(self, _: Request) -> Response:
        return _json(to_json(describe()))

    async def _caches(self, request: Request) -> Response:
        from glscl import __version__

        def caches() -> dict[str, Any]:
            limits = {"top": MOST, "upload_bytes": self.settings.max_upload << 20}
            return {**self.catalog.about(paths=self._paths), "limits": limits, "version": __version__}

        return await self._computed(request, caches)

    async def _failures(self, request: Request) -> Response:
        asked = _asked(request, *WHERE)
        where = self.catalog.find(asked.cache, asked.list)

        def failures() -> dict[str, Any]:
            about = {"cache": where.cache, "list": where.name, "total": len(where.failures)}
            return {**about, "failures": where.failures[:FAILURES]}

        return await self._computed(request, failures)

    async def _about(self, request: Request) -> Response:
        where, id, _ = self._entry(request)
        video = await _in_thread(where.video, id)
        begins = 0.0
        if video.path is not None:
            job = self._jobs.submit(late_start, str(video.path), limit=LOOK_LIMIT)
            with contextlib.suppress(GlsclError, TimeoutError):  # playing it says what is wrong
                begins = await asyncio.wait_for(asyncio.wrap_future(job), LOOK_LIMIT)

        def about() -> dict[str, Any]:
            failed = next((each["reason"] for each in where.failures if each["id"] == id), None)
            return {
                "video": id,
                "split": video.split,
                "captions": where.captions(video.row),
                "there": video.path is not None,
                "begins": begins,
                "path": str(video.path) if self._paths and video.path is not None else None,
                "failure": failed,
            }

        return _json(await _in_thread(_json_of, about))

    # --- what is shown -----------------------------------------------------------------------------------------

    async def _thumb(self, request: Request) -> Response:
        where, id, asked = self._entry(request)
        made = await self.thumbnails.get(where, id, asked.t or 0.0, request.is_disconnected)
        kept = {"Cache-Control": "private, max-age=86400"}  # another file has another address
        return Response(made, media_type="image/jpeg", headers=kept)

    async def _video(self, request: Request) -> Response:
        where, id, _ = self._entry(request)
        video = await _in_thread(where.video, id)
        if video.path is None:
            raise NotFoundError("the file is not where it was last seen")
        about = {"media_type": media_type(video.path), "headers": {"Cache-Control": "no-cache"}}
        if (member := TarMember.at(video.path)) is not None:
            return member_response(member, request, **about)
        try:
            stat = await _in_thread(os.stat, video.path)
        except OSError as error:
            raise NotFoundError(f"the file cannot be read: {error.strerror}") from error
        return FileResponse(video.path, stat_result=stat, **about)

    async def _preview(self, request: Request) -> Response:
        where, id, asked = self._entry(request, "encode")
        row = where.row(id)
        key = where.store.list.video_content[row].tobytes().hex()
        made = await self.previews.get(key, functools.partial(where.video, id), asked.t or 0.0, encode=asked.encode)
        about = made.preview
        url = f"/preview/{made.name}"
        return _json(to_json({"url": url, "start": about.start, "end": about.end, "how": about.how}))

    async def _part(self, request: Request) -> Response:
        path = self.previews.named(request.path_params["name"])
        return FileResponse(path, media_type=media_type(path), headers={"Cache-Control": "no-cache"})

    def _entry(self, request: Request, *names: str) -> tuple[Collection, str, Asked]:
        asked = _asked(request, "t", "v", "id", *WHERE, *names)
        return self.catalog.find(asked.cache, asked.list), _id(request), asked

    # --- how it is answered ------------------------------------------------------------------------------------

    def _answered(self, endpoint: Endpoint) -> Endpoint:
        """An endpoint whose errors are JSON too."""

        @functools.wraps(endpoint)
        async def answered(request: Request) -> Response:
            try:
                return await endpoint(request)
            except ClientDisconnect:
                return _json(to_json({"error": "nothing more came"}), 408)
            except GlsclError as error:
                status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
                said = {"error": error.message.replace("`", ""), **({"hint": str(error.hint)} if error.hint else {})}
                return _json(to_json(said), status)
            except Exception as error:
                self._note(f"{request.method} {request.url.path[:200]!r}: {type(error).__name__}: {first_line(error)}")
                return _json(to_json({"error": f"unexpected {type(error).__name__}"}), 500)

        return answered

    @staticmethod
    def _asset(name: str, kind: str) -> Endpoint:
        """A file of the page, from memory."""
        data = resources.files("glscl.evaluate.serve").joinpath("page", name).read_bytes()
        tag = f'"{hashlib.blake2b(data, digest_size=8).hexdigest()}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}

        async def asset(request: Request) -> Response:
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            return Response(data, media_type=kind, headers=headers)

        return asset


def _asked(request: Request, *names: str) -> Asked:
    return read_parameters(request.query_params.multi_items(), *names)


def _id(request: Request) -> str:
    """The id in the path of a request, or behind it where a path cannot hold it; see `links_of`."""
    given = request.query_params.get("id")
    if given is not None:
        return given
    raw = request.scope["raw_path"].partition(b"?")[0]
    coded = raw.split(b"/", 3 if raw.startswith(b"/api/") else 2)[-1]
    try:
        return urllib.parse.unquote_to_bytes(coded).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise NotFoundError("the id is no text") from None


def _json_of(function: Callable[..., Any], *arguments: Any) -> bytes:
    return to_json(function(*arguments))


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, {"Cache-Control": "no-store"}, "application/json")


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def _no_such_place(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(to_json({"error": str(error.detail).lower()}), error.status_code)
