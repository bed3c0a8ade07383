"""trace.db: one row a request, and what they come to in each minute. Never in the way of the gateway."""

from __future__ import annotations

import functools
import itertools
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from valetkey.errors import TraceTooNew, TraceUnreadable
from valetkey.gateway.row import Row, is_failure, is_refusal
from valetkey.stores import modes

__all__ = ["Recorded", "TraceFile", "TraceReader", "is_damage"]

SCHEMA = 1
APPLICATION_ID = 0x766B7472  # "vktr"
_BUSY_SECONDS = 5.0
# A -wal that one busy hour made large is cut to this.
_WAL_LIMIT_BYTES = 16 * 2**20
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_COLUMNS = ", ".join(Row._fields)
# Python lets go of its lock once a statement. With one statement a row, a thread that is busy on another core took
# it each time, and 500 rows lasted 90 ms in place of 2.6. 50 rows are 900 values; old SQLites take 999.
_ROWS_A_STATEMENT = 50
# No index beside the number: one takes a third of the time that a row takes to write, and without one the newest rows
# of a client that hardly asks are found in 0.24 s among a million.
_TABLES = f"""
    CREATE TABLE request (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, client TEXT NOT NULL, account TEXT NOT NULL, method TEXT NOT NULL,
        host TEXT NOT NULL, path TEXT NOT NULL, status INTEGER NOT NULL, outcome TEXT NOT NULL, way TEXT NOT NULL,
        bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, first_byte_ms REAL, duration_ms REAL NOT NULL,
        model TEXT, input_tokens INTEGER, output_tokens INTEGER, request_body TEXT, response_body TEXT
    );
    CREATE TABLE client (id TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE minute (
        client TEXT NOT NULL, minute INTEGER NOT NULL, account TEXT NOT NULL, requests INTEGER NOT NULL,
        refusals INTEGER NOT NULL, errors INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
        duration_ms REAL NOT NULL, PRIMARY KEY (client, minute, account)
    ) WITHOUT ROWID;
    CREATE INDEX minute_at ON minute (minute);
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {SCHEMA};
"""
_SUMS = ("requests", "refusals", "errors", "input_tokens", "output_tokens", "bytes_in", "bytes_out", "duration_ms")
_ADD_MINUTE = (
    f"INSERT INTO minute (client, minute, account, {', '.join(_SUMS)})"  # noqa: S608 - our names
    f" VALUES (?, ?, ?, {', '.join('?' for _ in _SUMS)}) ON CONFLICT DO UPDATE SET"
    f" {', '.join(f'{name} = {name} + excluded.{name}' for name in _SUMS)}"
)


# --- writing ---------------------------------------------------------------------------------


