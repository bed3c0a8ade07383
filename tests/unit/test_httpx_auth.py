"""The auth= of a client: a credential in each request, another after a 401, and none for a host that is not its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta

import httpx2
import pytest

from tests.support import declarations
from tests.support.brokers import broker_of
from valetkey import sdk
from valetkey.broker import Broker
from valetkey.credential import ApiKey, Credential, CredentialRef, OAuthToken, Secret
from valetkey.errors import HostsNotAccepted, NotLoggedIn, UnknownProvider
from valetkey.provider import AuthKind
from valetkey.store import Record
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock
from valetkey.testing.local_server import Answer, LocalServer, Received
from valetkey.testing.memory_store import MemoryStore

pytestmark = pytest.mark.anyio

KEY = "sk-" + "k" * 40


@dataclass(kw_only=True)
class Guarded:
    """An API that lets in whoever has one of `good`, and keeps what it was shown."""

    good: set[str] = field(default_factory=set)
    shown: list[str] = field(default_factory=list)

    def __call__(self, request: Received) -> Answer:
        self.shown.append(request.headers.get("authorization", "").removeprefix("Bearer "))
        return Answer(status=200 if self.shown[-1] in self.good else 401, body=request.body)


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


@pytest.fixture
def api(guarded: Guarded) -> Iterator[LocalServer]:
    with LocalServer(guarded) as server:
        yield server


def _broker(api: LocalServer, authorization_server: LocalServer, clock: FakeClock, credential: Credential) -> Broker:
    kind: AuthKind = "device" if isinstance(credential, OAuthToken) else "api-key"
    method = replace(declarations.method(kind, authorization_server.url), id=credential.method)
    store = MemoryStore(clock=clock)
    store.save(
        Record(
            ref=CredentialRef(provider="test"),
            credential=credential,
            hosts=(api.url.removeprefix("http://"),),
            endpoints=(authorization_server.url.removeprefix("http://"),),
            base_url=f"{api.url}/api",
        )
    )
    return broker_of(declarations.provider(api.url, method), store=store, clock=clock)


@pytest.fixture
def with_token(api: LocalServer, authorization_server: AuthorizationServer, clock: FakeClock) -> Iterator[Broker]:
    """A login whose token the API takes no more, and whose renewal gives `renewed`."""
    authorization_server.answers("/token", json={"access_token": "renewed", "token_type": "Bearer", "expires_in": 3600})
    token = OAuthToken(
        method="device",
        access_token=Secret("given"),
        refresh_token=Secret("spent once"),
        issued_at=clock.now(),
        expires_at=clock.now() + timedelta(hours=1),
    )
    opened = _broker(api, authorization_server, clock, token)
    yield opened
    opened.close()


@pytest.fixture
def with_key(api: LocalServer, authorization_server: AuthorizationServer, clock: FakeClock) -> Iterator[Broker]:
    """A login with a key that has no renewal."""
    opened = _broker(api, authorization_server, clock, ApiKey(method="api-key", key=Secret(KEY)))
    yield opened
    opened.close()


async def _send(broker: Broker, url: str, *, asynchronous: bool, body: bytes = b"question") -> httpx2.Response:
    auth = sdk.auth("test", broker=broker)
    if asynchronous:
        async with httpx2.AsyncClient(auth=auth, follow_redirects=True) as client:
            return await client.post(url, content=body)
    with httpx2.Client(auth=auth, follow_redirects=True) as plain:
        return plain.post(url, content=body)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_401_is_renewed_and_the_request_sent_once_more(
    api: LocalServer,
    guarded: Guarded,
    authorization_server: AuthorizationServer,
    with_token: Broker,
    asynchronous: bool,
) -> None:
    guarded.good = {"renewed"}
    for _ in range(2):
        answer = await _send(with_token, f"{api.url}/api/ask", asynchronous=asynchronous)
        assert (answer.status_code, answer.content) == (200, b"question")
    assert guarded.shown == ["given", "renewed", "renewed"]
    assert len(authorization_server.calls("/token")) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_renewed_token_that_is_refused_too_passes_the_401_on(
    api: LocalServer, guarded: Guarded, with_token: Broker, asynchronous: bool
) -> None:
    answer = await _send(with_token, f"{api.url}/api/ask", asynchronous=asynchronous)
    assert answer.status_code == 401
    assert guarded.shown == ["given", "renewed"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_key_without_a_renewal_is_not_sent_twice(
    api: LocalServer, guarded: Guarded, with_key: Broker, asynchronous: bool
) -> None:
    assert (await _send(with_key, f"{api.url}/api/ask", asynchronous=asynchronous)).status_code == 401
    assert guarded.shown == [KEY]


async def test_a_body_that_is_a_stream_is_not_sent_twice(
    api: LocalServer, guarded: Guarded, with_token: Broker
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"only once"

    guarded.good = {"renewed"}
    async with httpx2.AsyncClient(auth=sdk.auth("test", broker=with_token)) as client:
        answer = await client.post(f"{api.url}/api/ask", content=parts(), headers={"content-length": "9"})
    assert answer.status_code == 401
    assert guarded.shown == ["given"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_host_that_is_not_the_logins_gets_no_request(
    guarded: Guarded, with_key: Broker, asynchronous: bool
) -> None:
    with LocalServer(guarded) as foreign, pytest.raises(HostsNotAccepted):
        await _send(with_key, f"{foreign.url}/api/ask", asynchronous=asynchronous)
    assert guarded.shown == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_redirect_takes_the_credential_nowhere(
    authorization_server: AuthorizationServer, clock: FakeClock, guarded: Guarded, asynchronous: bool
) -> None:
    with LocalServer(guarded) as foreign:
        elsewhere = Answer(status=307, headers={"location": f"{foreign.url}/take"})
        with LocalServer(lambda request: elsewhere) as api:
            broker = _broker(api, authorization_server, clock, ApiKey(method="api-key", key=Secret(KEY)))
            with pytest.raises(HostsNotAccepted) as caught:
                await _send(broker, f"{api.url}/api/ask", asynchronous=asynchronous)
            broker.close()
    assert guarded.shown == []
    assert KEY not in str(caught.value)


def test_what_is_no_account_is_told_before_a_client_is_made(with_key: Broker) -> None:
    with pytest.raises(UnknownProvider):
        sdk.auth("nowhere", broker=with_key)


async def test_an_account_without_login_sends_nothing(api: LocalServer, guarded: Guarded, with_key: Broker) -> None:
    auth = sdk.auth("test@nobody", broker=with_key)
    with httpx2.Client(auth=auth) as client, pytest.raises(NotLoggedIn):
        client.get(f"{api.url}/api/ask")
    assert guarded.shown == []


async def test_the_client_of_an_event_loop_may_be_a_plain_one(
    api: LocalServer, guarded: Guarded, with_key: Broker
) -> None:
    guarded.good = {KEY}
    assert sdk.token("test", broker=with_key) == KEY
    assert (await _send(with_key, f"{api.url}/api/ask", asynchronous=False)).status_code == 200
    assert KEY not in repr(sdk.auth("test", broker=with_key))
