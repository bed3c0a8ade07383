"""Asks a provider now whether an account is good, and writes down what it said."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from valetkey.access import Access
from valetkey.account_state import AccountState, state_of
from valetkey.credential import DEFAULT_ACCOUNT, Credential, CredentialRef, Health, Identity, expires_at_of, secrets_of
from valetkey.errors import (
    CredentialExpired,
    KeyForbidden,
    KeyRejected,
    NeedsLogin,
    NotLoggedIn,
    RefreshBusy,
    RefreshFailed,
    RefreshRejected,
    StoreLocked,
    TransportError,
    UnknownProvider,
    ValetkeyError,
)
from valetkey.flows import flow_for
from valetkey.provider import AuthMethod, Provider

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["check"]


async def check(broker: Broker, name: str) -> AccountState:
    """Ask; a token that is due is renewed first, and one that is refused is renewed once.

    What is wrong is in `health` and `reason`. Raises: UnknownProvider, NotLoggedIn.
    """
    try:
        access = await broker.access(name, use="probe")
    except NotLoggedIn:
        raise
    except UnknownProvider:
        if (undeclared := _undeclared(broker, name)) is None:
            raise
        return undeclared
    except ValetkeyError as error:
        return _judged(broker, _without_access(broker, name), error)
    if access.credential is None:
        return _shown(broker, access)
    try:
        identity = await _validated(broker, name, access)
    except ValetkeyError as error:
        state = _judged(broker, _shown(broker, access), error)
    else:
        state = replace(_shown(broker, access), identity=identity, health=Health.OK, reason="")
    _write_down(broker, state)
    return state


async def _validated(broker: Broker, name: str, access: Access) -> Identity:
    assert access.credential is not None  # noqa: S101  # the only caller looked
    try:
        return await _ask(broker, access, access.credential)
    except KeyRejected:
        if access.source != "stored":
            raise
        try:
            newer = await broker.access(name, use="probe", rejected=access.credential)
        except CredentialExpired:  # it has no renewal: what the provider said is all there is to say
            newer = access
        if newer.credential is None or secrets_of(newer.credential) == secrets_of(access.credential):
            raise
        return await _ask(broker, newer, newer.credential)


async def _ask(broker: Broker, access: Access, credential: Credential) -> Identity:
    flow = flow_for(
        *_as_sealed(access),
        parameters=credential.parameters,
        http=broker.http,
        clock=broker.clock,
        environ=broker.environ,
        account=access.ref.account,
    )
    told = await flow.validate(credential)
    known = access.identity
    return Identity(
        account_id=told.account_id or known.account_id,
        name=told.name or known.name,
        email=told.email or known.email,
        plan=told.plan or known.plan,
    )


def _as_sealed(access: Access) -> tuple[Provider, AuthMethod]:
    """Give the declaration with the address and the hosts of this login, whatever it names by now."""
    api = replace(access.provider.api, base_url=access.base_url, hosts=access.hosts)
    method = replace(access.method, base_url=access.base_url, hosts=access.hosts, when=())
    return replace(access.provider, api=api), method


def _shown(broker: Broker, access: Access) -> AccountState:
    account = broker.store.account(access.ref) if access.source == "stored" else None
    if account is not None:
        return state_of(account, broker.clock.now())
    credential = access.credential
    secrets = [] if credential is None else list(secrets_of(credential).values())
    return AccountState(
        ref=access.ref,
        source="environment" if access.source == "environment" else "none",
        method=access.method.id,
        kind="none" if credential is None else "fields" if len(secrets) > 1 else "api-key",
        health=Health.UNKNOWN,
        identity=access.identity,
        last_four=secrets[0].last_four if secrets else "",
        variable=access.variable,
        expires_at=None if credential is None else expires_at_of(credential),
    )


def _without_access(broker: Broker, name: str) -> AccountState:
    ref: CredentialRef = broker.resolve(name)
    account = broker.store.account(ref)
    if account is not None:
        return state_of(account, broker.clock.now())
    return AccountState(ref=ref, source="environment", method="", kind="", health=Health.UNKNOWN)


def _undeclared(broker: Broker, name: str) -> AccountState | None:
    """Give a stored account whose provider's file is gone: it must not keep the others from being looked at."""
    provider, _, account = name.partition("@")
    ref = CredentialRef(provider=provider, account=account or DEFAULT_ACCOUNT)
    stored = broker.store.account(ref)
    if stored is None:
        return None
    state = state_of(stored, broker.clock.now())
    return replace(state, health=Health.UNKNOWN, reason=f"the provider {provider} is not declared here")


def _judged(broker: Broker, state: AccountState, error: ValetkeyError) -> AccountState:
    match error:
        case KeyRejected() | NeedsLogin() | RefreshRejected():
            health = Health.NEEDS_LOGIN
        case CredentialExpired():
            health = Health.EXPIRED
        case RefreshFailed() | RefreshBusy() | TransportError():
            health = Health.UNREACHABLE
        case StoreLocked():
            health = Health.LOCKED
        case KeyForbidden():
            # The provider knows the credential; another login would change nothing.
            health = Health.OK
        case _:
            health = Health.UNKNOWN
    # A login that is known to have ended has its reason already; the error repeats it behind words of its own.
    known = isinstance(error, NeedsLogin) and state.health is Health.NEEDS_LOGIN and state.reason
    return replace(state, health=health, reason=known or error.message)


def _write_down(broker: Broker, state: AccountState) -> None:
    """Keep what a probe said of a stored account; that it could not be reached is for the broker's back-off to tell."""
    if state.source != "stored" or state.health not in (Health.OK, Health.NEEDS_LOGIN):
        return
    # Of the generation that was probed: one that was saved meanwhile is another credential.
    broker.store.mark(state.ref, generation=state.generation, health=state.health, reason=state.reason)
