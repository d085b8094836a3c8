"""An HTTP proxy that does to requests what networks and overloaded servers do."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fault:
    """What happens to one request; the default is nothing."""

    refused: bool = False  # the connection ends before the server sees anything
    read: int | None = None  # the connection ends after so many bytes of the body; the server sees nothing
    status: int | None = None  # this is the answer; the server sees nothing
    lost: bool = False  # the server does it, and the answer is lost
    wait_s: float = 0.0  # the server does it, and the answer comes so much later
    trickle_s: float = 0.0  # each byte of the answer comes so much later than the one before


FINE = Fault()
REFUSAL = b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "the proxy says no"}'  # as MLflow does with status 400
Rule = Callable[[str, str], Fault]
"""From method and path to what happens to the request."""


@dataclass
class Proxy:
    """Stands between a client and `upstream`. `rule` may be replaced at any time."""

    upstream: str
    rule: Rule = lambda method, path: FINE
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        proxy = self

        class Handler(_Handler):
            through = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def always(self, fault: Fault) -> None:
        """From now on every request meets this."""
        self.rule = lambda method, path: fault

    def once(self, fault: Fault, method: str, path_part: str) -> None:
        """The next such request meets this; all others pass."""
        left = [fault]
        self.rule = lambda m, path: left.pop() if left and m == method and path_part in path else FINE

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    through: Proxy

    def _serve(self) -> None:
        self.close_connection = True
        proxy, path = self.through, self.path
        proxy.seen.append((self.command, path))
        fault = proxy.rule(self.command, path)
        if fault.refused:
            return self._cut()
        size = int(self.headers.get("Content-Length", 0))
        if fault.read is not None:
            self.rfile.read(min(fault.read, size))
            return self._cut()
        body = self.rfile.read(size)
        if fault.status is not None:
            return self._answer(fault.status, REFUSAL, "application/json", 0.0)
        try:
            status, answer, kind = self._forward(body)
        except OSError:  # the server is down
            return self._cut()
        if fault.lost:
            return self._cut()
        time.sleep(fault.wait_s)
        return self._answer(status, answer, kind, fault.trickle_s)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, bytes, str]:
        upstream = http.client.HTTPConnection(urlsplit(self.through.upstream).netloc, timeout=60)
        try:
            hop = ("host", "connection", "accept-encoding")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            return response.status, response.read(), response.headers.get("Content-Type", "application/json")
        finally:
            upstream.close()

    def _answer(self, status: int, body: bytes, kind: str, trickle_s: float) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            for byte in body if trickle_s else ():
                self.wfile.write(bytes([byte]))
                time.sleep(trickle_s)
            self.wfile.write(b"" if trickle_s else body)
        except OSError:
            pass  # the client has given up

    def _cut(self) -> None:
        """Ends the connection with a reset, as a process that died would."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was cut
            super().finish()

    def log_message(self, *_: object) -> None:
        """Says nothing."""
