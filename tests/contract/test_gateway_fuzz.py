"""The engine under requests of real clients that were changed by chance.

No fault of its own, nothing malformed upstream, no secret to the client, nothing left under way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.support.captures import CAPTURES
from tests.support.gateway import KEY
from tests.support.rig import WAYS, Rig, check_clean, faults, rig
from tests.support.upstream import Whole

# What an attacker would put into a head, as lines of their own.
LINES = (
    b"Content-Length: 3",
    b"Content-Length: 0",
    b"Content-Length: 5, 5",
    b"Content-Length:",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding : chunked",
    b"Transfer_Encoding: chunked",
    b" Transfer-Encoding: chunked",
    b"Host: other.example",
    b"Host:",
    b"Connection: close",
    b"Connection: Upgrade",
    b"Connection: content-length, transfer-encoding, host, authorization",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: x",
    b"Authorization: Bearer vk_000000000000_" + b"0" * 64,
    b"X-Note: <K>",
    b"TE: trailers",
    b"Trailer: Authorization",
    b"X-HTTP-Method-Override: DELETE",
    b"X-Forwarded-For: 1.2.3.4",
    b"Proxy-Authorization: Basic eDp5",
    b"Accept-Encoding: br",
    b"X: " + b"y" * 5000,
    b": y",
    b"",
    b"0",
    b"3;a=b",
    b"ffffffffffffffff",
    b"GET <T>/smuggled HTTP/1.1",
    b"GET /smuggled HTTP/1.0",
)
ENDS = (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n ", b"\r\n\t", b"\0\r\n", b"")
WORDS = (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"RTSP/1.0", b"CONNECT", b"HEAD", b"OPTIONS", b"TRACE", b"get", b"PRI")
TARGETS = (
    b"*",
    b"/",
    b"//",
    b"http://<H>/x",
    b"https://other.example/x",
    b"<T>/x#y",
    b"<T>/../x",
    b"<H>",
    b"<T>/%2e%2e%2f",
)

# (what, where, which)
KINDS = ("insert", "double", "drop", "end", "word", "target", "swap")
structural = st.tuples(st.sampled_from(KINDS), st.integers(0, 40), st.integers(0, 40))
bytewise = st.tuples(st.sampled_from(["put", "cut", "set"]), st.integers(0, 2000), st.integers(0, 255))


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, list[int], str]:
    """Give what is sent, with its marks, where it is cut into pieces, and the way in."""
    parts = draw(st.lists(st.sampled_from(CAPTURES), min_size=1, max_size=3))
    raw = b""
    for part in parts:
        raw += mutated(part, draw(st.lists(structural, max_size=3)))
    for what, at, value in draw(st.lists(bytewise, max_size=2)):
        at %= len(raw) + 1
        byte = bytes([value])
        raw = raw[:at] + {"put": byte + raw[at:], "cut": raw[at + 1 :], "set": byte + raw[at + 1 :]}[what]
    cuts = draw(st.lists(st.integers(0, len(raw)), max_size=3))
    return raw, sorted(cuts), draw(st.sampled_from(WAYS))


def mutated(raw: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    head, end, body = raw.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    for what, at, which in changes:
        at %= len(lines)
        match what:
            case "insert":
                lines.insert(at + 1, LINES[which % len(LINES)])
            case "double":
                lines.insert(at, lines[at])
            case "drop":
                del lines[at]
            case "end":
                lines[at] += ENDS[which % len(ENDS)]
            case "word":
                words = lines[0].split(b" ")
                words[at % len(words)] = WORDS[which % len(WORDS)]
                lines[0] = b" ".join(words)
            case "target":
                words = lines[0].split(b" ")
                words[len(words) // 2] = TARGETS[which % len(TARGETS)]
                lines[0] = b" ".join(words)
            case _:
                other = which % len(lines)
                lines[at], lines[other] = lines[other], lines[at]
        lines = lines or [b""]
    return b"\r\n".join(lines) + end + body


def try_one(engine: Rig, message: tuple[bytes, list[int], str]) -> None:
    raw, cuts, name = message
    way = next(w for w in WAYS if w == name)
    before = {u: (len(u.requests), len(u.garbage)) for u in (engine.secure, engine.plain)}
    # Every mark is filled by itself: the cuts are through what is sent.
    data = engine.fill(raw, way)
    with engine.connect(way) as client:
        with contextlib.suppress(OSError):  # it may have enough of it before
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                client.send(data[start:end])
            client.socket.shutdown(socket.SHUT_WR)
        client.socket.settimeout(60)
        told = client.rest()
    if way != "intercepted":  # its end leaves what is read of TLS closed
        assert KEY.encode() not in told
        assert not told or told.startswith(b"HTTP/1.1 ")
    for other, (requests, garbage) in before.items():
        assert other.garbage[garbage:] == []
        for request in other.requests[requests:]:
            check_fuzzed(request, f"127.0.0.1:{other.port}")


def check_fuzzed(request: Whole, host: str) -> None:
    """Hold it to the same as every request; a WebSocket's may have the two lines of an upgrade."""
    if request.header("upgrade") == "websocket":
        assert (request.method, request.body, request.header("connection")) == ("GET", b"", "Upgrade")
        kept = [line for line in request.headers if line[0] not in ("connection", "upgrade")]
        request = dataclasses.replace(request, headers=kept)
    check_clean(request, host)


def run(engine: Rig, examples: int, number: int) -> None:
    count = 0

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(messages())
    def all_of_them(message: tuple[bytes, list[int], str]) -> None:
        nonlocal count
        count += 1
        with faults():
            try_one(engine, message)
            if count % 50 == 0:
                engine.barrier("base-url")

    all_of_them()
    engine.secure.until(lambda: engine.quiet())


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("rig")) as running:
        yield running


def test_what_clients_send_survives_chance(engine: Rig) -> None:
    run(engine, 6_000, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_what_clients_send_survives_chance_for_half_an_hour(engine: Rig) -> None:
    end = time.monotonic() + float(os.environ.get("VALETKEY_FUZZ_SECONDS", "1800"))
    number = int.from_bytes(os.urandom(4))
    while time.monotonic() < end:
        print(f"fuzzed with seed {number}")  # noqa: T201  # what failed can be tried again
        run(engine, 5_000, number)
        number += 1
