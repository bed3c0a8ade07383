"""The quick path: the same record as the store gives, in milliseconds, or None."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.stored import fill, opened, ref, secret
from valetkey.config import Paths
from valetkey.credential import CredentialRef, Health, OAuthToken, Secret
from valetkey.store import Record, Retry
from valetkey.stores import migrations, quick
from valetkey.stores.passphrase import Passphrase
from valetkey.stores.payload import time_from
from valetkey.stores.quick import quick_record
from valetkey.stores.rekey import change_source, rekey
from valetkey.stores.sqlite import SqliteStore
from valetkey.testing.clock import START

REF = CredentialRef(provider="acme", account="work")


@pytest.fixture
def store(home: Path) -> SqliteStore:
    store = opened(home)
    token = OAuthToken(
        method="device",
        access_token=Secret("at-" + "a" * 30),
        refresh_token=Secret("rt-" + "r" * 30),
        issued_at=START,
        expires_at=START + timedelta(hours=1),
        scope=("read",),
        parameters={"domain": "example.org"},
    )
    store.save(
        Record(
            ref=REF,
            credential=token,
            hosts=("api.example.org",),
            endpoints=("login.example.org",),
            base_url="https://api.example.org",
            restricted=True,
        )
    )
    return store


def test_it_gives_what_the_store_gives(store: SqliteStore, home: Path) -> None:
    store.mark(
        REF,
        generation=1,
        health=Health.UNREACHABLE,
        reason="no answer",
        retry=Retry(failures=2, not_before=START),
    )
    found = quick_record(str(home), "acme", "work")
    assert found == {
        "account": "work",
        "generation": 1,
        "health": "unreachable",
        "reason": "no answer",
        "failures": 2,
        "not_before": "2026-11-22T12:00:00.000000+00:00",
        "issued_at": "2026-11-22T12:00:00.000000+00:00",
        "expires_at": "2026-11-22T13:00:00.000000+00:00",
        "hosts": ["api.example.org"],
        "endpoints": ["login.example.org"],
        "base_url": "https://api.example.org",
        "restricted": True,
        "credential": {
            "kind": "oauth-token",
            "method": "device",
            "parameters": {"domain": "example.org"},
            "secrets": {"access_token": "at-" + "a" * 30, "refresh_token": "rt-" + "r" * 30},
            "issued_at": "2026-11-22T12:00:00.000000+00:00",
            "expires_at": "2026-11-22T13:00:00.000000+00:00",
            "token_type": "Bearer",
            "scope": ["read"],
        },
    }
    assert time_from(found["expires_at"]) == START + timedelta(hours=1)
    store.close()


def test_without_an_account_it_takes_the_default_whether_the_store_is_open_or_not(
    store: SqliteStore, home: Path
) -> None:
    fill(store, 3)
    store.set_default_account(ref(2))
    for _ in range(2):
        found = quick_record(str(home), "acme", None)
        assert found is not None
        assert found["account"] == ref(2).account
        assert found["credential"]["secrets"] == {"key": secret(2).reveal()}
        store.close()
    assert not {path.name: oct(path.stat().st_mode) for path in home.iterdir() if path.stat().st_mode & 0o077}


def test_it_sees_what_was_just_saved_and_rekeyed(store: SqliteStore, home: Path) -> None:
    record = store.load(REF)
    assert record is not None
    store.save(record)
    rekey(store)
    found = quick_record(str(home), "acme", "work")
    assert found is not None
    assert found["generation"] == 2
    store.close()


@pytest.mark.parametrize("name", ["", "nobody", "a\x00b", "\ud800", "x" * 10_000, "' OR 1=1 --"])
def test_what_is_not_there_is_none(store: SqliteStore, home: Path, name: str) -> None:
    assert quick_record(str(home), name, None) is None
    assert quick_record(str(home), "acme", name) is None
    assert quick_record(str(home / "nowhere"), "acme", "work") is None
    store.close()


@pytest.mark.parametrize("name", ["", "valetkey.db", "store.key", "valetkey.db-wal", "valetkey.db-shm"])
def test_with_a_wrong_mode_or_a_link_it_gives_way(store: SqliteStore, home: Path, name: str) -> None:
    path = home / name
    mode = path.stat().st_mode
    path.chmod(mode | 0o040)
    assert quick_record(str(home), "acme", "work") is None
    path.chmod(mode)
    assert quick_record(str(home), "acme", "work") is not None
    os.rename(path, path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))
    assert quick_record(str(home), "acme", "work") is None
    path.unlink()
    path.with_name("moved").rename(path)
    store.close()


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA user_version = 99",
        "PRAGMA user_version = 1",
        "PRAGMA application_id = 7",
        "UPDATE data_key SET source = 'keychain'",
        "UPDATE data_key SET wrapped = zeroblob(61)",
        "UPDATE account SET sealed = zeroblob(100)",
        "UPDATE account SET sealed = 'text'",
        "UPDATE account SET key_id = 'x|y'",
        "DROP TABLE account",
        "DELETE FROM data_key",
    ],
)
def test_of_another_version_or_damaged_it_gives_way(store: SqliteStore, home: Path, sql: str) -> None:
    with store.database.reading() as connection:
        connection.execute(sql)
    assert quick_record(str(home), "acme", "work") is None
    store.close()


def test_under_another_key_source_it_gives_way(store: SqliteStore, home: Path) -> None:
    change_source(store, Passphrase(lambda: Secret("p"), log_n=4))
    assert quick_record(str(home), "acme", "work") is None
    (home / "store.key").write_text("rubbish")
    (home / "store.key").chmod(0o600)
    change_source(store, Passphrase(lambda: Secret("q"), log_n=4))
    assert not (home / "store.key").exists()
    store.close()


def test_without_its_key_file_it_gives_way(store: SqliteStore, home: Path) -> None:
    (home / "store.key").unlink()
    assert quick_record(str(home), "acme", "work") is None
    assert not (home / "store.key").exists()
    store.close()


def test_it_knows_the_same_names_and_numbers_as_the_store(home: Path) -> None:
    assert (quick.SCHEMA, quick.APPLICATION_ID) == (migrations.SCHEMA, migrations.APPLICATION_ID)
    assert (home / quick.DATABASE, home / quick.KEY_FILE) == (Paths(home=home).database, Paths(home=home).key_file)


def test_it_imports_nothing_that_costs_milliseconds() -> None:
    code = "import sys, valetkey.stores.quick; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _with_path(code)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    heavy = {"dataclasses", "typing", "click", "asyncio", "keyring", "httpx2", "inspect", "pathlib", "subprocess"}
    assert not loaded & heavy
    assert "cryptography.hazmat.primitives.ciphers.aead" not in loaded


def _with_path(code: str) -> str:
    return f"import sys; sys.path[:0] = {sys.path!r}; {code}"
