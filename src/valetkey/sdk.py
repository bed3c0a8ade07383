"""What `valetkey` hands out, and what the command line calls: one function for each thing that a user can do.

Without `broker`, each works on the broker of VALETKEY_HOME, opened at the first call and kept for the process. Errors
of ours come out without the frames inside: what reports errors with their variables shows no secret.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from valetkey.broker import Broker, open_broker
from valetkey.config import Paths
from valetkey.credential import DEFAULT_ACCOUNT, CredentialRef, Secret, secrets_of
from valetkey.errors import NotForThisUse, NotLoggedIn, ProviderError, RecordDamaged
from valetkey.flow import PendingAuthorization
from valetkey.frames import DroppedFrames
from valetkey.inject import endpoint_hosts
from valetkey.provider import DialectId, Provider
from valetkey.waiting import wait_for

if TYPE_CHECKING:
    from valetkey.account_state import AccountState
    from valetkey.dialect import Model
    from valetkey.gateway_access import GatewayAccess
    from valetkey.httpx_auth import AccountAuth
    from valetkey.login import Logins
    from valetkey.providers.custom import KeyHeader
    from valetkey.store import Account
    from valetkey.variables import Environment

__all__ = [
    "AccountState",
    "LoggedOut",
    "accounts",
    "add_provider",
    "auth",
    "begin_login",
    "check",
    "complete_login",
    "environment",
    "gateway",
    "logins",
    "logout",
    "models",
    "open_broker",
    "poll_login",
    "providers",
    "remove_provider",
    "token",
]

_guard = threading.Lock()
# By home and process: connections do not survive a fork.
_opened: dict[tuple[str, int], Broker] = {}


def _broker(given: Broker | None) -> Broker:
    if given is not None:
        return given
    key = (str(Paths.of(os.environ).home), os.getpid())
    with _guard:
        if key not in _opened:
            opened = _opened[key] = open_broker()
            if opened.audit is not None:
                atexit.register(opened.audit.close)  # uses of this minute are only counted yet
        return _opened[key]


# --- using an account -------------------------------------------------------------------------


def token(name: str, *, broker: Broker | None = None) -> str:
    """Give the fresh secret of `name` (`provider` or `provider@account`), renewed if it is due.

    Raises: NotLoggedIn, NeedsLogin, CredentialExpired, RefreshFailed, RefreshBusy; NotForThisUse for a login that
    holds several secrets or may not be handed out; UnknownProvider.
    """
    access = wait_for(_broker(broker).access(name, use="token"))
    secrets = {} if access.credential is None else secrets_of(access.credential)
    if len(secrets) != 1:
        raise NotForThisUse(
            f"{access.ref} has {len(secrets)} secrets, not one",
            provider=access.ref.provider,
            hint=f'use `valetkey.environment("{access.ref}")` or `valetkey exec -p {access.ref} -- CMD`',
        )
    return next(iter(secrets.values())).reveal()


def auth(name: str, *, broker: Broker | None = None) -> AccountAuth:
    """Give the `auth=` of an httpx2 client, synchronous or not, that renews by itself, also on a 401.

    `OpenAI(api_key="-", http_client=httpx2.Client(auth=valetkey.auth("openai")))`. Raises: UnknownProvider.
    """
    from valetkey.httpx_auth import AccountAuth

    opened = _broker(broker)
    opened.resolve(name)
    return AccountAuth(name, broker=opened)


def environment(*names: str, broker: Broker | None = None) -> Environment:
    """Give a context manager (`with` or `async with`) that sets these accounts' variables and restores exactly."""
    from valetkey.variables import Environment

    return Environment(names, broker=_broker(broker))


def gateway(name: str, *, broker: Broker | None = None) -> GatewayAccess:
    """Give address and valet key of `name` (`provider` or `provider@account`) at the gateway, started where none runs.

    `g = valetkey.gateway("openai"); OpenAI(base_url=g.base_url, api_key=g.key)`: the program never has the credential.
    Raises: UnknownProvider, NotLoggedIn, NotForThisUse for a restricted login, GatewayFailed, StoreError.
    """
    from importlib.metadata import version

    from valetkey.gateway_access import open_access

    opened = _broker(broker)
    paths = Paths.of(opened.environ)
    return open_access(opened, name, paths=paths, environ=opened.environ, version=version("valetkey"))


