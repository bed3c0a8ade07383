"""What the gateway makes of a provider's answers: each is passed on whole, told as a failure, or visibly cut off."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.support.gateway import KEY, Raw
from tests.support.rig import Faults, Rig, check_clean, faults, rig
from tests.support.upstream import Conversation, answer, requests
from valetkey.gateway.upstream import IDLE_SECONDS
from valetkey.testing.clock import FakeClock

Script = Callable[[Conversation], None]
Ending = Literal["stay", "close", "reset"]
# What the client has: a whole answer with this status, or one that breaks off.
CUT = 0

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    """`raw` is what the provider answers. `reused`: whether its connection may serve once more."""

    name: str
    raw: tuple[bytes, ...]
    then: Ending
    status: int
    body: bytes
    reused: bool
    method: str


CASES: dict[str, Case] = {}


def case(
    name: str,
    *raw: bytes,
    then: Ending = "stay",
    status: int = 200,
    body: bytes = b"",
    reused: bool = False,
    method: str = "GET",
) -> None:
    at = f"/{len(CASES)}"
    CASES[at] = Case(name=name, raw=raw, then=then, status=status, body=body, reused=reused, method=method)


case("ordinary", OK + b"Content-Length: 3\r\n\r\nabc", body=b"abc", reused=True)
case("in chunks", CHUNKED + b"1\r\na\r\n2;x=y\r\nbc\r\n0\r\n\r\n", body=b"abc", reused=True)
case("byte by byte", *[bytes([c]) for c in OK + b"Content-Length: 3\r\n\r\nabc"], body=b"abc", reused=True)
case("chunks byte by byte", *[bytes([c]) for c in CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"], body=b"abc", reused=True)
case("no reason phrase", b"HTTP/1.1 200\r\nContent-Length: 3\r\n\r\nabc", body=b"abc", reused=True)
case("a reason phrase of any bytes", b"HTTP/1.1 200 \xff\t!\r\nContent-Length: 3\r\n\r\nabc", body=b"abc", reused=True)

for name, lines in {
    "length and chunks": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    "two equal lengths": b"Content-Length: 3\r\nContent-Length: 3\r\n",
    "two lengths": b"Content-Length: 3\r\nContent-Length: 4\r\n",
    "a list of lengths": b"Content-Length: 3, 3\r\n",
    "a length with a plus": b"Content-Length: +3\r\n",
    "a padded length": b"Content-Length: 03\r\n",
    "an empty length": b"Content-Length:\r\n",
    "a hexadecimal length": b"Content-Length: 0x3\r\n",
    "a length over 64 bits": b"Content-Length: 18446744073709551619\r\n",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "identity": b"Transfer-Encoding: identity\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n",
    "chunked with a parameter": b"Transfer-Encoding: chunked;a=b\r\n",
    "a folded header": b"X: y\r\n z\r\nContent-Length: 3\r\n",
    "a bare LF": b"X: y\nContent-Length: 3\r\n",
    "a bare CR": b"X: y\rContent-Length: 3\r\n",
    "NUL in a value": b"X: y\0z\r\nContent-Length: 3\r\n",
    "a space before a colon": b"X : y\r\nContent-Length: 3\r\n",
    "no colon": b"X\r\nContent-Length: 3\r\n",
    "300 headers": b"X: y\r\n" * 300 + b"Content-Length: 3\r\n",
    "a header of 70 kB": b"X: " + b"y" * 70_000 + b"\r\nContent-Length: 3\r\n",
    "a head of 2 MB": b"X: " + b"y" * 2_000_000 + b"\r\nContent-Length: 3\r\n",
}.items():
    case(name, OK + lines + b"\r\nabc", status=502)
for name, line in {
    "status 099": b"HTTP/1.1 099 X",
    "status 999": b"HTTP/1.1 999 X",
    "status 600": b"HTTP/1.1 600 X",
    "status 20": b"HTTP/1.1 20 X",
    "status abc": b"HTTP/1.1 abc X",
    "HTTP/2.0": b"HTTP/2.0 200 OK",
    "HTTP/0.9": b"HTTP/0.9 200 OK",
    "HTTP/1.2": b"HTTP/1.2 200 OK",
    "no version": b"200 OK",
    "a request": b"GET / HTTP/1.1",
    "garbage": b"\x16\x03\x01\0\0garbage",
}.items():
    case(name, line + b"\r\nContent-Length: 3\r\n\r\nabc", status=502)
case("nothing", then="close", status=502)
case("a reset", then="reset", status=502)
case("half a head", OK + b"Content-Le", then="close", status=502)
case("half a head and a reset", OK + b"Content-Le", then="reset", status=502)
case("a body that is too short", OK + b"Content-Length: 5\r\n\r\nabc", then="close", status=CUT)
case("a reset within the body", OK + b"Content-Length: 5\r\n\r\nabc", then="reset", status=CUT)
case("a chunk that is too short", CHUNKED + b"5\r\nabc", then="close", status=CUT)
case("chunks without an end", CHUNKED + b"3\r\nabc\r\n", then="close", status=CUT)
case("chunks without the last line", CHUNKED + b"3\r\nabc\r\n0\r\n", then="close", status=CUT)
for name, body in {
    "chunk size g": b"g\r\nabc\r\n0\r\n\r\n",
    "chunk size -3": b"-3\r\nabc\r\n0\r\n\r\n",
    "chunk size over 64 bits": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "chunk size that ends in LF": b"3\nabc\r\n0\r\n\r\n",
    "a chunk that is too long": b"3\r\nabcd\r\n0\r\n\r\n",
    "a length in the trailers": b"3\r\nabc\r\n0\r\nContent-Length: 3\r\n\r\n",
    "500 trailers": b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 500 + b"\r\n",
    "a trailer of 2 MB": b"3\r\nabc\r\n0\r\nX: " + b"y" * 2_000_000 + b"\r\n\r\n",
    "an extension of 2 MB": b"3;" + b"y" * 2_000_000 + b"\r\nabc\r\n0\r\n\r\n",
}.items():
    case(name, CHUNKED + body, status=CUT)

case("no length", OK + b"\r\nabc", then="close", body=b"abc")
case("no length, and a reset", OK + b"\r\nabc", then="reset", status=CUT)
case("no length in HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\nabc", then="close", body=b"abc")
case("HTTP/1.0", b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", body=b"abc")
case(
    "HTTP/1.0 that stays",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
    body=b"abc",
    reused=True,
)
case("Connection: close", OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc", body=b"abc")
case("two answers", (OK + b"Content-Length: 3\r\n\r\nabc") * 2, body=b"abc")
case("two answers in chunks", (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n") * 2, body=b"abc")
case("garbage behind the answer", OK + b"Content-Length: 3\r\n\r\nabcdef", body=b"abc")
case("a line behind the answer", OK + b"Content-Length: 3\r\n\r\nabc\r\n", body=b"abc", reused=True)
case("garbage behind the chunks", CHUNKED + b"3\r\nabc\r\n0\r\n\r\ndef", body=b"abc")
case("100 unasked", b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc", body=b"abc", reused=True)
case("500 hints", b"HTTP/1.1 103 X\r\n\r\n" * 500 + OK + b"Content-Length: 3\r\n\r\nabc", body=b"abc", reused=True)
case(
    "a hint with a length",
    b"HTTP/1.1 103 X\r\nContent-Length: 3\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc",
    body=b"abc",
    reused=True,
)
case("101 unasked", b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc", status=502)
case("101 without Upgrade", b"HTTP/1.1 101 X\r\n\r\n" + OK + b"Content-Length: 3\r\n\r\nabc", status=502)
case("101 to nothing", b"HTTP/1.1 101 X\r\n\r\n", status=502)
case(
    "Upgrade without 101",
    OK + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
    body=b"abc",
    reused=True,
)
case("204", b"HTTP/1.1 204 X\r\n\r\n", status=204, reused=True)
case("204 with a length", b"HTTP/1.1 204 X\r\nContent-Length: 3\r\n\r\n", status=204, reused=True)
case("204 with a body", b"HTTP/1.1 204 X\r\nContent-Length: 3\r\n\r\nabc", status=204)
case("204 in chunks", b"HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", status=204)
case("304", b"HTTP/1.1 304 X\r\n\r\n", status=304, reused=True)
case("304 with a length", b"HTTP/1.1 304 X\r\nContent-Length: 3\r\n\r\n", status=304, reused=True)
case("304 with a body", b"HTTP/1.1 304 X\r\nContent-Length: 3\r\n\r\nabc", status=304)
case("HEAD", OK + b"Content-Length: 3\r\n\r\n", method="HEAD", reused=True)
case("HEAD in chunks", CHUNKED, method="HEAD", reused=True)
case("HEAD without a length", OK + b"\r\n", method="HEAD")
case("HEAD with a body", OK + b"Content-Length: 3\r\n\r\nabc", method="HEAD")
case("HEAD with half a body", OK + b"Content-Length: 3\r\n\r\na", method="HEAD")
case("HEAD with chunks", CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", method="HEAD")
case("HEAD with another answer", (OK + b"Content-Length: 0\r\n\r\n") * 2, method="HEAD")

PACKED = gzip.compress(b"abc" * 1000)
case(
    "gzip unasked",
    OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED) + PACKED,
    body=b"abc" * 1000,
    reused=True,
)
case(
    "gzip that breaks off",
    OK + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + PACKED[:20],
    status=CUT,
    reused=True,
)
case("gzip that is none", OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", status=CUT)
case("brotli unasked", OK + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc", status=502)
case("401 without a length", b"HTTP/1.1 401 X\r\n\r\nabc", then="close", status=401)
case(
    "401 in brotli", b"HTTP/1.1 401 X\r\nContent-Encoding: br\r\nContent-Length: 3\r\n\r\nabc", status=502, reused=True
)
case("401 that breaks off", b"HTTP/1.1 401 X\r\nContent-Length: 5\r\n\r\nabc", then="close", status=502)


def script(talk: Conversation) -> None:
    for request in requests(talk):
        found = CASES.get(request.target)
        if found is None:
            talk.send(answer(b'"%d"' % talk.number))
            continue
        talk.send(*found.raw)
        if found.then == "reset":
            # What was sent before has to arrive before the reset does.
            threading.Event().wait(0.05)
            talk.reset()
        if found.then != "stay":
            return


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("rig"), plain=script) as running:
        yield running


@pytest.fixture
def silent() -> Iterator[Faults]:
    with faults() as handler:
        yield handler


def ask(engine: Rig, path: str, method: str = "GET", more: str = "") -> bytes:
    return f"{method} /plain{path} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {engine.token}\r\n{more}\r\n".encode()


def serving(engine: Rig) -> int:
    """Give the number of the connection that serves the next request."""
    with engine.running.raw() as client:
        status, _, body = client.send(ask(engine, "/who")).answer()
        assert status == 200
        return int(body.strip(b'"'))


def whole(client: Raw, method: str) -> tuple[int, bytes]:
    while True:
        status, _, body = client.answer(head_only=method == "HEAD")
        if status >= 200:
            return status, body


@pytest.mark.parametrize("path", CASES, ids=lambda path: CASES[path].name)
def test_an_answer_is_whole_or_a_failure_or_cut(engine: Rig, silent: Faults, path: str) -> None:
    expected = CASES[path]
    before = serving(engine)
    with engine.running.raw() as client:
        client.send(ask(engine, path, expected.method))
        if expected.status == CUT:
            with pytest.raises((EOFError, ConnectionError)):
                whole(client, expected.method)
        else:
            status, body = whole(client, expected.method)
            assert status == expected.status, body
            if status < 400:
                assert body == expected.body
            # And nothing more: the next answer is that to the next request.
            status, body = whole(client.send(ask(engine, "/who")), "GET")
            assert status == 200
            assert int(body.strip(b'"')) >= before
    assert (serving(engine) == before) == expected.reused
    assert engine.quiet()
    assert engine.plain.garbage == []


def test_bytes_that_nobody_asked_for_reach_nobody(tmp_path: Path, silent: Faults) -> None:
    heard = threading.Event()

    def speaks_unasked(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(answer(b"%d" % talk.number))
            if talk.number == 1:
                assert heard.wait(60)
                talk.send(answer(b"poison"))

    with rig(tmp_path, plain=speaks_unasked) as engine, engine.running.raw() as client:
        assert client.send(ask(engine, "/x")).answer()[2] == b"1"
        heard.set()
        engine.plain.until(lambda: engine.running.do(lambda: len(engine.running.gateway.pool)) == 0)
        assert client.send(ask(engine, "/x")).answer()[2] == b"2"


def test_the_head_of_a_second_answer_is_no_trailer(tmp_path: Path, silent: Faults) -> None:
    second = OK + b"X-Poison: 1\r\nContent-Length: 0\r\n\r\n"

    def twice(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(CHUNKED + b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n" + second)

    with rig(tmp_path, plain=twice) as engine, engine.running.raw() as client:
        told = client.send(ask(engine, "/x", more="Connection: close\r\n")).rest()
        assert told.endswith(b"x-sum: 1\r\n\r\n")
        assert b"poison" not in told


def test_the_key_in_an_answer_is_covered_wherever_it_is(tmp_path: Path, silent: Faults) -> None:
    key = KEY.encode()

    def echoes(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(b"HTTP/1.1 103 X\r\nLink: " + key + b"\r\n\r\n")
            talk.send(OK + b"X-Key: " + key + b"\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(key), 5):
                part = key[at : at + 5]
                talk.send(b"%x\r\n%b\r\n" % (len(part), part))
            talk.send(b"0\r\nX-Last: " + key + b"\r\nSet-Cookie: a=b\r\nX-Sum: 1\r\n\r\n")

    with rig(tmp_path, plain=echoes) as engine, engine.running.raw() as client:
        client.send(ask(engine, "/x", more="Connection: close\r\n"))
        told = client.rest()
        assert key not in told
        assert b"103 Early Hints" in told
        assert b"x-last: ***" in told
        assert b"x-sum: 1" in told
        assert b"set-cookie" not in told


# --- connections that die --------------------------------------------------------------------


def dies(*, after: int, ever: bool = False) -> Script:
    """Answer so many requests, then take one and close; `ever`: on every connection."""

    def script(talk: Conversation) -> None:
        for count, _ in enumerate(requests(talk)):
            if count >= after and (ever or talk.number == 1):
                return
            talk.send(answer(b"%d" % talk.number))

    return script


@pytest.mark.parametrize(
    ("method", "more", "status", "seen"),
    [
        ("GET", "", 200, 3),
        ("PUT", "Content-Length: 0\r\n", 200, 3),
        ("POST", "Content-Length: 0\r\n", 502, 2),
        ("PATCH", "Content-Length: 0\r\n", 502, 2),
        ("POST", "Content-Length: 0\r\nIdempotency-Key: 1\r\n", 200, 3),
    ],
)
def test_what_meets_a_dead_connection_is_sent_again_where_that_does_no_harm(
    tmp_path: Path, silent: Faults, method: str, more: str, status: int, seen: int
) -> None:
    with rig(tmp_path, plain=dies(after=1)) as engine, engine.running.raw() as client:
        assert client.send(ask(engine, "/x")).answer()[0] == 200
        got, _, body = client.send(ask(engine, "/y", method, more)).answer()
        assert got == status
        if status == 200:
            assert body == b"2"
        assert len(engine.plain.requests) == seen
        for request in engine.plain.requests:
            check_clean(request, engine.host("proxy"))


def test_a_second_dead_connection_is_a_failure(tmp_path: Path, silent: Faults) -> None:
    with rig(tmp_path, plain=dies(after=1, ever=True)) as engine, engine.running.raw() as client:
        assert client.send(ask(engine, "/x")).answer()[0] == 200
        # The kept connection is dead; the fresh one answers. Then that is the kept one.
        assert client.send(ask(engine, "/x")).answer()[0] == 200
    with rig(tmp_path, plain=dies(after=0, ever=True)) as engine, engine.running.raw() as client:
        assert client.send(ask(engine, "/x")).answer()[0] == 502
        assert len(engine.plain.requests) == 1


def test_an_idle_connection_is_closed_before_the_provider_does(tmp_path: Path, clock: FakeClock) -> None:
    with rig(tmp_path, plain=script, clock=clock) as engine:
        first = serving(engine)
        clock.advance(IDLE_SECONDS - 1)
        engine.running.do(engine.running.gateway.sweep)
        assert serving(engine) == first
        clock.advance(IDLE_SECONDS + 1)
        engine.running.do(engine.running.gateway.sweep)
        assert serving(engine) == first + 1


@pytest.mark.parametrize("plain_loop", [False, True], ids=["uvloop", "asyncio"])
def test_a_server_that_closes_at_once_is_a_failure_and_not_a_wait(
    tmp_path: Path, silent: Faults, plain_loop: bool
) -> None:
    with rig(tmp_path, plain=lambda talk: None, secure=lambda talk: None, plain_loop=plain_loop) as engine:
        for _ in range(20):
            with engine.running.raw() as client:
                assert client.send(ask(engine, "/x")).answer()[0] == 502
            with engine.running.raw() as client:
                assert client.send(engine.get("/x")).answer()[0] == 502
        assert engine.quiet()
        assert engine.running.do(lambda: len(engine.running.gateway.pool)) == 0


# --- providers that take their time ----------------------------------------------------------


def waits_at(*raw: bytes) -> Script:
    def script(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(*raw)
            talk.wait()
            return

    return script


@pytest.mark.parametrize(
    ("raw", "seconds", "status"),
    [
        (b"", 601, 504),
        (b"HTTP/1.1 103 X\r\n\r\n", 601, 504),
        (OK + b"Content-Le", 601, 504),
        (OK + b"Content-Length: 5\r\n\r\nab\n", 601, CUT),
        (CHUNKED + b"3\r\nab\n\r\n", 601, CUT),
        (OK + b"\r\nab\n", 601, CUT),
    ],
    ids=["nothing", "a hint", "half a head", "half a body", "half the chunks", "no length"],
)
def test_a_provider_that_stalls_is_waited_for_and_given_up(
    tmp_path: Path, silent: Faults, clock: FakeClock, raw: bytes, seconds: float, status: int
) -> None:
    with rig(tmp_path, plain=waits_at(raw), clock=clock) as engine, engine.running.raw() as client:
        client.send(ask(engine, "/x"))
        engine.plain.wait_for(1)
        if status == CUT:
            client.until(b"ab\n")
        elif b"103" in raw:
            assert client.answer()[0] == 103
        clock.advance(seconds - 3)
        engine.running.do(engine.running.gateway.sweep)
        assert engine.running.do(lambda: engine.running.gateway.active) == 1
        clock.advance(5)
        engine.running.do(engine.running.gateway.sweep)
        if status == CUT:
            with pytest.raises((ConnectionError, EOFError)):
                client.until(b"0\r\n\r\n")
        else:
            assert client.answer()[0] == status
        assert engine.quiet()
        assert engine.running.do(lambda: len(engine.running.gateway.pool)) == 0
