"""The data keys: which one seals now, and how each is had from its source."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

from valetkey.errors import RecordDamaged, StoreLocked, WrongKey
from valetkey.stores.database import CHANGING, Database, damaged
from valetkey.stores.keysource import KeySource
from valetkey.stores.locks import ThreadLock, held
from valetkey.stores.seal import new_key

__all__ = ["DataKeys", "Sources", "new_key_id"]

# Gives the source of this kind, or for None the one that a new store shall have; the store's id comes second.
Sources = Callable[[str | None, str], KeySource]


def new_key_id() -> str:
    """Give a name for a data key."""
    return os.urandom(8).hex()


class DataKeys:
    """Unwraps each data key once in this process. Keys stay in memory until `forget`."""

    def __init__(self, database: Database, sources: Sources) -> None:
        self._database = database
        self._make_source = sources
        self._sources: dict[str, KeySource] = {}
        self._keys: dict[str, bytes] = {}
        self._unwrapping = ThreadLock()
        self._locked = False

    def ready(self) -> None:
        """See to it that a data key is there and open, outside of any transaction: it may ask for a passphrase."""
        with self._database.reading() as connection:
            row = _newest(connection)
        if row is None:
            self._check_unlocked()
            with held(self._database.paths.locks, CHANGING):
                self._make_first()
        elif row[0] not in self._keys:
            self.key(row[0])

    def newest(self, connection: sqlite3.Connection) -> tuple[str, bytes] | None:
        """Give the key that seals, inside a transaction; None when another process has put in one not open here."""
        row = _newest(connection)
        return (row[0], self._keys[row[0]]) if row is not None and row[0] in self._keys else None

    def key(self, key_id: str) -> bytes:
        """Give one data key. Raises: RecordDamaged when there is none of this id; StoreLocked, WrongKey."""
        if (known := self._keys.get(key_id)) is not None:
            return known
        with self._unwrapping:
            if key_id not in self._keys:
                self._check_unlocked()
                self._keys[key_id] = self._unwrap(key_id)
            return self._keys[key_id]

    def there(self, key_id: str) -> bool:
        """Say whether the store has a data key of this id; it is open then. Raises: StoreLocked, WrongKey."""
        try:
            self.key(key_id)
        except RecordDamaged:
            return False
        return True

    def source_kind(self) -> str | None:
        """Name the kind of source that the store has; None before the first login."""
        with self._database.reading() as connection:
            row = _newest(connection)
        return None if row is None else row[1]

    def source(self, kind: str | None) -> KeySource:
        """Give the source of this kind, or for None the one that a new store shall have."""
        for known in self._sources.values():
            if known.kind == kind:
                return known
        source = self._make_source(kind, self.store_id())
        return self._sources.setdefault(source.kind, source)

    def use(self, source: KeySource) -> None:
        """Take this one for its kind from now on."""
        self._sources[source.kind] = source

    def store_id(self) -> str:
        """Name the store: its entry in a keychain is called so."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT id FROM store").fetchone()
        if row is None:
            raise damaged(str(self._database.paths.database))
        return str(row[0])

    def forget(self) -> None:
        """Drop what is open."""
        self._keys.clear()
        self._sources.clear()

    @property
    def is_open(self) -> bool:
        """Whether what is stored now can be read without asking anybody; true of a store that has no key yet."""
        with self._database.reading() as connection:
            row = _newest(connection)
        return not self._locked if row is None else row[0] in self._keys

    def lock(self) -> None:
        """Drop what is open, and open nothing more in this process before `unlock`."""
        with self._unwrapping:
            self._locked = True
            self.forget()

    def unlock(self, source: KeySource | None = None) -> None:
        """Open the newest key, by `source` where one is given. Raises: StoreLocked, WrongKey; it is locked then."""
        if not self._locked and self.is_open:
            return
        self._locked = False
        try:
            if source is not None:
                self.use(source)
            if self.source_kind() is not None:
                self.ready()
        except BaseException:
            self.lock()
            raise

    def _check_unlocked(self) -> None:
        if self._locked:
            raise StoreLocked("the store is locked", hint="run `valetkey unlock`")

    def _make_first(self) -> None:
        with self._database.reading() as connection:
            if _newest(connection) is not None:
                return
        source, key_id, key = self.source(None), new_key_id(), new_key()
        wrapped = source.wrap(key, key_id)
        with self._database.writing() as connection:
            connection.execute(
                "INSERT INTO data_key (id, source, wrapped) VALUES (?, ?, ?)", (key_id, source.kind, wrapped)
            )
        self._keys[key_id] = key

    def _unwrap(self, key_id: str) -> bytes:
        source, wrapped = self._wrapped(key_id)
        try:
            return self.source(source).unwrap(wrapped, key_id)
        except (WrongKey, StoreLocked):
            again = self._wrapped(key_id)
            if again == (source, wrapped):
                raise
            # `rekey` or a change of source ended between the two readings.
            return self.source(again[0]).unwrap(again[1], key_id)

    def _wrapped(self, key_id: str) -> tuple[str, bytes]:
        with self._database.reading() as connection:
            row = connection.execute("SELECT source, wrapped FROM data_key WHERE id = ?", (key_id,)).fetchone()
        if row is None:
            raise RecordDamaged(
                "a stored record names a key that the store does not have",
                hint="log in again to replace it, or put a backup back with `valetkey store restore --force`",
            )
        return row[0], row[1]


def _newest(connection: sqlite3.Connection) -> tuple[str, str] | None:
    row: tuple[str, str] | None = connection.execute(
        "SELECT id, source FROM data_key ORDER BY serial DESC LIMIT 1"
    ).fetchone()
    return row