# --- logging in and out -----------------------------------------------------------------------


def logins(broker: Broker) -> Logins:
    """Give what begins and ends logins on this broker's store."""
    from valetkey.login import Logins

    return Logins(
        store=broker.store,
        catalogue=broker.catalogue,
        http=broker.http,
        clock=broker.clock,
        environ=broker.environ,
        audit=broker.audit,
    )


async def begin_login(
    provider: str,
    *,
    method: str | None = None,
    account: str = DEFAULT_ACCOUNT,
    parameters: Mapping[str, str] | None = None,
    redirect_uri: str | None = None,
    accept_restricted: bool = False,
    broker: Broker | None = None,
) -> PendingAuthorization:
    """Begin a login; `action` of what comes back says what the user has to do.

    Raises: UnknownProvider, RestrictedLogin, MissingParameter, InvalidParameter, InitiationFailed, TransportError.
    """
    with DroppedFrames():
        return await logins(_broker(broker)).begin(
            provider,
            method=method,
            account=account,
            parameters=parameters or {},
            redirect_uri=redirect_uri,
            accept_restricted=accept_restricted,
        )


async def poll_login(
    pending: PendingAuthorization, *, verify: bool = True, broker: Broker | None = None
) -> PendingAuthorization | Account:
    """Ask once whether it is done: the stored account, or what is still pending.

    Raises: LoginExpired, LoginDenied, PollFailed, ValidationFailed, TransportError.
    """
    with DroppedFrames():
        return await logins(_broker(broker)).poll(pending, verify=verify)


async def complete_login(
    pending: PendingAuthorization,
    answer: Mapping[str, str],
    *,
    verify: bool = True,
    broker: Broker | None = None,
) -> Account:
    """End it with the user's answer: `{"code", "state"}`, `{"pasted"}`, or the fields asked for; store the account.

    Raises: MissingParameter, InvalidParameter, LoginDenied, LoginExpired, CompletionFailed, ValidationFailed.
    """
    ending = logins(_broker(broker)).complete(pending, answer, verify=verify)
    del answer  # an error shows this frame
    with DroppedFrames():
        return await ending


@dataclass(frozen=True, kw_only=True)
class LoggedOut:
    """What became of a login: `revocation` is what the provider said about it."""

    ref: CredentialRef
    revocation: Literal["revoked", "failed", "not supported"]


async def logout(name: str, *, broker: Broker | None = None) -> LoggedOut:
    """Revoke the login at its provider where that can be, and delete the record whether or not it could.

    Raises: NotLoggedIn when nothing is stored.
    """
    opened = _broker(broker)
    ref = _stored_ref(opened, name)
    if opened.store.account(ref) is None:
        raise NotLoggedIn(
            f"no credential is stored for {ref}", provider=ref.provider, hint="see `valetkey list` for what there is"
        )
    revocation: Literal["revoked", "failed", "not supported"] = "failed"
    try:
        revocation = await _revoke(opened, ref)
    finally:
        opened.store.delete(ref)
        if opened.audit is not None:
            opened.audit.tell("logout", account=str(ref), detail={"revocation": revocation})
    return LoggedOut(ref=ref, revocation=revocation)


def _stored_ref(broker: Broker, name: str) -> CredentialRef:
    """Resolve a name, also one whose provider is declared no more: its record can still be deleted."""
    provider, _, account = name.partition("@")
    try:
        return broker.resolve(name)
    except ProviderError:
        stored = broker.store.accounts(provider=CredentialRef(provider=provider).provider, limit=1)
        if not stored:
            raise
        return CredentialRef(
            provider=provider, account=account or broker.store.default_account(provider) or DEFAULT_ACCOUNT
        )


