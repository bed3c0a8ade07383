"""SqliteStore: a Store in one SQLite file, each record sealed, its public fields in columns."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from valetkey.clock import Clock
from valetkey.credential import CredentialRef, Health
from valetkey.errors import GenerationConflict, InvalidName, NotLoggedIn, RecordDamaged
from valetkey.store import Account, Document, Intent, Record, Retry
from valetkey.stores import rows
from valetkey.stores.database import Database, Watch
from valetkey.stores.datakeys import DataKeys
from valetkey.stores.locks import FileLock, try_lock
from valetkey.stores.payload import payload_of, time_to
from valetkey.stores.rows import Row, pair
from valetkey.stores.seal import associated_data, seal, unseal

__all__ = ["SqliteStore", "check_document_name", "document_associated"]

_PUBLIC = (
    "a.provider, a.account, a.generation, a.kind, a.method, a.account_id, a.name, a.email, a.plan, a.health, a.reason,"
    " a.hint, a.issued_at, a.expires_at, a.created_at, a.updated_at, d.account IS NOT NULL AS is_default"
)
_STORED = (
    "account_id, name, email, plan, health, reason, failures, not_before, generation, created_at, updated_at,"
    " key_id, sealed"
)
_WITH_DEFAULT = "account a LEFT JOIN default_account d ON d.provider = a.provider AND d.account = a.account"
_DOCUMENT_KIND = re.compile(r"[a-z][a-z0-9-]{0,63}\Z")
_DOCUMENT_ID = re.compile(r"[^|\x00-\x1f\x7f\ud800-\udfff]{1,512}\Z")


class SqliteStore:
    """A Store in `valetkey.db`. One object serves all threads, and a forked child."""

    def __init__(self, database: Database, keys: DataKeys, clock: Clock) -> None:
        self.database = database
        self.keys = keys
        self._clock = clock
        self._watches: list[Watch] = []

    # --- what is the key source, for `login`, `doctor` and `store` -------------------------------

    def source_kind(self) -> str | None:
        """Name the kind of key source; None before the first login."""
        return self.keys.source_kind()

    def notice(self) -> str:
        """Say what the user should know about the key source; nothing where all is well or nothing is stored yet."""
        kind = self.keys.source_kind()
        return "" if kind is None else self.keys.source(kind).notice()

    # --- accounts --------------------------------------------------------------------------------

    def load(self, ref: CredentialRef) -> Record | None:
        """Give the newest generation, opened. Raises: RecordDamaged."""
        sql = f"SELECT {_STORED} FROM account WHERE provider = ? AND account = ?"  # noqa: S608 - our names
        found = self._sealed_rows(sql, pair(ref))
        if not found:
            return None
        row = found[0]
        associated = associated_data("account", ref.provider, ref.account, row["generation"], row["key_id"])
        return rows.record_from(ref, row, unseal(self.keys.key(row["key_id"]), row["sealed"], associated))

    def save(self, record: Record) -> Record:
        """Write it as the next generation, durable on return; clears intent and retry in the same step.

        It replaces exactly the generation that it names, readable or not: a renewal has read what it replaces, and a
        new login says which one it replaces with `account(ref).generation`.

        Raises: GenerationConflict when `record.generation` is not the newest (0: when the account is there already).
        """
        plaintext, now = payload_of(record), self._clock.now()
        while True:
            self.keys.ready()
            with self.database.writing() as connection:
                newest = self.keys.newest(connection)
                if newest is not None:
                    return self._write(connection, record, plaintext, newest, now)

    def _write(
        self, connection: sqlite3.Connection, record: Record, plaintext: bytes, key: tuple[str, bytes], now: datetime
    ) -> Record:
        ref = record.ref
        generation, created_at = _next_generation(connection, record)
        key_id, data_key = key
        associated = associated_data("account", ref.provider, ref.account, generation, key_id)
        saved = replace(
            record,
            generation=generation,
            retry=None,
            created_at=created_at or now,
            updated_at=now,
        )
        row = rows.columns_of(saved) | {"key_id": key_id, "sealed": seal(data_key, plaintext, associated)}
        names = ", ".join(row)
        places = ", ".join(f":{name}" for name in row)
        connection.execute(f"INSERT OR REPLACE INTO account ({names}) VALUES ({places})", row)  # noqa: S608 - our names
        connection.execute("DELETE FROM intent WHERE provider = ? AND account = ?", pair(ref))
        connection.execute("DELETE FROM past WHERE provider = ? AND account = ?", pair(ref))
        if created_at is None:
            connection.execute("INSERT OR IGNORE INTO default_account VALUES (?, ?)", pair(ref))
        return saved

    def mark(
        self, ref: CredentialRef, *, generation: int, health: Health, reason: str = "", retry: Retry | None = None
    ) -> bool:
        """Set health, reason and retry of that generation; False, with nothing written, when it is not the newest."""
        failures, not_before = (retry.failures, time_to(retry.not_before)) if retry else (None, None)
        with self.database.writing() as connection:
            done = connection.execute(
                "UPDATE account SET health = ?, reason = ?, failures = ?, not_before = ?"
                " WHERE provider = ? AND account = ? AND generation = ?",
                (health.value, reason, failures, not_before, *pair(ref), generation),
            )
            return done.rowcount == 1

    def delete(self, ref: CredentialRef) -> bool:
        """Remove the account with its intent and default; False when there was none."""
        with self.database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO past SELECT provider, account, generation FROM account"
                " WHERE provider = ? AND account = ?",
                pair(ref),
            )
            done = connection.execute("DELETE FROM account WHERE provider = ? AND account = ?", pair(ref))
            connection.execute("DELETE FROM intent WHERE provider = ? AND account = ?", pair(ref))
            connection.execute("DELETE FROM default_account WHERE provider = ? AND account = ?", pair(ref))
            return done.rowcount == 1

    def account(self, ref: CredentialRef) -> Account | None:
        """Give one account's public columns."""
        sql = f"SELECT {_PUBLIC} FROM {_WITH_DEFAULT} WHERE a.provider = ? AND a.account = ?"  # noqa: S608 - our names
        with self.database.reading() as connection:
            found = rows.named(connection.execute(sql, pair(ref)))
        return rows.account_from(found[0]) if found else None

    def accounts(
        self, *, provider: str | None = None, after: CredentialRef | None = None, limit: int | None = None
    ) -> Sequence[Account]:
        """Give public columns in order of provider and account, from behind `after`."""
        conditions, values = [], list[object]()
        if provider is not None:
            conditions.append("a.provider = ?")
            values.append(provider)
        if after is not None:
            conditions.append("(a.provider, a.account) > (?, ?)")
            values += pair(after)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = (
            f"SELECT {_PUBLIC} FROM {_WITH_DEFAULT}{where}"  # noqa: S608 - our names
            " ORDER BY a.provider, a.account LIMIT ?"
        )
        with self.database.reading() as connection:
            found = rows.named(connection.execute(sql, (*values, -1 if limit is None else limit)))
        return [account for row in found if (account := rows.account_from(row)) is not None]

    def default_account(self, provider: str) -> str | None:
        """Give the name of the provider's default account."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT account FROM default_account WHERE provider = ?", (provider,)).fetchone()
        return None if row is None else str(row[0])

    def set_default_account(self, ref: CredentialRef) -> None:
        """Make it its provider's default. Raises: NotLoggedIn when there is no such account."""
        with self.database.writing() as connection:
            done = connection.execute(
                "INSERT OR REPLACE INTO default_account"
                " SELECT provider, account FROM account WHERE provider = ? AND account = ?",
                pair(ref),
            )
            if done.rowcount != 1:
                raise NotLoggedIn(
                    f"no credential is stored for {ref}",
                    hint=f"run `valetkey login {ref.provider} --account {ref.account}`",
                    provider=ref.provider,
                )

    # --- renewals --------------------------------------------------------------------------------

    def try_lock(self, name: str) -> FileLock | None:
        """Take the renewal lock of this name; None when it is held. No fork while it is."""
        return try_lock(self.database.paths.locks, name)

    def begin_intent(self, ref: CredentialRef, intent: Intent) -> None:
        """Write, durable on return, that a renewal is about to be sent."""
        with self.database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO intent VALUES (?, ?, ?, ?, ?)",
                (*pair(ref), intent.generation, time_to(intent.started_at), intent.refresh_token_hash),
            )

    def intent(self, ref: CredentialRef) -> Intent | None:
        """Give the intent that nobody has cleared."""
        with self.database.reading() as connection:
            found = rows.named(
                connection.execute(
                    "SELECT generation, started_at, refresh_token_hash FROM intent WHERE provider = ? AND account = ?",
                    pair(ref),
                )
            )
        return rows.intent_from(ref, found[0]) if found else None

    def clear_intent(self, ref: CredentialRef, *, generation: int) -> None:
        """Take back an intent of which it is known that the server did not act on it."""
        with self.database.writing() as connection:
            connection.execute(
                "DELETE FROM intent WHERE provider = ? AND account = ? AND generation = ?", (*pair(ref), generation)
            )

    # --- settings and documents ------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        """Give a small public value (`default_model`)."""
        with self.database.reading() as connection:
            row = connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_setting(self, name: str, value: str | None) -> None:
        """Keep a small public value; None removes it."""
        with self.database.writing() as connection:
            if value is None:
                connection.execute("DELETE FROM setting WHERE name = ?", (name,))
            else:
                connection.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    def put_document(self, document: Document) -> None:
        """Seal and keep it in place of any of the same kind and id. Raises: InvalidName."""
        check_document_name(document.kind, document.id)
        while True:
            self.keys.ready()
            with self.database.writing() as connection:
                newest = self.keys.newest(connection)
                if newest is None:
                    continue
                key_id, key = newest
                parts = [
                    seal(key, text.encode(), document_associated(part, document.kind, document.id, key_id))
                    for part, text in (("title", document.title), ("body", document.body))
                ]
                connection.execute(
                    "INSERT OR REPLACE INTO document (kind, id, updated_at, key_id, title, body)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (document.kind, document.id, time_to(document.updated_at), key_id, *parts),
                )
                return

    def document(self, kind: str, id: str) -> Document | None:
        """Open one. Raises: InvalidName, RecordDamaged."""
        check_document_name(kind, id)
        found = self._sealed_rows(
            "SELECT updated_at, key_id, title, body FROM document WHERE kind = ? AND id = ?", (kind, id)
        )
        if not found:
            return None
        (row,) = found
        return Document(
            kind=kind,
            id=id,
            title=self._open_part("title", kind, id, row),
            body=self._open_part("body", kind, id, row),
            updated_at=rows.document_time(kind, id, row["updated_at"]),
        )

    def documents(self, kind: str, *, limit: int = 50) -> Sequence[tuple[str, str, datetime]]:
        """Give (id, title, updated_at), newest first. A title that cannot be opened reads `(damaged)`."""
        found = self._sealed_rows(
            "SELECT id, updated_at, key_id, title FROM document WHERE kind = ? ORDER BY updated_at DESC, id LIMIT ?",
            (kind, limit),
        )
        return [(row["id"], self._title_or_mark(kind, row), rows.time_or_never(row["updated_at"])) for row in found]

    def delete_document(self, kind: str, id: str) -> bool:
        """Remove one."""
        with self.database.writing() as connection:
            done = connection.execute("DELETE FROM document WHERE kind = ? AND id = ?", (kind, id))
            return done.rowcount == 1

    def watch(self) -> Watch:
        """Give a function that gives another number once anybody, in any process, has committed a change."""
        self._watches.append(Watch(Database(self.database.paths)))
        return self._watches[-1]

    def close(self) -> None:
        """Let go of files, connections and keys."""
        for watch in self._watches:
            watch.close()
        self.database.close()
        self.keys.forget()

    def _sealed_rows(self, sql: str, values: tuple[object, ...]) -> list[Row]:
        """Give rows whose data keys are open; reads again when `rekey` ended in between."""
        for _ in range(2):
            with self.database.reading() as connection:
                found = rows.named(connection.execute(sql, values))
            if all(self.keys.there(key_id) for key_id in {row["key_id"] for row in found}):
                break
        return found

    def _open_part(self, part: str, kind: str, id: str, row: Row) -> str:
        associated = document_associated(part, kind, id, row["key_id"])
        return unseal(self.keys.key(row["key_id"]), row[part], associated).decode()

    def _title_or_mark(self, kind: str, row: Row) -> str:
        try:
            return self._open_part("title", kind, row["id"], row)
        except RecordDamaged:
            return "(damaged)"


