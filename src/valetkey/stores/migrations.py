"""The tables, as numbered steps from an empty file to what this version knows."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

__all__ = ["APPLICATION_ID", "SCHEMA", "migrate"]

# "VALK": what `file` and we tell a Valetkey database by.
APPLICATION_ID = 0x56414C4B

_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        "CREATE TABLE store (id TEXT NOT NULL)",
        "INSERT INTO store VALUES (lower(hex(randomblob(16))))",
        # One row a data key. The newest `serial` seals; the others are there while `rekey` is under way.
        """CREATE TABLE data_key (
             serial INTEGER PRIMARY KEY AUTOINCREMENT,
             id TEXT NOT NULL UNIQUE,
             source TEXT NOT NULL,
             wrapped BLOB NOT NULL)""",
        """CREATE TABLE account (
             provider TEXT NOT NULL,
             account TEXT NOT NULL,
             generation INTEGER NOT NULL,
             kind TEXT NOT NULL,
             method TEXT NOT NULL,
             account_id TEXT,
             name TEXT,
             email TEXT,
             plan TEXT,
             health TEXT NOT NULL,
             reason TEXT NOT NULL,
             failures INTEGER,
             not_before TEXT,
             hint TEXT NOT NULL,
             issued_at TEXT,
             expires_at TEXT,
             created_at TEXT NOT NULL,
             updated_at TEXT NOT NULL,
             key_id TEXT NOT NULL,
             sealed BLOB NOT NULL,
             PRIMARY KEY (provider, account))""",
        "CREATE INDEX account_by_key ON account (key_id)",
        "CREATE TABLE default_account (provider TEXT PRIMARY KEY, account TEXT NOT NULL)",
        # How far the generations of a deleted account went: a late writer must not land on the next login.
        """CREATE TABLE past (
             provider TEXT NOT NULL,
             account TEXT NOT NULL,
             generation INTEGER NOT NULL,
             PRIMARY KEY (provider, account))""",
        """CREATE TABLE intent (
             provider TEXT NOT NULL,
             account TEXT NOT NULL,
             generation INTEGER NOT NULL,
             started_at TEXT NOT NULL,
             refresh_token_hash TEXT NOT NULL,
             PRIMARY KEY (provider, account))""",
        "CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    ),
    (
        """CREATE TABLE document (
             kind TEXT NOT NULL,
             id TEXT NOT NULL,
             updated_at TEXT NOT NULL,
             key_id TEXT NOT NULL,
             title BLOB NOT NULL,
             body BLOB NOT NULL,
             PRIMARY KEY (kind, id))""",
        "CREATE INDEX document_by_time ON document (kind, updated_at)",
        "CREATE INDEX document_by_key ON document (key_id)",
    ),
)

SCHEMA = len(_MIGRATIONS)


def migrate(connection: sqlite3.Connection, *, step: Callable[[str], None], upto: int = SCHEMA) -> None:
    """Bring the database to `upto`, each step in a transaction of its own; killed anywhere, the next call goes on.

    `step` is told each point at which a kill must do no harm.
    """
    while True:
        connection.execute("BEGIN EXCLUSIVE")
        try:
            # Read inside: another process may have done it while this one waited.
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version >= upto:
                connection.execute("ROLLBACK")
                return
            step(f"migration {version + 1} begun")
            for statement in _MIGRATIONS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
            step(f"migration {version + 1} applied")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        step(f"migration {version + 1} committed")
