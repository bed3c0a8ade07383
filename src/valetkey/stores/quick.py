"""One record, opened in milliseconds, for `valetkey token`; whatever is not simple is left to the store.

Imports nothing that imports dataclasses, typing or the keychain.
"""

import json
import os
import sqlite3

from valetkey.errors import StoreError
from valetkey.stores import modes
from valetkey.stores.keyfile import read_keys, unwrap_with
from valetkey.stores.seal import associated_data, unseal

TYPE_CHECKING = False  # as in typing, which costs milliseconds
if TYPE_CHECKING:
    from typing import Any

__all__ = ["quick_record"]

# The newest of migrations.py, and the names of config.Paths: a test holds them together.
SCHEMA = 2
APPLICATION_ID = 0x56414C4B
DATABASE, KEY_FILE = "valetkey.db", "store.key"

_ROW = """
    SELECT a.account, a.generation, a.health, a.reason, a.failures, a.not_before, a.issued_at, a.expires_at,
           a.key_id, a.sealed, k.source, k.wrapped
    FROM account a JOIN data_key k ON k.id = a.key_id
    WHERE a.provider = ? AND a.account = coalesce(?, (SELECT account FROM default_account WHERE provider = ?))"""
_NAMES = ("account", "generation", "health", "reason", "failures", "not_before", "issued_at", "expires_at")


def quick_record(home: str, provider: str, account: "str | None") -> "dict[str, Any] | None":
    """Give an account's record, or that of its provider's default; None whenever the slow path has to look.

    The answer holds the columns `account generation health reason failures not_before issued_at expires_at` (times
    ISO 8601 in UTC, or None), and what was sealed: `hosts endpoints base_url restricted credential`, as `payload.py`
    writes it. It is asked only of a store of this version whose key lies in the key file, with the right modes. The
    answer holds secrets in plain strings: print what was asked for and drop it.
    """
    try:
        return _read(home, provider, account)
    except (StoreError, OSError, LookupError, TypeError, ValueError, sqlite3.Error):
        return None


def _read(home: str, provider: str, account: "str | None") -> "dict[str, Any] | None":
    database = f"{home}/{DATABASE}"
    if not (modes.check_folder(home) and modes.check_file(database)):
        return None
    modes.check_file(database + "-wal")
    modes.check_file(database + "-shm")
    row = _row(database, provider, account)
    if row is None or row[10] != "key-file":
        return None
    key_id, sealed, _, wrapped = row[8:]
    data_key = unwrap_with(read_keys(f"{home}/{KEY_FILE}"), wrapped, key_id)
    plaintext = unseal(data_key, sealed, associated_data("account", provider, row[0], row[1], key_id))
    payload: dict[str, Any] = json.loads(plaintext)
    if payload.pop("v") != 1:
        return None
    return dict(zip(_NAMES, row, strict=False)) | payload


def _row(database: str, provider: str, account: "str | None") -> "tuple[Any, ...] | None":
    quoted = "".join(f"%{byte:02x}" if byte in b"%?#" or byte >= 128 else chr(byte) for byte in os.fsencode(database))
    connection = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, isolation_level=None)
    try:
        found = (
            connection.execute("PRAGMA application_id").fetchone()[0],
            connection.execute("PRAGMA user_version").fetchone()[0],
        )
        if found != (APPLICATION_ID, SCHEMA):
            return None
        row: tuple[Any, ...] | None = connection.execute(_ROW, (provider, account, provider)).fetchone()
        return row
    finally:
        connection.close()
