"""Two accounts on one host, asked for by two keys at once: no request ever carries the other's credential."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

from tests.support.rig import faults, rig
from tests.support.upstream import Whole, answer, ordinary

REQUESTS = 10_000
CONNECTIONS = 20


def mark(key: str) -> str:
    """Tell a key without saying it: an answer that held it would be covered."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def told(request: Whole) -> bytes:
    """Say who asked, by what came with it."""
    authorization = request.header("authorization")
    assert authorization is not None
    shown = {
        "key": mark(authorization.removeprefix("Bearer ")),
        "header": request.header("x-who"),
        "path": request.target,
        "body": request.body.decode(),
    }
    return answer(json.dumps(shown).encode())


@dataclass(frozen=True, kw_only=True)
class Asking:
    """One connection of a client with one valet key, and what it expects of each answer."""

    port: int
    token: str
    expected: str
    number: int
    count: int

    def request(self, index: int, chance: random.Random) -> tuple[bytes, dict[str, str]]:
        who = f"{self.expected}-{self.number}-{index}"
        head = f"Host: x\r\nX-Api-Key: {self.token}\r\nX-Who: {who}\r\n"
        path = f"/{who}"
        kind = chance.randrange(4)
        body = "" if kind == 0 else f"{who}:" + "x" * chance.randrange(2000)
        data = body.encode()
        match kind:
            case 0:
                raw = f"GET /acme{path} HTTP/1.1\r\n{head}\r\n".encode()
            case 1 | 2:
                raw = f"POST /acme{path} HTTP/1.1\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
            case _:
                half = len(data) // 2
                pieces = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (data[:half], data[half:]) if p)
                raw = f"POST /acme{path} HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode() + pieces
                raw += b"0\r\n\r\n"
        return raw, {"key": self.expected, "header": who, "path": path, "body": body}

    async def run(self) -> int:
        """Ask, one or several at a time, and give how many answers were another's."""
        chance = random.Random(self.number)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        crossed = index = 0
        while index < self.count:
            batch = [self.request(index + n, chance) for n in range(min(chance.randint(1, 4), self.count - index))]
            index += len(batch)
            writer.write(b"".join(raw for raw, _ in batch))
            for _, expected in batch:
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 "), head
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                crossed += json.loads(await reader.readexactly(length)) != expected
        writer.close()
        await writer.wait_closed()
        return crossed


def test_two_accounts_on_one_host_are_never_mixed_up(tmp_path: Path) -> None:
    keys = ["sk-" + "one" + os.urandom(12).hex(), "sk-" + "two" + os.urandom(12).hex()]

    async def all_of_them(port: int, tokens: list[str]) -> list[int]:
        clients = [
            Asking(
                port=port,
                token=tokens[number % 2],
                expected=mark(keys[number % 2]),
                number=number,
                count=REQUESTS // CONNECTIONS,
            )
            for number in range(CONNECTIONS)
        ]
        return await asyncio.gather(*(client.run() for client in clients))

    with faults(), rig(tmp_path, secure=ordinary(told)) as engine:
        running = engine.running
        for name, key in zip(("acme@one", "acme@two"), keys, strict=True):
            running.log_in(name, key)
        tokens = [running.key("acme@one"), running.key("acme@two")]
        assert asyncio.run(all_of_them(running.port, tokens)) == [0] * CONNECTIONS
        assert len(engine.secure.requests) == REQUESTS
        assert engine.secure.garbage == []
        assert {row.account for row in running.wait_for_rows(REQUESTS)} == {"acme@one", "acme@two"}
        # Both were kept open, and none served both.
        served: dict[int, set[str | None]] = {}
        for request in engine.secure.requests:
            served.setdefault(request.connection, set()).add(request.header("authorization"))
        assert all(len(shown) == 1 for shown in served.values())
        assert len(served) < REQUESTS / 10
