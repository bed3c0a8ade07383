"""Logins under way: begin, poll, complete, save."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from valetkey.audit.recorder import Audit
from valetkey.clock import Clock
from valetkey.credential import (
    DEFAULT_ACCOUNT,
    Ambient,
    Credential,
    CredentialRef,
    ExchangedKey,
    Health,
    login_command,
)
from valetkey.errors import (
    GenerationConflict,
    LoginExpired,
    LoginTimeout,
    RestrictedLogin,
    StoreUnwritable,
    TransportError,
    UsageError,
    ValidationFailed,
)
from valetkey.flow import AuthFlow, EnterFields, EnterUserCode, PendingAuthorization
from valetkey.flows import claimed, flow_for, listen
from valetkey.http import HttpClient
from valetkey.inject import endpoint_hosts, reach
from valetkey.method_choice import choose_method
from valetkey.provider import AuthMethod, Provider
from valetkey.store import Account, Record, Store

__all__ = ["Heard", "Logins", "Progress", "poll_until_complete", "progress"]

T_co = TypeVar("T_co", covariant=True)
DEFAULT_TIMEOUT = timedelta(minutes=10)
# A loopback's answer is there or not: looking costs nothing.
LISTENING_PACE_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 60.0
# Each conflict is somebody's renewal; more than a few in a row cannot be.
SAVE_ATTEMPTS = 20


class Declarations(Protocol):
    """Where providers are looked up: `providers.catalogue`."""

    def get(self, id: str) -> Provider:
        """Give one. Raises: UnknownProvider, InvalidProvider."""
        ...


class Heard(Protocol):
    """The open port of a browser login (`Logins.listening`)."""

    @property
    def redirect_uri(self) -> str:
        """Give what the authorization URL names."""
        ...

    @property
    def answer(self) -> dict[str, str] | None:
        """Give what the browser brought, None so far."""
        ...

    async def wait(self, *, limit_seconds: float = ...) -> dict[str, str]:
        """Wait for it. Raises: LoginTimeout."""
        ...


class Polled(Protocol[T_co]):
    """What can be asked whether a login is done: an AuthFlow (a credential), or Logins (a stored account)."""

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | T_co:
        """Ask once."""
        ...


class Logins:
    """Begins and ends logins. It holds none: a PendingAuthorization is all there is, and it stays in the process.

    Nothing is stored before the provider's probe has accepted it, unless the caller says `verify=False`.
    """

    def __init__(
        self,
        *,
        store: Store,
        catalogue: Declarations,
        http: HttpClient,
        clock: Clock,
        environ: Mapping[str, str],
        audit: Audit | None = None,
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._http = http
        self._clock = clock
        self._environ = environ
        self._audit = audit

    async def begin(
        self,
        provider_id: str,
        *,
        method: str | None = None,
        account: str = DEFAULT_ACCOUNT,
        parameters: Mapping[str, str] | None = None,
        redirect_uri: str | None = None,
        accept_restricted: bool = False,
    ) -> PendingAuthorization:
        """Begin a login; `action` of what comes back says what the user has to do.

        Raises: UnknownProvider, UsageError (no such method), InvalidName, RestrictedLogin, MissingParameter,
        InvalidParameter, InitiationFailed.
        """
        provider = self._catalogue.get(provider_id)
        ref = CredentialRef(provider=provider.id, account=account)
        chosen = self._chosen(provider, method, redirect_uri)
        if chosen.standing == "restricted" and not accept_restricted:
            raise RestrictedLogin(
                chosen.notice or f"{provider.name} does not allow this login to other tools",
                hint=f"use an API key, or say yes with `{login_command(ref, method=chosen.id)} --yes`",
                provider=provider.id,
            )
        pending = await self._flow(provider, chosen, parameters or {}, ref.account).initiate(redirect_uri=redirect_uri)
        return replace(pending, private={**pending.private, "account": ref.account})

    @asynccontextmanager
    async def listening(
        self,
        provider_id: str,
        *,
        method: str,
        account: str = DEFAULT_ACCOUNT,
        parameters: Mapping[str, str] | None = None,
        accept_restricted: bool = False,
    ) -> AsyncIterator[tuple[PendingAuthorization, Heard]]:
        """Begin a browser login whose answer comes to a port of this machine, which is closed on leaving.

        Raises: PortsBusy: begin without a port then, and paste; UsageError where the declaration has no loopback.
        """
        provider = self._catalogue.get(provider_id)
        redirect = self._chosen(provider, method, None).redirect
        if redirect is None or redirect.loopback is None:
            raise UsageError(
                f"{provider.id}/{method} does not come back to this machine",
                hint="run the login with --no-browser and paste the code",
                provider=provider.id,
            )
        async with listen(redirect.loopback) as listener:
            pending = await self.begin(
                provider_id,
                method=method,
                account=account,
                parameters=parameters,
                redirect_uri=listener.redirect_uri,
                accept_restricted=accept_restricted,
            )
            listener.expect(pending.private["state"])
            yield pending, listener

    async def poll(self, pending: PendingAuthorization, *, verify: bool = True) -> PendingAuthorization | Account:
        """Ask once whether it is done: the stored account, or what is still pending.

        Raises: LoginExpired, LoginDenied, PollFailed, ValidationFailed; TransportError: ask again later.
        """
        provider, method = self._of(pending)
        flow = self._flow(provider, method, pending.parameters, _ref(pending).account)
        result = await flow.poll(pending)
        if isinstance(result, PendingAuthorization):
            return result
        try:
            return await self._save(pending, result, flow, verify=verify)
        except TransportError as error:
            # The code is spent: asking again, as for other transport errors, would only say that it is unknown.
            raise ValidationFailed(
                f"the login worked, and could not be checked: {error.message}",
                hint="run it again, with --no-verify if it stays so",
                provider=provider.id,
            ) from error

    async def complete(
        self, pending: PendingAuthorization, answer: Mapping[str, str], *, verify: bool = True
    ) -> Account:
        """End it with the user's answer, check it with the provider, store it.

        Raises: MissingParameter, InvalidParameter, LoginDenied, LoginExpired, CompletionFailed, KeyRejected,
        KeyForbidden, ValidationFailed, TransportError (the probe's), StoreError.
        """
        provider, method = self._of(pending)
        flow = self._flow(provider, method, pending.parameters, _ref(pending).account)
        return await self._save(pending, await flow.complete(pending, answer), flow, verify=verify)

    def _chosen(self, provider: Provider, method: str | None, redirect_uri: str | None) -> AuthMethod:
        return choose_method(provider, browser=redirect_uri is not None, method=method).method

    def _of(self, pending: PendingAuthorization) -> tuple[Provider, AuthMethod]:
        provider = self._catalogue.get(pending.provider)
        return provider, self._chosen(provider, pending.method, None)

    def _flow(self, provider: Provider, method: AuthMethod, parameters: Mapping[str, str], account: str) -> AuthFlow:
        return flow_for(
            provider,
            method,
            parameters=parameters,
            http=self._http,
            clock=self._clock,
            environ=self._environ,
            account=account,
        )

    async def _save(
        self, pending: PendingAuthorization, credential: Credential, flow: AuthFlow, *, verify: bool
    ) -> Account:
        provider, method = self._of(pending)
        identity = await flow.validate(credential) if verify else claimed(method, credential)
        base_url, hosts = _reach(provider, method, credential)
        record = Record(
            ref=_ref(pending),
            credential=credential.pointer() if isinstance(credential, Ambient) else credential,
            identity=identity,
            hosts=hosts,
            endpoints=endpoint_hosts(method, credential.parameters),
            base_url=base_url,
            restricted=method.standing == "restricted",
            health=Health.OK if verify else Health.UNKNOWN,
            reason="" if verify else "its provider was not asked: `valetkey status` asks",
        )
        if self._audit is not None:
            detail = {"method": method.id, "restricted": record.restricted, "verified": verify}
            self._audit.append("login", account=str(record.ref), detail=detail)
        return _save_over(self._store, record)


def _ref(pending: PendingAuthorization) -> CredentialRef:
    return CredentialRef(provider=pending.provider, account=pending.private.get("account", DEFAULT_ACCOUNT))


def _reach(provider: Provider, method: AuthMethod, credential: Credential) -> tuple[str, tuple[str, ...]]:
    if method.kind == "custom":
        base_url = credential.parameters["base_url"]
        return base_url, (urlsplit(base_url).netloc.lower(),)
    base_url, hosts = reach(provider, method, credential.parameters)
    # The flow has seen to it that the answer's base_url is on these hosts.
    if isinstance(credential, ExchangedKey) and credential.base_url is not None:
        return credential.base_url, hosts
    return base_url, hosts


def _save_over(store: Store, record: Record) -> Account:
    """Put a new login in place of any older one. What a renewal saves meanwhile belongs to the old login, and loses."""
    for _ in range(SAVE_ATTEMPTS):
        old = store.account(record.ref)
        generation, created_at = (0, None) if old is None else (old.generation, old.created_at)
        try:
            store.save(replace(record, generation=generation, created_at=created_at))
        except GenerationConflict:
            continue
        saved = store.account(record.ref)
        if saved is not None:
            return saved
    raise StoreUnwritable(
        f"{record.ref} is being changed all the time by others",
        hint="end the other valetkey processes and log in again",
        provider=record.ref.provider,
    )


# --- waiting -----------------------------------------------------------------------------------


async def poll_until_complete(
    polled: Polled[T_co],
    pending: PendingAuthorization,
    *,
    clock: Clock,
    timeout: timedelta = DEFAULT_TIMEOUT,  # noqa: ASYNC109  # by our own clock, which tests move
    heard: Heard | None = None,
) -> T_co:
    """Ask at the server's pace until it is done; any flow, and `Logins`.

    `heard` is the port of a browser login. Both limits go by the monotonic clock, so a wrong or jumping wall clock ends
    nothing early. While the server cannot be asked, the pace slows down (RFC 8628 section 3.5).
    Raises: LoginTimeout (our limit), LoginExpired (the server's), and whatever `poll` raises for good.
    """
    began = clock.monotonic()
    life = (pending.expires_at - clock.now()).total_seconds()
    failures = 0
    while True:
        wait = _pace_seconds(pending, failures)
        elapsed = clock.monotonic() - began
        ours, theirs = timeout.total_seconds() - elapsed, life - elapsed
        await clock.sleep(max(0.0, min(wait, ours, theirs)))
        if wait >= ours or wait >= theirs:
            raise _over(pending, ours_first=ours <= theirs, timeout=timeout)
        if heard is not None and heard.answer is not None:
            pending = replace(pending, private={**pending.private, "answer": json.dumps(heard.answer)})
        try:
            result = await polled.poll(pending)
        except TransportError as error:
            if not error.retryable:
                raise
            failures += 1
            continue
        if not isinstance(result, PendingAuthorization):
            return result
        pending, failures = result, 0


def _pace_seconds(pending: PendingAuthorization, failures: int) -> float:
    match pending.action:
        case EnterUserCode(interval=interval):
            return min(interval * 2.0**failures, max(LONGEST_BACKOFF_SECONDS, interval))
        case EnterFields():
            return 0.0
        case _:
            return LISTENING_PACE_SECONDS


def _over(pending: PendingAuthorization, *, ours_first: bool, timeout: timedelta) -> LoginTimeout | LoginExpired:
    again = f"run `{login_command(_ref(pending), method=pending.method)}` again"
    if ours_first:
        return LoginTimeout(
            f"the login at {pending.provider} was not finished within {timeout.total_seconds():.0f} s",
            hint=f"{again}, with a longer --timeout if you need it",
            provider=pending.provider,
        )
    return LoginExpired(f"the login at {pending.provider} has expired", hint=again, provider=pending.provider)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How a login under way stands, for a UI that draws it."""

    elapsed: timedelta
    remaining: timedelta
    state: Literal["waiting", "expired"]


async def progress(pending: PendingAuthorization, *, clock: Clock) -> AsyncIterator[Progress]:
    """Tell once a second how long it has been and how long there is, until it has expired or nobody listens."""
    began = clock.monotonic()
    life = pending.expires_at - clock.now()
    while True:
        elapsed = timedelta(seconds=clock.monotonic() - began)
        remaining = max(life - elapsed, timedelta())
        yield Progress(elapsed=elapsed, remaining=remaining, state="waiting" if remaining else "expired")
        if not remaining:
            return
        await clock.sleep(min(1.0, remaining.total_seconds()))
