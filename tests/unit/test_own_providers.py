"""A server of the user's own from its first question to its removal, with all that hangs on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import api_server
from valetkey import sdk
from valetkey.broker import Broker, open_broker
from valetkey.chat.models import Chosen, default_model, set_default_model
from valetkey.credential import CredentialRef
from valetkey.errors import BuiltInProvider, InvalidBaseUrl, InvalidParameter, ProviderCheckFailed, UnknownProvider
from valetkey.testing.clock import FakeClock
from valetkey.testing.local_server import Answer, LocalServer

pytestmark = pytest.mark.anyio

KEY = "sk-" + "k" * 40


@pytest.fixture
def broker(home: Path, clock: FakeClock) -> Iterator[Broker]:
    opened = open_broker(
        environ={"VALETKEY_HOME": str(home), "VALETKEY_STORE_KEY_SOURCE": "key-file"},
        clock=clock,
    )
    yield opened
    opened.close()


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """A server that lists its models for whoever has the key."""
    with api_server([KEY]) as running:
        yield running


async def test_a_server_is_asked_what_it_speaks_and_removed_with_all_that_hangs_on_it(
    broker: Broker, server: LocalServer
) -> None:
    added = await sdk.add_provider("My Server", base_url=server.url, key=KEY, allow_http=True, broker=broker)
    assert (added.id, added.api.dialect) == ("my-server", "openai-chat")
    assert [p.id for p in sdk.providers(custom=True, broker=broker)] == ["my-server"]
    for name in ("my-server", "my-server@default"):
        await sdk.models(name, broker=broker)
    set_default_model(broker.store, Chosen(name="my-server", model="small"))
    assert await sdk.remove_provider("my-server", broker=broker) == (CredentialRef(provider="my-server"),)
    assert sdk.providers(custom=True, broker=broker) == []
    assert broker.store.accounts() == []
    assert broker.store.documents("models") == []
    assert default_model(broker.store) is None


async def test_the_default_model_of_another_provider_stays(broker: Broker, server: LocalServer) -> None:
    await sdk.add_provider("mine", base_url=server.url, key=KEY, allow_http=True, broker=broker)
    other = Chosen(name="openai", model="large")
    set_default_model(broker.store, other)
    await sdk.remove_provider("mine", broker=broker)
    assert default_model(broker.store) == other


async def test_a_server_that_cannot_be_used_leaves_nothing(broker: Broker, server: LocalServer, home: Path) -> None:
    wrong = "sk-" + "w" * 40
    with pytest.raises(ProviderCheckFailed):
        await sdk.add_provider(
            "mine", base_url=server.url, dialect="openai-chat", key=wrong, allow_http=True, broker=broker
        )
    with pytest.raises(InvalidBaseUrl, match="http"):
        await sdk.add_provider("mine", base_url="http://10.0.0.1:9/v1", dialect="openai-chat", key=KEY, broker=broker)
    # Refused only when it is to be stored.
    with pytest.raises(InvalidParameter, match="key") as caught:
        await sdk.add_provider(
            "mine",
            base_url=server.url,
            dialect="openai-chat",
            key="two\nlines",
            allow_http=True,
            verify=False,
            broker=broker,
        )
    assert "two" not in str(caught.value)
    assert not (home / "providers" / "mine.toml").exists()
    assert sdk.providers(custom=True, broker=broker) == []
    assert broker.store.accounts() == []


@pytest.mark.parametrize(("status", "key_needed"), [(200, False), (401, True)])
async def test_without_a_key_the_server_says_whether_it_wants_one(
    broker: Broker, status: int, key_needed: bool
) -> None:
    models = Answer(status=status, headers={"content-type": "application/json"}, body=b'{"data": [{"id": "small"}]}')
    with LocalServer(lambda request: models) as running:
        added = await sdk.add_provider(
            "mine", base_url=running.url, dialect="openai-chat", allow_http=key_needed, broker=broker
        )
    assert [method.optional for method in added.auth] == [not key_needed]


async def test_what_is_not_the_users_own_is_not_removed(broker: Broker) -> None:
    with pytest.raises(BuiltInProvider):
        await sdk.remove_provider("openai", broker=broker)
    with pytest.raises(UnknownProvider):
        await sdk.remove_provider("nowhere", broker=broker)