async def _revoke(broker: Broker, ref: CredentialRef) -> Literal["revoked", "failed", "not supported"]:
    from valetkey.flows import revoke

    try:
        record = broker.store.load(ref)
        method = None if record is None else broker.catalogue.get(ref.provider).method(record.credential.method)
        if record is None or method is None or method.revocation_endpoint is None:
            return "not supported"
        if not set(endpoint_hosts(method, record.credential.parameters)) <= set(record.endpoints):
            # The declaration names other hosts than at login: they get no token.
            return "failed"
        done = await revoke(broker.catalogue.get(ref.provider), method, record.credential, broker.http)
    except (ProviderError, RecordDamaged):
        return "failed"
    return "revoked" if done else "failed"


# --- what there is ----------------------------------------------------------------------------


def accounts(
    provider: str | None = None,
    *,
    after: CredentialRef | None = None,
    limit: int | None = None,
    broker: Broker | None = None,
) -> list[AccountState]:
    """Give the accounts, stored ones first, then what the environment holds; nothing is decrypted or asked.

    With `limit`, a page of stored ones from behind `after`; the environment's are on the last page.
    Raises: UnknownProvider, StoreError.
    """
    from valetkey.account_state import in_environment, in_store

    opened = _broker(broker)
    chosen = None if provider is None else opened.catalogue.get(provider)
    found = in_store(opened, provider=chosen.id if chosen else None, after=after, limit=limit)
    if limit is not None and len(found) == limit:
        return found
    return [*found, *in_environment(opened, opened.catalogue.all() if chosen is None else [chosen])]


async def check(name: str, *, broker: Broker | None = None) -> AccountState:
    """Ask the provider now whether the account of `name` is good, renewed first where that is due.

    What is wrong with it is in `health` and `reason`; only a name that is nothing raises: UnknownProvider, NotLoggedIn.
    """
    from valetkey.checking import check as check_account

    return await check_account(_broker(broker), name)


def providers(*, custom: bool = False, broker: Broker | None = None) -> list[Provider]:
    """Give the providers that can be read, by id; with `custom` the user's own alone."""
    catalogue = _broker(broker).catalogue
    return catalogue.custom() if custom else catalogue.all()


async def models(name: str, *, broker: Broker | None = None) -> list[Model]:
    """Ask the provider which models `name` (`provider` or `provider@account`) may use, and keep the list.

    Raises: what `Broker.access` raises; KeyForbidden, ProviderFault, UnclearAnswer, TransportError.
    """
    from valetkey.chat.models import fetch, keep
    from valetkey.http import in_thread

    opened = _broker(broker)
    access = await opened.access(name, use="ask")
    with DroppedFrames():
        found = await in_thread(lambda: fetch(access, http=opened.http))
    keep(opened.store, name, found, now=opened.clock.now())
    return found


# --- providers of the user's own ---------------------------------------------------------------


async def add_provider(
    name: str,
    *,
    base_url: str,
    dialect: DialectId | None = None,
    like: str | None = None,
    model: str | None = None,
    key: str | None = None,
    key_header: KeyHeader | None = None,
    allow_http: bool = False,
    verify: bool = True,
    broker: Broker | None = None,
) -> Provider:
    """Declare a server of the user's own and, with `key`, log in to it. Without dialect and `like` it is asked.

    `verify` asks for its models first; nothing is written when that fails.
    Raises: InvalidBaseUrl (also for a key over plain http without `allow_http`), ProviderCheckFailed, InvalidName,
    ProviderExists, BuiltInProvider, UsageError.
    """
    from valetkey.own_providers import add

    adding = add(
        _broker(broker),
        name,
        base_url=base_url,
        dialect=dialect,
        like=like,
        model=model,
        key=None if not key else Secret(key),
        key_header=key_header,
        allow_http=allow_http,
        verify=verify,
    )
    del key  # an error shows this frame
    with DroppedFrames():
        return await adding


async def remove_provider(id: str, *, broker: Broker | None = None) -> tuple[CredentialRef, ...]:
    """Delete one of the user's own providers with its accounts, and give those; a default model of it goes too.

    Raises: BuiltInProvider, ProviderError (a plugin's), UnknownProvider, StoreError.
    """
    from valetkey.own_providers import remove

    return await remove(_broker(broker), id)
