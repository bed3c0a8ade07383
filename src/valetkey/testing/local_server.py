"""A threaded HTTP server on a free loopback port: the ground of the fakes that live in the test's own process."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, assert_never
from urllib.parse import parse_qsl, urlsplit

from valetkey.testing.relay import relay

__all__ = ["Answer", "Drop", "Hang", "LocalServer", "Received", "Relay", "Reply", "Stream"]


@dataclass(frozen=True, kw_only=True)
class Received:
    """A request as it came in. `headers` has lower-case names; of a repeated field the last one stands there."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    head: str = field(default="", repr=False)  # the request line and every field, as they were written

    @property
    def form(self) -> dict[str, str]:
        """Decode the body as application/x-www-form-urlencoded."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))

    @property
    def json(self) -> dict[str, object]:
        """Decode the body as a JSON object."""
        return dict(json.loads(self.body))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An ordinary answer."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """An answer whose pieces are sent as they come, each in a chunk of its own."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Iterable[bytes]


@dataclass(frozen=True, kw_only=True)
class Relay:
    """From here on the connection is one to this port of loopback, which is sent `head` first."""

    port: int
    head: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """The connection is cut after these raw bytes."""

    after: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Hang:
    """No answer, until the server is stopped."""


Reply = Answer | Stream | Relay | Drop | Hang


class LocalServer:
    """Answers each request with what `respond` says, and keeps them all in `requests`. Use it with `with`."""

    def __init__(self, respond: Callable[[Received], Reply], *, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Received] = []
        self._respond = respond
        self._arrived = threading.Condition()
        self._stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), self._handler(), self._connections, self._stopping, tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.port: int = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Cut every connection and wait for all threads."""
        self._stopping.set()
        self._server.shutdown()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    def calls(self, path: str) -> list[Received]:
        """Give the requests for this path, oldest first."""
        return [request for request in list(self.requests) if request.path == path]

    def wait_for(self, count: int, *, timeout_seconds: float = 60) -> None:
        """Wait until that many requests have come in. Raises: TimeoutError."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.requests) >= count, timeout_seconds):
                raise TimeoutError(f"{len(self.requests)} of {count} requests came")

    def _keep(self, received: Received) -> None:
        with self._arrived:
            self.requests.append(received)
            self._arrived.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Connection(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                # Every method is welcome, so the usual search for a do_METHOD is left out.
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                target = urlsplit(self.path)
                received = Received(
                    method=self.command,
                    path=target.path,
                    query=dict(parse_qsl(target.query, keep_blank_values=True)),
                    headers={name.lower(): value for name, value in self.headers.items()},
                    body=self._body(),
                    head=f"{self.requestline}\n{self.headers}",
                )
                outer._keep(received)
                self._send(outer._respond(received))

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    """Trailers are of no interest."""
                return b"".join(pieces)

            def _send(self, reply: Reply) -> None:
                match reply:
                    case Answer():
                        self._head(reply.status, {**reply.headers, "content-length": str(len(reply.body))})
                        if self.command != "HEAD":
                            self.wfile.write(reply.body)
                    case Stream():
                        self._head(reply.status, {**reply.headers, "transfer-encoding": "chunked"})
                        for piece in reply.pieces:
                            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                        self.wfile.write(b"0\r\n\r\n")
                    case Relay():
                        self.close_connection = True
                        with socket.create_connection(("127.0.0.1", reply.port)) as other:
                            other.sendall(reply.head)
                            relay(self.connection, other)
                    case Drop():
                        self.wfile.write(reply.after)
                        self.wfile.flush()
                        self.close_connection = True
                    case Hang():
                        outer._stopping.wait()
                        self.close_connection = True
                    case _:
                        assert_never(reply)

            def _head(self, status: int, headers: Mapping[str, str]) -> None:
                self.send_response_only(status)
                for name, value in {"date": self.date_time_string(), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet: the test looks at `requests`."""

        return Connection


class _Server(ThreadingHTTPServer):
    # Threads are waited for in server_close; the connections are cut before it, so none of them stays.
    daemon_threads = False
    request_queue_size = 256

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        connections: set[socket.socket],
        stopping: threading.Event,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._connections = connections
        self._stopping = stopping
        self._tls = tls
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        connection: socket.socket = request
        if self._tls is not None:
            connection = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        self._connections.add(connection)
        try:
            if self._stopping.is_set():  # the others are cut by now, and nobody would cut this one
                return
            if isinstance(connection, ssl.SSLSocket):
                # In the connection's own thread, so that a client that fails holds up nobody; and when it is known, so
                # that one that keeps silent does not hold up the end.
                connection.do_handshake()
            super().finish_request(connection, client_address)
        finally:
            self._connections.discard(connection)
            if connection is not request:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep quiet: a client that goes away or refuses the certificate is part of many tests."""
