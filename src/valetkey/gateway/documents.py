"""Reads what the gateway keeps in the store's documents, and nothing that it did not write: else ValueError."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar

from valetkey.credential import CredentialRef
from valetkey.errors import RecordDamaged
from valetkey.gateway.limits import Limits
from valetkey.store import Document, Store

__all__ = ["each", "limits_in", "ref_in", "text_in", "texts_in", "time_in"]


T = TypeVar("T")
_EVERY = 1_000_000


def each(store: Store, kind: str, read: Callable[[Document], T]) -> Iterator[tuple[str, T | RecordDamaged]]:
    """Give the id of every document of a kind and what `read` makes of it; in place of one that is damaged the error.

    Newest first, as the store has it. Raises: StoreError.
    """
    for name, _, _ in store.documents(kind, limit=_EVERY):
        try:
            document = store.document(kind, name)
            if document is not None:  # else it was deleted in between
                yield name, read(document)
        except RecordDamaged as damaged:
            yield name, damaged


def ref_in(text: str) -> CredentialRef:
    """Read `provider@account`. Raises: InvalidName."""
    provider, _, account = text.partition("@")
    return CredentialRef(provider=provider, account=account)


def limits_in(value: object) -> Limits:
    """Read limits. Raises: TypeError, for a field of another version."""
    if not isinstance(value, dict) or not all(v is None or (type(v) is int and v > 0) for v in value.values()):
        raise ValueError
    return Limits(**value)


def text_in(value: object) -> str:
    """Read a text."""
    if not isinstance(value, str):
        raise ValueError
    return value


def texts_in(value: object) -> tuple[str, ...]:
    """Read a list of texts."""
    if not isinstance(value, list):
        raise ValueError
    return tuple(text_in(text) for text in value)


def time_in(value: object) -> datetime | None:
    """Read a moment, which has its zone."""
    if value is None:
        return None
    when = datetime.fromisoformat(text_in(value))
    if when.tzinfo is None:
        raise ValueError
    return when
