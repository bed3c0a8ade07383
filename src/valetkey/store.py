"""The Store protocol: records, compare-and-swap, lock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from valetkey.credential import Credential, CredentialRef, Health, Identity

__all__ = ["Account", "Document", "Intent", "Lock", "Record", "Retry", "Store", "Watch"]


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How often the renewal has failed in a row, and when it may be tried again."""

    failures: int
    not_before: datetime


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A renewal that was about to be sent. It counts only for its own generation.

    `refresh_token_hash` is the hex SHA-256 of the token that it spends.
    """

    generation: int
    started_at: datetime
    refresh_token_hash: str


@dataclass(frozen=True, kw_only=True)
class Account:
    """The public columns of a record: what `list` shows without opening anything."""

    ref: CredentialRef
    generation: int
    kind: str
    method: str
    identity: Identity
    health: Health
    reason: str
    hint: str
    issued_at: datetime | None
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime
    is_default: bool


@dataclass(frozen=True, kw_only=True)
class Record:
    """One account as it is stored. `hosts`, `endpoints` and `base_url` are sealed: they decide where it may go.

    `hosts` are those of the API; `endpoints` those that renew, exchange or revoke (`inject.endpoint_hosts`).

    `restricted` is sealed too: the login may serve only what its declaration says. `generation` 0 has not been
    saved; `save` gives the next one. `hint` is the secret's last four, for a person to tell two apart.
    """

    ref: CredentialRef
    credential: Credential
    identity: Identity = Identity()
    hosts: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    base_url: str = ""
    restricted: bool = False
    health: Health = Health.OK
    reason: str = ""
    retry: Retry | None = None
    generation: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """A sealed piece of JSON text beside the accounts: a conversation, a list of models."""

    kind: str
    id: str
    title: str
    body: str
    updated_at: datetime


class Lock(Protocol):
    """A held lock. The kernel frees it when its holder dies; age never breaks it."""

    def release(self) -> None:
        """Let it go. Releasing twice is harmless."""
        ...


class Watch(Protocol):
    """Gives another number once anybody, in any process, has changed the store. For one thread."""

    def __call__(self, *, thorough: bool = True) -> int:
        """Give the number. Without `thorough`, which costs half, a file that was replaced is noticed the next time."""
        ...


class Store(Protocol):
    """Keeps records. All calls are plain, short and safe from any thread or process.

    Every call may raise StoreLocked, WrongKey, ForeignStore, StoreTooNew, StoreUnwritable or WrongMode.
    """

    def load(self, ref: CredentialRef) -> Record | None:
        """Give the newest generation, opened. Raises: RecordDamaged."""
        ...

    def save(self, record: Record) -> Record:
        """Write it as generation `record.generation + 1`, durable on return; clears intent and retry in the same step.

        Where the provider has no default account, a new one becomes it. A deleted account goes on counting, so
        that a writer from before cannot land on the new login. Raises: GenerationConflict when `record.generation` is
        not the newest (0: when the account is there already).
        """
        ...

    def mark(
        self, ref: CredentialRef, *, generation: int, health: Health, reason: str = "", retry: Retry | None = None
    ) -> bool:
        """Set health, reason and retry of that generation; False, with nothing written, when it is not the newest."""
        ...

    def delete(self, ref: CredentialRef) -> bool:
        """Remove the account with its intent and default; False when there was none."""
        ...

    def account(self, ref: CredentialRef) -> Account | None:
        """Give one account's public columns."""
        ...

    def accounts(
        self, *, provider: str | None = None, after: CredentialRef | None = None, limit: int | None = None
    ) -> Sequence[Account]:
        """Give public columns in order of provider and account, from behind `after`."""
        ...

    def default_account(self, provider: str) -> str | None:
        """Give the name of the provider's default account."""
        ...

    def set_default_account(self, ref: CredentialRef) -> None:
        """Make it its provider's default. Raises: NotLoggedIn when there is no such account."""
        ...

    def try_lock(self, name: str) -> Lock | None:
        """Take the renewal lock of this name (a ref, or a client id); None when it is held. No fork while it is."""
        ...

    def begin_intent(self, ref: CredentialRef, intent: Intent) -> None:
        """Write, durable on return, that a renewal is about to be sent."""
        ...

    def intent(self, ref: CredentialRef) -> Intent | None:
        """Give the intent that nobody has cleared."""
        ...

    def clear_intent(self, ref: CredentialRef, *, generation: int) -> None:
        """Take back an intent of which it is known that the server did not act on it."""
        ...

    def setting(self, name: str) -> str | None:
        """Give a small public value (`default_model`)."""
        ...

    def set_setting(self, name: str, value: str | None) -> None:
        """Keep a small public value; None removes it."""
        ...

    def put_document(self, document: Document) -> None:
        """Seal and keep it in place of any of the same kind and id. Raises: InvalidName."""
        ...

    def document(self, kind: str, id: str) -> Document | None:
        """Open one."""
        ...

    def documents(self, kind: str, *, limit: int = 50) -> Sequence[tuple[str, str, datetime]]:
        """Give (id, title, updated_at), newest first. Titles are sealed too; one that is damaged reads `(damaged)`."""
        ...

    def delete_document(self, kind: str, id: str) -> bool:
        """Remove one."""
        ...

    def watch(self) -> Watch:
        """Give a function that gives another number once anybody, in any process, has committed a change.

        It takes microseconds, so that it can be asked often, and opens no record. Now and then it gives another number
        where nothing was changed.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
