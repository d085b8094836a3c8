"""Alarms as HTTP requests."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from consumers.errors import DependencyError

_TIMEOUT_S = 5.0


class _NoRedirects(HTTPRedirectHandler):
    """Following one would make a POST a GET without its document."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = build_opener(_NoRedirects)


class RefusedError(DependencyError):
    """The webhook answers, and has not taken this document; it may take another."""


def post(address: str, document: dict[str, Any]) -> None:
    """POSTs a document with an `id`, as JSON; the id is also the request's Idempotency-Key.

    Raises RefusedError or DependencyError unless the answer is a success: then it has to be sent again.
    """
    headers = {"Content-Type": "application/json", "Idempotency-Key": document["id"]}
    request = Request(address, json.dumps(document).encode(), headers, method="POST")
    try:
        with _opener.open(request, timeout=_TIMEOUT_S):
            pass
    except HTTPError as error:
        moved = f", which is at {error.headers['Location']}" if 300 <= error.code < 400 else ""
        raise RefusedError(f"on_drift.webhook answered {error.code} {error.reason}{moved}") from error
    except (URLError, OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise DependencyError(f"on_drift.webhook does not answer ({reason})") from error
