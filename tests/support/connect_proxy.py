"""A forward proxy on loopback: tunnels by CONNECT to where it is told that names are, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

__all__ = ["ConnectProxy"]


class ConnectProxy:
    """Answers each CONNECT with `answer`, and tunnels where that says 200. Use it with `with`.

    `ports` gives the loopback port behind each `host:port`. `heads` has every head, as it came.
    """

    def __init__(
        self,
        ports: Mapping[str, int],
        *,
        answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.heads: list[bytes] = []
        self._ports = ports
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stopped = True
        # shutdown() wakes accept(); close() alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]  # a method
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw:
            client = raw
            if self._tls is not None:
                client = self._tls.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
            self._open.add(client)
            with client:
                if self._stopped:  # the others are cut by now, and nobody would cut this one
                    return
                if isinstance(client, ssl.SSLSocket):
                    client.do_handshake()
                head = b""
                while b"\r\n\r\n" not in head:
                    received = client.recv(4096)
                    if not received:
                        return
                    head += received
                self.heads.append(head)
                client.sendall(self._answer)
                target = head.split(b" ", 2)[1].decode()
                if b" 200 " in self._answer[:16] and target in self._ports:
                    with socket.create_connection(("127.0.0.1", self._ports[target])) as upstream:
                        self._open.add(upstream)
                        back = threading.Thread(target=_copy, args=(upstream, client), daemon=True)
                        back.start()
                        _copy(client, upstream)
                        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while received := source.recv(65536):
            target.sendall(received)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
