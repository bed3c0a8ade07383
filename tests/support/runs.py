"""Runs of a home whose gateway is a process of its own, and clients at their sockets."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from valetkey import serving
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import CredentialRef
from valetkey.gateway.place import run_folder
from valetkey.gateway.runs import BegunRun, Runs
from valetkey.providers import catalogue
from valetkey.stores import open_store
from valetkey.testing.command_line import PATIENCE_SECONDS
from valetkey.testing.relay import relay

__all__ = ["SocketClient", "ask", "begin", "clear", "end", "forwarded", "opened", "ref"]


def ref(name: str) -> CredentialRef:
    """Give the account of this name."""
    provider, _, account = name.partition("@")
    return CredentialRef(provider=provider, account=account or "default")


def begin(home: Path, *grants: str, run: str, **more: Any) -> BegunRun:
    """Begin a run as a launcher does, and let the gateway know."""
    paths = Paths(home=home)
    begun = opened(home).begin(
        run=run, grants=list(map(ref, grants)), catalogue=catalogue(paths), environ={}, paths=paths, **more
    )
    serving.poke(str(home))
    return begun


def end(home: Path, run: str) -> None:
    """End it, and let the gateway know."""
    opened(home).end(run)
    serving.poke(str(home))


def opened(home: Path) -> Runs:
    """Give the runs of a home."""
    paths = Paths(home=home)
    return Runs(open_store(paths, clock=SystemClock(), environ={}), SystemClock())


def clear(home: Path) -> None:
    """Remove what runs leave outside of a home whose own path is too long for sockets."""
    folder = run_folder(Paths(home=home), {}, "any").parents[1]
    if not folder.is_relative_to(home):
        shutil.rmtree(folder, ignore_errors=True)


class SocketClient(http.client.HTTPConnection):
    """HTTP by a run's socket."""

    def __init__(self, run: BegunRun) -> None:
        super().__init__("localhost", timeout=PATIENCE_SECONDS)
        self._path = str(run.folder / "gateway.sock")

    def connect(self) -> None:
        """Connect there, wherever the address leads."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.sock.connect(self._path)

    def ask(self, target: str, **headers: str) -> tuple[int, bytes]:
        """Give status and body of the answer to a GET."""
        self.request("GET", target, headers=headers)
        answer = self.getresponse()
        return answer.status, answer.read()


def ask(run: BegunRun, target: str, **headers: str) -> tuple[int, bytes]:
    """Give status and body of the answer to a GET, by a connection of its own."""
    with contextlib.closing(SocketClient(run)) as client:
        return client.ask(target, **headers)


@contextlib.contextmanager
def forwarded(run: BegunRun) -> Iterator[str]:
    """Pass a port of loopback on to a run's socket, as a sandbox does inside; give the proxy's address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def pass_on(connection: socket.socket) -> None:
        with connection, socket.socket(socket.AF_UNIX) as inner, contextlib.suppress(OSError):
            inner.connect(str(run.folder / "gateway.sock"))
            relay(connection, inner)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=pass_on, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
