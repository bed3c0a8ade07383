"""New keys for a store, and another source for them: killed at any step, all records stay readable.

All of it holds the lock `CHANGING`, so that only one process puts in data keys. Those that write records meanwhile
look inside their transaction which data key is the newest.
"""

from __future__ import annotations

from valetkey.errors import RecordDamaged
from valetkey.stores.database import CHANGING, Step, no_step
from valetkey.stores.datakeys import new_key_id
from valetkey.stores.keyfile import KeyFile
from valetkey.stores.keysource import KeySource
from valetkey.stores.locks import held
from valetkey.stores.seal import associated_data, new_key, seal, unseal
from valetkey.stores.sqlite import SqliteStore, document_associated

__all__ = ["change_source", "rekey"]

_BATCH = 200


def rekey(store: SqliteStore, *, step: Step = no_step) -> list[str]:
    """Give the store a new data key and its source a new key of its own; both old ones are forgotten at the end.

    Gives the names of records that could not be opened: they are left as they are, under their old data key.
    """
    store.keys.ready()
    with held(store.database.paths.locks, CHANGING):
        source = store.keys.source(store.source_kind())
        source.renew()
        step("source renewed")
        key_id = _put_new_key(store, source)
        step("new data key in place")
        damaged = _reseal_accounts(store, key_id, step) + _reseal_documents(store, key_id, step)
        with store.database.writing() as connection:
            connection.execute(
                "DELETE FROM data_key WHERE id != ?"
                " AND id NOT IN (SELECT key_id FROM account UNION SELECT key_id FROM document)",
                (key_id,),
            )
        step("old data keys deleted")
        source.retire()
        step("source retired its old key")
        with store.database.reading() as connection:
            # The old wrapped key would stay in the write-ahead log till that is written over.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return damaged


def change_source(store: SqliteStore, to: str | KeySource, *, step: Step = no_step) -> None:
    """Put the data keys under another source, then forget the old one's key.

    A kind gives the source that `open_store` was told about; a new passphrase comes as a `Passphrase` of its own.

    Raises: StoreLocked when either source does not answer; nothing has changed then.
    """
    store.keys.ready()
    with held(store.database.paths.locks, CHANGING):
        old = store.keys.source(store.source_kind())
        new = store.keys.source(to) if isinstance(to, str) else to
        if new.kind != old.kind or new is not old:
            wrapped = _wrapped_by(store, new)
            step("keys wrapped by the new source")
            with store.database.writing() as connection:
                connection.executemany("UPDATE data_key SET source = ?, wrapped = ? WHERE id = ?", wrapped)
            step("new source in place")
            store.keys.use(new)
            if new.kind != old.kind:
                old.discard()
        if new.kind != "key-file":
            # Left by a change that was killed here.
            KeyFile(str(store.database.paths.key_file)).discard()
        step("old source forgotten")


def _put_new_key(store: SqliteStore, source: KeySource) -> str:
    """Put in a data key that seals from now on, and the old ones under the source's new key."""
    again = _wrapped_by(store, source)
    key_id, key = new_key_id(), new_key()
    wrapped = source.wrap(key, key_id)
    with store.database.writing() as connection:
        connection.executemany("UPDATE data_key SET source = ?, wrapped = ? WHERE id = ?", again)
        connection.execute(
            "INSERT INTO data_key (id, source, wrapped) VALUES (?, ?, ?)", (key_id, source.kind, wrapped)
        )
    return key_id


def _wrapped_by(store: SqliteStore, source: KeySource) -> list[tuple[str, bytes, str]]:
    with store.database.reading() as connection:
        key_ids = [row[0] for row in connection.execute("SELECT id FROM data_key ORDER BY serial").fetchall()]
    return [(source.kind, source.wrap(store.keys.key(key_id), key_id), key_id) for key_id in key_ids]


def _reseal_accounts(store: SqliteStore, key_id: str, step: Step) -> list[str]:
    """Seal all accounts under the new key, a batch in a transaction, from one rowid on."""
    keys, after, damaged = _open_all(store), 0, list[str]()
    while True:
        with store.database.writing() as connection:
            found = connection.execute(
                "SELECT rowid, provider, account, generation, key_id, sealed FROM account"
                " WHERE key_id != ? AND rowid > ? ORDER BY rowid LIMIT ?",
                (key_id, after, _BATCH),
            ).fetchall()
            for rowid, provider, account, generation, old, sealed in found:
                try:
                    bound = associated_data("account", provider, account, generation, old)
                    opened = unseal(keys[old], sealed, bound)
                except (RecordDamaged, LookupError):
                    damaged.append(f"{provider}@{account}")
                    continue
                bound = associated_data("account", provider, account, generation, key_id)
                connection.execute(
                    "UPDATE account SET key_id = ?, sealed = ? WHERE rowid = ?",
                    (key_id, seal(keys[key_id], opened, bound), rowid),
                )
        if not found:
            return damaged
        after = found[-1][0]
        step("a batch of accounts sealed again")


def _reseal_documents(store: SqliteStore, key_id: str, step: Step) -> list[str]:
    keys, after, damaged = _open_all(store), 0, list[str]()
    while True:
        with store.database.writing() as connection:
            found = connection.execute(
                "SELECT rowid, kind, id, key_id, title, body FROM document"
                " WHERE key_id != ? AND rowid > ? ORDER BY rowid LIMIT ?",
                (key_id, after, _BATCH),
            ).fetchall()
            for rowid, kind, name, old, title, body in found:
                try:
                    parts = [
                        seal(
                            keys[key_id],
                            unseal(keys[old], sealed, document_associated(part, kind, name, old)),
                            document_associated(part, kind, name, key_id),
                        )
                        for part, sealed in (("title", title), ("body", body))
                    ]
                except (RecordDamaged, LookupError):
                    damaged.append(f"{kind} {name}")
                    continue
                connection.execute(
                    "UPDATE document SET key_id = ?, title = ?, body = ? WHERE rowid = ?", (key_id, *parts, rowid)
                )
        if not found:
            return damaged
        after = found[-1][0]
        step("a batch of documents sealed again")


def _open_all(store: SqliteStore) -> dict[str, bytes]:
    """Open every data key now: in a transaction nothing may be asked for."""
    with store.database.reading() as connection:
        key_ids = [row[0] for row in connection.execute("SELECT id FROM data_key").fetchall()]
    return {key_id: store.keys.key(key_id) for key_id in key_ids}
