"""Who may ask: pages of this server and programs on this machine, and with the token others; no page of another site."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from glscl.evaluate.serve.answering import to_json

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class Guard:
    """An ASGI application in front of another, which refuses what a browser was tricked into asking.

    * Host must be this server's, so that no name that an attacker points here is answered (DNS rebinding).
    * Origin, where a browser sends it, must be this server's; what another site embeds or fetches is refused.
    * Where there is a token it must come as a cookie, as `Authorization: Bearer`, or in the URL of the page, which is
      then left for a cookie.

    Args:
        app: the application.
        host: address that the server listens at.
        port: its port.
        token: what must be shown; None where everybody on this machine may ask.
    """

    def __init__(self, app: Any, *, host: str, port: int, token: str | None) -> None:
        self.app, self.host, self.port, self.token = app, host.lower(), port, token
        self.cookie = f"glscl-{port}"
        names = {self.host} | (
            {"localhost", "127.0.0.1", "::1"} if is_loopback(host) else {socket.gethostname().lower()}
        )
        self._names = names
        self._any_address = not is_loopback(host)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                have = {name.lower() for name, _ in message["headers"]}
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *(m for m in more if m[0] not in have)]}
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(guarded, 403, to_json({"error": refusal}))
        elif self.token is None or self._shown(headers):
            await self.app(scope, receive, guarded)
        elif scope["path"] == "/" and self._equal(dict(_query(scope)).get("token", "")):
            rest = urlencode([(name, value) for name, value in _query(scope) if name != "token"])
            cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            more = {"Location": f"/?{rest}" if rest else "/", "Set-Cookie": cookie}
            await _answer(guarded, 303, b"", more)
        else:
            await _answer(guarded, 401, to_json({"error": "the token is needed: open the address that was printed"}))

    def _refusal(self, scope: Any, headers: Mapping[str, str]) -> str | None:
        host = headers.get("host", "")
        if not self._ours(host):
            return f"this server is not {host[:100]!r}"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return f"pages of {origin[:100]!r} may not ask here"
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        visited = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET" and scope["path"] == "/"
        if foreign and not visited:
            return "pages of other sites may not ask here"
        return None

    def _ours(self, host: str) -> bool:
        """Whether a Host header names this server; where others reach it, by any of its addresses."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if port != self.port and not (port is None and self.port == 80):
            return False
        return name in self._names or (self._any_address and (_is_address(name) or name == "localhost"))

    def _shown(self, headers: Mapping[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._equal(given.strip()):
            return True
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        except CookieError:
            return False
        return found is not None and self._equal(found.value)

    def _equal(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), (self.token or "").encode())


def new_token() -> str:
    """One that nobody guesses."""
    return secrets.token_urlsafe(24)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _query(scope: Any) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


async def _answer(send: Any, status: int, body: bytes, more: Mapping[str, str] | None = None) -> None:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Cache-Control": "no-store"}
    pairs = [(name.lower().encode(), value.encode()) for name, value in {**headers, **(more or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
