"""One renewal of one account: lock, look again, write the intent, send, save.

docs/broker.md has its states as a table.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta

from valetkey.clock import Clock
from valetkey.credential import Credential, CredentialRef, ExchangedKey, Health, OAuthToken, login_command
from valetkey.errors import (
    GenerationConflict,
    HostsNotAccepted,
    NeedsLogin,
    NotLoggedIn,
    RefreshBusy,
    RefreshFailed,
    RefreshRejected,
    StoreUnwritable,
    TransportError,
    ValetkeyError,
)
from valetkey.flow import AuthFlow
from valetkey.inject import endpoint_hosts
from valetkey.provider import AuthMethod
from valetkey.store import Intent, Record, Retry, Store

__all__ = ["Renewal", "needs_login"]

# Waiters give up after 30 s; a holder that wakes over 20 s late starts again.
WAIT_SECONDS = 30.0
LATE_SECONDS = 20.0
# docs/broker.md has the table of what follows which answer.
FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 300.0
SAVE_ATTEMPTS = 5

log = logging.getLogger(__name__)


class _StartAgain(Exception):
    """The process was stopped for so long that what it had read may be old."""


@dataclass(kw_only=True)
class Renewal:
    """Renews one account once. Runs in a thread of its own, so that nobody's cancellation reaches it.

    `still_good` says whether a record that somebody else saved serves the caller. `told` hears what came of a request
    that was sent: "ok", or the code of its error.
    """

    ref: CredentialRef
    method: AuthMethod
    flow: AuthFlow
    store: Store
    clock: Clock
    still_good: Callable[[Record], bool]
    told: Callable[[str], None] = lambda outcome: None
    jitter: Callable[[], float] = field(default=random.random)

    def run(self) -> Record:
        """Give a record that is fresh and saved.

        Raises: NeedsLogin, RefreshFailed, RefreshBusy, HostsNotAccepted, NotLoggedIn, StoreError.
        """
        while True:
            with ExitStack() as held:
                moved = self._take_locks(held)
                if moved is not None:
                    return moved
                try:
                    return self._renew_alone()
                except _StartAgain:
                    continue

    def _take_locks(self, held: ExitStack) -> Record | None:
        """Wait for the locks; give the record instead when its renewal happened while we waited."""
        names = [str(self.ref)]
        if self.method.token.serialize == "client" and self.method.client_id:
            # Taken first by everybody, so two accounts never wait for each other in a circle.
            names.insert(0, f"client {self.method.client_id}")
        deadline = self.clock.monotonic() + WAIT_SECONDS
        for name in names:
            delay = 0.01
            while (lock := self.store.try_lock(name)) is None:
                newest = self.store.load(self.ref)
                if newest is not None and self.still_good(newest):
                    return newest
                if self.clock.monotonic() >= deadline:
                    raise RefreshBusy(
                        f"another process has been renewing {self.ref} for over {WAIT_SECONDS:.0f} s",
                        provider=self.ref.provider,
                        hint="look for a stopped valetkey process (`ps -o pid,stat,args -C valetkey`), then try again",
                    )
                self.clock.pause(delay)
                delay = min(delay * 1.5, 0.25)
            held.callback(lock.release)
        return None

    def _renew_alone(self) -> Record:
        began = self.clock.monotonic()
        record = self.store.load(self.ref)
        if record is None:
            raise NotLoggedIn(
                f"{self.ref} was logged out", provider=self.ref.provider, hint=f"run `{login_command(self.ref)}`"
            )
        if self.still_good(record):
            return record
        if record.health is Health.NEEDS_LOGIN:
            raise needs_login(self.ref, record.reason)
        self._check_endpoints(record)
        uncertain = self._write_intent(record)
        if self.clock.monotonic() - began > LATE_SECONDS:
            self.store.clear_intent(self.ref, generation=record.generation)
            raise _StartAgain
        try:
            fresh = asyncio.run(self._refresh(record.credential))
        except RefreshRejected as error:
            self.told(error.code)
            return self._rejected(record, error, uncertain=uncertain)
        except (RefreshFailed, TransportError) as error:
            self.told(error.code)
            raise self._failed(record, error, uncertain=uncertain) from error
        saved = self._save(record, fresh)
        self.told("ok")
        return saved

    async def _refresh(self, credential: Credential) -> Credential:
        return await self.flow.refresh(credential)

    def _check_endpoints(self, record: Record) -> None:
        """Send the refresh token nowhere that was not there at login."""
        wanted = endpoint_hosts(self.method, record.credential.parameters)
        foreign = sorted(set(wanted) - set(record.endpoints))
        if foreign:
            raise HostsNotAccepted(
                f"the declaration of {self.ref.provider} now renews at {', '.join(foreign)}, not as it was at login",
                provider=self.ref.provider,
                hint=f"if that is right, run `valetkey providers accept {self.ref.provider}`",
            )

    def _write_intent(self, record: Record) -> bool:
        """Say durably what is about to be spent; True when an earlier sender died between sending and saving."""
        earlier = self.store.intent(self.ref)
        uncertain = earlier is not None and earlier.generation == record.generation
        if uncertain:
            log.warning("%s: a renewal was cut off before its answer was saved; trying once more", self.ref)
            self.store.mark(
                self.ref,
                generation=record.generation,
                health=Health.UNCERTAIN,
                reason="a renewal was cut off before its answer was saved; trying once more",
                retry=record.retry,
            )
        self.store.begin_intent(
            self.ref,
            Intent(
                generation=record.generation,
                started_at=self.clock.now(),
                refresh_token_hash=_spent_hash(record.credential),
            ),
        )
        return uncertain

    def _rejected(self, record: Record, error: RefreshRejected, *, uncertain: bool) -> Record:
        """invalid_grant: another one's success wins over our failure; else only a new login helps."""
        newest = self.store.load(self.ref)
        if newest is not None and newest.generation != record.generation and self.still_good(newest):
            return newest
        reason = error.message
        if uncertain:
            reason = "a renewal was cut off before its answer was saved, and the provider has ended the login"
        self.store.mark(self.ref, generation=record.generation, health=Health.NEEDS_LOGIN, reason=reason)
        self.store.clear_intent(self.ref, generation=record.generation)
        raise needs_login(self.ref, reason) from error

    def _failed(self, record: Record, error: ValetkeyError, *, uncertain: bool) -> RefreshFailed:
        """Keep the old token, note the back-off for all processes; forget the intent only if nothing was spent."""
        cause: BaseException | None = error if isinstance(error, TransportError) else error.__cause__
        unanswered = isinstance(cause, TransportError) and cause.sent
        if not unanswered and not uncertain:
            self.store.clear_intent(self.ref, generation=record.generation)
        failures = record.retry.failures + 1 if record.retry is not None else 1
        wished = error.retry_after if isinstance(error, RefreshFailed) else None
        wait = self._backoff_seconds(failures, wished)
        self.store.mark(
            self.ref,
            generation=record.generation,
            health=Health.UNCERTAIN if unanswered or uncertain else Health.UNREACHABLE,
            reason=error.message,
            retry=Retry(failures=failures, not_before=self.clock.now() + timedelta(seconds=wait)),
        )
        return RefreshFailed(
            f"{self.ref} could not be renewed: {error.message}",
            provider=self.ref.provider,
            hint=f"try again in {max(1, round(wait))} s; `valetkey status {self.ref.provider}` shows more",
            retry_after=wait,
        )

    def _backoff_seconds(self, failures: int, wished: float | None) -> float:
        longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * float(2 ** min(failures - 1, 16)))
        jittered = longest * (0.5 + self.jitter() / 2)
        return min(LONGEST_BACKOFF_SECONDS, max(jittered, wished or 0.0))

    def _save(self, record: Record, fresh: Credential) -> Record:
        """Saved before use: the old refresh token may be spent already. A full disk gets some seconds to recover."""
        renewed = replace(record, credential=fresh, health=Health.OK, reason="", retry=None)
        for attempt in range(1, SAVE_ATTEMPTS + 1):
            try:
                return self.store.save(renewed)
            except GenerationConflict:
                newest = self.store.load(self.ref)  # a new login landed meanwhile: it is the newer one
                if newest is None:
                    raise
                return newest
            except StoreUnwritable:
                if attempt == SAVE_ATTEMPTS:
                    raise
                self.clock.pause(0.1 * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")


def needs_login(ref: CredentialRef, reason: str) -> NeedsLogin:
    """Give the one error for a login that its provider has ended."""
    return NeedsLogin(
        f"{ref} needs a new login: {reason}" if reason else f"{ref} needs a new login",
        provider=ref.provider,
        hint=f"run `{login_command(ref)}`",
    )


def _spent_hash(credential: Credential) -> str:
    match credential:
        case OAuthToken(refresh_token=token) if token is not None:
            spent = token.reveal()
        case ExchangedKey():
            spent = credential.grant.access_token.reveal()
        case _:
            spent = ""
    return hashlib.sha256(spent.encode()).hexdigest()
