"""An authorization server that misbehaves on order: scripted answers for each path, and a log of what was asked.

with AuthorizationServer() as server:
    server.answers("/token", status=400, json={"error": "authorization_pending"})
    server.answers("/token", json={"access_token": "…"})      # and so for ever: the last one repeats
    …
    assert server.calls("/token")[0].form["grant_type"] == "…"
"""

from __future__ import annotations

import gzip as gzip_module
import json as json_module
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

from valetkey.testing.local_server import Answer, Drop, Hang, LocalServer, Received, Reply

__all__ = ["AuthorizationServer"]


class AuthorizationServer(LocalServer):
    """Says for each path what it was told to say; a path that nobody spoke of is 404."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(self._next, tls=tls)
        self._script: defaultdict[str, deque[Reply | Callable[[Received], Reply]]] = defaultdict(deque)
        self._script_lock = threading.Lock()

    def answers(
        self,
        path: str,
        *,
        status: int = 200,
        json: object = None,
        form: Mapping[str, str] | None = None,
        text: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        gzip: bool = False,
    ) -> None:
        """Queue one answer for `path`, in one of the shapes; without any, an empty body."""
        kind, content = _encode(json, form, text, body)
        sent = {"content-type": content_type or kind, "cache-control": "no-store", **(headers or {})}
        if gzip:
            content = gzip_module.compress(content)
            sent["content-encoding"] = "gzip"
        self.replies(path, Answer(status=status, headers=sent, body=content))

    def redirects(self, path: str, location: str) -> None:
        """Queue a 302 to `location`."""
        self.answers(path, status=302, headers={"location": location})

    def drops(self, path: str, *, after: bytes = b"") -> None:
        """Queue a connection that is cut, after these raw bytes if any."""
        self.replies(path, Drop(after=after))

    def hangs(self, path: str) -> None:
        """Queue a request that is never answered."""
        self.replies(path, Hang())

    def replies(self, path: str, reply: Reply | Callable[[Received], Reply]) -> None:
        """Queue any reply, or a function that makes one from the request."""
        with self._script_lock:
            self._script[path].append(reply)

    def forget(self, path: str | None = None) -> None:
        """Drop what is queued for `path` (or for all), so that it can be scripted anew."""
        with self._script_lock:
            if path is None:
                self._script.clear()
            else:
                self._script.pop(path, None)

    def _next(self, request: Received) -> Reply:
        with self._script_lock:
            queue = self._script.get(request.path)
            if not queue:
                return Answer(status=404, headers={"content-type": "text/plain"}, body=b"nothing is scripted here")
            reply = queue.popleft() if len(queue) > 1 else queue[0]
        return reply(request) if callable(reply) else reply


def _encode(json: object, form: Mapping[str, str] | None, text: str | None, body: bytes | None) -> tuple[str, bytes]:
    if json is not None:
        return "application/json", json_module.dumps(json).encode()
    if form is not None:
        return "application/x-www-form-urlencoded", urlencode(form).encode()
    if text is not None:
        return "text/html; charset=utf-8", text.encode()
    return "application/octet-stream", body or b""
