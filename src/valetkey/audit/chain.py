"""The chain in audit.db: each entry's hash covers all entries before it. SQLite's lock lets one writer in at a time.

This module is on the path of `valetkey token`: it imports next to nothing. docs/audit.md has the format.
"""

import json
import os
import sqlite3
import sys
import time

from valetkey.errors import AuditBroken, AuditUnwritable, StoreError
from valetkey.stores import modes

TYPE_CHECKING = False  # as in typing, which costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from hashlib import sha256
    from typing import Any
else:
    try:
        # What hashlib has without OpenSSL. With it, it would take 2.6 ms of the 40 that `valetkey token` takes.
        if sys.version_info >= (3, 12):
            from _sha2 import sha256
        else:
            from _sha256 import sha256
    except ImportError:  # another Python, or one that was built without
        from hashlib import sha256

__all__ = [
    "APPLICATION_ID",
    "FILE",
    "FIRST",
    "SCHEMA",
    "append",
    "broken",
    "canonical",
    "content_hash",
    "flush",
    "link",
    "minute_text",
    "opened",
    "quick_use",
    "transaction",
    "unwritable",
    "use",
]

FILE = "audit.db"
SCHEMA = 1
APPLICATION_ID = 0x766B6175  # "vkau"
# What stands before the first entry.
FIRST = "0" * 64
_SALT_BYTES = 16
_TABLES = f"""
    CREATE TABLE entry (seq INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL);
    CREATE TABLE checkpoint (
        number INTEGER PRIMARY KEY, seq INTEGER NOT NULL UNIQUE, body TEXT NOT NULL, signature TEXT NOT NULL
    );
    CREATE TABLE recent (
        minute INTEGER NOT NULL, who TEXT NOT NULL, account TEXT NOT NULL, further INTEGER NOT NULL,
        PRIMARY KEY (minute, who, account)
    ) WITHOUT ROWID;
    CREATE TRIGGER entry_stays BEFORE UPDATE ON entry BEGIN SELECT raise(ABORT, 'append only'); END;
    CREATE TRIGGER entry_remains BEFORE DELETE ON entry BEGIN SELECT raise(ABORT, 'append only'); END;
    CREATE TRIGGER checkpoint_stays BEFORE UPDATE ON checkpoint BEGIN SELECT raise(ABORT, 'append only'); END;
    CREATE TRIGGER checkpoint_remains BEFORE DELETE ON checkpoint BEGIN SELECT raise(ABORT, 'append only'); END;
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {SCHEMA};
"""


# --- hashes ----------------------------------------------------------------------------------


def canonical(value: object) -> bytes:
    """Write JSON as RFC 8785 wants it, of what entries hold: texts, whole numbers, true, false, null; ASCII keys.

    Of these json.dumps gives what a library for all of the RFC does (a test compares them), and it is imported anyway.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode()


def content_hash(body: bytes) -> str:
    """Give the hash of an entry alone, SHA-256 in hex: what an export for others shows of it."""
    return sha256(body).hexdigest()


def link(previous: str, content: str) -> str:
    """Give the hash of the chain up to an entry, from that before it and the entry's own."""
    return sha256(bytes.fromhex(previous) + bytes.fromhex(content)).hexdigest()


# --- the file --------------------------------------------------------------------------------


