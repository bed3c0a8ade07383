"""The gateway between peers that are slow, gone, deaf, endless or many."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.crowd import crowd
from tests.support.gateway import KEY, Raw
from tests.support.rig import WAYS, Rig, Way, check_clean, faults, rig
from tests.support.tls import CertificateAuthority
from tests.support.upstream import Conversation, answer, ordinary, requests
from valetkey.gateway.server import EngineSettings
from valetkey.testing.clock import FakeClock

MB = 1024 * 1024
# What the kernels' buffers, TLS and the gateway's own may hold together; far below what the peers would send.
HELD = 32 * MB
SENT = 128 * MB

Script = Callable[[Conversation], None]


def ended(engine: Rig) -> bool:
    """Say whether nothing is under way and no connection to a provider is left."""
    gateway = engine.running.gateway
    return bool(engine.running.do(lambda: gateway.active == 0 and len(gateway.pool) == 0))


def later(engine: Rig, clock: FakeClock, seconds: float) -> None:
    """Let time pass for the gateway."""
    clock.advance(seconds)
    engine.running.do(engine.running.gateway.sweep)


# --- slow clients ----------------------------------------------------------------------------


def test_a_head_that_does_not_come_to_its_end_is_not_waited_for(tmp_path: Path, clock: FakeClock) -> None:
    with rig(tmp_path, clock=clock) as engine, engine.running.raw() as client:
        for byte in engine.get("/x")[:5]:
            client.send(bytes([byte]))
            # Nothing says that a byte has come, but a request on another connection is answered after it.
            with engine.running.raw() as other:
                assert other.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").answer()[0] == 401
            later(engine, clock, 2.5)
        assert client.closed()
        assert engine.secure.requests == []


def test_a_head_that_is_slow_behind_a_first_request_ends_too(tmp_path: Path, clock: FakeClock) -> None:
    with rig(tmp_path, clock=clock) as engine, engine.running.raw() as client:
        assert client.send(engine.get("/x")).answer()[0] == 200
        later(engine, clock, 60)
        client.send(engine.get("/y")[:-2])
        with engine.running.raw() as other:
            assert other.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").answer()[0] == 401
        later(engine, clock, 12)
        assert client.closed()
        assert [r.target for r in engine.secure.requests] == ["/x"]


def test_a_connection_may_be_idle_for_a_while(tmp_path: Path, clock: FakeClock) -> None:
    with rig(tmp_path, clock=clock) as engine, engine.running.raw() as client:
        assert client.send(engine.get("/x")).answer()[0] == 200
        later(engine, clock, 70)
        assert client.send(engine.get("/x")).answer()[0] == 200
        later(engine, clock, 77)
        assert client.closed()


def test_a_body_that_does_not_come_is_given_up_and_the_provider_is_told(tmp_path: Path, clock: FakeClock) -> None:
    gone = threading.Event()

    def waits(talk: Conversation) -> None:
        talk.wait()
        gone.set()

    with rig(tmp_path, secure=waits, clock=clock) as engine, engine.running.raw() as client:
        client.send(engine.get("/x", method="POST", more="Content-Length: 10\r\n"), b"abc")
        engine.secure.until(lambda: engine.secure.connections == 1)
        engine.secure.until(lambda: engine.running.do(lambda: len(engine.running.gateway.pool)) == 1)
        later(engine, clock, 595)
        later(engine, clock, 10)
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert gone.wait(60)
        assert ended(engine)


def test_a_request_that_a_person_decides_on_has_the_time_for_it(tmp_path: Path) -> None:
    with rig(tmp_path) as engine:
        engine.token = engine.running.key(policy='default = "deny"\n[[rule]]\nask = "GET 127.0.0.1:*/**"\n')
        gateway = engine.running.gateway
        with engine.running.raw() as client:
            client.send(engine.get("/x"))
            engine.secure.until(lambda: len(engine.running.do(gateway.approvals.pending)) == 1)
            # A person has 180 s; the time for a head is over long before.
            left = engine.running.do(lambda: min(c.deadline for c in gateway.connections) - gateway.tick)
            assert left > 180
            waiting = engine.running.do(gateway.approvals.pending)
            engine.running.do(lambda: gateway.approvals.settle(waiting[0].id, True, by="me"))
            assert client.answer()[0] == 200


# --- clients that go away --------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["waiting", "within its body", "within the answer"])
def test_a_client_that_is_gone_leaves_nothing_behind(tmp_path: Path, way: Way, when: str) -> None:
    gone = threading.Event()

    def waits(talk: Conversation) -> None:
        if when == "within its body":
            talk.read()
        else:
            talk.request()
        if when == "within the answer":
            talk.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        talk.wait()
        gone.set()

    # Certificates are made by this clock and believed by the real one.
    clock = FakeClock(datetime.now(UTC))
    with faults(), rig(tmp_path, secure=waits, plain=waits, clock=clock) as engine:
        gateway = engine.running.gateway
        client = engine.connect(way)
        more = "Content-Length: 100000\r\n" if when == "within its body" else ""
        client.send(engine.get("/x", way, more=more), b"abc" if more else b"")
        engine.upstream(way).until(lambda: engine.running.do(lambda: len(engine.running.gateway.pool)) == 1)
        if when == "within the answer":
            client.until(b"data: 1\n\n")
        client.close()
        # Its end looks like that of one which only has nothing more to say: for a moment it is waited for.
        noticed = lambda: all(c.half_closed for c in gateway.connections)  # noqa: E731  # asked in the loop
        engine.secure.until(lambda: bool(engine.running.do(noticed)))
        later(engine, clock, 7)
        assert gone.wait(60)
        engine.secure.until(lambda: ended(engine))
        assert engine.running.wait_for_rows(1)[-1].outcome == "client_gone"


def test_a_client_that_resets_leaves_nothing_behind(tmp_path: Path) -> None:
    with faults(), rig(tmp_path, secure=lambda talk: talk.wait()) as engine:
        for _ in range(50):
            client = engine.running.raw()
            client.send(engine.get("/x", method="POST", more="Content-Length: 100000\r\n"), b"abc")
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            client.close()
        engine.secure.until(lambda: ended(engine) and not engine.running.do(lambda: engine.running.gateway.connections))


def test_a_client_that_has_said_all_may_close_its_half(tmp_path: Path) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        client.send(engine.get("/x") + engine.get("/y"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.answer()[0] == 200
        assert client.answer()[0] == 200
        assert client.closed()
        engine.secure.until(lambda: engine.quiet())
        assert [r.target for r in engine.secure.requests] == ["/x", "/y"]


def test_a_refusal_is_told_to_who_has_closed_his_half(tmp_path: Path) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        client.send(engine.get("/x") + b"garbage\r\n\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.answer()[0] == 200
        assert client.answer()[0] == 400
        assert client.closed()


def test_half_closed_within_a_body_is_gone(tmp_path: Path) -> None:
    with faults(), rig(tmp_path, secure=lambda talk: talk.wait()) as engine, engine.running.raw() as client:
        client.send(engine.get("/x", method="POST", more="Content-Length: 10\r\n"), b"abc")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.closed()
        engine.secure.until(lambda: ended(engine))


def test_half_closed_is_not_waited_for_without_end(tmp_path: Path, clock: FakeClock) -> None:
    def waits(talk: Conversation) -> None:
        talk.request()
        talk.wait()

    with faults(), rig(tmp_path, secure=waits, clock=clock) as engine, engine.running.raw() as client:
        client.send(engine.get("/x"))
        engine.secure.wait_for(1)
        client.socket.shutdown(socket.SHUT_WR)
        half = lambda: any(c.half_closed for c in engine.running.gateway.connections)  # noqa: E731  # asked in the loop
        engine.secure.until(lambda: bool(engine.running.do(half)))
        later(engine, clock, 3)
        assert not engine.quiet()
        later(engine, clock, 4)
        assert client.closed()
        engine.secure.until(lambda: ended(engine))


def test_half_closed_and_then_a_stream_that_says_nothing_is_gone(tmp_path: Path, clock: FakeClock) -> None:
    goes_on = threading.Event()

    def streams(talk: Conversation) -> None:
        talk.request()
        assert goes_on.wait(60)
        talk.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        talk.wait()

    with faults(), rig(tmp_path, secure=streams, clock=clock) as engine, engine.running.raw() as client:
        client.send(engine.get("/x"))
        engine.secure.wait_for(1)
        client.socket.shutdown(socket.SHUT_WR)
        half = lambda: any(c.half_closed for c in engine.running.gateway.connections)  # noqa: E731  # asked in the loop
        engine.secure.until(lambda: bool(engine.running.do(half)))
        goes_on.set()
        client.until(b"data: 1\n\n")
        later(engine, clock, 3)
        assert not engine.quiet()
        later(engine, clock, 4)
        assert b"0\r\n\r\n" not in client.rest()
        engine.secure.until(lambda: ended(engine))


def test_a_refusal_reaches_who_is_still_sending(tmp_path: Path) -> None:
    with faults(), rig(tmp_path) as engine:
        for begun in (b"garbage\r\n", engine.get("/x") + b"garbage\r\n", engine.get("/x", more=UPGRADE)):
            with engine.running.raw() as client:
                client.send(begun)
                with contextlib.suppress(ConnectionError):
                    client.send(b"x" * 4 * MB)
                assert client.answer()[0] == (400 if begun.startswith(b"garbage") else 200)


# --- back-pressure ---------------------------------------------------------------------------


def until_blocked(connection: socket.socket, data: bytes, *, most: int) -> int:
    """Send until nobody takes any more for a second; give how much was taken."""
    connection.setblocking(False)
    taken = 0
    piece = memoryview(data)
    while taken < most:
        try:
            count = connection.send(piece)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if not select.select([], [connection], [], 1.0)[1]:
                break
            continue
        taken += count
        piece = piece[count:] or memoryview(data)
    connection.setblocking(True)
    return taken


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_does_not_read_stops_the_provider(tmp_path: Path, way: Way) -> None:
    taken: list[int] = []
    goes_on = threading.Event()

    def endless(talk: Conversation) -> None:
        for request in requests(talk):
            if request.target != "/endless":
                talk.send(answer())
                continue
            talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SENT)
            taken.append(until_blocked(talk.socket, b"x" * MB, most=SENT))
            goes_on.wait(60)
            left = SENT - taken[0]
            while left:
                talk.send(b"x" * min(left, MB))
                left -= min(left, MB)

    with faults(), rig(tmp_path, secure=endless, plain=endless) as engine, engine.connect(way) as client:
        client.send(engine.get("/endless", way) + engine.get("/after", way))
        engine.secure.until(lambda: len(taken) == 1)
        assert 0 < taken[0] < HELD
        goes_on.set()
        _, headers = client.head()
        left = int(headers["content-length"])
        while left:
            left -= len(client.exactly(min(left, MB)))
        assert client.answer()[0] == 200


def test_a_client_that_asks_and_does_not_read_is_not_answered_without_end(tmp_path: Path) -> None:
    big = answer(b"x" * MB)
    with faults(), rig(tmp_path, secure=ordinary(lambda _: big)) as engine, engine.running.raw() as client:
        count = 200
        sending = threading.Thread(target=lambda: client.send(engine.get("/x") * count), daemon=True)
        sending.start()
        seen = -1
        # As long as answers are still asked for, the number grows.
        while seen < len(engine.secure.requests):
            seen = len(engine.secure.requests)
            threading.Event().wait(1.0)
        assert seen < 40
        for _ in range(count):
            status, headers = client.head()
            assert status == 200
            client.exactly(int(headers["content-length"]))
        sending.join(60)
        assert len(engine.secure.requests) == count


def test_a_client_that_asks_one_by_one_and_does_not_read_is_not_answered_without_end(tmp_path: Path) -> None:
    # Each answer comes whole in one read.
    big = answer(b"x" * 8_000)
    with faults(), rig(tmp_path, plain=ordinary(lambda _: big)) as engine, engine.running.raw() as client:
        for count in range(1, 5000):
            client.send(engine.get("/x", "proxy"))
            for _ in range(1000):
                if len(engine.plain.requests) == count:
                    break
                threading.Event().wait(0.001)
            else:
                break
        assert len(engine.plain.requests) * 8_000 < HELD
        for _ in range(count):
            status, headers = client.head()
            assert status == 200
            client.exactly(int(headers["content-length"]))


def test_a_body_that_is_too_long_is_refused_however_often_its_head_has_come(tmp_path: Path) -> None:
    settings = EngineSettings(max_body_bytes=1000)
    with faults(), rig(tmp_path, settings=settings) as engine, engine.running.raw() as client:
        for size in (10, 1000):
            client.send(engine.get("/x", method="POST", more=f"Content-Length: {size}\r\n") + b"x" * size)
            assert client.answer()[0] == 200
        client.send(engine.get("/x", method="POST", more="Content-Length: 1001\r\n") + b"x" * 1001)
        assert client.answer()[0] == 413
        assert client.closed()
        assert [len(r.body) for r in engine.secure.requests] == [10, 1000]


@pytest.mark.parametrize(
    "length", ["5, 5", "05", "+5", "5\r\nContent-Length: 5", "5\r\nTransfer-Encoding: chunked", " 5 "]
)
def test_a_head_that_has_come_before_is_read_no_less_strictly(tmp_path: Path, length: str) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        for _ in range(3):
            client.send(engine.get("/x", method="POST", more="Content-Length: 5\r\n") + b"abcde")
            assert client.answer()[0] == 200
        client.send(engine.get("/x", method="POST", more=f"Content-Length: {length}\r\n") + b"abcde")
        assert client.answer()[0] == 400
        assert client.closed()
        assert len(engine.secure.requests) == 3


@pytest.mark.parametrize("way", WAYS)
def test_the_same_head_again_is_cut_and_joined_in_any_way(tmp_path: Path, way: Way) -> None:
    with faults(), rig(tmp_path) as engine, engine.connect(way) as client:
        sent = []
        for number in range(12):
            body = f"{number}:".encode() + b"GET /smuggled HTTP/1.1\r\n\r\n" * (number % 3)
            raw = engine.get("/x", way, method="POST", more=f"Content-Length: {len(body)}\r\n") + body
            at = (number * 37) % len(raw)
            # Whole, cut, or with another behind it in one piece.
            pieces = [[raw], [raw[:at], raw[at:]], [raw + raw]][number % 3]
            for piece in pieces:
                client.send(piece)
            for _ in range(2 if len(pieces[0]) > len(raw) else 1):
                assert client.answer()[0] == 200
                sent.append(body)
        assert [r.body for r in engine.upstream(way).requests] == sent
        for request in engine.upstream(way).requests:
            check_clean(request, engine.host(way))


def test_requests_are_not_kept_without_end(tmp_path: Path) -> None:
    def never(talk: Conversation) -> None:
        talk.request()
        talk.wait()

    with faults(), rig(tmp_path, secure=never) as engine, engine.running.raw() as client:
        client.send(engine.get("/x"))
        engine.secure.wait_for(1)
        assert until_blocked(client.socket, engine.get("/y") * 100, most=SENT) < HELD
        gateway = engine.running.gateway
        assert engine.running.do(lambda: max(len(c.queue) for c in gateway.connections)) < 10_000


def test_refusals_are_not_kept_without_end(tmp_path: Path) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        # Each would be an exchange that waits.
        client.send(b"GET /acme/x HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        most = engine.running.do(lambda: max(len(c.queue) for c in engine.running.gateway.connections))
        assert most <= 500
        assert client.answer()[0] == 401


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunked", [False, True], ids=["by length", "in chunks"])
def test_a_provider_that_does_not_read_stops_the_client(tmp_path: Path, way: Way, chunked: bool) -> None:
    reads = threading.Event()

    def deaf(talk: Conversation) -> None:
        reads.wait(60)
        for request in requests(talk):
            talk.send(answer(b"%d" % len(request.body)))

    with faults(), rig(tmp_path, secure=deaf, plain=deaf) as engine, engine.connect(way) as client:
        framing = "Transfer-Encoding: chunked\r\n" if chunked else f"Content-Length: {SENT}\r\n"
        client.send(engine.get("/x", way, method="POST", more=framing))
        piece = b"x" * MB
        if chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        taken = until_blocked(client.socket, piece, most=SENT)
        assert 0 < taken < HELD
        reads.set()
        rest = len(piece) - taken % len(piece)
        client.send(piece[-rest:])
        count = -(-taken // len(piece)) if taken % len(piece) else taken // len(piece) + 1
        if chunked:
            client.send(b"0\r\n\r\n")
            total = count * MB
        else:
            for _ in range(SENT // MB - count):
                client.send(piece)
            total = SENT
        assert client.answer()[2] == b"%d" % total


# --- 100-continue and trailers ---------------------------------------------------------------

EXPECTS = "Expect: 100-continue\r\nContent-Length: 3\r\n"


def test_a_provider_says_to_go_on(tmp_path: Path) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        client.send(engine.get("/x", method="POST", more=EXPECTS))
        assert client.answer()[0] == 100
        assert client.send(b"abc").answer()[0] == 200
        assert client.send(engine.get("/y")).answer()[0] == 200
        (first, _) = engine.secure.requests
        check_clean(first, engine.host("base-url"))
        assert (first.header("expect"), first.body) == ("100-continue", b"abc")


def test_a_provider_does_not_want_the_body(tmp_path: Path) -> None:
    def refuses(talk: Conversation) -> None:
        talk.read()
        talk.send(answer(b"{}", status=417))
        talk.wait()

    with faults(), rig(tmp_path, secure=refuses) as engine, engine.running.raw() as client:
        client.send(engine.get("/x", method="POST", more=EXPECTS))
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (417, "close")
        assert client.closed()
        engine.secure.until(lambda: ended(engine))


def test_a_provider_that_says_nothing_gets_the_body_all_the_same(tmp_path: Path) -> None:
    def silent(talk: Conversation) -> None:
        data = b""
        while not data.endswith(b"abc"):
            data += talk.read()
        talk.send(answer())

    with faults(), rig(tmp_path, secure=silent) as engine, engine.running.raw() as client:
        # RFC 9110 section 10.1.1: a client does not wait without end.
        client.send(engine.get("/x", method="POST", more=EXPECTS), b"abc")
        assert client.answer()[0] == 200


def test_what_the_gateway_refuses_is_never_sent_for(tmp_path: Path) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        client.send("POST /acme/x HTTP/1.1\r\nHost: x\r\n" + EXPECTS + "\r\n")
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (401, "close")
        assert client.closed()
        assert engine.secure.connections == 0


def test_a_trailer_goes_on(tmp_path: Path) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        client.send(engine.get("/x", method="POST", more="Transfer-Encoding: chunked\r\n"))
        client.send(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nCookie: a=b\r\n\r\n")
        assert client.answer()[0] == 200
        assert engine.secure.requests[0].trailers == [("x-sum", "1")]


@pytest.mark.parametrize("upgrades", [False, True])
def test_nothing_is_read_behind_trailers_that_are_too_many(tmp_path: Path, upgrades: bool) -> None:
    def hears(talk: Conversation) -> None:
        talk.until(b"\r\n\r\n")
        arrived.set()
        talk.wait()

    arrived = threading.Event()
    with faults(), rig(tmp_path, secure=hears) as engine, engine.running.raw() as client:
        client.send(engine.get("/x", method="POST", more="Transfer-Encoding: chunked\r\n"))
        assert arrived.wait(60)
        # In one piece: the parser is within all of it when the trailers are refused.
        behind = engine.get("/smuggled", more=UPGRADE if upgrades else "")
        client.send(b"0\r\n" + b"X: y\r\n" * 300 + b"\r\n" + behind)
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (431, "close")
        assert client.closed()
        engine.secure.until(lambda: ended(engine))
        assert engine.secure.connections == 1


# --- WebSocket -------------------------------------------------------------------------------

UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: realtime\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nOrigin: http://localhost\r\n"
)


def frame(text: bytes) -> bytes:
    """Give a text frame of a server (RFC 6455 section 5.2)."""
    assert len(text) < 126
    return bytes([0x81, len(text)]) + text


def masked(text: bytes) -> bytes:
    """Give a text frame of a client."""
    mask = b"\x37\xfa\x21\x3d"
    return bytes([0x81, 0x80 | len(text)]) + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(text))


def speaks_websocket(talk: Conversation) -> None:
    head = talk.until(b"\r\n\r\n")
    lines = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
    assert lines["upgrade"] == "websocket"
    assert lines["connection"] == "Upgrade"
    assert lines["authorization"] == f"Bearer {KEY}"
    assert "sec-websocket-extensions" not in lines
    accept = base64.b64encode(
        hashlib.sha1((lines["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    )
    talk.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\nSec-WebSocket-Protocol: realtime\r\n\r\n" + frame(b"hello")
    )
    while data := talk.read():
        talk.send(frame(b"got %d" % len(data)))
        if data == masked(b"key"):
            talk.send(frame(f"it is {KEY}.".encode()))
        if data == masked(b"begin"):
            talk.send(frame(b"it begins with sk"))
        if data == masked(b"bye"):
            return


@pytest.mark.parametrize("way", WAYS)
def test_a_websocket_is_relayed(tmp_path: Path, way: Way) -> None:
    with (
        faults(),
        rig(tmp_path, secure=speaks_websocket, plain=speaks_websocket) as engine,
        engine.connect(way) as client,
    ):
        client.send(engine.get("/x", way, more=UPGRADE))
        status, headers = client.head()
        assert status == 101
        assert headers["upgrade"] == "websocket"
        assert headers["connection"] == "Upgrade"
        # The example of RFC 6455 section 1.3.
        assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert headers["sec-websocket-protocol"] == "realtime"
        assert client.exactly(7) == frame(b"hello")
        client.send(masked(b"hi"))
        assert client.exactly(7) == frame(b"got 8")
        client.send(masked(b"key"))
        assert client.exactly(7) == frame(b"got 9")
        told = client.exactly(2 + len(KEY) + 7)
        assert KEY.encode() not in told
        assert told.startswith(bytes([0x81, len(KEY) + 7]) + b"it is ")
        client.send(masked(b"begin"))
        assert client.exactly(8) == frame(b"got 11")
        # What may be the beginning of the key is not kept until there is more: the other side may wait for it.
        assert client.exactly(19) == frame(b"it begins with sk")
        client.send(masked(b"bye"))
        assert client.exactly(7) == frame(b"got 9")
        assert client.closed()
        row = engine.running.wait_for_rows(1)[-1]
        assert (row.status, row.outcome) == (101, "ok")
        engine.secure.until(lambda: ended(engine))


def test_frames_that_come_too_early_are_not_lost(tmp_path: Path) -> None:
    asked = threading.Event()
    got: list[bytes] = []

    def slow(talk: Conversation) -> None:
        talk.until(b"\r\n\r\n")
        asked.set()
        release.wait(60)
        talk.send(b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while sum(map(len, got)) < 2 * len(masked(b"one")):
            got.append(talk.read())

    release = threading.Event()
    with faults(), rig(tmp_path, secure=slow) as engine, engine.running.raw() as client:
        client.send(engine.get("/x", more=UPGRADE) + masked(b"one"))
        assert asked.wait(60)
        client.send(masked(b"two"))
        gateway = engine.running.gateway
        early = lambda: sum(len(e.leftover) for c in gateway.connections for e in c.queue)  # noqa: E731  # in the loop
        engine.secure.until(lambda: engine.running.do(early) == 2 * len(masked(b"one")))
        release.set()
        assert client.head()[0] == 101
        assert client.closed()
        assert b"".join(got) == masked(b"one") + masked(b"two")


def test_an_upgrade_that_is_refused_ends_the_connection(tmp_path: Path) -> None:
    def refuses(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(answer(b"{}", status=426))

    with faults(), rig(tmp_path, secure=refuses) as engine, engine.running.raw() as client:
        # The parser cannot go on behind an upgrade: nothing of it may be read as a request.
        client.send(engine.get("/x", more=UPGRADE) + engine.get("/smuggled"))
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (426, "close")
        assert client.closed()
        assert [r.target for r in engine.secure.requests] == ["/x"]


def test_a_client_that_leaves_a_websocket_closes_it(tmp_path: Path) -> None:
    gone = threading.Event()

    def notices(talk: Conversation) -> None:
        speaks_websocket(talk)
        gone.set()

    with faults(), rig(tmp_path, secure=notices) as engine:
        with engine.running.raw() as client:
            client.send(engine.get("/x", more=UPGRADE))
            assert client.head()[0] == 101
        assert gone.wait(60)
        engine.secure.until(lambda: ended(engine))


# --- TLS -------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain_loop", [False, True], ids=["uvloop", "asyncio"])
def test_a_request_in_one_flight_with_the_end_of_the_handshake_is_answered(tmp_path: Path, plain_loop: bool) -> None:
    with faults(), rig(tmp_path, plain_loop=plain_loop) as engine:
        for _ in range(20):
            client = engine.running.raw()
            assert client.send(engine.connect_request()).head()[0] == 200
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = engine.trust.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    client.send(outgoing.read())
                    incoming.write(client.socket.recv(65536))
            tls.write(engine.get("/x", "intercepted"))
            client.send(outgoing.read())
            found = b""
            while b"\r\n\r\n" not in found:
                try:
                    found += tls.read(65536)
                except ssl.SSLWantReadError:
                    incoming.write(client.socket.recv(65536))
            assert found.startswith(b"HTTP/1.1 200 ")
            client.close()


def test_more_than_the_connect_is_refused(tmp_path: Path) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        client.send(engine.connect_request() + "\x16\x03\x01\x00\x05hello")
        assert client.answer()[0] == 400
        assert client.closed()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""])
def test_what_is_no_tls_inside_a_tunnel_ends_it(tmp_path: Path, said: bytes) -> None:
    with faults(), rig(tmp_path) as engine, engine.running.raw() as client:
        assert client.send(engine.connect_request()).head()[0] == 200
        client.send(said)
        client.socket.shutdown(socket.SHUT_WR)
        assert b"HTTP" not in client.rest()
        engine.secure.until(lambda: engine.running.trace.rows[-1:] != [])
        assert engine.running.trace.rows[-1].outcome == "handshake_failed"
        assert engine.quiet()


@pytest.mark.parametrize("which", ["another authority", "another host", "expired", "no TLS"])
def test_a_provider_that_cannot_prove_itself_gets_nothing(tmp_path: Path, which: str) -> None:
    def hears(talk: Conversation) -> None:
        heard.append(talk.read())

    heard: list[bytes] = []
    other = tmp_path / "other"
    other.mkdir()
    authority = CertificateAuthority(other)
    engine_authority = CertificateAuthority(tmp_path)
    context = {
        "another authority": authority.context(),
        "another host": engine_authority.context("other.example"),
        "expired": engine_authority.context(expired=True),
        "no TLS": None,
    }[which]
    with faults(), rig(tmp_path, secure=hears, tls=context, authority=engine_authority) as engine:
        if which == "no TLS":
            engine.secure.without_tls()
        for way in ("base-url", "intercepted"):
            with engine.connect(way) as client:
                status, _, body = client.send(engine.get("/x", way)).answer()
                assert status == 502
                assert (b"unreachable" if which == "no TLS" else b"tls_failed") in body
        assert not any(KEY.encode() in piece or b"HTTP" in piece for piece in heard)


# --- many ------------------------------------------------------------------------------------


def open_many(engine: Rig, count: int) -> None:
    gateway = engine.running.gateway
    with crowd(engine.running.port, engine.get("/x"), count):
        engine.secure.until(lambda: len(gateway.connections) == count)
        with engine.connect("intercepted") as client:
            assert client.send(engine.get("/x", "intercepted")).answer()[0] == 200
    engine.secure.until(lambda: not engine.running.do(lambda: gateway.connections))
    assert engine.quiet()


def test_a_thousand_connections(tmp_path: Path) -> None:
    with more_files(3_000), faults(), rig(tmp_path) as engine:
        open_many(engine, 1_000)


@pytest.mark.soak
def test_ten_thousand_connections(tmp_path: Path) -> None:
    # It takes longer than a client may take for its head.
    patient = EngineSettings(head_seconds=300, idle_seconds=300)
    with more_files(15_000), faults(), rig(tmp_path, settings=patient) as engine:
        open_many(engine, 10_000)


@contextlib.contextmanager
def more_files(count: int):  # type: ignore[no-untyped-def]  # a context manager of nothing
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], count), max(before[1], count)))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- the end ---------------------------------------------------------------------------------


def test_a_stream_goes_on_while_the_gateway_drains(tmp_path: Path) -> None:
    goes_on = threading.Event()

    def streams(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n")
            assert goes_on.wait(60)
            talk.send(b"2\r\n2\n\r\n0\r\n\r\n")

    with faults(), rig(tmp_path, secure=streams) as engine, engine.running.raw() as client:
        idle = engine.running.raw()
        port = engine.running.port
        client.send(engine.get("/x"))
        client.until(b"2\r\n1\n\r\n")
        draining = engine.running.begin(engine.running.gateway.drain(30))
        assert idle.closed()
        idle.close()
        with pytest.raises(ConnectionRefusedError):
            Raw(port)
        assert not draining.done()
        goes_on.set()
        assert client.until(b"0\r\n\r\n") == b"2\r\n2\n\r\n0\r\n\r\n"
        assert client.closed()
        draining.result(60)
        assert ended(engine)


def test_a_stream_that_does_not_end_is_cut_when_the_time_is_up(tmp_path: Path, clock: FakeClock) -> None:
    def streams(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n")
            talk.wait()
            return

    with faults(), rig(tmp_path, secure=streams, clock=clock) as engine, engine.running.raw() as client:
        client.send(engine.get("/x"))
        client.until(b"2\r\n1\n\r\n")
        engine.running.call(engine.running.gateway.drain(30))
        assert clock.waits == [30]
        assert b"0\r\n\r\n" not in client.rest()
        engine.secure.until(lambda: ended(engine))


def test_a_key_that_is_revoked_ends_its_streams(tmp_path: Path) -> None:
    def streams(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n1\n\r\n")
            talk.wait()
            return

    with faults(), rig(tmp_path, secure=streams) as engine:
        other = engine.running.key()
        clients: list[Raw] = []
        for way in ("base-url", "intercepted"):
            client = engine.connect(way)
            client.send(engine.get("/x", way))
            client.until(b"2\r\n1\n\r\n")
            clients.append(client)
        engine.running.keys.revoke(engine.token.split("_")[1])
        engine.running.do(engine.running.gateway.refresh)
        for client in clients:
            assert b"0\r\n\r\n" not in client.rest()
            client.close()
        engine.secure.until(lambda: ended(engine))
        with engine.running.raw() as client:
            assert client.send(engine.get("/x")).answer()[0] == 401
            engine.token = other
            assert client.send(engine.get("/x")).head()[0] == 200
