"""A server that tells what reached it: method, path, query, headers and body as JSON. `requests` counts."""

from __future__ import annotations

import json
import ssl

from valetkey.testing.local_server import Answer, LocalServer, Received

__all__ = ["Echo"]


class Echo(LocalServer):
    """Answers every request with what it was."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(_mirror, tls=tls)


def _mirror(request: Received) -> Answer:
    body = {
        "method": request.method,
        "path": request.path,
        "query": dict(request.query),
        "headers": dict(request.headers),
        "body": request.body.decode(errors="replace"),
    }
    return Answer(headers={"content-type": "application/json"}, body=json.dumps(body).encode())
