"""What every store promises (valetkey.testing.suites.stores), run for each store and each key source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.keychain import gnome_keyring
from valetkey.config import Paths
from valetkey.credential import (
    ApiKey,
    CredentialRef,
    Identity,
    Secret,
)
from valetkey.errors import InvalidName
from valetkey.store import Record, Store
from valetkey.stores import open_store
from valetkey.stores.command import Command
from valetkey.stores.keychain import Keychain
from valetkey.stores.keyfile import KeyFile
from valetkey.stores.keysource import KeySource
from valetkey.stores.passphrase import Passphrase
from valetkey.testing.clock import FakeClock
from valetkey.testing.memory_store import MemoryStore
from valetkey.testing.suites.stores import Reopen, StoreSuite

REF = CredentialRef(provider="acme")


@pytest.fixture(scope="session")
def keychain_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gnome_keyring(tmp_path_factory.mktemp("keyring")) as address:
        yield address


@pytest.fixture(params=["memory", "key-file", "keychain", "passphrase", "command"])
def reopen(
    request: pytest.FixtureRequest, home: Path, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Reopen]:
    """Give what opens the store again, as the next process does; the memory store is what it is."""
    if request.param == "memory":
        memory = MemoryStore(clock=clock)
        yield lambda: memory
        return
    if request.param == "keychain":
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", request.getfixturevalue("keychain_bus"))
    opened: list[Store] = []

    def open_again() -> Store:
        opened.append(open_store(Paths(home=home), clock=clock, key_source=_source(request.param, home, tmp_path)))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def store(reopen: Reopen) -> Store:
    return reopen()


def _source(kind: str, home: Path, tmp_path: Path) -> KeySource:
    match kind:
        case "key-file":
            return KeyFile(str(home / "store.key"))
        case "keychain":
            return Keychain(f"contract {home}")
        case "passphrase":
            return Passphrase(lambda: Secret("a passphrase"), log_n=4)
        case "command":
            (tmp_path / "printed").write_text("any text\n")
            return Command(["cat", str(tmp_path / "printed")])
    raise AssertionError(kind)


class TestStores(StoreSuite):
    """Each of them."""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(key=st.text(), name=st.text(), parameters=st.dictionaries(st.text(), st.text()))
def test_any_text_comes_back_as_it_was(store: Store, key: str, name: str, parameters: dict[str, str]) -> None:
    account = store.account(REF)
    record = Record(
        ref=REF,
        credential=ApiKey(method="api-key", key=Secret(key), parameters=parameters),
        identity=Identity(name=name),
        generation=account.generation if account else 0,
    )
    saved = store.save(record)
    assert store.load(REF) == saved


@pytest.mark.parametrize(
    "name", ["..", "a..b", "a/b", "a\x00b", "", "-a", "ä", "a" * 10_000, "a|b", "a@b", "a b", "a\n", "\ud800"]
)
def test_names_that_could_leave_their_column_are_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        CredentialRef(provider="acme", account=name)
    with pytest.raises(InvalidName):
        CredentialRef(provider=name)
