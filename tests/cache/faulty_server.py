"""A server before another that does what networks do: refuses, is slow or silent, cuts connections, loses answers."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SILENT_SECONDS = 3.0


@contextlib.contextmanager
def faulty(server: str, fault: Callable[[int, str, str], str | None]) -> Iterator[str]:
    """The address of a server that passes requests on to another.

    Args:
        fault: number of a request, its method and path → what goes wrong with it: "500", "503"; "slow"; "silent": no answer;
            "cut": the connection before the request is passed on, "lost": after it; "half": the answer in its middle.
    """
    behind, count, lock = urlsplit(server).netloc, 0, threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            nonlocal count
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                kind = fault(count, self.command, self.path)
                count += 1
            self.close_connection = kind in ("cut", "lost", "half", "silent")
            if kind in ("500", "503"):
                self.send_response(int(kind))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if kind == "slow":
                time.sleep(0.1)
            if kind == "silent":
                time.sleep(SILENT_SECONDS)
            if kind in ("cut", "silent"):
                return
            connection = http.client.HTTPConnection(behind, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            if kind == "lost":
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            length = answer.headers.get("Content-Length") if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if kind == "half" else data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # clients that went away
            pass

    with Server(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_address[1]}"
        finally:
            found.shutdown()
            thread.join()
