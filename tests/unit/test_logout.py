"""Logging out: the provider is told where it can be, and the record goes whether or not it heard (RFC 7009)."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.support import declarations
from tests.support.brokers import broker_of
from valetkey import sdk
from valetkey.broker import Broker
from valetkey.credential import CredentialRef, OAuthToken, Secret
from valetkey.store import Record
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore

pytestmark = pytest.mark.anyio


def _logged_in(server: AuthorizationServer, clock: FakeClock, *, endpoints: tuple[str, ...]) -> Broker:
    store = MemoryStore(clock=clock)
    token = OAuthToken(
        method="device",
        access_token=Secret("access"),
        refresh_token=Secret("refresh"),
        issued_at=clock.now(),
        expires_at=clock.now() + timedelta(hours=1),
    )
    store.save(Record(ref=CredentialRef(provider="test"), credential=token, hosts=("h",), endpoints=endpoints))
    return broker_of(
        declarations.provider(server.url, declarations.method("device", server.url)), store=store, clock=clock
    )


async def test_a_logout_revokes_at_the_provider(authorization_server: AuthorizationServer, clock: FakeClock) -> None:
    authorization_server.answers("/revoke")
    broker = _logged_in(authorization_server, clock, endpoints=(f"127.0.0.1:{authorization_server.port}",))
    assert (await sdk.logout("test", broker=broker)).revocation == "revoked"
    assert authorization_server.calls("/revoke")[0].form["token"] == "refresh"
    assert broker.store.account(CredentialRef(provider="test")) is None
    broker.close()


@pytest.mark.parametrize("fault", ["503", "cut"])
async def test_a_logout_that_the_provider_does_not_hear_deletes_and_says_so(
    authorization_server: AuthorizationServer, clock: FakeClock, fault: str
) -> None:
    if fault == "cut":
        authorization_server.drops("/revoke")
    else:
        authorization_server.answers("/revoke", status=503)
    broker = _logged_in(authorization_server, clock, endpoints=(f"127.0.0.1:{authorization_server.port}",))
    assert (await sdk.logout("test", broker=broker)).revocation == "failed"
    assert broker.store.account(CredentialRef(provider="test")) is None
    broker.close()


async def test_a_logout_sends_no_token_to_a_host_that_was_declared_later(
    authorization_server: AuthorizationServer, clock: FakeClock
) -> None:
    broker = _logged_in(authorization_server, clock, endpoints=("login.before.test",))
    assert (await sdk.logout("test", broker=broker)).revocation == "failed"
    assert authorization_server.requests == []
    assert broker.store.account(CredentialRef(provider="test")) is None
    broker.close()


async def test_an_account_whose_provider_is_declared_no_more_is_deleted(
    authorization_server: AuthorizationServer, clock: FakeClock
) -> None:
    store = _logged_in(authorization_server, clock, endpoints=()).store
    broker = broker_of(store=store, clock=clock)
    assert (await sdk.logout("test", broker=broker)).revocation == "failed"
    assert store.account(CredentialRef(provider="test")) is None
    broker.close()
