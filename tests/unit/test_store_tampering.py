"""A database that somebody wrote in: damaged records are named, and nothing of them is shown."""

from __future__ import annotations

import os
import random
import sqlite3
import traceback
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.stored import CANARY, opened
from valetkey.credential import ApiKey, CredentialRef, OAuthToken, Secret
from valetkey.errors import RecordDamaged, StoreError, ValetkeyError
from valetkey.store import Document, Record
from valetkey.stores.check import check
from valetkey.stores.quick import quick_record
from valetkey.stores.sqlite import SqliteStore
from valetkey.testing.clock import START

MUTATIONS = int(os.environ.get("VALETKEY_MUTATIONS") or ("100000" if os.environ.get("VALETKEY_SOAK") else "10000"))
ONE = CredentialRef(provider="acme", account="one")
TWO = CredentialRef(provider="acme", account="two")
FAR = CredentialRef(provider="zenith", account="one")
REFS = (ONE, TWO, FAR)


@pytest.fixture
def store(home: Path) -> SqliteStore:
    store = opened(home)
    for ref in REFS:
        token = OAuthToken(
            method="device",
            access_token=Secret(f"{CANARY}-{ref}"),
            refresh_token=Secret(f"{CANARY}-refresh-{ref}"),
            issued_at=START,
            expires_at=START + timedelta(hours=1),
        )
        store.save(store.save(Record(ref=ref, credential=token, hosts=("api.example.org",))))
    store.put_document(Document(kind="note", id="1", title=CANARY, body=CANARY, updated_at=START))
    store.put_document(Document(kind="note", id="2", title=CANARY, body=CANARY, updated_at=START))
    return store


def _execute(store: SqliteStore, sql: str, *values: object) -> None:
    with store.database.writing() as connection:
        connection.execute(sql, values)


def _blank(error: BaseException) -> bool:
    text = "".join(traceback.format_exception(error))
    return CANARY not in text and "canary" not in repr(error.__cause__) + repr(error.__context__)


def _expect_blank(error: BaseException) -> None:
    assert _blank(error)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE account SET sealed = (SELECT sealed FROM account WHERE account = 'two') WHERE account = 'one'",
        "UPDATE account SET sealed = (SELECT sealed FROM account WHERE provider = 'zenith') WHERE provider = 'acme'",
        "UPDATE OR REPLACE account SET account = 'one' WHERE account = 'two'",
        "UPDATE OR REPLACE account SET provider = 'acme' WHERE provider = 'zenith'",
        "UPDATE account SET generation = generation + 1",
        "UPDATE account SET generation = 1",
        "UPDATE account SET generation = 'two'",
        "UPDATE account SET generation = '2|3'",
        "UPDATE account SET key_id = 'another'",
        "UPDATE account SET key_id = 'a|b'",
        "UPDATE account SET key_id = 7",
        "UPDATE account SET sealed = substr(sealed, 1, length(sealed) - 1)",
        "UPDATE account SET sealed = x''",
        "UPDATE account SET sealed = 'text'",
        "UPDATE account SET sealed = 7",
        "UPDATE account SET health = 'splendid'",
        "UPDATE account SET created_at = 'yesterday'",
        "UPDATE account SET updated_at = 7",
        "UPDATE account SET failures = 1, not_before = 'soon'",
        "UPDATE account SET health = CAST(x'ff' AS TEXT)",
    ],
)
def test_a_record_that_was_moved_or_relabelled_does_not_open(store: SqliteStore, sql: str) -> None:
    _execute(store, sql)
    with pytest.raises(RecordDamaged) as caught:
        store.load(ONE)
    assert _blank(caught.value)
    assert ONE in {account.ref for account in store.accounts()}
    assert check(store)
    store.close()


def test_columns_of_one_account_that_are_damaged_do_not_hide_the_others(store: SqliteStore) -> None:
    _execute(store, "UPDATE account SET health = CAST(x'ff' AS TEXT) WHERE account = 'two'")
    _execute(store, "UPDATE account SET account = '../one' WHERE provider = 'zenith'")
    assert [(account.ref, account.health) for account in store.accounts()] == [(ONE, "ok"), (TWO, "unknown")]
    assert [account.ref for account in store.accounts(after=ONE, limit=5)] == [TWO]
    assert check(store) == [
        "acme@two: the columns of acme@two hold what no column may hold",
        "zenith@../one: a stored account has a name that is none",
    ]
    store.close()


def test_an_older_ciphertext_of_the_same_account_does_not_open_as_the_newer(store: SqliteStore) -> None:
    with store.database.reading() as connection:
        (older,) = connection.execute("SELECT sealed FROM account WHERE account = 'two'").fetchone()
    record = store.load(TWO)
    assert record is not None
    store.save(record)
    _execute(store, "UPDATE account SET sealed = ? WHERE account = 'two'", older)
    with pytest.raises(RecordDamaged):
        store.load(TWO)
    store.close()


