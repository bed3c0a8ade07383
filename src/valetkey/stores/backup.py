"""Backups: the whole store in one file that a passphrase opens, on any machine.

The file is a line that names it, one byte of scrypt's cost, 16 bytes of salt, then AES-256-GCM over the data keys
(JSON, its length before it in four bytes) and a snapshot of the database.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from valetkey.clock import Clock
from valetkey.config import Paths
from valetkey.credential import Secret
from valetkey.errors import BackupFailed, ForeignStore, RecordDamaged, StoreTooNew, WrongKey
from valetkey.stores import modes
from valetkey.stores.database import CHANGING, Step, check_version, connect, no_step, translated
from valetkey.stores.keysource import KeySource
from valetkey.stores.locks import held
from valetkey.stores.migrations import migrate
from valetkey.stores.passphrase import LOG_N, derive
from valetkey.stores.seal import KEY_BYTES, seal, unseal
from valetkey.stores.sqlite import SqliteStore

__all__ = ["backup", "restore"]

_MAGIC = b"valetkey-backup 1\n"
_SALT_BYTES = 16


def backup(store: SqliteStore, path: Path, passphrase: Secret, *, log_n: int = LOG_N, step: Step = no_step) -> None:
    """Write the store to a new file of mode 0600, whole or not at all.

    Raises: BackupFailed when the file is there already, or the passphrase is empty; StoreUnwritable.
    """
    if os.path.lexists(path):
        raise BackupFailed(f"{path} is there already", hint="name a new file")
    if not passphrase:
        raise BackupFailed("the passphrase is empty", hint="give the backup a passphrase")
    with store.database.reading() as connection:
        connection.execute("BEGIN")
        try:
            key_ids = [row[0] for row in connection.execute("SELECT id FROM data_key ORDER BY serial").fetchall()]
            image = connection.serialize()
        finally:
            connection.execute("ROLLBACK")
    keys = json.dumps({key_id: b2a_base64(store.keys.key(key_id)).decode() for key_id in key_ids}).encode()
    head = _MAGIC + bytes([log_n]) + os.urandom(_SALT_BYTES)
    key = derive(passphrase, head[-_SALT_BYTES:], log_n)
    content = head + seal(key, struct.pack(">I", len(keys)) + keys + image, head)
    fresh = f"{path}.{os.getpid()}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    modes.create_file(fresh, content)
    step("backup written")
    os.rename(fresh, path)
    modes.sync_folder(str(Path(path).parent))
    step("backup in place")


def restore(
    paths: Paths,
    path: Path,
    passphrase: Secret,
    *,
    clock: Clock,
    sources: Callable[[str | None, str], KeySource],
    force: bool = False,
    step: Step = no_step,
) -> Path | None:
    """Put a backup in place; gives where the store that was there has been put aside.

    An old store keeps its key source, a new one gets `sources(None, …)`. Killed at any step, the old store or the
    restored one is there. Other processes see the restored one at their next call.

    Raises: BackupFailed for a wrong passphrase, a damaged file, or a store that is there without `force`; StoreTooNew.
    """
    keys, image = _read(path, passphrase)
    modes.own_folder(str(paths.home))
    with held(paths.locks, CHANGING), translated(str(path)):
        there = modes.check_file(str(paths.database))
        if there and not force:
            raise BackupFailed(
                f"there is a store in {paths.home} already",
                hint="add --force to put it aside, or name another folder in VALETKEY_HOME",
            )
        kind, store_id = _identity_of(paths.database) if there else (None, None)
        fresh = Path(f"{paths.database}.restored")
        _remove(fresh)
        modes.create_file(str(fresh), image)
        step("image written")
        with closing(connect(str(fresh))) as connection:
            _adopt(connection, fresh, keys, kind, store_id, sources, step)
        step("image has its key source")
        aside = _put_in_place(paths.database, fresh, there, store_id is not None, clock, step)
        _remove(fresh)
        modes.sync_folder(str(paths.home))
        step("restored")
        return aside


def _read(path: Path, passphrase: Secret) -> tuple[dict[str, bytes], bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BackupFailed(f"{path} cannot be read: {(error.strerror or '').lower()}", hint="check the path") from error
    head = content[: len(_MAGIC) + 1 + _SALT_BYTES]
    if not head.startswith(_MAGIC) or len(head) < len(_MAGIC) + 1 + _SALT_BYTES:
        raise BackupFailed(
            f"{path} is not a backup that this version knows", hint="name a file that `valetkey store backup` wrote"
        )
    try:
        key = derive(passphrase, head[-_SALT_BYTES:], head[len(_MAGIC)])
        opened = unseal(key, content[len(head) :], head)
        (length,) = struct.unpack_from(">I", opened)
        keys = {name: a2b_base64(text) for name, text in json.loads(opened[4 : 4 + length]).items()}
    except (RecordDamaged, WrongKey, ValueError, struct.error):
        raise BackupFailed(
            f"{path} does not open: another passphrase, or the file is damaged", hint="try again, or another backup"
        ) from None
    return {name: key for name, key in keys.items() if len(key) == KEY_BYTES}, opened[4 + length :]


def _identity_of(database: Path) -> tuple[str | None, str | None]:
    """Give the key source's kind and the id of a store; None for both when it is not one that we can read."""
    try:
        with closing(connect(str(database))) as connection:
            check_version(connection, str(database))
            source = connection.execute("SELECT source FROM data_key ORDER BY serial DESC LIMIT 1").fetchone()
            (store_id,) = connection.execute("SELECT id FROM store").fetchone()
            return (None if source is None else source[0]), store_id
    except (sqlite3.DatabaseError, UnicodeDecodeError, TypeError, ForeignStore, StoreTooNew):
        return None, None


def _adopt(
    connection: sqlite3.Connection,
    image: Path,
    keys: dict[str, bytes],
    kind: str | None,
    store_id: str | None,
    sources: Callable[[str | None, str], KeySource],
    step: Step,
) -> None:
    """Bring the image to this version and its data keys under this machine's key source."""
    check_version(connection, str(image))
    migrate(connection, step=step)
    if connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
        raise BackupFailed("the backup holds a damaged database", hint="try another backup")
    if store_id is not None:
        connection.execute("UPDATE store SET id = ?", (store_id,))
    (store_id,) = connection.execute("SELECT id FROM store").fetchone()
    if not keys:
        return
    source = sources(kind, str(store_id))
    wrapped = [(source.kind, source.wrap(key, key_id), key_id) for key_id, key in keys.items()]
    step("keys wrapped")
    connection.executemany("UPDATE data_key SET source = ?, wrapped = ? WHERE id = ?", wrapped)


def _put_in_place(database: Path, fresh: Path, there: bool, readable: bool, clock: Clock, step: Step) -> Path | None:
    if not there:
        os.rename(fresh, database)
        return None
    aside = Path(f"{database}.{clock.now():%Y%m%dT%H%M%SZ}.{os.urandom(2).hex()}.aside")
    if not readable:
        # Its log goes first: left behind, it would be taken for the restored one's.
        for end in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.rename(f"{database}{end}", f"{aside}{end}")
        os.link(database, aside)
        step("old store put aside")
        os.rename(fresh, database)
        return aside
    modes.create_file(str(aside))
    with (
        closing(connect(str(database))) as old,
        closing(connect(str(aside))) as copy,
        closing(connect(str(fresh))) as new,
    ):
        old.backup(copy)
        step("old store put aside")
        # Into the file that is there, as one transaction: whoever has it open goes on with the restored records.
        new.backup(old)
    return aside


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            os.unlink(f"{path}{end}")
