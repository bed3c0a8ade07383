"""What the gateway itself answers, what it puts in a provider's place, and streams that it passes on event by event."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import KEY, Raw, acme, running_gateway
from tests.support.rig import WAYS, Rig, Way, faults, rig
from tests.support.upstream import Conversation, Upstream, answer, requests
from valetkey.gateway.row import Cleaner
from valetkey.provider import Rewrite

TOKEN = "vk_" + "0" * 12 + "_" + "ab" * 32
LOGIN = b'{"error": "log in on our page"}'


def basic(token: str) -> str:
    return base64.b64encode(f"x:{token}".encode()).decode()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with faults(), rig(tmp_path_factory.mktemp("rig")) as running:
        yield running


# --- who asks --------------------------------------------------------------------------------

KEYLESS = {
    "none at our address": ("GET /acme/x HTTP/1.1\r\nHost: x\r\n\r\n", 401),
    "an unknown one at our address": (f"GET /acme/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n", 401),
    "as git sends it": (f"GET /acme/x HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {basic(TOKEN)}\r\n\r\n", 401),
    "another kind of key": ("GET /acme/x HTTP/1.1\r\nHost: x\r\nX-Api-Key: sk-0\r\n\r\n", 401),
    "a part of one": (f"GET /acme/x HTTP/1.1\r\nHost: x\r\nX-Api-Key: {TOKEN[:40]}\r\n\r\n", 401),
    "none to the proxy": ("GET http://<H>/x HTTP/1.1\r\nHost: <H>\r\n\r\n", 407),
    "one in the wrong place": (f"GET http://<H>/x HTTP/1.1\r\nHost: <H>\r\nAuthorization: Bearer {TOKEN}\r\n\r\n", 407),
    "an unknown one to the proxy": (
        f"GET http://<H>/x HTTP/1.1\r\nHost: <H>\r\nProxy-Authorization: Basic {basic(TOKEN)}\r\n\r\n",
        407,
    ),
    "none for a tunnel": ("CONNECT <H> HTTP/1.1\r\nHost: <H>\r\n\r\n", 407),
    "an unknown one for a tunnel": (
        f"CONNECT <H> HTTP/1.1\r\nHost: <H>\r\nProxy-Authorization: Basic {basic(TOKEN)}\r\n\r\n",
        407,
    ),
}


@pytest.mark.parametrize("case", KEYLESS)
def test_without_a_key_that_counts_the_client_is_asked_for_one(engine: Rig, case: str) -> None:
    raw, status = KEYLESS[case]
    with engine.running.raw() as client:
        client.send(engine.fill(raw.encode(), "proxy"))
        got, headers, body = client.answer()
        assert got == status
        asks, other = ("www-authenticate", "proxy-authenticate")[:: 1 if status == 401 else -1]
        # Basic, and a realm: git and curl ask their user again.
        assert headers[asks] == 'Basic realm="valetkey"'
        assert other not in headers
        error = json.loads(body)["error"]
        assert (error["code"], error["type"]) == ("key_refused", "valetkey_key_refused")
        assert "valetkey key create" in error["hint"]
        assert TOKEN not in body.decode()
    assert engine.secure.requests == engine.plain.requests == []


def test_a_client_that_was_asked_may_answer_on_the_same_connection(engine: Rig) -> None:
    with engine.running.raw() as client:
        assert client.send("GET /acme/x HTTP/1.1\r\nHost: x\r\n\r\n").answer()[0] == 401
        proof = f"Authorization: Basic {basic(engine.token)}"
        assert client.send(f"GET /acme/x HTTP/1.1\r\nHost: x\r\n{proof}\r\n\r\n").answer()[0] == 200
        assert client.send(engine.connect_request().replace(basic(engine.token), basic(TOKEN))).answer()[0] == 407
    engine.secure.requests.clear()


def test_all_that_is_our_own_is_json_that_no_browser_takes_for_a_page(engine: Rig) -> None:
    key = engine.running.key(policy='default = "deny"')
    asked = {
        "GET /acme/x HTTP/1.1\r\nHost: x\r\n\r\n": 401,
        "GET /other/x HTTP/1.1\r\nHost: x\r\nX-Api-Key: <K>\r\n\r\n": 404,
        f"GET /acme/x HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\n\r\n": 403,
        "GET /acme/%2f HTTP/1.1\r\nHost: x\r\nX-Api-Key: <K>\r\n\r\n": 400,
        "TRACE /acme/x HTTP/1.1\r\nHost: x\r\nX-Api-Key: <K>\r\n\r\n": 405,
        "GET\r\n\r\n": 400,
    }
    for raw, status in asked.items():
        with engine.running.raw() as client:
            got, headers, body = client.send(engine.fill(raw.encode(), "base-url")).answer()
        assert got in (status, 403 if status == 405 else status), (raw, body)
        assert headers["content-type"] == "application/json"
        assert headers["x-content-type-options"] == "nosniff"
        told = json.loads(body)
        assert told["type"] == "error"
        assert {"type", "code", "message", "hint"} <= set(told["error"])
        assert told["error"]["type"] == f"valetkey_{told['error']['code']}"
    with engine.running.raw() as client:
        _, headers, _ = client.send(engine.get("/x")).answer()
        assert "x-content-type-options" not in headers


@pytest.mark.parametrize("target", ["CONNECT u:<P>@host.example:443", "GET http://u:<P>@host.example/x"])
def test_a_password_in_the_address_of_who_is_unknown_is_not_traced(engine: Rig, target: str) -> None:
    password = "hunter" + os.urandom(8).hex()
    before = len(engine.running.trace.rows)
    with engine.running.raw() as client:
        raw = f"{target} HTTP/1.1\r\nHost: host.example\r\n\r\n".replace("<P>", password)
        assert client.send(raw).answer()[0] in (400, 407)
    # As it is written.
    [kept] = Cleaner().clean(engine.running.wait_for_rows(before + 1)[before:])
    assert password not in repr(kept)


# --- declared rewrites -----------------------------------------------------------------------


def refuses(talk: Conversation) -> None:
    for request in requests(talk):
        status = int(request.target.rpartition("=")[2] or "200") if "=" in request.target else 200
        whole = answer(b"the provider's own", status=status, headers="x-own: 1\r\n")
        talk.send(whole.partition(b"the provider's own")[0] if request.method == "HEAD" else whole)


def test_what_would_confuse_a_tool_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    rewrite = Rewrite(path="/v1/login", when_status=403, status=401, body=LOGIN.decode())
    with (
        faults(),
        Upstream(refuses) as upstream,
        running_gateway(acme(upstream.url, rewrite=(rewrite,)), home=tmp_path) as running,
    ):
        key = running.key()

        def ask(client: Raw, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
            client.send(f"{method} /acme{path} HTTP/1.1\r\nHost: x\r\nX-Api-Key: {key}\r\n\r\n")
            return client.answer(head_only=method == "HEAD")

        with running.raw() as client:
            status, headers, body = ask(client, "/v1/login?s=403")
            assert (status, body) == (401, LOGIN)
            assert "x-own" not in headers
            assert headers["x-content-type-options"] == "nosniff"
            assert ask(client, "/v1/login?s=403", "HEAD")[0] == 401
            for path, expected in (("/v1/login?s=404", 404), ("/v1/login", 200), ("/v1/other?s=403", 403)):
                status, headers, body = ask(client, path)
                assert (status, headers["x-own"], body) == (expected, "1", b"the provider's own")
        # All on one connection each way.
        assert {request.connection for request in upstream.requests} == {1}
        outcomes = [row.outcome for row in running.wait_for_rows(5)]
        assert outcomes == ["rewritten", "rewritten", "ok", "ok", "ok"]


# --- streams ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_each_event_is_passed_on_before_the_next_is_sent(tmp_path: Path, way: Way) -> None:
    """Whatever stands at its end: a line end cannot go on as a secret."""
    got, start = threading.Semaphore(0), KEY[:20].encode()
    events = [b"data: %b\n\n" % text for text in (b"1", b"x" + start[:1], b"sk-", start, b"end")]

    def streams(talk: Conversation) -> None:
        for _ in requests(talk):
            talk.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for event in events:
                talk.send(b"%x\r\n%b\r\n" % (len(event), event))
                if not got.acquire(timeout=60):
                    return
            talk.send(b"0\r\n\r\n")

    with faults(), rig(tmp_path, secure=streams, plain=streams) as engine, engine.connect(way) as client:
        client.send(engine.get("/x", way))
        status, headers = client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        for event in events:
            said = b""
            while len(said) < len(event):  # in one chunk or in several
                said += client.exactly(int(client.until(b"\r\n"), 16))
                client.exactly(2)
            assert said == event
            got.release()
        assert client.until(b"\r\n\r\n") == b"0\r\n\r\n"