def opened(path: str, *, busy_seconds: float) -> sqlite3.Connection:
    """Open the chain to write; makes it where there is none. Raises: AuditUnwritable, WrongMode."""
    modes.own_folder(os.path.dirname(path))
    if not modes.check_file(path):
        try:
            # SQLite gives -wal and -shm the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            os.chmod(path, 0o600)
        except OSError as error:
            raise unwritable(path, error) from error
    try:
        connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise unwritable(path, error) from error
    try:
        _prepare(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise unwritable(path, error) from error
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    if sys.platform == "darwin":
        connection.execute("PRAGMA fullfsync = ON")  # fsync alone leaves it in the drive's cache
    found = _version(connection)
    if found != (APPLICATION_ID, SCHEMA):
        connection.execute("PRAGMA journal_mode = WAL")
        transaction(connection, lambda: _make(connection))
        found = _version(connection)
    if found != (APPLICATION_ID, SCHEMA):
        newer = found[0] == APPLICATION_ID and found[1] > SCHEMA
        raise AuditUnwritable(
            f"{path} was written by a newer Valetkey" if newer else f"{path} is damaged or no audit of Valetkey's",
            hint="update Valetkey" if newer else f"keep it for whoever looks into it: `mv {path} {path}.damaged`",
        )


def _version(connection: sqlite3.Connection) -> "tuple[int, int]":
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application, version


def _make(connection: sqlite3.Connection) -> None:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables:
        return  # another process was faster, or it is no file of ours
    statement = ""
    for line in _TABLES.strip().splitlines():
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""


def transaction(connection: sqlite3.Connection, work: "Callable[[], Any]") -> "Any":
    """Do the work as the one writer, durable on return, undone when it raises. May raise sqlite3.Error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        done = work()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise
    return done


def unwritable(path: str, error: Exception) -> AuditUnwritable:
    """Give the error for a file that cannot be written, in our words."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return AuditUnwritable(
            f"another process holds {path} too long", hint="end or continue the process that holds it, and try again"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return AuditUnwritable(
            f"{path} is damaged", hint=f"keep it for whoever looks into it: `mv {path} {path}.damaged`"
        )
    what = getattr(error, "strerror", None) or str(error)
    return AuditUnwritable(
        f"{path} cannot be written: {what.lower()}", hint="free some space, or make the folder writable, and try again"
    )


def broken(seq: int, what: str) -> AuditBroken:
    """Give the error for a chain that is not as it was written."""
    return AuditBroken(
        f"the audit is broken at entry {seq}: {what}",
        hint="keep the file for whoever looks into it, and compare it with an export or anchor from before",
        seq=seq,
    )


# --- entries ---------------------------------------------------------------------------------


def append(
    connection: sqlite3.Connection, kind: str, who: str, account: str, detail: "Mapping[str, object]", at: float
) -> int:
    """Put an entry behind the others, inside a transaction, and give its number. `at` is Unix time."""
    row = connection.execute("SELECT seq, hash FROM entry ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (1, FIRST) if row is None else (row[0] + 1, row[1])
    body = canonical(
        {
            "account": account,
            "at": _time_text(at),
            "detail": dict(detail),
            "kind": kind,
            # Without it whoever gets the hash alone could try out what the entry says.
            "salt": os.urandom(_SALT_BYTES).hex(),
            "seq": seq,
            "who": who,
        }
    )
    new = (seq, body.decode(), link(previous, content_hash(body)))
    connection.execute("INSERT INTO entry VALUES (?, ?, ?)", new)
    return int(seq)


def use(connection: sqlite3.Connection, who: str, account: str, detail: "Mapping[str, object]", at: float) -> None:
    """Record a use: an entry for the first of a minute, of whichever process; the others are counted."""
    minute = int(at // 60)

    def work() -> None:
        counted = connection.execute(
            "UPDATE recent SET further = further + 1 WHERE minute = ? AND who = ? AND account = ?",
            (minute, who, account),
        )
        if counted.rowcount == 0:
            flush(connection, at)
            append(connection, "use", who, account, {**detail, "minute": minute_text(minute)}, at)
            connection.execute("INSERT INTO recent VALUES (?, ?, ?, 0)", (minute, who, account))

    transaction(connection, work)


def flush(connection: sqlite3.Connection, at: float) -> None:
    """Put into the chain, inside a transaction, what was counted in minutes that are over."""
    now = int(at // 60)
    over = connection.execute("SELECT minute, who, account, further FROM recent WHERE minute < ?", (now,)).fetchall()
    for minute, who, account, further in over:
        if further:
            append(connection, "uses", who, account, {"further": further, "minute": minute_text(minute)}, at)
    if over:
        connection.execute("DELETE FROM recent WHERE minute < ?", (now,))


def minute_text(minute: int) -> str:
    """Write a minute, counted from 1970."""
    return time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime(minute * 60))


def _time_text(at: float) -> str:
    milliseconds = round(at * 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000)) + f".{milliseconds % 1000:03d}Z"


def quick_use(home: str, who: str, account: str) -> bool:
    """Record a use of now for `valetkey token`; False where the slow path has to say why it cannot be."""
    try:
        connection = opened(f"{home}/{FILE}", busy_seconds=1.0)
        try:
            use(connection, who, account, {}, time.time())
        finally:
            connection.close()
    except (AuditUnwritable, StoreError, OSError, ValueError, sqlite3.Error):
        return False
    return True
