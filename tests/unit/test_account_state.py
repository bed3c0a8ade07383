"""The accounts that there are, in pages, with what the environment holds."""

from __future__ import annotations

import pytest

from tests.support.brokers import broker_of
from valetkey import sdk
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.errors import UnknownProvider
from valetkey.provider import Api, AuthMethod, Inject, Provider
from valetkey.store import Record
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore

KEY = "sk-" + "k" * 40


def _provider(id: str, variable: str) -> Provider:
    method = AuthMethod(
        id="api-key", kind="api-key", environment=(variable,), inject=(Inject(set={"authorization": "Bearer {key}"}),)
    )
    api = Api(base_url=f"https://{id}.test", hosts=(f"{id}.test",))
    return Provider(id=id, name=id.title(), api=api, auth=(method,))


def test_accounts_come_in_pages_with_the_environments_on_the_last(clock: FakeClock) -> None:
    store = MemoryStore(clock=clock)
    for number in range(5):
        ref = CredentialRef(provider="acme", account=f"a{number}")
        store.save(Record(ref=ref, credential=ApiKey(method="api-key", key=Secret(KEY)), hosts=("acme.test",)))
    known = (_provider("acme", "ACME_API_KEY"), _provider("other", "OTHER_API_KEY"))
    broker = broker_of(*known, store=store, clock=clock, environ={"ACME_API_KEY": KEY, "OTHER_API_KEY": KEY})
    pages, after = [], None
    while True:
        page = sdk.accounts(after=after, limit=2, broker=broker)
        pages.append([(a.source, str(a.ref), a.variable, a.shadowed) for a in page])
        stored = [a.ref for a in page if a.source == "stored"]
        if len(stored) < 2:
            break
        after = stored[-1]
    assert pages == [
        [("stored", "acme@a0", None, False), ("stored", "acme@a1", None, False)],
        [("stored", "acme@a2", None, False), ("stored", "acme@a3", None, False)],
        [
            ("stored", "acme@a4", None, False),
            ("environment", "acme@a0", "ACME_API_KEY", True),
            ("environment", "other@default", "OTHER_API_KEY", False),
        ],
    ]
    assert [str(a.ref) for a in sdk.accounts("other", broker=broker)] == ["other@default"]
    with pytest.raises(UnknownProvider):
        sdk.accounts("otter", broker=broker)
    broker.close()
