"""What somebody who edits a declaration, answers in a provider's place or sits on the way gets of a stored secret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from tests.support import declarations
from tests.support.clock import FakeClock
from tests.support.local_server import Answer, LocalServer, Received
from tests.support.memory_store import MemoryStore
from valetkey.account_state import AccountState
from valetkey.broker import Broker
from valetkey.checking import check
from valetkey.credential import ApiKey, CredentialRef, Health, Secret
from valetkey.http import HttpClient
from valetkey.provider import Call, Claims, Provider, When
from valetkey.store import Record

pytestmark = pytest.mark.anyio

KEY = "sk-" + "s" * 40


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A catalogue of one declaration."""

    provider: Provider

    def get(self, id: str) -> Provider:
        return self.provider


@pytest.fixture
def own() -> Iterator[LocalServer]:
    """The server that the login was for."""
    with LocalServer(_welcome) as server:
        yield server


@pytest.fixture
def foreign() -> Iterator[LocalServer]:
    """The server that the declaration names by now."""
    with LocalServer(_welcome) as server:
        yield server


def _welcome(request: Received) -> Answer:
    return Answer(headers={"content-type": "application/json"}, body=b'{"name": "somebody", "data": []}')


async def _checked(own: LocalServer, provider: Provider) -> AccountState:
    broker = _broker(own, provider)
    try:
        return await check(broker, "test")
    finally:
        broker.close()


def _broker(own: LocalServer, provider: Provider) -> Broker:
    """Give a broker that holds a login at `own`, and `provider` as what is declared by now."""
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    store.save(
        Record(
            ref=CredentialRef(provider="test"),
            credential=ApiKey(method="api-key", key=Secret(KEY)),
            hosts=(own.url.removeprefix("http://"),),
            base_url=f"{own.url}/api",
        )
    )
    return Broker(
        store=store,
        catalogue=Declared(provider=provider),  # type: ignore[arg-type]  # the part of a Catalogue that a broker uses
        http=HttpClient(),
        clock=clock,
        environ={},
    )


async def test_a_check_asks_where_the_login_was_for_and_not_where_its_declaration_leads_now(
    own: LocalServer, foreign: LocalServer
) -> None:
    method = declarations.method("api-key", own.url)
    host = foreign.url.removeprefix("http://")
    for edited in (
        declarations.provider(foreign.url, method),
        declarations.provider(own.url, replace(method, base_url=foreign.url, hosts=(host,))),
        declarations.provider(own.url, replace(method, when=(When(values={}, base_url=foreign.url, hosts=(host,)),))),
    ):
        state = await _checked(own, edited)
        assert state.health is Health.OK
    assert len(own.requests) == 3
    assert foreign.requests == []


async def test_a_check_sends_nothing_to_a_probe_or_profile_on_a_host_that_was_added_later(
    own: LocalServer, foreign: LocalServer
) -> None:
    method = declarations.method("api-key", own.url)
    elsewhere = Call(get=f"{foreign.url}/probe")
    hosts = (own.url.removeprefix("http://"), foreign.url.removeprefix("http://"))
    for edited in (
        replace(method, hosts=hosts, probe=elsewhere),
        replace(method, hosts=hosts, claims=Claims(token=(), profile=elsewhere)),
    ):
        state = await _checked(own, declarations.provider(own.url, edited))
        assert state.health is Health.UNKNOWN
        assert "may not be used at" in state.reason
    assert foreign.requests == []
