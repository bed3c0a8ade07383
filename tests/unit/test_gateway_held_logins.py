"""A request of a run that lacks a login waits for one, goes on with it, and is told what it lacks if none comes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.gateway import KEY, Raw, running_gateway
from tests.support.rig import faults
from tests.support.upstream import Conversation, Upstream, answer, requests
from tests.unit.test_gateway_renewal import Scene, provider
from valetkey.credential import ApiKey, Health, Secret
from valetkey.errors import UsageError
from valetkey.gateway.approvals import MOST_OF_A_CLIENT, Pending
from valetkey.gateway.runs import BegunRun
from valetkey.gateway.server import EngineSettings
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import SteppedClock

HOLD = 180.0
REQUEST = b"POST /acme/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"


class Held:
    """A run whose login has ended at the provider, and a person who may log in again."""

    def __init__(self, scene: Scene, run: BegunRun, clock: SteppedClock) -> None:
        self.scene, self.run, self.clock = scene, run, clock
        self.running = scene.running
        scene.log_in(good=False)
        scene.login.answers("/token", status=400, json={"error": "invalid_grant"})

    def client(self) -> Raw:
        return self.running.run_raw(self.run)

    def pending(self) -> list[Pending]:
        found: list[Pending] = self.running.do(self.running.gateway.approvals.pending)
        return found

    def wait_for(self, count: int) -> list[Pending]:
        self.scene.upstream.until(lambda: len(self.pending()) == count)
        return self.pending()

    def log_in(self) -> None:
        """Log in as another process does; the gateway is poked."""
        self.scene.log_in()
        self.running.do(self.running.gateway.refresh)

    def pass_time(self, seconds: float) -> None:
        self.running.do(lambda: self.clock.advance(seconds))


@pytest.fixture
def hold() -> float:
    return HOLD


@pytest.fixture
def held(tmp_path: Path, hold: float) -> Iterator[Held]:
    clock = SteppedClock()
    good: set[str] = set()

    def script(talk: Conversation) -> None:
        for request in requests(talk):
            known = (request.header("authorization") or "").removeprefix("Bearer ") in good
            talk.send(answer(b"%d" % len(request.body)) if known else answer(b"who?", status=401))

    (home := tmp_path / "h").mkdir(0o700)
    with (
        faults(),
        Upstream(script) as upstream,
        AuthorizationServer() as login,
        running_gateway(
            provider(upstream.url, login.url, tmp_path),
            home=home,
            clock=clock,
            logged_in=False,
            settings=EngineSettings(hold_for_login_seconds=hold),
        ) as running,
    ):
        scene = Scene(upstream=upstream, login=login, running=running, clock=clock, good=good)
        scene.log_in()
        yield Held(scene, running.begin_run("acme"), clock)


def code(client: Raw) -> tuple[int, str]:
    status, _, body = client.answer()
    return status, json.loads(body)["error"]["code"] if body.startswith(b"{") else body.decode()


def test_a_request_whose_login_ends_under_it_goes_on_with_the_next_login(held: Held) -> None:
    """The provider says 401, and the renewal that the login is over."""
    with held.client() as client:
        client.send(REQUEST)
        (pending,) = held.wait_for(1)
        assert (pending.kind, pending.client, pending.account) == ("login", "run:run-1", "acme@default")
        assert held.scene.health() is Health.NEEDS_LOGIN
        held.log_in()
        assert code(client) == (200, "3")
        assert client.send(REQUEST).answer()[0] == 200
    assert held.pending() == []
    assert [request.body for request in held.scene.seen] == [b"abc"] * 3


def test_a_request_that_finds_it_dead_waits_without_asking_anybody(held: Held) -> None:
    with held.client() as first, held.client() as second:
        first.send(REQUEST)
        held.wait_for(1)
        seen, renewals = len(held.scene.seen), held.scene.renewals
        second.send(REQUEST)
        held.wait_for(2)
        # Whatever else changes in the store is no login.
        for n in range(5):
            held.running.store.set_setting("default_model", str(n))
            held.running.do(held.running.gateway.refresh)
        assert (len(held.scene.seen), held.scene.renewals, len(held.pending())) == (seen, renewals, 2)
        held.log_in()
        assert (code(first), code(second)) == ((200, "3"), (200, "3"))


def test_where_nobody_logs_in_it_is_told_what_it_lacks(held: Held) -> None:
    with held.client() as client:
        client.send(REQUEST)
        held.wait_for(1)
        held.pass_time(HOLD - 1)
        assert len(held.pending()) == 1
        held.pass_time(1)
        assert code(client) == (401, "needs_login")
        client.send(REQUEST)
        held.wait_for(1)


def test_a_person_may_let_it_go_without_a_login_but_not_approve_it(held: Held) -> None:
    approvals = held.running.gateway.approvals
    with held.client() as client:
        client.send(REQUEST)
        (pending,) = held.wait_for(1)
        with pytest.raises(UsageError) as told:
            held.running.do(lambda: approvals.settle(pending.id, True, "ada"))
        assert "valetkey login acme" in told.value.hint
        held.running.do(lambda: approvals.settle(pending.id, False, "ada"))
        assert code(client) == (401, "needs_login")


def test_a_client_that_goes_away_waits_no_more(held: Held) -> None:
    with held.client() as client:
        client.send(REQUEST)
        held.wait_for(1)
    # It may have closed its half alone: so long it is waited for.
    (connection,) = held.running.do(lambda: list(held.running.gateway.connections))
    held.scene.upstream.until(lambda: connection.half_closed)
    held.pass_time(6)
    held.running.do(held.running.gateway.sweep)
    held.wait_for(0)
    held.scene.upstream.until(lambda: held.running.do(lambda: held.running.gateway.active) == 0)
    held.log_in()
    assert len(held.scene.seen) == 1, "nothing is sent for it"


def test_so_many_of_a_run_wait_and_the_next_is_told_at_once(held: Held) -> None:
    with ExitStack() as clients:
        for _ in range(MOST_OF_A_CLIENT):
            clients.enter_context(held.client()).send(REQUEST)
        held.wait_for(MOST_OF_A_CLIENT)
        with held.client() as client:
            assert code(client.send(REQUEST)) == (401, "needs_login")


def test_a_valet_keys_request_does_not_wait(held: Held) -> None:
    held.scene.key = held.running.key("acme")
    assert held.scene.ask()[0] == 401
    assert held.pending() == []


def test_the_401_to_a_key_is_passed_on_at_once(held: Held) -> None:
    """A key has no login that could be over, and the provider may refuse it this path alone."""
    held.running.log_in("acme", credential=ApiKey(method="api-key", key=Secret(KEY)), method="api-key")
    held.running.do(held.running.gateway.refresh)
    with held.client() as client:
        assert client.send(REQUEST).answer()[::2] == (401, b"who?")
    assert held.pending() == []


@pytest.mark.parametrize("hold", [0.0])
def test_it_can_be_switched_off(held: Held) -> None:
    with held.client() as client:
        assert code(client.send(REQUEST)) == (401, "needs_login")


def test_a_gateway_that_ends_waits_for_no_login(held: Held) -> None:
    with held.client() as client:
        client.send(REQUEST)
        held.wait_for(1)
        ending = held.running.begin(held.running.gateway.drain(30))
        assert code(client) == (401, "needs_login")
        ending.result(60)


def test_a_run_that_ends_takes_its_requests_with_it(held: Held) -> None:
    with held.client() as client:
        client.send(REQUEST)
        held.wait_for(1)
        held.running.runs.end("run-1")
        held.running.do(held.running.gateway.refresh)
        with pytest.raises((EOFError, ConnectionError)):
            client.answer()
    held.wait_for(0)


def test_only_the_first_that_waits_is_told_to_the_log(held: Held) -> None:
    heard: list[Pending] = []
    held.running.gateway.approvals.awaiting = heard.append
    with held.client() as first, held.client() as second:
        first.send(REQUEST)
        held.wait_for(1)
        second.send(REQUEST)
        held.wait_for(2)
        assert [pending.account for pending in heard] == ["acme@default"]
        held.log_in()
        assert (code(first), code(second)) == ((200, "3"), (200, "3"))
