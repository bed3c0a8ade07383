"""A store that keeps its records in this process: a small working Store for whatever needs one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from valetkey.clock import Clock
from valetkey.credential import Ambient, CredentialRef, Health, expires_at_of, issued_at_of
from valetkey.errors import GenerationConflict, NotLoggedIn
from valetkey.store import Account, Document, Intent, Record, Retry, Watch
from valetkey.stores.payload import kind_of, last_four_of
from valetkey.stores.sqlite import check_document_name

__all__ = ["MemoryLock", "MemoryStore"]


class MemoryLock:
    """A held lock."""

    def __init__(self, held: set[str], name: str) -> None:
        self._held = held
        self._name: str | None = name

    def release(self) -> None:
        """See Lock."""
        if self._name is not None:
            self._held.discard(self._name)
            self._name = None


class MemoryStore:
    """A valetkey.store.Store. It keeps the same promises but that of surviving the process."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.RLock()
        self._records: dict[CredentialRef, Record] = {}
        self._past: dict[CredentialRef, int] = {}
        self._defaults: dict[str, str] = {}
        self._intents: dict[CredentialRef, Intent] = {}
        self._settings: dict[str, str] = {}
        self._documents: dict[tuple[str, str], Document] = {}
        self._held: set[str] = set()
        self._changes = 0

    def load(self, ref: CredentialRef) -> Record | None:
        """See Store."""
        with self._guard:
            return self._records.get(ref)

    def save(self, record: Record) -> Record:
        """See Store."""
        ref, now = record.ref, self._clock.now()
        with self._guard:
            old = self._records.get(ref)
            if record.generation != (0 if old is None else old.generation):
                raise GenerationConflict(f"another process has saved {ref} first", hint="read the account again")
            credential = record.credential
            saved = replace(
                record,
                credential=credential.pointer() if isinstance(credential, Ambient) else credential,
                generation=(self._past.get(ref, 0) if old is None else old.generation) + 1,
                retry=None,
                created_at=now if old is None else old.created_at,
                updated_at=now,
            )
            self._changes += 1
            self._records[ref] = saved
            self._intents.pop(ref, None)
            if old is None:
                self._defaults.setdefault(ref.provider, ref.account)
            return replace(saved, credential=credential)

    def mark(
        self, ref: CredentialRef, *, generation: int, health: Health, reason: str = "", retry: Retry | None = None
    ) -> bool:
        """See Store."""
        with self._guard:
            old = self._records.get(ref)
            if old is None or old.generation != generation:
                return False
            self._changes += 1
            self._records[ref] = replace(old, health=health, reason=reason, retry=retry)
            return True

    def delete(self, ref: CredentialRef) -> bool:
        """See Store."""
        with self._guard:
            old = self._records.pop(ref, None)
            self._intents.pop(ref, None)
            if old is None:
                return False
            self._changes += 1
            self._past[ref] = old.generation
            if self._defaults.get(ref.provider) == ref.account:
                del self._defaults[ref.provider]
            return True

    def account(self, ref: CredentialRef) -> Account | None:
        """See Store."""
        with self._guard:
            record = self._records.get(ref)
            return None if record is None else self._public(record)

    def accounts(
        self, *, provider: str | None = None, after: CredentialRef | None = None, limit: int | None = None
    ) -> Sequence[Account]:
        """See Store."""
        with self._guard:
            found = [
                self._public(record)
                for ref, record in sorted(self._records.items(), key=lambda item: item[0])
                if (provider is None or ref.provider == provider) and (after is None or ref > after)
            ]
        return found if limit is None else found[:limit]

    def default_account(self, provider: str) -> str | None:
        """See Store."""
        with self._guard:
            return self._defaults.get(provider)

    def set_default_account(self, ref: CredentialRef) -> None:
        """See Store."""
        with self._guard:
            if ref not in self._records:
                raise NotLoggedIn(
                    f"no credential is stored for {ref}",
                    hint=f"run `valetkey login {ref.provider}`",
                    provider=ref.provider,
                )
            self._changes += 1
            self._defaults[ref.provider] = ref.account

    def try_lock(self, name: str) -> MemoryLock | None:
        """See Store."""
        with self._guard:
            if name in self._held:
                return None
            self._held.add(name)
            return MemoryLock(self._held, name)

    def begin_intent(self, ref: CredentialRef, intent: Intent) -> None:
        """See Store."""
        with self._guard:
            self._changes += 1
            self._intents[ref] = intent

    def intent(self, ref: CredentialRef) -> Intent | None:
        """See Store."""
        with self._guard:
            return self._intents.get(ref)

    def clear_intent(self, ref: CredentialRef, *, generation: int) -> None:
        """See Store."""
        with self._guard:
            intent = self._intents.get(ref)
            if intent is not None and intent.generation == generation:
                self._changes += 1
                del self._intents[ref]

    def setting(self, name: str) -> str | None:
        """See Store."""
        with self._guard:
            return self._settings.get(name)

    def set_setting(self, name: str, value: str | None) -> None:
        """See Store."""
        with self._guard:
            self._changes += 1
            if value is None:
                self._settings.pop(name, None)
            else:
                self._settings[name] = value

    def put_document(self, document: Document) -> None:
        """See Store."""
        check_document_name(document.kind, document.id)
        with self._guard:
            self._changes += 1
            self._documents[document.kind, document.id] = document

    def document(self, kind: str, id: str) -> Document | None:
        """See Store."""
        check_document_name(kind, id)
        with self._guard:
            return self._documents.get((kind, id))

    def documents(self, kind: str, *, limit: int = 50) -> Sequence[tuple[str, str, datetime]]:
        """See Store."""
        with self._guard:
            found = [document for document in self._documents.values() if document.kind == kind]
        found.sort(key=lambda document: document.id)
        found.sort(key=lambda document: document.updated_at, reverse=True)
        return [(document.id, document.title, document.updated_at) for document in found[:limit]]

    def delete_document(self, kind: str, id: str) -> bool:
        """See Store."""
        with self._guard:
            self._changes += 1
            return self._documents.pop((kind, id), None) is not None

    def watch(self) -> Watch:
        """See Store."""
        return lambda *, thorough=True: self._changes

    def close(self) -> None:
        """Let go of nothing."""

    def _public(self, record: Record) -> Account:
        credential = record.credential
        return Account(
            ref=record.ref,
            generation=record.generation,
            kind=kind_of(credential),
            method=credential.method,
            identity=record.identity,
            health=record.health,
            reason=record.reason,
            hint=last_four_of(credential),
            issued_at=issued_at_of(credential),
            expires_at=expires_at_of(credential),
            created_at=record.created_at or self._clock.now(),
            updated_at=record.updated_at or self._clock.now(),
            is_default=self._defaults.get(record.ref.provider) == record.ref.account,
        )
