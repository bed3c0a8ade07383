"""What is stored of a login that was found in another tool's file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support import declarations
from valetkey.broker import Broker
from valetkey.credential import CredentialRef, OAuthToken, Secret
from valetkey.errors import ProviderFault
from valetkey.http import HttpClient
from valetkey.imports import Found
from valetkey.imports.taking_over import take_over
from valetkey.provider import Call, Provider
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore

REF = CredentialRef(provider="test")


class Declared:
    """A catalogue of one declaration."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    def get(self, id: str) -> Provider:
        return self._provider


@pytest.mark.anyio
async def test_a_token_that_was_renewed_on_the_way_is_kept_whatever_comes_after(
    authorization_server: AuthorizationServer, clock: FakeClock
) -> None:
    method = declarations.method("device", authorization_server.url)
    provider = declarations.provider(authorization_server.url, method)
    provider = replace(provider, api=replace(provider.api, probe=Call(get=f"{authorization_server.url}/probe")))
    authorization_server.answers("/probe", status=401)
    authorization_server.answers("/probe", status=500)
    authorization_server.answers(
        "/token", json={"access_token": "new-access", "refresh_token": "new-refresh", "expires_in": 3600}
    )
    broker = Broker(
        store=MemoryStore(clock=clock),
        catalogue=Declared(provider),  # type: ignore[arg-type]  # what it asks of one
        http=HttpClient(),
        clock=clock,
        environ={},
    )
    old = OAuthToken(
        method="device", access_token=Secret("old"), refresh_token=Secret("old-refresh"), issued_at=clock.now()
    )
    found = Found(id="test", provider="test", credential=old)
    with pytest.raises(ProviderFault):
        await take_over(broker, found, account="default")
    broker.http.close()
    record = broker.store.load(REF)
    assert record is not None
    assert isinstance(record.credential, OAuthToken)
    assert record.credential.refresh_token == Secret("new-refresh")
