"""Gives a fresh credential for `provider@account`, renewing it at most once however many ask.

Start reading here: `Broker.access` is what everything above calls. `renewal.py` is the one renewal,
`freshness.py` says when it is due, docs/broker.md has the states as a table.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from valetkey.access import Access, Use, check_use, from_environment, without_credential
from valetkey.audit.recorder import Audit
from valetkey.clock import Clock, SystemClock
from valetkey.config import Config, load
from valetkey.credential import (
    DEFAULT_ACCOUNT,
    Ambient,
    ApiKey,
    Credential,
    CredentialRef,
    ExchangedKey,
    Fields,
    Health,
    OAuthToken,
    Secret,
    login_command,
    secrets_of,
)
from valetkey.errors import (
    CredentialExpired,
    InvalidProvider,
    NotForThisUse,
    NotLoggedIn,
    RefreshFailed,
    UsageError,
)
from valetkey.flow import AuthFlow
from valetkey.flows import flow_for
from valetkey.frames import DroppedFrames
from valetkey.freshness import Freshness, age_of, freshness
from valetkey.http import HttpClient
from valetkey.provider import AuthMethod, Provider
from valetkey.providers import Catalogue
from valetkey.renewal import LONGEST_BACKOFF_SECONDS, Renewal, needs_login
from valetkey.store import Record, Store
from valetkey.stores import open_store

__all__ = ["Access", "Broker", "Use", "open_broker"]

# The gateway records the uses of its clients, keys and runs, itself.
_BY_THE_GATEWAY = frozenset(("gateway", "run"))


class Broker:
    """Serves any number of tasks and threads; two in different processes agree through the store.

    `accounts_here` names, for a provider, the account that this folder's tools use. `audit` gets uses and renewals.
    """

    def __init__(
        self,
        *,
        store: Store,
        catalogue: Catalogue,
        http: HttpClient,
        clock: Clock,
        environ: Mapping[str, str],
        accounts_here: Mapping[str, str] | None = None,
        audit: Audit | None = None,
        flow_for: Callable[..., AuthFlow] = flow_for,
    ) -> None:
        self.store = store
        self.catalogue = catalogue
        self.http = http
        self.clock = clock
        self.environ = environ
        self.audit = audit
        self._accounts_here = accounts_here or {}
        self._flow_for = flow_for
        # Hears of each renewal that was sent: the provider, and "ok" or the code of its error. For who counts them.
        self.told: Callable[[str, str], None] = lambda provider, outcome: None
        self._guard = threading.Lock()
        self._renewals: dict[CredentialRef, Future[Record]] = {}
        # When this process first saw a generation (monotonic), and how old it was then.
        self._first_seen: dict[CredentialRef, tuple[int, float, timedelta]] = {}
        self._ambient: dict[CredentialRef, Ambient] = {}

    # --- who ----------------------------------------------------------------------------------

    def resolve(self, name: str) -> CredentialRef:
        """Read `provider` or `provider@account`: the account named, else this folder's, else the provider's default.

        Raises: UnknownProvider, InvalidName, UsageError.
        """
        provider_name, at, account = name.partition("@")
        if at and not account:
            raise UsageError(f"{name[:60]!r} names no account", hint="write provider@account, or the provider alone")
        provider = self.catalogue.get(provider_name)
        if not account:
            account = self._accounts_here.get(provider.id) or self.store.default_account(provider.id) or DEFAULT_ACCOUNT
        return CredentialRef(provider=provider.id, account=account)

    # --- what ---------------------------------------------------------------------------------

    async def access(
        self, name: str, *, use: Use, rejected: Credential | None = None, agent: str | None = None
    ) -> Access:
        """Give what serves `name` now: the stored login, else the environment's, else none where none is needed.

        `rejected` is the credential that the provider has just refused (401); `agent` whom a run is for (`check_use`).
        Raises: NotLoggedIn, NeedsLogin, CredentialExpired, NotForThisUse, RefreshFailed, RefreshBusy, StoreError;
        InvalidParameter, InvalidBaseUrl for what the environment says; AuditUnwritable: what cannot be recorded is not
        given. The gateway records the uses of its clients itself.
        """
        with DroppedFrames():
            try:
                found = await self._access(name, use=use, rejected=rejected, agent=agent)
            except NotForThisUse as error:
                if self.audit is not None and use not in _BY_THE_GATEWAY:
                    detail = {"code": error.code}
                    self.audit.tell("denial", who=f"command:{use}", account=str(self.resolve(name)), detail=detail)
                raise
            if self.audit is not None and use not in _BY_THE_GATEWAY:
                self.audit.used(f"command:{use}", str(found.ref), {"source": found.source})
            return found

    async def _access(self, name: str, *, use: Use, rejected: Credential | None, agent: str | None) -> Access:
        ref = self.resolve(name)
        provider = self.catalogue.get(ref.provider)
        record = self.store.load(ref)
        if record is not None:
            method = self._method_of(provider, record.credential)
            check_use(ref, method, use, restricted=record.restricted, agent=agent)
            record = await self._fresh(record, method, rejected)
            return self._stored(provider, method, record)
        if "@" not in name:
            found = from_environment(self.environ, ref, provider) or without_credential(self.environ, ref, provider)
            if found is not None:
                check_use(ref, found.method, use, restricted=found.method.standing == "restricted", agent=agent)
                return found
        raise NotLoggedIn(
            f"no credential is stored for {ref}", provider=provider.id, hint=f"run `{login_command(ref)}`"
        )

    async def credential(self, ref: CredentialRef, *, rejected: Credential | None = None) -> Credential:
        """Give the stored account's credential, fresh. Raises as `access` does."""
        record = self.store.load(ref)
        if record is None:
            raise NotLoggedIn(
                f"no credential is stored for {ref}", provider=ref.provider, hint=f"run `{login_command(ref)}`"
            )
        method = self._method_of(self.catalogue.get(ref.provider), record.credential)
        return (await self._fresh(record, method, rejected)).credential

    def wait_for_renewals(self) -> None:
        """Wait until renewals that go on in the background are saved. Their failures are the account's health."""
        with self._guard:
            under_way = list(self._renewals.values())
        for renewal in under_way:
            renewal.exception()

    def forget(self) -> None:
        """Drop what ambient sources gave: the store is locked, and nothing of it is to be kept."""
        self._ambient.clear()

    def close(self) -> None:
        """Finish what is under way and let go of connections."""
        self.wait_for_renewals()
        if self.audit is not None:
            self.audit.close()
        self.http.close()
        self.store.close()

    def _stored(self, provider: Provider, method: AuthMethod, record: Record) -> Access:
        credential = record.credential
        base_url = record.base_url
        if isinstance(credential, ExchangedKey) and credential.base_url:
            base_url = credential.base_url
        return Access(
            ref=record.ref,
            provider=provider,
            method=method,
            credential=credential,
            source="stored",
            base_url=base_url,
            hosts=record.hosts,
            identity=record.identity,
        )

    def _method_of(self, provider: Provider, credential: Credential) -> AuthMethod:
        method = provider.method(credential.method)
        if method is None:
            raise InvalidProvider(
                f"{provider.id} has no login {credential.method!r} any more",
                provider=provider.id,
                hint=f"run `valetkey login {provider.id}` again",
            )
        return method

    # --- fresh, once --------------------------------------------------------------------------

    async def _fresh(self, record: Record, method: AuthMethod, rejected: Credential | None) -> Record:
        """Return it, return it and renew in the background, or wait for the renewal (docs/broker.md)."""
        if isinstance(record.credential, Ambient):
            return await self._read_source(record, method, rejected)
        state = self._judge(record, method, rejected)
        if state is Freshness.FRESH:
            return record
        alive = state is Freshness.STALE
        if record.health is Health.NEEDS_LOGIN:
            if alive:
                return record
            raise needs_login(record.ref, record.reason)
        if not _renewable(record.credential):
            if alive:
                return record
            raise _over(record, was_rejected=rejected is not None)
        wait = self._must_wait_seconds(record)
        if wait is not None:
            if alive:
                return record
            raise _too_soon(record, wait)
        renewal = self._start(record.ref, method, partial(self._serves, method=method, rejected=rejected))
        if alive:
            return record
        # Shielded: a caller that goes away must not lose a rotated refresh token.
        renewed = await asyncio.shield(asyncio.wrap_future(renewal))
        if rejected is not None and _same_secret(renewed.credential, rejected):
            # That renewal had begun for somebody who did not know of the refusal, and found nothing to do.
            renewal = self._start(record.ref, method, partial(self._serves, method=method, rejected=rejected))
            renewed = await asyncio.shield(asyncio.wrap_future(renewal))
        return renewed

    def _judge(self, record: Record, method: AuthMethod, rejected: Credential | None) -> Freshness:
        if rejected is not None and _same_secret(record.credential, rejected):
            return Freshness.DEAD
        interval = timedelta(seconds=method.refresh_interval) if method.refresh_interval else None
        return freshness(record.credential, self._age(record), refresh_interval=interval)

    def _age(self, record: Record) -> timedelta:
        """Give the age: by the monotonic clock since this process first saw it, before that by the wall clock."""
        with self._guard:
            seen = self._first_seen.get(record.ref)
            if seen is None or seen[0] != record.generation:
                seen = (record.generation, self.clock.monotonic(), age_of(record.credential, self.clock.now()))
                self._first_seen[record.ref] = seen
        _, when, age = seen
        return age + timedelta(seconds=self.clock.monotonic() - when)

    def _serves(self, record: Record, *, method: AuthMethod, rejected: Credential | None) -> bool:
        return self._judge(record, method, rejected) is Freshness.FRESH

    def _must_wait_seconds(self, record: Record) -> float | None:
        if record.retry is None:
            return None
        wait = (record.retry.not_before - self.clock.now()).total_seconds()
        # Longer than any back-off: the clock jumped back, and must not lock anybody out.
        return wait if 0 < wait <= LONGEST_BACKOFF_SECONDS else None

    def _start(self, ref: CredentialRef, method: AuthMethod, still_good: Callable[[Record], bool]) -> Future[Record]:
        """Give the one renewal of this account that is under way in this process; a failure is shared."""
        with self._guard:
            under_way = self._renewals.get(ref)
            if under_way is not None:
                return under_way
            future: Future[Record] = Future()
            self._renewals[ref] = future

        outcomes: list[str] = []

        def told(outcome: str) -> None:
            outcomes.append(outcome)
            self.told(ref.provider, outcome)

        def run() -> None:
            try:
                record = Renewal(
                    ref=ref,
                    method=method,
                    flow=self._flow(ref, method),
                    store=self.store,
                    clock=self.clock,
                    still_good=still_good,
                    told=told,
                ).run()
            except BaseException as error:
                self._record(ref, outcomes)
                self._settle(ref)
                future.set_exception(error)
            else:
                self._record(ref, outcomes)
                self._settle(ref)
                future.set_result(record)

        # No daemon: an interpreter that ends waits for the answer to be saved.
        threading.Thread(target=run, name=f"valetkey-renew-{ref}").start()
        return future

    def _record(self, ref: CredentialRef, outcomes: Sequence[str]) -> None:
        """Put a renewal that was sent into the audit, once it is saved: nothing may keep it from being saved."""
        if self.audit is not None:
            for outcome in outcomes:
                self.audit.tell("renewal", account=str(ref), detail={"outcome": outcome})

    def _settle(self, ref: CredentialRef) -> None:
        with self._guard:
            self._renewals.pop(ref, None)

    def _flow(self, ref: CredentialRef, method: AuthMethod) -> AuthFlow:
        record = self.store.load(ref)
        parameters = record.credential.parameters if record is not None else {}
        return self._flow_for(
            self.catalogue.get(ref.provider),
            method,
            parameters=parameters,
            http=self.http,
            clock=self.clock,
            environ=self.environ,
            account=ref.account,
        )

    async def _read_source(self, record: Record, method: AuthMethod, rejected: Credential | None) -> Record:
        """Read an ambient source, or use what it gave this process while that lives."""
        kept = self._ambient.get(record.ref)
        if kept is not None and kept.expires_at is not None and kept.method == record.credential.method:
            age = age_of(kept, self.clock.now())
            refused = rejected is not None and _same_secret(kept, rejected)
            if not refused and freshness(kept, age) is Freshness.FRESH:
                return replace(record, credential=kept)
        fresh = await self._flow(record.ref, method).refresh(record.credential)
        if not isinstance(fresh, Ambient):
            raise InvalidProvider(
                f"the source of {record.ref} gave another kind of credential",
                provider=record.ref.provider,
                hint=f"check the declaration with `valetkey providers show {record.ref.provider}`",
            )
        self._ambient[record.ref] = fresh
        return replace(record, credential=fresh)


