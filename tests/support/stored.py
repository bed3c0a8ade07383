"""Stores with records in them, for tests that then do something to the files."""

from __future__ import annotations

from pathlib import Path

from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.store import Document, Record
from valetkey.stores import open_store
from valetkey.stores.keyfile import KeyFile
from valetkey.stores.keysource import KeySource
from valetkey.stores.sqlite import SqliteStore
from valetkey.testing.clock import FakeClock

__all__ = ["CANARY", "fill", "opened", "ref", "secret", "whole"]

# In no file, error or output may this be found.
CANARY = "sk-" + "canary" * 6


def opened(home: Path, source: KeySource | None = None) -> SqliteStore:
    """Open the store in `home`, by default with a key file."""
    return open_store(Paths(home=home), clock=FakeClock(), key_source=source or KeyFile(str(home / "store.key")))


def ref(number: int) -> CredentialRef:
    """Give the account of this number."""
    return CredentialRef(provider="acme", account=f"a{number:06}")


def secret(number: int) -> Secret:
    """Give the key that the account of this number has."""
    return Secret(f"{CANARY}-{number:06}")


def fill(store: SqliteStore, count: int) -> None:
    """Save so many accounts and documents."""
    for number in range(count):
        store.save(Record(ref=ref(number), credential=ApiKey(method="api-key", key=secret(number)), hosts=("h",)))
        store.put_document(
            Document(kind="note", id=str(number), title="t", body=secret(number).reveal(), updated_at=FakeClock().now())
        )


def whole(store: SqliteStore, count: int) -> bool:
    """Say whether all of them are there and open."""
    for number in range(count):
        record, document = store.load(ref(number)), store.document("note", str(number))
        if record is None or record.credential != ApiKey(method="api-key", key=secret(number)):
            return False
        if document is None or document.body != secret(number).reveal():
            return False
    return True
