"""Where a provider refuses a credential: it is renewed once, the request sent again once, and a dead one never."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.gateway import KEY, Raw, RunningGateway, running_gateway
from tests.support.rig import Faults, faults
from tests.support.upstream import Conversation, Upstream, Whole, answer, requests
from valetkey.access import Access
from valetkey.broker import Broker
from valetkey.credential import Ambient, ApiKey, CredentialRef, Health, OAuthToken, Secret
from valetkey.gateway.credentials import Credentials
from valetkey.gateway.decide import Client
from valetkey.provider import Api, AuthMethod, Inject, Provider, Source
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock
from valetkey.testing.local_server import Answer

ACME = CredentialRef(provider="acme")
ANYBODY = Client(id="k", kind="key", grants=())
MEBI = 1024 * 1024
REFUSAL = b'{"error": "who are you"}'
EVENT = b'data: {"n": %d}\n\n'


@dataclass
class Scene:
    """A provider that takes only the tokens in `good`, its authorization server, and the gateway between."""

    upstream: Upstream
    login: AuthorizationServer
    running: RunningGateway
    clock: FakeClock
    good: set[str]
    key: str = ""
    on_refusal: Callable[[], None] = lambda: None
    made: list[str] = field(default_factory=list)

    def log_in(self, *, life: float | None = 3600, good: bool = True) -> str:
        """Store a login as another process does, and give its access token."""
        access = "at-" + os.urandom(16).hex()
        self.running.log_in("acme", credential=self.token(access, life=life), method="device")
        self.good.clear()
        if good:
            self.good.add(access)
        return access

    def token(self, access: str, *, life: float | None = 3600) -> OAuthToken:
        now = self.clock.now()
        return OAuthToken(
            method="device",
            access_token=Secret(access),
            refresh_token=Secret("rt-" + os.urandom(16).hex()),
            issued_at=now,
            expires_at=None if life is None else now + timedelta(seconds=life),
        )

    def renews(self, *, good: bool = True) -> None:
        """Let the authorization server give a new token each time it is asked."""

        def reply(_: object) -> Answer:
            access = "at-" + os.urandom(16).hex()
            self.made.append(access)
            if good:
                self.good.add(access)
            told = {"access_token": access, "token_type": "Bearer", "expires_in": 3600, "refresh_token": "rt" + access}
            return Answer(headers={"content-type": "application/json"}, body=json.dumps(told).encode())

        self.login.forget()
        self.login.replies("/token", reply)

    @property
    def renewals(self) -> int:
        return len(self.login.calls("/token"))

    @property
    def seen(self) -> list[Whole]:
        return self.upstream.requests

    def tokens(self) -> list[str]:
        """Give what came to the provider as its credential, in order."""
        return [(request.header("authorization") or "").removeprefix("Bearer ") for request in self.seen]

    def raw(self) -> Raw:
        return self.running.raw()

    def request(self, method: str = "GET", path: str = "/x", body: bytes = b"", more: str = "") -> bytes:
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{method} /acme{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\n{length}{more}\r\n"
        return head.encode() + body

    def ask(self, *what: Any, **more: Any) -> tuple[int, dict[str, str], bytes]:
        with self.raw() as client:
            return client.send(self.request(*what, **more)).answer()

    def health(self) -> Health:
        account = self.running.store.account(ACME)
        assert account is not None
        return account.health


def provider(base_url: str, login: str, folder: Path) -> Provider:
    bearer = (Inject(set={"authorization": "Bearer {access_token}"}),)
    device = AuthMethod(
        id="device",
        kind="device",
        client_id="client-1",
        device_authorization_endpoint=f"{login}/device",
        token_endpoint=f"{login}/token",
        inject=bearer,
    )
    key = AuthMethod(id="api-key", kind="api-key", inject=(Inject(set={"authorization": "Bearer {key}"}),))
    file = AuthMethod(
        id="file",
        kind="cloud",
        source=Source(kind="file", file=str(folder / "token"), life_seconds=3600),
        inject=(Inject(set={"authorization": "Bearer {key}"}),),
    )
    api = Api(base_url=base_url, dialect="none", hosts=(base_url.split("/")[2],))
    return Provider(id="acme", name="Acme", api=api, auth=(device, key, file), origin="user")


@pytest.fixture
def scene(tmp_path: Path, clock: FakeClock) -> Iterator[Scene]:
    found: list[Scene] = []

    def script(talk: Conversation) -> None:
        for request in requests(talk):
            known = (request.header("authorization") or "").removeprefix("Bearer ") in found[0].good
            if request.target == "/forbidden":
                talk.send(answer(b"no", status=403))
            elif not known or request.target == "/never":
                found[0].on_refusal()
                if request.method == "HEAD":  # tells what GET would be answered with, however long that is
                    talk.send(b"HTTP/1.1 401 X\r\ncontent-length: 1000000\r\n\r\n")
                else:
                    talk.send(answer(REFUSAL, status=401))
            elif request.target == "/socket":
                talk.send(b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\n" + b"\x81\x02hi")
                talk.wait()
                return
            elif request.target == "/events":
                talk.send(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
                for number in range(3):
                    event = EVENT % number
                    talk.send(b"%x\r\n%b\r\n" % (len(event), event))
                talk.send(b"0\r\n\r\n")
            else:
                talk.send(answer(b"%d" % len(request.body)))

    with (
        Upstream(script) as upstream,
        AuthorizationServer() as login,
        running_gateway(
            provider(upstream.url, login.url, tmp_path), home=tmp_path, clock=clock, logged_in=False
        ) as running,
    ):
        found.append(Scene(upstream=upstream, login=login, running=running, clock=clock, good=set()))
        found[0].log_in()
        found[0].key = running.key("acme")
        yield found[0]


@pytest.fixture(autouse=True)
def _silent() -> Iterator[Faults]:
    with faults() as handler:
        yield handler


# --- renewed and sent again ------------------------------------------------------------------


def test_a_refused_token_is_renewed_and_the_request_sent_once_more(scene: Scene) -> None:
    old = scene.log_in(good=False)
    scene.renews()
    with scene.raw() as client:
        assert client.send(scene.request("POST", "/x", b"abc")).answer()[::2] == (200, b"3")
        assert scene.tokens() == [old, scene.made[0]]
        assert [request.body for request in scene.seen] == [b"abc", b"abc"]
        # And from now on nobody is sent the old one.
        assert client.send(scene.request("POST", "/x", b"abc")).answer()[0] == 200
    assert scene.ask()[0] == 200
    assert scene.tokens()[2:] == [scene.made[0]] * 2
    assert (scene.renewals, scene.health()) == (1, Health.OK)


def test_a_head_request_is_sent_again_as_well(scene: Scene) -> None:
    scene.log_in(good=False)
    scene.renews()
    with scene.raw() as client:
        status, _, _ = client.send(scene.request("HEAD")).answer(head_only=True)
        assert status == 200
        assert client.send(scene.request()).answer()[0] == 200
    assert scene.renewals == 1


def test_what_another_process_renewed_meanwhile_is_used_as_it_is(scene: Scene) -> None:
    old = scene.log_in(good=False)
    scene.renews()
    new: list[str] = []

    def refused() -> None:
        if not new:
            new.append(scene.log_in())

    scene.on_refusal = refused
    assert scene.ask()[0] == 200
    assert scene.tokens() == [old, new[0]]
    assert scene.renewals == 0


def test_a_refused_answer_never_reaches_the_client_of_a_stream(scene: Scene) -> None:
    scene.log_in(good=False)
    scene.renews()
    status, headers, body = scene.ask(path="/events")
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert body == b"".join(EVENT % number for number in range(3))
    assert len(scene.seen) == 2


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_body_of_a_mebibyte_is_sent_again_byte_for_byte_and_a_longer_one_is_not(scene: Scene, chunked: bool) -> None:
    for size, status in ((MEBI, 200), (MEBI + 1, 401)):
        scene.log_in(good=False)
        scene.renews()
        scene.seen.clear()
        body = os.urandom(size)
        request = scene.request("POST", "/x", body)
        if chunked:
            request = scene.request("POST", "/x", more="Transfer-Encoding: chunked\r\n")
            request += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        with scene.raw() as client:
            got, _, told = client.send(request).answer()
        assert got == status
        assert {request.body for request in scene.seen} == {body}
        assert len(scene.seen) == (2 if status == 200 else 1)
        assert told == (b"%d" % size if status == 200 else REFUSAL)


def test_a_body_that_is_still_coming_is_not_sent_again(tmp_path: Path, clock: FakeClock) -> None:
    """A provider that refuses before the end of the body."""

    def script(talk: Conversation) -> None:
        head = b""
        while b"abc" not in head:
            head += talk.read()
        heads.append(head)
        talk.send(answer(REFUSAL, status=401))
        talk.wait()

    heads: list[bytes] = []
    with (
        Upstream(script) as upstream,
        AuthorizationServer() as login,
        running_gateway(
            provider(upstream.url, login.url, tmp_path), home=tmp_path, clock=clock, logged_in=False
        ) as running,
    ):
        scene = Scene(upstream=upstream, login=login, running=running, clock=clock, good=set())
        scene.log_in()
        scene.renews()
        scene.key = running.key("acme")
        with scene.raw() as client:
            client.send(scene.request("POST", more="Content-Length: 10\r\n"), b"abc")
            status, headers, body = client.answer()
            assert (status, headers["connection"], body) == (401, "close", REFUSAL)
        assert (len(heads), scene.renewals) == (1, 0)


def test_a_websocket_is_asked_for_once_more(scene: Scene) -> None:
    old = scene.log_in(good=False)
    scene.renews()
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n"
    with scene.raw() as client:
        status, _ = client.send(scene.request(path="/socket", more=upgrade)).head()
        assert (status, client.exactly(4)) == (101, b"\x81\x02hi")
    assert scene.tokens() == [old, scene.made[0]]


def test_requests_behind_a_renewal_keep_their_order(scene: Scene) -> None:
    old = scene.log_in(good=False)
    scene.renews()
    with scene.raw() as client:
        client.send(b"".join(scene.request("POST", "/x", b"x" * size) for size in (1, 2, 3)))
        assert [client.answer()[::2] for _ in range(3)] == [(200, b"1"), (200, b"2"), (200, b"3")]
    assert scene.tokens() == [old, *[scene.made[0]] * 3]


def test_a_client_that_waits_for_100_is_told_once(scene: Scene) -> None:
    old = scene.log_in(good=False)
    scene.renews()
    with scene.raw() as client:
        client.send(scene.request("POST", more="Expect: 100-continue\r\nContent-Length: 3\r\n"))
        assert client.head()[0] == 100
        assert client.send(b"abc").answer()[::2] == (200, b"3")
    assert scene.tokens() == [old, scene.made[0]]


# --- passed on -------------------------------------------------------------------------------


def test_a_403_is_passed_on_and_renews_nothing(scene: Scene) -> None:
    scene.renews()
    assert scene.ask(path="/forbidden")[::2] == (403, b"no")
    assert (len(scene.seen), scene.renewals) == (1, 0)


def test_a_second_401_is_passed_on(scene: Scene) -> None:
    scene.renews()
    assert scene.ask(path="/never")[::2] == (401, REFUSAL)
    assert (len(scene.seen), scene.renewals) == (2, 1)
    # What another path refuses serves this one.
    assert scene.ask()[0] == 200


def test_the_401_to_a_key_is_passed_on_each_time(scene: Scene) -> None:
    scene.running.log_in("acme", credential=ApiKey(method="api-key", key=Secret(KEY)), method="api-key")
    for count in (1, 2):
        status, _, body = scene.ask()
        assert (status, body) == (401, REFUSAL)
        assert len(scene.seen) == count
    assert scene.renewals == 0


def test_a_refused_token_whose_renewal_failed_for_now_gives_the_providers_answer(scene: Scene) -> None:
    scene.log_in(good=False)
    scene.login.answers("/token", status=503)
    assert scene.ask()[::2] == (401, REFUSAL)
    assert (len(scene.seen), scene.renewals) == (1, 1)


# --- never a dead one ------------------------------------------------------------------------


def test_an_expired_token_that_cannot_be_renewed_for_now_is_a_503(scene: Scene) -> None:
    scene.log_in(life=3600)
    scene.clock.advance(3601)
    scene.login.answers("/token", status=503, headers={"retry-after": "7"})
    for _ in range(2):
        status, headers, body = scene.ask()
        error = json.loads(body)["error"]
        assert (status, error["code"], error["provider"]) == (503, "refresh_failed", "acme")
        assert error["type"] == "valetkey_refresh_failed"
        assert 1 <= int(headers["retry-after"]) <= 300
        assert headers["x-content-type-options"] == "nosniff"
    assert (scene.seen, scene.renewals) == ([], 1)
    scene.clock.advance(301)
    scene.renews()
    assert scene.ask()[0] == 200


def test_an_expired_token_whose_login_is_over_is_a_401_that_says_what_to_do(scene: Scene) -> None:
    scene.log_in(life=3600)
    scene.clock.advance(3601)
    scene.login.answers("/token", status=400, json={"error": "invalid_grant"})
    for _ in range(2):
        status, headers, body = scene.ask()
        told = json.loads(body)
        assert (status, headers["content-type"], told["type"]) == (401, "application/json", "error")
        error = told["error"]
        assert error["type"] == "valetkey_needs_login"
        assert error["code"] == "needs_login"
        assert error["provider"] == "acme"
        assert error["hint"] == "run `valetkey login acme`"
        assert "acme@default needs a new login" in error["message"]
    assert (scene.seen, scene.renewals, scene.health()) == ([], 1, Health.NEEDS_LOGIN)


def test_an_expired_token_without_a_refresh_token_names_the_login_and_its_cause(scene: Scene) -> None:
    token = replace(scene.token("at-" + "x" * 20), refresh_token=None)
    scene.running.log_in("acme", credential=token, method="device")
    scene.clock.advance(3601)
    status, _, body = scene.ask()
    error = json.loads(body)["error"]
    assert (status, error["code"], error["cause"]) == (401, "needs_login", "credential_expired")
    assert error["hint"] == "run `valetkey login acme`"
    assert scene.seen == []


def test_a_token_that_was_refused_with_its_login_is_sent_to_nobody_again(scene: Scene) -> None:
    """By the clock it lives for an hour; the provider has said otherwise."""
    scene.log_in(good=False)
    scene.login.answers("/token", status=400, json={"error": "invalid_grant"})
    with scene.raw() as client:
        for _ in range(3):
            status, _, body = client.send(scene.request()).answer()
            assert (status, json.loads(body)["error"]["code"]) == (401, "needs_login")
    status, _, body = scene.ask()
    assert (status, json.loads(body)["error"]["hint"]) == (401, "run `valetkey login acme`")
    assert (len(scene.seen), scene.renewals) == (1, 1)
    scene.log_in()
    assert scene.ask()[0] == 200


def test_a_refused_token_of_a_source_is_sent_by_no_other_connection(scene: Scene, tmp_path: Path) -> None:
    old, new = "old-" + os.urandom(12).hex(), "new-" + os.urandom(12).hex()
    (tmp_path / "token").write_text(old)
    scene.running.log_in("acme", credential=Ambient(method="file"), method="file")
    scene.good |= {old, new}
    with scene.raw() as one, scene.raw() as two:
        for client in (one, two):
            assert client.send(scene.request()).answer()[0] == 200
        (tmp_path / "token").write_text(new)
        scene.good.discard(old)
        for client in (one, two):
            assert client.send(scene.request()).answer()[0] == 200
    assert scene.tokens() == [old, old, old, new, new]


def test_a_logout_is_a_401_that_names_the_login(scene: Scene) -> None:
    scene.running.store.delete(ACME)
    status, _, body = scene.ask()
    error = json.loads(body)["error"]
    assert (status, error["code"], error["cause"]) == (401, "needs_login", "not_logged_in")
    assert error["hint"] == "run `valetkey login acme`"
    assert scene.seen == []
    scene.log_in()
    assert scene.ask()[0] == 200


# --- many at once ----------------------------------------------------------------------------


def test_a_hundred_requests_on_a_refused_token_make_one_renewal(scene: Scene) -> None:
    old = scene.log_in(good=False)
    scene.renews()
    together = threading.Barrier(100)

    def one(number: int) -> tuple[int, bytes]:
        with scene.raw() as client:
            together.wait(60)
            status, _, body = client.send(scene.request("POST", "/x", b"x" * number)).answer()
            return status, body

    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(one, range(1, 101)))
    assert found == [(200, b"%d" % number) for number in range(1, 101)]
    assert scene.renewals == 1
    assert set(scene.tokens()) == {old, scene.made[0]}


def test_a_hundred_requests_on_an_expired_token_make_one_renewal_and_none_is_sent_before(scene: Scene) -> None:
    scene.log_in(life=3600)
    scene.clock.advance(3601)
    scene.renews()
    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(lambda _: scene.ask()[0], range(100)))
    assert (set(found), scene.renewals) == ({200}, 1)
    assert set(scene.tokens()) == {scene.made[0]}


def test_a_new_login_by_another_process_serves_the_next_request(scene: Scene) -> None:
    with scene.raw() as client:
        for _ in range(20):
            token = scene.log_in()
            assert client.send(scene.request()).answer()[0] == 200
            assert scene.tokens()[-1] == token
    assert scene.renewals == 0


class Slow:
    """A broker that answers only after something has happened."""

    def __init__(self, broker: Broker, happens: Callable[[], None]) -> None:
        self.store, self.catalogue = broker.store, broker.catalogue
        self._broker, self._happens = broker, happens

    async def access(self, name: str, **more: Any) -> Access:
        found = await self._broker.access(name, **more)
        self._happens()
        return found


@pytest.mark.anyio
async def test_what_was_asked_for_before_a_change_is_not_kept_after_it(scene: Scene) -> None:
    happens: list[Callable[[], None]] = []
    found = Credentials(cast("Broker", Slow(scene.running.broker, lambda: happens.pop()())), scene.clock)
    happens += [lambda: None, found.forget]
    await found.fetch(ACME, ANYBODY)
    assert found.ready(ACME) is None
    await found.fetch(ACME, ANYBODY)
    assert found.ready(ACME) is not None