class TraceFile:
    """The writer's side: one connection, for one thread at a time. Every method may raise sqlite3.Error or OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: Mapping[str, str] = {}
        self._written_names: Mapping[str, str] = self.names
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows and what they add to their minutes, all or nothing.

        Raises: TraceUnreadable too. After any error `close` undoes what was begun.
        """
        sums = _by_minute(rows)
        connection = self._connected()
        names = self.names
        connection.execute("BEGIN IMMEDIATE")
        for start in range(0, len(rows), _ROWS_A_STATEMENT):
            some = rows[start : start + _ROWS_A_STATEMENT]
            connection.execute(_insert(len(some)), [*itertools.chain.from_iterable(some)])
        connection.executemany(_ADD_MINUTE, sums)
        if names is not self._written_names:
            connection.executemany("INSERT OR REPLACE INTO client VALUES (?, ?)", names.items())
        connection.execute("COMMIT")
        self._written_names = names

    def forget(self, *, before: float, keep_rows: int, at_most: int = 2000) -> bool:
        """Delete up to `at_most` of the oldest rows: those from before that Unix time, and above that number.

        Says whether there may be more of them.
        """
        connection = self._connected()
        (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM request").fetchone()
        oldest = "SELECT id FROM request WHERE id <= ? ORDER BY id LIMIT ?"
        above = connection.execute(
            f"DELETE FROM request WHERE id IN ({oldest})",  # noqa: S608 - our own text
            (newest - keep_rows, at_most),
        ).rowcount
        # Rows are written as requests end and are dated when they begin: nearly in order, and no index is needed.
        aged = connection.execute(
            "DELETE FROM request WHERE at < ? AND id IN (SELECT id FROM request ORDER BY id LIMIT ?)", (before, at_most)
        ).rowcount
        connection.execute("DELETE FROM minute WHERE minute < ?", (int(before // 60),))
        return max(above, aged) >= at_most

    def put_aside(self, suffix: str) -> Path:
        """Move the file out of the way, in the place of one that was moved before."""
        self.close()
        aside = self.path.with_name(f"{self.path.name}.{suffix}")
        for end in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{aside}{end}")
        os.replace(self.path, aside)
        for end in ("-wal", "-shm"):
            # Left here, the new file would be read together with the old one's log.
            with suppress(FileNotFoundError):
                os.replace(f"{self.path}{end}", f"{aside}{end}")
        return aside

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None:
            if self._file == modes.file_at(self.path):
                return self._connection
            self.close()  # somebody took the file away
        self._connection = self._opened()
        self._written_names = {}
        self._file = modes.file_at(self.path)
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        os.makedirs(self.path.parent, mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.path, flags, 0o600)
        os.fchmod(descriptor, 0o600)  # it may be an old one; SQLite gives -wal and -shm the same mode
        os.close(descriptor)
        connection = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection


@functools.cache
def _insert(count: int) -> str:
    row = f"({', '.join('?' for _ in Row._fields)})"
    return f"INSERT INTO request ({_COLUMNS}) VALUES {', '.join([row] * count)}"  # noqa: S608 - our names


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    try:
        for setting in ("synchronous = NORMAL", "trusted_schema = OFF", f"journal_size_limit = {_WAL_LIMIT_BYTES}"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables == 0:
            # executescript would commit before its first statement.
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
        _check_version(connection, path)
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        _roll_back(connection)
        if is_damage(error):
            raise _damaged(path) from error
        raise
    except BaseException:
        _roll_back(connection)
        raise


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or version < 1:
        raise _damaged(path)
    if version > SCHEMA:
        raise TraceTooNew(
            f"{path} was written by a newer Valetkey (schema {version}; this one knows {SCHEMA})",
            hint="update Valetkey",
        )


def _damaged(path: Path) -> TraceUnreadable:
    return TraceUnreadable(
        f"{path} is damaged or no trace", hint="move it away; the gateway moves it aside when it next writes"
    )


def is_damage(error: sqlite3.Error) -> bool:
    """Say whether the file itself is at fault, and not the disk, a lock or a mode."""
    return (getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF) in _DAMAGED


def _roll_back(connection: sqlite3.Connection) -> None:
    # A full disk has ended the transaction already.
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _by_minute(rows: Iterable[Row]) -> list[tuple[object, ...]]:
    sums: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        key = (row.client, int(row.at // 60), row.account)
        found = sums.get(key)
        if found is None:
            found = sums[key] = [0, 0, 0, 0, 0, 0, 0, 0.0]
        found[0] += 1
        if row.outcome != "ok" or row.status >= 400:
            found[1] += is_refusal(row)
            found[2] += is_failure(row)
        found[3] += row.input_tokens or 0
        found[4] += row.output_tokens or 0
        found[5] += row.bytes_in
        found[6] += row.bytes_out
        found[7] += row.duration_ms
    return [(*key, *found) for key, found in sums.items()]


# --- reading ---------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """A row with its number; later ones have higher numbers."""

    id: int
    row: Row


class TraceReader:
    """Reads while the gateway writes, and gives nothing where nothing is recorded yet. Never makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def newest(
        self, limit: int, *, client: str | None = None, account: str | None = None, since: float | None = None
    ) -> list[Recorded]:
        """Give the newest rows, newest first.

        `client` is an id or a name; `account` is `provider@account`, or a provider for all of its accounts. Raises:
        TraceUnreadable, as every method does.
        """
        where, values = _conditions(client=client, account=account, since=since)
        return self._rows(f"{where} ORDER BY id DESC LIMIT ?", [*values, limit])

    def following(
        self, after: int, *, limit: int = 1000, client: str | None = None, account: str | None = None
    ) -> list[Recorded]:
        """Give the rows behind number `after`, oldest first."""
        where, values = _conditions(client=client, account=account, after=after)
        return self._rows(f"{where} ORDER BY id LIMIT ?", [*values, limit])

    def names(self) -> dict[str, str]:
        """Give the names of clients, by their ids."""
        return dict(self._read("SELECT id, name FROM client", ()))

    def last_id(self) -> int:
        """Give the highest number so far. Where it is lower than one that was read, the file is another."""
        return self._number("SELECT coalesce(max(id), 0) FROM request", ())

    def tokens_since(self, client: str, since: datetime) -> int:
        """Sum a client's tokens, in and out, of the minutes from that time on."""
        sql = "SELECT coalesce(sum(input_tokens + output_tokens), 0) FROM minute WHERE client = ? AND minute >= ?"
        return self._number(sql, (client, int(since.timestamp() // 60)))

    def _rows(self, tail: str, values: Sequence[object]) -> list[Recorded]:
        sql = f"SELECT id, {_COLUMNS} FROM request {tail}"  # noqa: S608 - our own text
        return [Recorded(number, Row(*rest)) for number, *rest in self._read(sql, values)]

    def _number(self, sql: str, values: Sequence[object]) -> int:
        found = self._read(sql, values)
        return int(found[0][0]) if found else 0

    def _read(self, sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        if modes.file_at(self.path) is None:
            return []
        try:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as connection:
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
                if tables == 0:  # made a moment ago
                    return []
                _check_version(connection, self.path)
                return connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            if is_damage(error):
                raise _damaged(self.path) from error
            raise TraceUnreadable(
                f"{self.path} cannot be read: {error}", hint="check its mode, its folder's and the disk"
            ) from error


def _conditions(
    *, client: str | None, account: str | None, since: float | None = None, after: int | None = None
) -> tuple[str, list[object]]:
    conditions, values = [], list[object]()
    if client is not None:
        conditions.append("client IN (SELECT ? UNION SELECT id FROM client WHERE name = ?)")
        values += [client, client]
    if account is not None and "@" in account:
        conditions.append("account = ?")
        values.append(account)
    elif account is not None:
        # "A" is the character behind "@".
        conditions.append("account >= ? AND account < ?")
        values += [f"{account}@", f"{account}A"]
    if since is not None:
        conditions.append("at >= ?")
        values.append(since)
    if after is not None:
        conditions.append("id > ?")
        values.append(after)
    return (f"WHERE {' AND '.join(conditions)}" if conditions else ""), values
