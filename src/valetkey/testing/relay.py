"""Passes bytes between two connections, both ways."""

from __future__ import annotations

import select
import socket
import ssl

__all__ = ["relay"]


def relay(one: socket.socket, other: socket.socket) -> None:
    """Go on until either side ends."""
    while True:
        for readable in select.select([one, other], [], [])[0]:
            piece = readable.recv(65536)
            # What TLS has taken from the kernel already is nothing that select() sees.
            while isinstance(readable, ssl.SSLSocket) and readable.pending():
                piece += readable.recv(65536)
            if not piece:
                return
            (other if readable is one else one).sendall(piece)
