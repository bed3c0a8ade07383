"""The SQLite file: made complete or not at all, opened with care, its errors in our words."""

from __future__ import annotations

import mmap
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from valetkey.config import Paths
from valetkey.errors import ForeignStore, InvalidName, StoreTooNew, StoreUnwritable
from valetkey.stores import modes
from valetkey.stores.locks import ThreadLock, held
from valetkey.stores.migrations import APPLICATION_ID, SCHEMA, migrate

__all__ = ["CHANGING", "Database", "Step", "Watch", "check_version", "connect", "damaged", "no_step", "translated"]

# The lock that creation, migration, rekey, a change of source and restore hold.
CHANGING = "the store itself"
_BUSY_SECONDS = 30.0

Step = Callable[[str], None]


def no_step(name: str) -> None:
    """Pass the points at which a trial kills the process."""


class Database:
    """One connection, for one thread at a time; a forked child and a replaced file get a new one."""

    def __init__(self, paths: Paths, *, step: Step = no_step) -> None:
        self.paths = paths
        self._path = str(paths.database)
        self._step = step
        self._guard = ThreadLock()
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._of_parents: list[sqlite3.Connection] = []

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for one statement, or for several that need not agree."""
        with self._guard, translated(self._path):
            yield self._connected()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection inside one transaction, durable when the block ends, undone when it raises."""
        with self._guard, translated(self._path):
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            try:
                # A newer Valetkey may have changed the tables since they were opened here.
                check_version(connection, self._path)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def open(self) -> None:
        """Open it now, so that what is wrong with it is told now."""
        with self.reading():
            pass

    def close(self) -> None:
        """Let go of the file."""
        with self._guard:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _connected(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            self._leave_to_parent()
        if self._connection is not None:
            if self._file == modes.file_at(self._path):
                return self._connection
            self._connection.close()  # moved away or replaced (`store restore`)
            self._connection = None
        self._connection = self._opened()
        self._file = modes.file_at(self._path)
        return self._connection

    def _leave_to_parent(self) -> None:
        # Forked: the connection is the parent's. It is kept and not closed: closing cleans up files that it uses.
        if self._connection is not None:
            self._of_parents.append(self._connection)
            self._connection = None
        self._pid = os.getpid()

    def _opened(self) -> sqlite3.Connection:
        """Give a connection to a database of this version that is ours alone; makes it where there is none."""
        modes.own_folder(str(self.paths.home))
        if not modes.check_file(self._path):
            with held(self.paths.locks, CHANGING):
                if not modes.check_file(self._path):
                    self._create()
        modes.check_file(self._path + "-wal")
        modes.check_file(self._path + "-shm")
        connection = connect(self._path)
        try:
            if check_version(connection, self._path) < SCHEMA:
                with held(self.paths.locks, CHANGING):
                    migrate(connection, step=self._step)
        except BaseException:
            connection.close()
            raise
        return connection

    def _create(self) -> None:
        """Make it under another name and move it into place whole, so that a kill leaves none or a good one."""
        fresh = self._path + ".new"
        for left in (fresh, fresh + "-wal", fresh + "-shm", fresh + "-journal"):
            with suppress(FileNotFoundError):
                os.unlink(left)
        modes.create_file(fresh)
        self._step("file made")
        connection = connect(fresh)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            migrate(connection, step=self._step)
        finally:
            connection.close()
        self._step("file filled")
        os.rename(fresh, self._path)
        self._step("file in place")
        modes.sync_folder(str(self.paths.home))


class Watch:
    """Counts the changes to a database that it has seen. Its connection is its own: SQLite tells nobody of their own.

    Where the file is replaced, moved away or put back, that is a change too.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self._seen: tuple[sqlite3.Connection, int] | None = None
        self._count = 0
        self._index = _NO_INDEX
        self._header = b""

    def __call__(self, *, thorough: bool = True) -> int:
        """Give the number of changes so far. Without `thorough` a replaced file is noticed the next time."""
        # A fiftieth of what asking SQLite takes, and it is asked before each request.
        if not thorough and self._header and self._index[:_INDEX_HEADER_BYTES] == self._header:
            return self._count
        # `reading` without its two context managers, a third of the time that this takes.
        with self._database._guard:
            try:
                connection = self._database._connected()
                if connection is not self._connection:
                    self._connection = connection
                    self._index = _map_index(self._database._path + "-shm")
                # Before the version: what is changed in between is seen the next time.
                self._header = self._index[:_INDEX_HEADER_BYTES]
                (version,) = connection.execute("PRAGMA data_version").fetchone()
            except sqlite3.Error as error:
                raise _in_our_words(self._database._path, error) from error
            if self._seen != (connection, version):
                self._seen = connection, version
                self._count += 1
            return self._count

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
        self._connection = None
        self._seen = None
        self._header, self._index = b"", _NO_INDEX


# SQLite's file format, "WAL-index format": the header has a counter that each transaction, of any process, moves.
_INDEX_HEADER_BYTES = 48
_NO_INDEX: mmap.mmap | bytes = b""
# Open for good: closing one would take the locks that SQLite holds on the file in this process (POSIX, fcntl).
_indices: list[int] = []


def _map_index(path: str) -> mmap.mmap | bytes:
    """Map the WAL-index to read; nothing where there is none, and SQLite is asked each time."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return _NO_INDEX
    _indices.append(descriptor)
    try:
        return mmap.mmap(descriptor, _INDEX_HEADER_BYTES, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return _NO_INDEX


def connect(path: str) -> sqlite3.Connection:
    """Open a database that is there; never makes one."""
    # Percent-encoded byte by byte: a path may hold `?`, `#`, or bytes that are no UTF-8.
    quoted = "".join(f"%{byte:02x}" if byte in b"%?#" or byte >= 128 else chr(byte) for byte in os.fsencode(path))
    connection = sqlite3.connect(
        f"file:{quoted}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    # A column that is no UTF-8 any more must not hide the others.
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone leaves it in the drive's cache
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def check_version(connection: sqlite3.Connection, path: str) -> int:
    """Give the schema's version. Raises: ForeignStore, StoreTooNew."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID or version < 1:
        empty = os.path.getsize(path) == 0
        raise ForeignStore(
            f"{path} is {'empty' if empty else 'not a Valetkey database'}",
            hint="move it away, then put a backup back with `valetkey store restore`, or log in again",
        )
    if version > SCHEMA:
        raise StoreTooNew(
            f"{path} was written by a newer Valetkey (schema {version}; this one knows {SCHEMA})",
            hint="update Valetkey",
        )
    return int(version)


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Put SQLite's errors into our words."""
    try:
        yield
    except sqlite3.Error as error:
        raise _in_our_words(path, error) from error
    except UnicodeDecodeError as error:
        raise damaged(path) from error  # the name of a column
    except UnicodeEncodeError as error:
        # A lone surrogate: bytes of argv that are no UTF-8.
        raise InvalidName("a text holds what is no character", hint="use text in UTF-8") from error


def _in_our_words(path: str, error: sqlite3.Error) -> ForeignStore | StoreUnwritable:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnwritable(
            f"another process holds {path} too long", hint="end or continue the process that holds it, and try again"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreUnwritable(f"the disk of {path} is full", hint="free some space and try again")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StoreUnwritable(
            f"{path} cannot be written", hint="make the folder writable, or name another in VALETKEY_HOME"
        )
    if code == sqlite3.SQLITE_IOERR:
        return StoreUnwritable(f"reading or writing {path} failed", hint="check the disk and its free space")
    return damaged(path)


def damaged(path: str) -> ForeignStore:
    """Give the error for a file that SQLite or we cannot make sense of."""
    return ForeignStore(
        f"{path} is damaged or not a Valetkey database",
        hint="put a backup back with `valetkey store restore --force`; the damaged file is kept beside it",
    )
