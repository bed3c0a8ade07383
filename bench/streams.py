"""What wrk cannot measure through a proxy: first bytes of streams, a thousand idle ones, and large bodies."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.client import Address, Connection
from bench.running import Process

__all__ = ["Latencies", "Waves", "big_bodies", "first_bytes", "idle_waves"]

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """In ms: from the request to the first event, and from the making of each later event to its arrival."""

    first: list[float]
    later: list[float]


def first_bytes(addresses: dict[str, Address], *, streams: int, events: int, interval: float) -> dict[str, Latencies]:
    """Stream over one kept connection of each way in turn, after one stream that is not counted."""
    body = json.dumps({"model": "bench-model", "stream": True, "events": events, "interval": interval}).encode()
    taken = {name: Latencies(first=[], later=[]) for name in addresses}
    connections = {name: Connection(address) for name, address in addresses.items()}
    for round_ in range(streams + 1):
        for name, connection in connections.items():
            began = time.perf_counter()
            connection.socket.sendall(connection.address.head("POST", CHAT, size=len(body)) + body)
            head = connection.read_head()
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{name}: a stream was answered with {head[:300]!r}")
            for number, (arrived, data) in enumerate(_events(connection)):
                if not round_:
                    continue
                if number:
                    taken[name].later.append((arrived - _made(data)) * 1000)
                else:
                    taken[name].first.append((time.perf_counter() - began) * 1000)
    for connection in connections.values():
        connection.close()
    return taken


def _events(connection: Connection) -> Iterator[tuple[float, bytes]]:
    held = b""
    for chunk in connection.chunks():
        arrived = time.monotonic()
        held += chunk
        while b"\n\n" in held:
            event, _, held = held.partition(b"\n\n")
            yield arrived, event


def _made(event: bytes) -> float:
    return float(json.loads(event.removeprefix(b"data: "))["at"])


# --- idle streams -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Waves:
    """Resident MB of the proxy: before, with each wave open, and after the last one has gone."""

    before: float
    open: list[float]
    after: float
    seconds_to_open: float


def idle_waves(address: Address, *, process: Process, streams: int, waves: int, settle: float) -> Waves:
    """Open so many streams, see each one's first event, leave them idle, close all; again and again."""
    body = json.dumps({"model": "bench-model", "stream": True}).encode()
    request = address.head("POST", CHAT, size=len(body)) + body
    before, opening = process.resident_mb(), 0.0
    heights: list[float] = []
    for wave in range(1, waves + 1):
        began = time.perf_counter()
        sockets = {}
        for _ in range(streams):
            one = address.connect()
            one.sendall(request)
            sockets[one.fileno()] = one
        try:
            _await_events(sockets)
        except SystemExit as error:
            raise SystemExit(f"in wave {wave}, resident {[round(mb) for mb in heights]} MB so far: {error}") from error
        opening = max(opening, time.perf_counter() - began)
        time.sleep(settle)
        heights.append(process.resident_mb())
        for one in sockets.values():
            with contextlib.suppress(OSError):
                one.close()
        time.sleep(settle)
    return Waves(before=before, open=heights, after=process.resident_mb(), seconds_to_open=opening)


def _await_events(sockets: Mapping[int, socket.socket]) -> None:
    waiting = dict.fromkeys(sockets, b"")
    poll = select.epoll()
    for number in sockets:
        poll.register(number, select.EPOLLIN)
    limit = time.monotonic() + 60
    while waiting:
        if time.monotonic() > limit:
            raise SystemExit(f"{len(waiting)} of {len(sockets)} streams have not begun after 60 s")
        for number, _ in poll.poll(1):
            part = sockets[number].recv(65536)
            got = waiting.get(number, b"") + part
            if not part or not got.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"a stream was answered with {got[:300]!r}")
            waiting[number] = got
            if b"data: " in got and b"\n\n" in got.partition(b"data: ")[2]:
                del waiting[number]
                poll.unregister(number)
    poll.close()


# --- large bodies -----------------------------------------------------------------------------


def big_bodies(address: Address, *, size: int) -> tuple[float, float]:
    """Send so many bytes and fetch as many: MB/s up and down, over one connection each."""
    up = Connection(address)
    part = memoryview(bytes(256 * 1024))
    began = time.perf_counter()
    up.socket.sendall(address.head("POST", "/v1/files", size=size))
    for begin in range(0, size, len(part)):
        up.socket.sendall(part[: size - begin])
    answer = up.answer()
    sent = size / (time.perf_counter() - began) / 1e6
    if answer.status != 200 or json.loads(answer.body)["bytes"] != size:
        raise SystemExit(f"an upload was answered with {answer.status} {answer.body[:200]!r}")
    up.close()

    down = Connection(address)
    began = time.perf_counter()
    down.socket.sendall(address.head("GET", f"/v1/files/big?bytes={size}"))
    head = down.read_head()
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"a download was answered with {head[:300]!r}")
    down.skip(size)
    fetched = size / (time.perf_counter() - began) / 1e6
    down.close()
    return sent, fetched
