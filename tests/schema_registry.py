"""A Schema Registry in memory, over HTTP: as much of one as a reader asks for."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit


class SchemaRegistry:
    """Answers at `url` until it is stopped. What it was asked is in `asked`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.refuses: tuple[int, Any] | None = None  # status and body of every answer instead
        self._answers: dict[str, dict[str, Any]] = {}
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Again at the same port, if it was stopped."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = registry._answer(self.path)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._port = self._server.server_address[1]
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Connections are refused from now on."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def add(
        self, schema_id: int, schema: str, kind: str = "AVRO", references: tuple[tuple[str, int], ...] = ()
    ) -> None:
        """A schema; in Protobuf, what the registry gives for `format=serialized`."""
        self._answers[f"/schemas/ids/{schema_id}"] = _document(schema, kind, references)

    def add_version(
        self, subject: str, version: int, schema: str, references: tuple[tuple[str, int], ...] = ()
    ) -> None:
        """A schema that others refer to."""
        names = {"subject": subject, "version": version, "id": 1000 + version}
        self._answers[f"/subjects/{subject}/versions/{version}"] = names | _document(schema, "AVRO", references)

    def _answer(self, target: str) -> tuple[int, Any]:
        self.asked.append(target)
        if self.refuses:
            return self.refuses
        parts = urlsplit(target)
        found = self._answers.get(parts.path)
        if found is None:
            return 404, {"error_code": 40403, "message": "Schema not found"}
        if found.get("schemaType") == "PROTOBUF" and parse_qs(parts.query).get("format") != ["serialized"]:
            return 200, found | {"schema": 'syntax = "proto3"; message Text {}'}
        return 200, found


def _document(schema: str, kind: str, references: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    document: dict[str, Any] = {"schema": schema} | ({} if kind == "AVRO" else {"schemaType": kind})
    if references:
        document["references"] = [{"name": "n", "subject": name, "version": version} for name, version in references]
    return document