def _over(record: Record, *, was_rejected: bool) -> CredentialExpired:
    what = "was refused by the provider" if was_rejected else "has expired"
    return CredentialExpired(
        f"the credential of {record.ref} {what} and cannot be renewed",
        provider=record.ref.provider,
        hint=f"run `{login_command(record.ref)}`",
    )


def _too_soon(record: Record, wait_seconds: float) -> RefreshFailed:
    return RefreshFailed(
        f"{record.ref} could not be renewed: {record.reason}",
        provider=record.ref.provider,
        hint=f"try again in {max(1, round(wait_seconds))} s; `valetkey status {record.ref.provider}` says more",
        retry_after=wait_seconds,
    )


def open_broker(
    *,
    environ: Mapping[str, str] | None = None,
    config: Config | None = None,
    store: Store | None = None,
    catalogue: Catalogue | None = None,
    http: HttpClient | None = None,
    clock: Clock | None = None,
    ask_passphrase: Callable[[], Secret] | None = None,
) -> Broker:
    """Open the broker on VALETKEY_HOME with the user's settings; what is given is used as it is.

    `ask_passphrase` is asked where a passphrase opens the store and no file names it. Raises: ConfigError, StoreError.
    """
    environ = os.environ if environ is None else environ
    clock = clock or SystemClock()
    config = config or load(environ)
    return Broker(
        store=store
        or open_store(
            config.paths,
            clock=clock,
            ask_passphrase=ask_passphrase,
            key_source_kind=config.text("store.key_source") or "auto",
            key_command=config.words("store.key_command"),
        ),
        catalogue=catalogue or Catalogue(config.paths),
        http=http
        or HttpClient(
            timeout_seconds=config.seconds("network.timeout_seconds"), ca_file=config.text("network.ca_file")
        ),
        clock=clock,
        environ=environ,
        accounts_here=config.accounts_here(_here()),
        audit=Audit(config.paths, clock),
    )


def _here() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # the folder was removed under us: no rule is for it
        return Path("/")


def _renewable(credential: Credential) -> bool:
    match credential:
        case OAuthToken():
            return credential.refresh_token is not None
        case ExchangedKey():
            return True
        case ApiKey() | Fields() | Ambient():
            return False


def _same_secret(one: Credential, other: Credential) -> bool:
    return secrets_of(one) == secrets_of(other)
