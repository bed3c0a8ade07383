"""An HTTP proxy that stands for the way out: it leads the host names that it knows to loopback, and no other.

A client or a gateway behind it can use the real names, such as api.anthropic.com, without a packet leaving this
machine. `refused` tells who was asked for in vain.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from tests.support.relay import relay

__all__ = ["Internet"]

_PATIENCE_SECONDS = 60


class Internet:
    """Knows CONNECT alone (RFC 9110 section 9.3.6). Use it with `with`."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.connected: list[str] = []
        self._places: dict[str, int] = {}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def lead(self, host: str, port: int) -> None:
        """Let https://`host` be what listens on this port of loopback."""
        self._places[f"{host}:443"] = port

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        self._sockets.add(client)
        with client, contextlib.suppress(OSError):
            client.settimeout(_PATIENCE_SECONDS)
            head = b""
            while b"\r\n\r\n" not in head:
                piece = client.recv(4096)
                if not piece:
                    return
                head += piece
            method, target = head.decode("latin-1").split(" ")[:2]
            port = self._places.get(target) if method == "CONNECT" else None
            if port is None:
                self.refused.append(f"{method} {target}")
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return
            self.connected.append(target)
            with socket.create_connection(("127.0.0.1", port)) as server:
                self._sockets.add(server)
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                relay(client, server)
                self._sockets.discard(server)
        self._sockets.discard(client)
