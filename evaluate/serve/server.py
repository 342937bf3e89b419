"""A server of searches: an address first, then what is searched, then requests until it is told to stop."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import uvicorn

from glscl.common.errors import UsageError
from glscl.evaluate.serve.app import Site
from glscl.evaluate.serve.guard import Guard, is_loopback, new_token
from glscl.evaluate.serve.settings import ServeSettings

CONNECTIONS = 512  # at once
LAST_WORDS = 2  # seconds that answers under way have when the server stops


class ServerAddress:
    """The address of a server, taken.

    Attributes:
        public: whether others than this machine may reach it.
        token: what they must show; None where nobody else comes.
        url: where a browser finds it, with the token.

    Raises:
        UsageError: the address is not this machine's, or another program has the port.
    """

    def __init__(self, settings: ServeSettings) -> None:
        host, self.public = settings.host, not is_loopback(settings.host)
        self.token = settings.token or (new_token() if self.public else None)
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self.socket = socket.socket(family, kind, protocol)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(where)
        except OSError as error:
            raise UsageError(
                f"Cannot serve at {host}, port {settings.port}: {error.strerror or error}",
                hint="Take another with `port`; `port=0` finds a free one",
            ) from error
        self.host, self.port = host, int(self.socket.getsockname()[1])
        name = socket.gethostname() if host in ("0.0.0.0", "::") else host
        shown = f"[{name}]" if ":" in name else name
        self.url = f"http://{shown}:{self.port}/{f'?token={self.token}' if self.token else ''}"

    def __repr__(self) -> str:
        return f"ServerAddress({self.host}, port {self.port})"


class Server(uvicorn.Server):
    """Serves a site at a place; `run` returns when it was stopped.

    Args:
        ready: called once requests are answered.
    """

    def __init__(self, site: Site, place: ServerAddress, *, ready: Callable[[], None] = lambda: None) -> None:
        guarded = Guard(site.app(), host=place.host, port=place.port, token=place.token)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what goes wrong is noted by the site
        super().__init__(
            uvicorn.Config(
                guarded,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=LAST_WORDS,
            )
        )
        self._place, self._ready = place, ready

    def serve_requests(self) -> None:
        """Answer until SIGINT or SIGTERM, or until `should_exit` is set. Raises KeyboardInterrupt after a signal."""
        self.run(sockets=[self._place.socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()
