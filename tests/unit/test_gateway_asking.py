"""Requests that a policy holds, through the engine: until a person decides, the time is over, or the client is gone."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import KEY, Raw, RunningGateway, acme, running_gateway
from tests.support.upstream import Upstream, Whole, answer, ordinary
from valetkey.errors import UnknownApproval
from valetkey.gateway.approvals import MOST, MOST_OF_A_CLIENT, Pending, Settled
from valetkey.gateway.limits import Limits
from valetkey.testing.clock import SteppedClock

POLICY = """
default = "allow"

[[rule]]
name = "pay"
reason = "images cost money"
ask = "* */images/**"
"""


class Scene:
    """A held path, and who decides."""

    def __init__(self, running: RunningGateway, upstream: Upstream, clock: SteppedClock) -> None:
        self.running, self.upstream, self.clock = running, upstream, clock
        self.key = running.key("acme", policy=POLICY)

    def pending(self) -> list[Pending]:
        found: list[Pending] = self.running.do(self.running.gateway.approvals.pending)
        return found

    def wait_for(self, count: int) -> list[Pending]:
        self.upstream.until(lambda: len(self.pending()) == count)
        return self.pending()

    def settle(self, id: str, approved: bool, by: str = "alice") -> None:
        self.running.do(lambda: self.running.gateway.approvals.settle(id, approved, by))

    def settled(self) -> list[Settled]:
        found: list[Settled] = self.running.do(self.running.gateway.approvals.recent)
        return found

    def pass_time(self, seconds: float) -> None:
        self.running.do(lambda: self.clock.advance(seconds))
        self.running.do(self.running.gateway.sweep)

    def request(self, path: str = "/images/x", body: bytes = b"", *, key: str = "", more: str = "") -> bytes:
        lines = f"Authorization: Bearer {key or self.key}\r\nContent-Length: {len(body)}\r\n{more}"
        return f"POST /acme{path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + body

    def quiet(self) -> bool:
        return bool(self.running.do(lambda: self.running.gateway.active) == 0)


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def scene(tmp_path: Path, clock: SteppedClock) -> Iterator[Scene]:
    def made(request: Whole) -> bytes:
        return answer(request.body[-10:])

    with (
        Upstream(ordinary(made)) as upstream,
        running_gateway(acme(upstream.url), home=tmp_path, clock=clock) as running,
    ):
        yield Scene(running, upstream, clock)


def error_of(client: Raw) -> tuple[int, dict[str, Any]]:
    status, _, body = client.answer()
    return status, json.loads(body)["error"]


@pytest.mark.parametrize("size", [0, 10, 60_000, 3_000_000])
def test_an_approved_request_goes_on_with_all_of_its_body(scene: Scene, size: int) -> None:
    body = os.urandom(size)
    with scene.running.raw() as client:
        client.socket.settimeout(60)
        # What is not taken before somebody has decided stays in the kernel, and the client with it.
        client.send(scene.request(body=body)[: 100_000 + size // 2])
        [waiting] = scene.wait_for(1)
        assert scene.upstream.requests == []
        scene.pass_time(179)
        scene.settle(waiting.id, True)
        client.send(scene.request(body=body)[100_000 + size // 2 :])
        status, _, told = client.answer()
        assert (status, told) == (200, body[-10:])
        [request] = scene.upstream.requests
        assert request.body == body
        assert request.header("authorization") == f"Bearer {KEY}"
        # The connection serves on.
        assert client.send(scene.request("/models")).answer()[0] == 200


def test_a_denied_one_is_a_403_and_is_sent_to_nobody(scene: Scene) -> None:
    with scene.running.raw() as client:
        client.send(scene.request())
        scene.settle(scene.wait_for(1)[0].id, False)
        status, error = error_of(client)
        assert (status, error["code"], error["type"]) == (403, "approval_denied", "valetkey_approval_denied")
        assert client.send(scene.request("/models")).answer()[0] == 200
    assert len(scene.upstream.requests) == 1
    assert [row.outcome for row in scene.running.wait_for_rows(2)] == ["approval_denied", "ok"]


def test_after_180_seconds_it_is_a_403(scene: Scene) -> None:
    with scene.running.raw() as client:
        client.send(scene.request())
        [waiting] = scene.wait_for(1)
        scene.pass_time(179.9)
        assert scene.pending() == [waiting]
        scene.pass_time(0.2)
        status, error = error_of(client)
        assert (status, error["code"]) == (403, "approval_timed_out")
        with pytest.raises(UnknownApproval):
            scene.settle(waiting.id, True)
    assert scene.upstream.requests == []


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_a_client_that_goes_away_takes_its_request_with_it(scene: Scene, how: str) -> None:
    client = scene.running.raw()
    client.send(scene.request())
    [waiting] = scene.wait_for(1)
    if how == "resets":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()
    if how == "closes":
        # It may only have said that it sends no more: so long it is waited for.
        scene.running.do(lambda: None)
        scene.upstream.until(lambda: scene.running.do(lambda: _half_closed(scene)))
        scene.pass_time(10)
    scene.wait_for(0)
    with pytest.raises(UnknownApproval):
        scene.settle(waiting.id, True)
    assert [(s.outcome, s.by) for s in scene.settled()] == [("gone", "")]
    scene.upstream.until(scene.quiet)
    assert scene.upstream.requests == []


def _half_closed(scene: Scene) -> bool:
    return any(connection.half_closed for connection in scene.running.gateway.connections)


def test_who_decided_is_recorded(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with scene.running.raw() as client, caplog.at_level(logging.WARNING):
        client.send(scene.request())
        scene.settle(scene.wait_for(1)[0].id, True, by="bob")
        assert client.answer()[0] == 200
    [settled] = scene.settled()
    assert (settled.outcome, settled.by) == ("approved", "bob")
    assert any(message.startswith("approved by bob: POST http://") for message in caplog.messages)


def test_revoking_the_key_ends_what_waits(scene: Scene) -> None:
    with scene.running.raw() as client:
        client.send(scene.request())
        [waiting] = scene.wait_for(1)
        scene.running.keys.revoke(scene.key[3:15])
        scene.running.do(scene.running.gateway.look)
        assert client.closed()
        scene.wait_for(0)
        with pytest.raises(UnknownApproval):
            scene.settle(waiting.id, True)
    assert scene.upstream.requests == []


def test_what_was_decided_on_in_the_moment_of_its_revocation_is_not_sent(scene: Scene) -> None:
    with scene.running.raw() as client:
        # There is a connection to the provider that could be taken at once.
        assert client.send(scene.request("/models")).answer()[0] == 200
        client.send(scene.request())
        [waiting] = scene.wait_for(1)

        def both() -> None:
            scene.running.gateway.approvals.settle(waiting.id, True, "alice")
            scene.running.keys.revoke(scene.key[3:15])
            scene.running.gateway.look()

        scene.running.do(both)
        assert client.closed()
    scene.upstream.until(scene.quiet)
    assert [request.target for request in scene.upstream.requests] == ["/models"]


def test_it_is_sent_with_the_credential_of_now(scene: Scene) -> None:
    new = "sk-" + os.urandom(16).hex()
    with scene.running.raw() as client:
        client.send(scene.request())
        [waiting] = scene.wait_for(1)
        scene.running.log_in("acme", new)
        scene.settle(waiting.id, True)
        assert client.answer()[0] == 200
    assert scene.upstream.requests[0].header("authorization") == f"Bearer {new}"


def test_what_is_shown_holds_no_secret(scene: Scene) -> None:
    secret = "sk-" + "canary" + os.urandom(12).hex()
    encoded = base64.b64encode(secret.encode()).decode()
    with scene.running.raw() as client:
        path = f"/images/x/{scene.key}/{secret}?key={secret}&e={encoded}"
        client.send(scene.request(path, secret.encode(), more=f"X-Secret: {secret}\r\nCookie: a={secret}\r\n"))
        [waiting] = scene.wait_for(1)
        shown = json.dumps(asdict(waiting), default=str)
        assert (waiting.rule, waiting.reason) == ('ask = "* */images/**"', "images cost money")
        assert waiting.place == "policy.toml:7"
        assert waiting.account == "acme@default"
        for hidden in (scene.key, scene.key[16:], secret, encoded, KEY):
            assert hidden not in shown
        scene.settle(waiting.id, False)
        assert client.answer()[0] == 403
    for row in scene.running.wait_for_rows(1):
        assert KEY not in repr(row)


def test_where_too_many_wait_a_further_one_is_told_so(scene: Scene) -> None:
    clients = [scene.running.raw().send(scene.request()) for _ in range(MOST_OF_A_CLIENT)]
    scene.wait_for(MOST_OF_A_CLIENT)
    with scene.running.raw() as one_more:
        for _ in range(2):
            status, error = error_of(one_more.send(scene.request()))
            assert (status, error["code"]) == (429, "approvals_full")
            assert str(MOST_OF_A_CLIENT) in error["message"]
            assert "valetkey approvals list" in error["hint"]
        assert one_more.send(scene.request("/models")).answer()[0] == 200
    # Another key has room of its own, up to that of all.
    keys = [scene.running.key("acme", policy=POLICY) for _ in range(MOST // MOST_OF_A_CLIENT)]
    for key in keys[1:]:
        clients += [scene.running.raw().send(scene.request(key=key)) for _ in range(MOST_OF_A_CLIENT)]
    scene.wait_for(MOST)
    with scene.running.raw() as one_more:
        status, error = error_of(one_more.send(scene.request(key=keys[0])))
        assert (status, error["code"], str(MOST) in error["message"]) == (429, "approvals_full", True)
    for client in clients:
        client.close()


def test_what_waits_counts_as_under_way(scene: Scene) -> None:
    key = scene.running.key("acme", policy=POLICY, limits=Limits(concurrent=1))
    with scene.running.raw() as one, scene.running.raw() as two:
        one.send(scene.request(key=key))
        [waiting] = scene.wait_for(1)
        assert two.send(scene.request("/models", key=key)).answer()[0] == 429
        scene.settle(waiting.id, False)
        assert one.answer()[0] == 403
        assert two.send(scene.request("/models", key=key)).answer()[0] == 200
