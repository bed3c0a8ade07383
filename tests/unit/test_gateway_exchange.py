"""One request and its answer, where it is more than passing bytes on: samples, time in all, estimates, and its end."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import gzip
import json
import resource
import sys
import warnings
from pathlib import Path

import pytest

from tests.support.gateway import KEY, acme, running_gateway
from tests.support.rig import WAYS, Way, rig
from tests.support.upstream import Conversation, Upstream, answer, requests
from valetkey.gateway.client import ClientConnection
from valetkey.gateway.exchange import Exchange
from valetkey.gateway.heap import Heap, give_back
from valetkey.gateway.limits import Limits
from valetkey.gateway.scrub import Needles, Scrubber
from valetkey.gateway.server import EngineSettings
from valetkey.gateway.upstream import UpstreamConnection
from valetkey.testing.clock import FakeClock


def posted(token: str, body: bytes, path: str = "/acme/chat/completions") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: g\r\nx-api-key: {token}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_the_trace_keeps_the_body_of_each_request_also_of_one_whose_head_has_come_before(tmp_path: Path) -> None:
    settings = EngineSettings(keep_bodies=True)
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path, settings=settings) as gateway:
        token = gateway.key()
        with gateway.raw() as client:
            for number in range(4):
                assert client.send(posted(token, b"{%d}" % number)).answer()[0] == 200
        rows = gateway.wait_for_rows(4)
    assert [row.request_body for row in rows] == [b"{%d}" % number for number in range(4)]
    assert [row.response_body for row in rows] == [b"{}"] * 4


def drip(talk: Conversation) -> None:
    """Answer with a body that never ends, a byte whenever the gateway lets it."""
    for _ in requests(talk):
        talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n1\r\n!\r\n")
        talk.wait()


def test_an_answer_that_never_ends_is_ended_though_something_always_comes(tmp_path: Path) -> None:
    clock = FakeClock()
    settings = EngineSettings(stream_seconds=1e6, total_seconds=100)
    with (
        Upstream(drip) as upstream,
        running_gateway(acme(upstream.url), home=tmp_path, settings=settings, clock=clock) as gateway,
    ):
        token = gateway.key()
        with gateway.raw() as client:
            client.send(f"GET /acme/x HTTP/1.1\r\nHost: g\r\nx-api-key: {token}\r\n\r\n")
            assert client.head()[0] == 200
            client.until(b"!\r\n")
            clock.advance(99)
            gateway.do(gateway.gateway.sweep)
            assert gateway.gateway.active == 1
            clock.advance(2)
            gateway.do(gateway.gateway.sweep)
            assert client.rest() == b"", "cut, so that it does not look whole"
        (row,) = gateway.wait_for_rows(1)
    assert row.outcome == "upstream_timeout"


def test_a_client_that_leaves_before_its_request_is_gone_on_with_leaves_nothing_behind(tmp_path: Path) -> None:
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path) as gateway:
        token = gateway.key()
        with gateway.raw() as client:
            upstream.until(lambda: len(gateway.gateway.connections) == 1)
            (connection,) = gateway.gateway.connections

            def ask_and_leave() -> None:
                # In one turn of the loop, so that the task which dials is ended before it began.
                connection.data_received(posted(token, b"{}"))
                assert connection.queue
                connection.connection_lost(None)

            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                gateway.do(ask_and_leave)
                (row,) = gateway.wait_for_rows(1)
                gc.collect()
            assert [str(warning.message) for warning in seen] == []
            client.close()
    assert row.outcome == "client_gone"


STREAM = b"".join(
    b"data: %b\n\n" % json.dumps({"model": "m", "choices": [{"delta": {"content": "word " * 40}}]}).encode()
    for _ in range(10)
)


@pytest.mark.parametrize("told", [True, False])
def test_tokens_that_an_answer_does_not_tell_are_counted_by_its_size(tmp_path: Path, told: bool) -> None:
    counts = b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 8}}\n\n' if told else b""
    events = STREAM + counts + b"data: [DONE]\n\n"

    def stream(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(answer(events, content_type="text/event-stream"))

    with Upstream(stream) as upstream, running_gateway(acme(upstream.url), home=tmp_path) as gateway:
        token = gateway.key(limits=Limits(tokens_per_day=100))
        with gateway.raw() as client:
            statuses = [client.send(posted(token, b'{"stream": true}')).answer()[0] for _ in range(3)]
    assert statuses == ([200, 200, 200] if told else [200, 429, 429])


def test_what_says_who_asks_stays_here(tmp_path: Path) -> None:
    names = ["CF-Connecting-IP", "Fastly-Client-IP", "X-Remote-Addr", "X-Azure-ClientIP", "X-Vercel-Forwarded-For"]
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path) as gateway:
        lines = "".join(f"{name}: 192.0.2.1\r\n" for name in names)
        with gateway.raw() as client:
            request = f"GET /acme/x HTTP/1.1\r\nHost: g\r\nx-api-key: {gateway.key()}\r\n{lines}X-Mine: 1\r\n\r\n"
            assert client.send(request).answer()[0] == 200
    (request_sent,) = upstream.requests
    assert {name for name, _ in request_sent.headers} & {name.lower() for name in names} == set()
    assert request_sent.header("x-mine") == "1"


def alive() -> int:
    kinds = (ClientConnection, UpstreamConnection, Exchange, asyncio.Task)
    return sum(type(found) in kinds for found in gc.get_objects())


@pytest.mark.parametrize("way", WAYS)
def test_connections_die_with_their_peers_and_not_by_the_collector(tmp_path: Path, way: Way) -> None:
    # A parser holds the methods of its protocol: a circle, and memory would grow with each wave of streams.
    with rig(tmp_path, secure=drip, plain=drip) as gateway:
        before = alive()
        gc.disable()
        try:
            clients = [gateway.connect(way) for _ in range(20)]
            for client in clients:
                client.send(gateway.get("/x", way)).until(b"!\r\n")
            # uvloop holds a method of the protocol that opened a tunnel, until the connection ends.
            # The tasks that dialled are gone.
            assert alive() == before + (80 if way == "intercepted" else 60)
            for client in clients:
                client.close()
            gateway.upstream(way).until(lambda: alive() == before)
        finally:
            gc.enable()


def test_memory_is_given_back_when_many_connections_have_gone(tmp_path: Path) -> None:
    given: list[int] = []

    def give_back() -> None:
        given.append(len(gateway.gateway.connections))

    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path, heap=Heap(give_back)) as gateway:
        clients = [gateway.raw() for _ in range(105)]
        upstream.until(lambda: len(gateway.gateway.connections) == 105)
        gateway.do(gateway.gateway.sweep)
        for client in clients[:104]:
            client.close()
        upstream.until(lambda: len(gateway.gateway.connections) == 1)
        gateway.do(gateway.gateway.sweep)
        gateway.do(gateway.gateway.sweep)
        assert len(given) == 1, "once, by this sweep or by the gateway's own"
        clients[104].close()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc, and the C library of Linux")
def test_the_system_gets_back_what_was_freed_below_what_is_still_used() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    blocks = [libc.malloc(60_000) for _ in range(1500)]
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    for block in blocks[:-1]:
        libc.free(block)
    held = resident()
    give_back()
    assert held - resident() > 60_000_000
    libc.free(blocks[-1])


def test_a_head_that_is_half_here_is_taken_for_none_that_comes_again(tmp_path: Path) -> None:
    # A big answer fills the client's buffers, so that the next request waits; then half a head comes.
    def big(talk: Conversation) -> None:
        for request in requests(talk):
            talk.send(answer(b"x" * 30_000_000 if request.target == "/big" else b"{}"))

    with Upstream(big) as upstream, running_gateway(acme(upstream.url), home=tmp_path) as gateway:
        token = gateway.key()

        def head(method: str, path: str) -> bytes:
            return f"{method} /acme/{path} HTTP/1.1\r\nHost: g\r\nx-api-key: {token}\r\n\r\n".encode()

        with gateway.raw() as client:
            client.send(head("GET", "big"))
            client.head()
            two = head("GET", "two")
            client.send(head("DELETE", "it"))
            upstream.until(lambda: any(len(c.queue) > 1 for c in list(gateway.gateway.connections)))
            client.send(two[:30])
            client.exactly(30_000_000)
            client.answer()
            client.send(two[30:])
            assert client.answer()[0] == 200
            client.send(b"GET")
            client.send(head("GET", "three")[3:])
            assert client.answer()[0] == 200
    assert [request.target for request in upstream.requests] == ["/big", "/it", "/two", "/three"]


def test_two_encodings_at_once_are_not_passed_on(tmp_path: Path) -> None:
    packed = gzip.compress(f'{{"key": "{KEY}"}}'.encode())

    def twice(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(answer(packed, headers="content-encoding: gzip\r\ncontent-encoding: identity\r\n"))

    with (
        Upstream(twice) as upstream,
        running_gateway(acme(upstream.url), home=tmp_path) as gateway,
        gateway.raw() as client,
    ):
        status, _, body = client.send(posted(gateway.key(), b"{}")).answer()
    assert status == 502
    assert b"upstream_failed" in body


def test_a_refused_credential_in_a_thousand_pieces_is_kept_in_one(tmp_path: Path) -> None:
    pieces = b"".join(b"1\r\nx\r\n" for _ in range(60_000))

    def crumbs(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(b"HTTP/1.1 401 X\r\ntransfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")

    with (
        Upstream(crumbs) as upstream,
        running_gateway(acme(upstream.url), home=tmp_path) as gateway,
        gateway.raw() as client,
    ):
        status, _, body = client.send(posted(gateway.key(), b"{}")).answer()
    assert (status, body) == (401, b"x" * 60_000)


def test_connections_that_show_no_key_make_room_for_others(tmp_path: Path) -> None:
    settings = EngineSettings(most_connections=8)
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path, settings=settings) as gateway:
        token = gateway.key()
        with gateway.raw() as known:
            assert known.send(posted(token, b"{}")).answer()[0] == 200
            idle = [gateway.raw() for _ in range(20)]
            upstream.until(lambda: len(gateway.gateway.connections) <= 8)
            with gateway.raw() as late:
                assert late.send(posted(token, b"{}")).answer()[0] == 200
            assert known.send(posted(token, b"{}")).answer()[0] == 200
            for client in idle:
                client.close()


def test_an_end_that_was_let_go_is_remembered() -> None:
    secret = "sk-" + "abcdefghij" * 4
    for cut in range(1, len(secret)):
        scrubber = Scrubber(Needles([secret]))
        out = scrubber.feed(b"text " + secret[:cut].encode()) + scrubber.let_go()
        out += scrubber.feed(secret[cut:].encode() + b" more") + scrubber.finish()
        assert len(out) == len(secret) + 10
        assert out.startswith(b"text ")
        assert out.endswith(b" more")
        assert secret[7:].encode() not in out


def test_the_trace_says_who_asked_with_a_key_that_has_ended_and_what_for(tmp_path: Path) -> None:
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path) as gateway:
        token = gateway.key()
        gateway.keys.revoke(token)
        live = gateway.key()
        gateway.do(gateway.gateway.refresh)
        with gateway.raw() as client:
            for shown, path in ((token, "/acme/x"), (token[:-1], "/acme/x"), (live, "/other/y?q=1")):
                client.send(f"GET {path} HTTP/1.1\r\nHost: g\r\nx-api-key: {shown}\r\n\r\n").answer()
        rows = gateway.wait_for_rows(3)
    assert [(row.client, row.path, row.outcome) for row in rows] == [
        (token[3:15], "/acme/x", "key_refused"),
        ("", "/acme/x", "key_refused"),
        (live[3:15], "/other/y", "unknown_provider"),
    ]


@pytest.mark.parametrize("cut", range(6))
def test_an_empty_line_between_two_requests_is_none_wherever_it_is_cut(tmp_path: Path, cut: int) -> None:
    with Upstream() as upstream, running_gateway(acme(upstream.url), home=tmp_path) as gateway:
        head = f"GET /acme/x HTTP/1.1\r\nHost: g\r\nx-api-key: {gateway.key()}\r\n\r\n".encode()
        with gateway.raw() as client:
            upstream.until(lambda: len(gateway.gateway.connections) == 1)
            (connection,) = gateway.gateway.connections
            text, at = head + b"\r\n" + head, len(head) - 2 + cut
            # In pieces of one, two and the rest: what a socket would give is up to the kernel.
            for piece in (text[: at - 1], text[at - 1 : at + 1], text[at + 1 :]):
                gateway.do(lambda piece=piece: connection.data_received(piece))
            assert [client.answer()[0] for _ in range(2)] == [200, 200]
