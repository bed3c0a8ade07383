"""Rows of the tables as values, and back. A row of any other shape is RecordDamaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from valetkey.credential import CredentialRef, Health, Identity, expires_at_of, issued_at_of
from valetkey.errors import InvalidName, RecordDamaged
from valetkey.store import Account, Intent, Record, Retry
from valetkey.stores.payload import kind_of, last_four_of, read_payload, time_from, time_to

__all__ = [
    "Row",
    "account_from",
    "columns_of",
    "document_time",
    "intent_from",
    "named",
    "pair",
    "record_from",
    "time_of",
    "time_or_never",
]

Row = dict[str, Any]

_NEVER = datetime.fromtimestamp(0, UTC)


def pair(ref: CredentialRef) -> tuple[str, str]:
    """Give a ref as two values."""
    return ref.provider, ref.account


def named(cursor: sqlite3.Cursor) -> list[Row]:
    """Give all rows with their columns' names."""
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def columns_of(record: Record) -> Row:
    """Give the public columns of a record that is about to be written: no retry, times and generation set."""
    credential, identity = record.credential, record.identity
    # What an ambient source gave is never stored, its times neither.
    ambient = kind_of(credential) == "ambient"
    return {
        "provider": record.ref.provider,
        "account": record.ref.account,
        "generation": record.generation,
        "kind": kind_of(credential),
        "method": credential.method,
        "account_id": _text(identity.account_id),
        "name": _text(identity.name),
        "email": _text(identity.email),
        "plan": _text(identity.plan),
        "health": record.health.value,
        "reason": _text(record.reason),
        "hint": _text(last_four_of(credential)),
        "issued_at": None if ambient else time_to(issued_at_of(credential)),
        "expires_at": None if ambient else time_to(expires_at_of(credential)),
        "created_at": time_to(record.created_at),
        "updated_at": time_to(record.updated_at),
    }


def record_from(ref: CredentialRef, row: Row, plaintext: bytes) -> Record:
    """Give a record from its columns and what was sealed. Raises: RecordDamaged."""
    credential, hosts, endpoints, base_url, restricted = read_payload(plaintext)
    with _naming(ref):
        return Record(
            ref=ref,
            credential=credential,
            identity=_identity(row),
            hosts=hosts,
            endpoints=endpoints,
            base_url=base_url,
            restricted=restricted,
            health=Health(row["health"]),
            reason=row["reason"],
            retry=_retry(row),
            generation=row["generation"],
            created_at=time_of(row["created_at"]),
            updated_at=time_of(row["updated_at"]),
        )


def account_from(row: Row) -> Account | None:
    """Give an account from its public columns: of unknown health where they are damaged, None where its name is."""
    try:
        ref = CredentialRef(provider=row["provider"], account=row["account"])
    except (InvalidName, TypeError):
        return None
    try:
        return _account(ref, row, Health(row["health"]), row["reason"], time_of(row["created_at"]))
    except (ValueError, TypeError):
        blank = row | {"issued_at": None, "expires_at": None, "updated_at": time_to(_NEVER)}
        return _account(ref, blank, Health.UNKNOWN, "the record is damaged", _NEVER)


def _account(ref: CredentialRef, row: Row, health: Health, reason: str, created_at: datetime) -> Account:
    return Account(
        ref=ref,
        generation=row["generation"],
        kind=row["kind"],
        method=row["method"],
        identity=_identity(row),
        health=health,
        reason=reason,
        hint=row["hint"],
        issued_at=time_from(row["issued_at"]),
        expires_at=time_from(row["expires_at"]),
        created_at=created_at,
        updated_at=time_of(row["updated_at"]),
        is_default=bool(row["is_default"]),
    )


def intent_from(ref: CredentialRef, row: Row) -> Intent:
    """Give an intent. Raises: RecordDamaged."""
    with _naming(ref):
        return Intent(
            generation=row["generation"],
            started_at=time_of(row["started_at"]),
            refresh_token_hash=row["refresh_token_hash"],
        )


def _text(value: str | None) -> str | None:
    """Give what a column can hold: JSON may bring lone surrogates, which are no characters."""
    return None if value is None else value.encode("utf-8", "replace").decode()


def time_of(text: str) -> datetime:
    """Read a time that must be there. Raises: ValueError, TypeError."""
    time = time_from(text)
    if time is None:
        raise ValueError("no time")
    return time


def time_or_never(text: str) -> datetime:
    """Read a time that must be there; 1970 where it is damaged."""
    try:
        return time_of(text)
    except (ValueError, TypeError):
        return _NEVER


def document_time(kind: str, name: str, text: str) -> datetime:
    """Read a document's time. Raises: RecordDamaged."""
    try:
        return time_of(text)
    except (ValueError, TypeError) as error:
        raise _damaged(f"the columns of {kind} {name} hold what no column may hold") from error


def _identity(row: Row) -> Identity:
    return Identity(account_id=row["account_id"], name=row["name"], email=row["email"], plan=row["plan"])


def _retry(row: Row) -> Retry | None:
    if row["failures"] is None:
        return None
    return Retry(failures=row["failures"], not_before=time_of(row["not_before"]))


@contextmanager
def _naming(ref: CredentialRef) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        raise _damaged(f"the columns of {ref} hold what no column may hold") from error


def _damaged(message: str) -> RecordDamaged:
    return RecordDamaged(
        message, hint="log in again to replace it, or put a backup back with `valetkey store restore --force`"
    )
