"""Very many clients, in a process of their own: a process may open only so many files."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from tests.support.gateway import Raw

__all__ = ["crowd"]

_SECONDS = 300
# The upstream of the tests has a thread for each connection.
_AT_ONCE = 200


@contextmanager
def crowd(port: int, request: bytes, count: int) -> Iterator[None]:
    """Hold so many connections open in the block; after it each one asks and has to be answered with 200.

    Until then a third says nothing, a third half of the request, and a third has been answered once.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_hold, args=(port, request, count, theirs))
    process.start()
    theirs.close()
    try:
        _hear(ours, "open")
        yield
        ours.send("go on")
        _hear(ours, "answered")
    finally:
        ours.close()
        process.join(_SECONDS)
        process.kill()
        process.join()
        process.close()


def _hear(pipe: Connection, word: str) -> None:
    assert pipe.poll(_SECONDS), f"the crowd has not {word}"
    assert pipe.recv() == word


def _hold(port: int, request: bytes, count: int, pipe: Connection) -> None:
    half = request[:50]
    clients = []
    for number in range(count):
        client = Raw(port)
        clients.append(client)
        if number % 3 == 1:
            client.send(half)
        elif number % 3 == 2:
            assert client.send(request).answer()[0] == 200
    pipe.send("open")
    pipe.recv()
    for start in range(0, count, _AT_ONCE):
        some = clients[start : start + _AT_ONCE]
        for number, client in enumerate(some, start):
            client.send(request[50:] if number % 3 == 1 else request)
        statuses = {client.answer()[0] for client in some}
        assert statuses == {200}, statuses
    for client in clients:
        client.close()
    pipe.send("answered")
