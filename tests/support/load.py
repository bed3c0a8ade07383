"""Clients that ask one gateway again and again, each on a connection of its own that it keeps."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Asked", "Load", "load"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request: when it was begun (monotonic), and its status; 0 where no answer came."""

    id: str
    begun: float
    status: int
    body: bytes = field(repr=False)


class Load:
    """What the clients ask, and what came of it."""

    def __init__(self, port: int, key: str, path: str) -> None:
        self.port, self.key, self.path = port, key, path
        self.asked: list[Asked] = []
        self.stop = threading.Event()

    def count(self, status: int) -> int:
        """Give how many have got this status so far."""
        return sum(asked.status == status for asked in list(self.asked))

    def run(self, number: int) -> None:
        """Be one client, until the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        count = 0
        while not self.stop.is_set():
            count += 1
            name, begun, status, body = f"{number}-{count}", time.monotonic(), 0, b""
            try:
                connection.request(
                    "POST", self.path, b"{}", {"authorization": f"Bearer {self.key}", "x-request-id": name}
                )
                answer = connection.getresponse()
                status, body = answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                self.stop.wait(0.01)
            self.asked.append(Asked(id=name, begun=begun, status=status, body=body))
        connection.close()


@contextlib.contextmanager
def load(port: int, key: str, path: str, *, clients: int = 4) -> Iterator[Load]:
    """Let so many clients ask until the block ends."""
    running = Load(port, key, path)
    threads = [threading.Thread(target=running.run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.stop.set()
        for thread in threads:
            thread.join(30)
