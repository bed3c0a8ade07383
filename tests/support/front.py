"""Guarded doors: the right credential in the right header, or 401. And a front over TLS for servers that are plain.

What a client of the gateway holds is no use here, so an answer proves that the gateway put in the real credential.
`requests` tells what came, the refused ones too.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from valetkey.testing.local_server import Answer, Received, Relay, Reply, Stream

__all__ = ["Door", "Target", "guarded"]

# Of one connection only (RFC 9110 section 7.6.1), or written anew on the way.
_OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade", "date"}
_CREDENTIALS = {"authorization", "x-api-key", "api-key", "x-goog-api-key", "proxy-authorization", "cookie"}
_PATIENCE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class Door:
    """What opens a server: a credential of its own, and the header that it stands in (`{key}` is filled in)."""

    header: str = "authorization"
    form: str = "Bearer {key}"
    user: str = ""  # Basic with this user, in place of `form`
    key: str = field(default_factory=lambda: "sk-canary-" + secrets.token_hex(20), repr=False)

    @property
    def value(self) -> str:
        """Give the header's value as it has to arrive."""
        if self.user:
            return "Basic " + base64.b64encode(f"{self.user}:{self.key}".encode()).decode()
        return self.form.replace("{key}", self.key)

    def opens(self, request: Received) -> bool:
        """Tell whether this request carries it once, and no other credential beside it."""
        lines = [line.partition(":") for line in request.head.splitlines()[1:] if line]
        carried = [(name.lower(), value.strip()) for name, _, value in lines if name.lower() in _CREDENTIALS]
        return carried == [(self.header, self.value)]


def guarded(door: Door, respond: Callable[[Received], Reply]) -> Callable[[Received], Reply]:
    """Let only those in who have the credential."""

    def at_the_door(request: Received) -> Reply:
        if door.opens(request):
            return respond(request)
        error = {"type": "error", "error": {"type": "authentication_error", "message": "this door has another key"}}
        challenge = {"www-authenticate": 'Basic realm="test"'} if door.user else {}
        return Answer(
            status=401, headers={"content-type": "application/json", **challenge}, body=json.dumps(error).encode()
        )

    return at_the_door


class Target:
    """Passes requests on to a plain server, with `headers` in place of the credential that they came with."""

    def __init__(self, url: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.url = url
        self.headers = dict(headers or {})

    def __call__(self, request: Received) -> Reply:
        """Ask there, and stream what it says. An upgrade (RFC 9110 section 7.8) is for the two to agree on."""
        target = urlsplit(self.url)
        assert target.hostname is not None
        assert target.port is not None
        path = request.path + ("?" + urlencode(request.query) if request.query else "")
        if "upgrade" in request.headers:
            fields = {n: v for n, v in request.headers.items() if n not in _CREDENTIALS} | self.headers
            lines = [f"{request.method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
            return Relay(port=target.port, head="\r\n".join([*lines, "", ""]).encode())
        kept = {n: v for n, v in request.headers.items() if n not in _OF_THE_CONNECTION | _CREDENTIALS}
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=_PATIENCE_SECONDS)
        connection.request(request.method, path, request.body, {**kept, **self.headers})
        answer = connection.getresponse()
        headers = {n.lower(): v for n, v in answer.getheaders() if n.lower() not in _OF_THE_CONNECTION}
        return Stream(status=answer.status, headers=headers, pieces=_pieces(connection, answer))


def _pieces(connection: http.client.HTTPConnection, answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := answer.read1(65536):
            yield piece
    finally:
        connection.close()
