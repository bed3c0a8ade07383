"""What a key may ask for, through the engine: requests a minute, tokens a day, requests at a time."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.gateway import Raw
from tests.support.rig import Rig, rig
from tests.support.upstream import Conversation, Whole, answer, ordinary, requests
from valetkey.gateway.limits import Limits
from valetkey.testing.clock import START, FakeClock

USAGE = {"prompt_tokens": 30, "completion_tokens": 12}


def counted(request: Whole) -> bytes:
    return answer(json.dumps({"model": "small", "usage": USAGE}).encode())


@pytest.fixture
def engine(tmp_path: Path, clock: FakeClock) -> Iterator[Rig]:
    with rig(tmp_path, clock=clock, secure=ordinary(counted), plain=ordinary(counted)) as running:
        yield running


def limited(engine: Rig, limits: Limits) -> str:
    engine.token = engine.running.key(limits=limits)
    return engine.token


def ask(client: Raw, engine: Rig, path: str = "/chat/completions") -> tuple[int, str | None]:
    status, headers, body = client.send(engine.get(path, method="POST")).answer()
    if status == 429:
        error = json.loads(body)["error"]
        assert (error["code"], error["type"]) == ("limit_reached", "valetkey_limit_reached")
        assert headers["retry-after"] in error["hint"]
    return status, headers.get("retry-after")


def test_requests_a_minute_end_at_the_border_and_begin_again_there(engine: Rig, clock: FakeClock) -> None:
    limited(engine, Limits(requests_per_minute=3))
    with engine.connect("base-url") as client:
        assert [ask(client, engine)[0] for _ in range(2)] == [200, 200]
        clock.advance(10)
        assert ask(client, engine) == (200, None)
        assert ask(client, engine) == (429, "50")
        clock.advance(49.5)
        assert ask(client, engine) == (429, "1")
        clock.advance(0.5)
        # What was refused did not count: two are a minute old, one is not.
        assert [ask(client, engine) for _ in range(3)] == [(200, None), (200, None), (429, "10")]
    assert len(engine.secure.requests) == 5


def test_all_ways_in_are_counted_as_one_and_a_tunnel_that_is_looked_into_is_none(tmp_path: Path) -> None:
    # The certificates are held against the clock of this machine.
    with rig(tmp_path, clock=FakeClock(datetime.now(UTC))) as engine:
        counts_all_ways(engine)


def counts_all_ways(engine: Rig) -> None:
    limited(engine, Limits(requests_per_minute=3))
    with engine.connect("intercepted") as inside, engine.connect("base-url") as one, engine.connect("proxy") as two:
        assert inside.send(engine.get("/x", "intercepted")).answer()[0] == 200
        assert one.send(engine.get("/x", "base-url")).answer()[0] == 200
        assert two.send(engine.get("/x", "proxy")).answer()[0] == 200
        for client, way in ((inside, "intercepted"), (one, "base-url"), (two, "proxy")):
            status, headers, _ = client.send(engine.get("/x", way)).answer()  # type: ignore[arg-type]  # a Way
            assert (status, headers["retry-after"]) == (429, "60")


def test_tokens_a_day_end_with_the_day(engine: Rig, clock: FakeClock) -> None:
    limited(engine, Limits(tokens_per_day=80))
    with engine.connect("base-url") as client:
        assert [ask(client, engine)[0] for _ in range(2)] == [200, 200]
        midnight = (START + timedelta(days=1)).replace(hour=0)
        left = (midnight - START).total_seconds()
        assert ask(client, engine) == (429, str(int(left)))
        clock.advance(left - 0.5)
        assert ask(client, engine) == (429, "1")
        clock.advance(0.5)
        assert ask(client, engine) == (200, None)


def test_tokens_of_a_stream_count(tmp_path: Path, clock: FakeClock) -> None:
    def stream(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for usage in (None, USAGE):
                data = b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode()
                talk.send(b"%x\r\n%b\r\n" % (len(data), data))
            talk.send(b"0\r\n\r\n")

    with rig(tmp_path, clock=clock, secure=stream) as engine:
        limited(engine, Limits(tokens_per_day=42))
        with engine.connect("base-url") as client:
            assert ask(client, engine)[0] == 200
            assert ask(client, engine)[0] == 429


class Gate:
    """Answers a request when the test says so."""

    def __init__(self) -> None:
        self.open = threading.Semaphore(0)

    def __call__(self, talk: Conversation) -> None:
        for request in requests(talk):
            if request.target == "/wait":
                assert self.open.acquire(timeout=60)
            if request.target == "/fail":
                return
            talk.send(answer())


def test_requests_at_a_time_are_freed_however_they_end(tmp_path: Path, clock: FakeClock) -> None:
    gate = Gate()
    with rig(tmp_path, clock=clock, secure=gate) as engine:
        limited(engine, Limits(concurrent=2))
        one, two, three = (engine.connect("base-url") for _ in range(3))
        one.send(engine.get("/wait"))
        two.send(engine.get("/wait"))
        engine.secure.wait_for(2)
        assert ask(three, engine) == (429, "1")
        gate.open.release(2)
        assert (one.answer()[0], two.answer()[0]) == (200, 200)
        for _ in range(4):
            # A provider that fails, a client that goes away.
            assert three.send(engine.get("/fail")).answer()[0] == 502
            gone = engine.connect("base-url").send(engine.get("/wait"))
            engine.secure.until(lambda: engine.secure.requests[-1].target == "/wait")
            gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            gone.close()
            gate.open.release()
            engine.secure.until(engine.quiet)
        engine.secure.until(engine.quiet)
        assert [ask(client, engine)[0] for client in (one, two, three)] == [200, 200, 200]
        for client in (one, two, three):
            client.close()


def test_a_key_at_its_limit_takes_nothing_from_another(tmp_path: Path) -> None:
    """One key keeps fifty connections busy with what is refused and what waits; the other is served as if alone."""
    gate = Gate()
    with rig(tmp_path, secure=gate) as engine:
        greedy = limited(engine, Limits(concurrent=40, requests_per_minute=200))
        other = engine.running.key(limits=Limits(concurrent=1, requests_per_minute=100))
        stop = threading.Event()
        refused: list[int] = []

        def hammer(path: str) -> None:
            raw = f"GET /acme{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {greedy}\r\n\r\n".encode()
            with engine.running.raw() as client:
                if path == "/wait":
                    client.send(raw).answer()
                    return
                while not stop.is_set():
                    refused.append(client.send(raw).answer()[0])

        with ThreadPoolExecutor(45) as pool:
            work = [pool.submit(hammer, "/wait") for _ in range(40)]
            engine.secure.wait_for(40)
            work += [pool.submit(hammer, "/x") for _ in range(4)]
            engine.secure.until(lambda: len(refused) > 20)
            engine.token = other
            with engine.connect("base-url") as client:
                found = [ask(client, engine)[0] for _ in range(101)]
            assert found == [200] * 100 + [429]
            stop.set()
            # First these: once a request has ended there is room for one of theirs.
            for one in work[40:]:
                one.result(60)
            gate.open.release(40)
            for one in work[:40]:
                one.result(60)
        assert set(refused) == {429}


def test_another_keys_limit_is_not_told_apart_by_the_way_it_is_shown(engine: Rig) -> None:
    token = limited(engine, Limits(requests_per_minute=1))
    basic = base64.b64encode(f"x:{token}".encode()).decode()
    with engine.running.raw() as client:
        for proof, status in ((f"X-Api-Key: {token}", 200), (f"Authorization: Basic {basic}", 429)):
            assert client.send(f"GET /acme/x HTTP/1.1\r\nHost: x\r\n{proof}\r\n\r\n").answer()[0] == status
