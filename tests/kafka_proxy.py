"""A proxy between a client and a broker that cuts, stalls and tampers with what goes through it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

FETCH = 1
Answer = bytes | None
Tamper = Callable[[int, bytes], Answer]


class Proxy:
    """Listens on `port` for a broker that advertises that port.

    `tamper(api key, answer)` may change each answer of the broker, or withhold it with None. While `flowing` is clear
    nothing moves; while `refusing` is set new connections are closed at once.
    """

    def __init__(self) -> None:
        self.target = 0
        self.tamper: Tamper = lambda _, answer: answer
        self.flowing = threading.Event()
        self.flowing.set()
        self.refusing = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Closes every connection."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        """Passes everything on again."""
        self.tamper, self.refusing = lambda _, answer: answer, False
        self.flowing.set()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refusing:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self._pairs.append((client, server))
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        asked: dict[int, int] = {}  # the kind of each request by its correlation id
        answers = threading.Thread(target=self._answers, args=(client, server, asked), daemon=True)
        with client, server:
            answers.start()
            self._requests(client, server, asked)
            answers.join()

    def _requests(self, client: socket.socket, server: socket.socket, asked: dict[int, int]) -> None:
        with suppress(OSError, EOFError):
            while True:
                request = _frame(client)
                api, _, correlation = struct.unpack_from(">hhi", request)
                asked[correlation] = api
                self._send(server, request)
        self._end(client, server)

    def _answers(self, client: socket.socket, server: socket.socket, asked: dict[int, int]) -> None:
        with suppress(OSError, EOFError):
            while True:
                answer = _frame(server)
                (correlation,) = struct.unpack_from(">i", answer)
                tampered = self.tamper(asked.pop(correlation), answer)
                if tampered is not None:
                    self._send(client, answer[:4] + tampered[4:])
        self._end(client, server)

    def _send(self, to: socket.socket, frame: bytes) -> None:
        self.flowing.wait()
        to.sendall(struct.pack(">i", len(frame)) + frame)

    def _end(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _frame(connection: socket.socket) -> bytes:
    (length,) = struct.unpack(">i", _exactly(connection, 4))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(min(count - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