def test_a_damaged_record_disables_only_itself_and_a_new_login_mends_it(store: SqliteStore) -> None:
    _execute(store, "UPDATE account SET sealed = zeroblob(80) WHERE account = 'two'")
    with pytest.raises(RecordDamaged) as caught:
        store.load(TWO)
    assert "log in again" in caught.value.hint
    assert store.load(ONE) is not None
    assert [account.ref for account in store.accounts()] == [ONE, TWO, FAR]
    account = store.account(TWO)
    assert account is not None
    key = ApiKey(method="api-key", key=Secret("n" * 20))
    store.save(Record(ref=TWO, credential=key, generation=account.generation))
    record = store.load(TWO)
    assert record is not None
    assert record.credential == key
    store.close()


def test_titles_and_bodies_cannot_be_exchanged(store: SqliteStore) -> None:
    _execute(store, "UPDATE document SET title = body, body = title WHERE id = '1'")
    with pytest.raises(RecordDamaged):
        store.document("note", "1")
    assert store.document("note", "2") is not None
    assert [(name, title) for name, title, _ in store.documents("note")] == [("1", "(damaged)"), ("2", CANARY)]
    store.close()


def _flip(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def _cut(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def _insert(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(data))
    data[at:at] = dice.randbytes(dice.randrange(1, 40))


def _overwrite(data: bytearray, dice: random.Random) -> None:
    at, length = dice.randrange(len(data)), dice.randrange(1, 40)
    data[at : at + length] = dice.randbytes(length)


_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (_flip, _cut, _insert, _overwrite)


def test_mutated_records_give_an_error_and_nothing_else(store: SqliteStore, home: Path) -> None:
    """Row by row: each mutation of a sealed record is refused, by the store and by the quick path."""
    dice = random.Random(20261122)
    with store.database.reading() as connection:
        (sealed,) = connection.execute("SELECT sealed FROM account WHERE account = 'two'").fetchone()
        # As fast as it goes: durability is not what is tried here.
        connection.execute("PRAGMA synchronous = OFF")
    for number in range(MUTATIONS * 9 // 10):
        mutated = bytearray(sealed)
        dice.choice(_WAYS)(mutated, dice)
        if mutated == sealed:
            continue
        _execute(store, "UPDATE account SET sealed = ? WHERE account = 'two'", bytes(mutated))
        with pytest.raises(RecordDamaged) as caught:
            store.load(TWO)
        if number % 50 == 0:
            assert _blank(caught.value)
            assert quick_record(str(home), "acme", "two") is None
    _execute(store, "UPDATE account SET sealed = ? WHERE account = 'two'", sealed)
    assert store.load(TWO) is not None
    store.close()


def test_mutated_files_give_our_errors_or_the_true_records(store: SqliteStore, home: Path) -> None:
    """The whole file, any byte of it: never a traceback of another's, never another's secret."""
    dice = random.Random(int(os.environ.get("VALETKEY_SEED") or 20261123))
    store.close()
    path = home / "valetkey.db"
    good = path.read_bytes()
    for _ in range(MUTATIONS // 10):
        mutated = bytearray(good)
        # Most of a small database is empty pages; a byte there changes nothing.
        for _ in range(dice.randrange(1, 20)):
            mutated[dice.randrange(len(mutated))] = dice.randrange(256)
        path.write_bytes(mutated)
        for left in home.glob("valetkey.db-*"):
            left.unlink()
        _look_around(home)
    path.write_bytes(good)
    assert len(opened(home).accounts()) == 3


def _look_around(home: Path) -> None:
    try:
        with closing(opened(home)) as store:
            for ref in REFS:
                _look_at(store, ref, home)
            store.accounts()
            store.documents("note")
    except StoreError as error:
        _expect_blank(error)
    except ValetkeyError as error:
        pytest.fail(f"not an error of the store: {error!r}")
    except sqlite3.Error as error:
        pytest.fail(f"not in our words: {error!r}")


def _look_at(store: SqliteStore, ref: CredentialRef, home: Path) -> None:
    quick = quick_record(str(home), ref.provider, ref.account)
    if quick is not None:
        assert quick["credential"]["secrets"]["access_token"] == f"{CANARY}-{ref}"
    try:
        record = store.load(ref)
    except RecordDamaged as error:
        _expect_blank(error)
        return
    if record is not None:
        assert isinstance(record.credential, OAuthToken)
        assert record.credential.access_token == Secret(f"{CANARY}-{ref}")
