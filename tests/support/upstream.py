"""A provider's server for the engine's tests: requests are read by h11, answers are written byte for byte."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import h11

__all__ = ["Conversation", "Upstream", "Whole", "answer"]


@dataclass(frozen=True, kw_only=True)
class Whole:
    """One request, read whole. `headers` in their order, names in lower case."""

    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes = field(repr=False)
    trailers: list[tuple[str, str]]
    connection: int

    def header(self, name: str) -> str | None:
        """Give the one header of this name; several are an error."""
        found = [value for n, value in self.headers if n == name]
        assert len(found) <= 1, f"{name}: {len(found)} times"
        return found[0] if found else None


class Conversation:
    """One connection, as the script of a test sees it."""

    def __init__(self, upstream: Upstream, connection: socket.socket, number: int) -> None:
        self._upstream = upstream
        self._socket = connection
        self._h11 = h11.Connection(h11.SERVER)
        self.number = number

    def request(self) -> Whole | None:
        """Read the next request with its body; None where the gateway closed."""
        if self._h11.our_state is not h11.IDLE:
            # Whatever the script wrote, the next request begins anew.
            rest, _ = self._h11.trailing_data
            self._h11 = h11.Connection(h11.SERVER)
            if rest:
                self._h11.receive_data(rest)
        body = bytearray()
        head: h11.Request | None = None
        while True:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                self._upstream.garbage.append(str(error))
                return None
            if event is h11.NEED_DATA:
                data = self.read()
                if not data:
                    return None
                self._h11.receive_data(data)
            elif isinstance(event, h11.Request):
                head = event
                if (b"expect", b"100-continue") in list(head.headers):
                    self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                found = Whole(
                    method=head.method.decode(),
                    target=head.target.decode(),
                    version=head.http_version.decode(),
                    headers=[(n.decode(), v.decode("latin-1")) for n, v in head.headers],
                    body=bytes(body),
                    trailers=[(n.decode(), v.decode("latin-1")) for n, v in event.headers],
                    connection=self.number,
                )
                self._upstream.keep(found)
                return found
            else:
                return None

    def read(self, size: int = 65536) -> bytes:
        """Read raw bytes; none at the end."""
        try:
            return self._socket.recv(size)
        except OSError:
            return b""

    @property
    def socket(self) -> socket.socket:
        """The connection itself."""
        return self._socket

    def until(self, mark: bytes) -> bytes:
        """Read raw bytes up to and with a mark that ends them."""
        found = b""
        while not found.endswith(mark):
            data = self.read(1)
            assert data, found
            found += data
        return found

    def send(self, *pieces: bytes) -> None:
        """Write raw bytes, each piece by itself."""
        with contextlib.suppress(OSError):
            for piece in pieces:
                self._socket.sendall(piece)

    def reset(self) -> None:
        """Cut the connection with a reset."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            self._socket.close()

    def wait(self) -> None:
        """Do nothing until the server is stopped or the gateway closes."""
        while not self._upstream.stopping.is_set() and self.read():
            pass


def answer(
    body: bytes = b"{}", *, status: int = 200, content_type: str = "application/json", headers: str = ""
) -> bytes:
    """Give an ordinary answer. `headers` are whole lines."""
    return (
        f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{headers}content-length: {len(body)}\r\n\r\n".encode()
        + body
    )


class Upstream:
    """Runs a script for each connection; by default each request is answered with `answer()`. Use it with `with`."""

    def __init__(
        self, script: Callable[[Conversation], None] | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[Whole] = []
        self.garbage: list[str] = []
        self.connections = 0
        self.stopping = threading.Event()
        self.script = script or ordinary()
        self._tls = tls
        self._arrived = threading.Condition()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.port: int = self._listening.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Upstream:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)

    def without_tls(self) -> None:
        """Speak plainly from now on, whatever was promised."""
        self._tls = None

    def keep(self, request: Whole) -> None:
        """Remember a request."""
        with self._arrived:
            self.requests.append(request)
            self._arrived.notify_all()

    def wait_for(self, count: int) -> list[Whole]:
        """Wait until that many requests have come."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.requests) >= count, 60), f"{len(self.requests)} of {count}"
        return self.requests

    def until(self, what: Callable[[], bool]) -> None:
        """Wait for something that the gateway does by itself."""
        end = time.monotonic() + 60
        while not what():
            assert time.monotonic() < end, "it did not happen"
            threading.Event().wait(0.005)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                raw, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            number = self.connections
            self._start(lambda raw=raw, number=number: self._serve(raw, number))  # type: ignore[misc]  # bound now

    def _serve(self, raw: socket.socket, number: int) -> None:
        connection = raw
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(raw, server_side=True)
            self._open.add(connection)
            self.script(Conversation(self, connection, number))
        except (OSError, ssl.SSLError):
            return
        finally:
            self._open.discard(connection)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def ordinary(make: Callable[[Whole], bytes] | None = None) -> Callable[[Conversation], None]:
    """Give the script that answers each request with what `make` gives."""

    def script(talk: Conversation) -> None:
        for request in requests(talk):
            talk.send(answer() if make is None else make(request))

    return script


def requests(talk: Conversation) -> Iterator[Whole]:
    """Give the requests of a connection."""
    while (request := talk.request()) is not None:
        yield request
