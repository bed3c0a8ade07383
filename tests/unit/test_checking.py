"""What `status` makes of what a provider says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import declarations
from valetkey.broker import Broker
from valetkey.checking import check
from valetkey.credential import CredentialRef, Health, OAuthToken, Secret
from valetkey.http import HttpClient
from valetkey.provider import Provider
from valetkey.store import Record
from valetkey.testing.clock import FakeClock
from valetkey.testing.local_server import Answer, LocalServer
from valetkey.testing.memory_store import MemoryStore

REF = CredentialRef(provider="test")


class Declared:
    """A catalogue of one declaration."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def get(self, id: str) -> Provider:
        return self._provider


@pytest.mark.anyio
async def test_a_login_that_has_ended_keeps_its_reason_however_often_it_is_looked_at() -> None:
    clock = FakeClock()
    with LocalServer(lambda _: Answer(status=401)) as server:
        host = server.url.removeprefix("http://")
        method = replace(declarations.method("device", server.url), revocation_endpoint=None)
        record = Record(
            ref=REF,
            credential=OAuthToken(
                method="device", access_token=Secret("a" * 20), refresh_token=Secret("r" * 20), issued_at=clock.now()
            ),
            hosts=(host,),
            endpoints=(host,),
            base_url=f"{server.url}/api",
        )
        store = MemoryStore(clock=clock)
        saved = store.save(record)
        store.mark(REF, generation=saved.generation, health=Health.NEEDS_LOGIN, reason="the provider has ended it")
        broker = Broker(
            store=store,
            catalogue=Declared(declarations.provider(server.url, method)),  # type: ignore[arg-type]  # what it asks
            http=HttpClient(),
            clock=clock,
            environ={},
        )
        for _ in range(3):
            state = await check(broker, "test")
            assert (state.health, state.reason) == (Health.NEEDS_LOGIN, "the provider has ended it")
        broker.close()