def document_associated(part: str, kind: str, id: str, key_id: str) -> bytes:
    """Give what the title or the body of a document is bound to."""
    return associated_data(f"document-{part}", kind, id, 0, key_id)


def check_document_name(kind: str, id: str) -> None:
    """Refuse what could not be told apart in the associated data. Raises: InvalidName."""
    if not _DOCUMENT_KIND.match(kind) or not _DOCUMENT_ID.match(id):
        raise InvalidName(
            f"{kind[:20]!r} {id[:40]!r} is not the name of a document",
            hint="use lower-case letters and hyphens for the kind, and an id without control characters or `|`",
        )


def _next_generation(connection: sqlite3.Connection, record: Record) -> tuple[int, datetime | None]:
    """Give the generation to write and, of an account that is there, when it was made."""
    ref = record.ref
    row = connection.execute(
        "SELECT generation, created_at FROM account WHERE provider = ? AND account = ?", pair(ref)
    ).fetchone()
    if (0 if row is None else row[0]) != record.generation:
        raise GenerationConflict(
            f"another process has saved {ref} first",
            hint="read the account again and use what is stored now",
            provider=ref.provider,
        )
    if row is not None:
        return row[0] + 1, rows.time_or_never(row[1])
    past = connection.execute("SELECT generation FROM past WHERE provider = ? AND account = ?", pair(ref)).fetchone()
    return (1 if past is None else past[0] + 1), None
