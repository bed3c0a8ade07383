"""Stores a login that was found in another tool's file, after its provider has accepted it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from valetkey.credential import ApiKey, Credential, CredentialRef, Fields
from valetkey.errors import InvalidParameter, KeyRejected, ProviderExists
from valetkey.flows import claimed, flow_for
from valetkey.imports import Found
from valetkey.inject import endpoint_hosts, reach
from valetkey.login import Logins
from valetkey.provider import AuthMethod, Provider
from valetkey.store import Account, Record

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["take_over"]


async def take_over(
    broker: Broker, found: Found, *, account: str, replace_existing: bool = False, verify: bool = True
) -> tuple[Account, bool]:
    """Store it and give the account, and whether its token had to be renewed: then the other tool's is spent.

    Raises: ProviderExists when the account is there already; KeyRejected, KeyForbidden, TransportError.
    """
    assert found.provider is not None and found.credential is not None  # noqa: S101, PT018  # what has a problem is not taken over
    provider = broker.catalogue.get(found.provider)
    ref = CredentialRef(provider=provider.id, account=account)
    if broker.store.account(ref) is not None and not replace_existing:
        raise ProviderExists(
            f"{ref} is logged in already", hint="add --replace, or --account NAME for another", provider=provider.id
        )
    credential = found.credential
    if isinstance(credential, ApiKey | Fields):
        return await _as_form(broker, ref, credential, verify=verify), False
    return await _as_token(broker, provider, ref, credential, verify=verify)


async def _as_form(broker: Broker, ref: CredentialRef, credential: ApiKey | Fields, *, verify: bool) -> Account:
    """Go through the login that asks for a key, which checks key and parameters."""
    logins = Logins(
        store=broker.store, catalogue=broker.catalogue, http=broker.http, clock=broker.clock, environ=broker.environ
    )
    pending = await logins.begin(
        ref.provider,
        method=credential.method,
        account=ref.account,
        parameters=credential.parameters,
        accept_restricted=True,
    )
    secrets = {"key": credential.key} if isinstance(credential, ApiKey) else dict(credential.values)
    answer = {name: secret.reveal() for name, secret in secrets.items()}
    return await logins.complete(pending, answer, verify=verify)


async def _as_token(
    broker: Broker, provider: Provider, ref: CredentialRef, credential: Credential, *, verify: bool
) -> tuple[Account, bool]:
    method = provider.method(credential.method)
    if method is None:
        raise InvalidParameter(f"{provider.id} has no such login", hint=f"run `valetkey login {provider.id}`")
    flow = flow_for(
        provider,
        method,
        parameters=credential.parameters,
        http=broker.http,
        clock=broker.clock,
        environ=broker.environ,
    )
    identity, renewed = claimed(method, credential), False
    if verify:
        try:
            identity = await flow.validate(credential)
        except KeyRejected:
            # An access token in an old file is mostly past its end. Saved at once: the file's refresh token is spent.
            credential, renewed = await flow.refresh(credential), True
            _save(broker, replace(_record(provider, method, ref, credential), identity=identity))
            identity = await flow.validate(credential)
    return _save(broker, replace(_record(provider, method, ref, credential), identity=identity)), renewed


def _save(broker: Broker, record: Record) -> Account:
    if broker.audit is not None:
        detail = {"method": record.credential.method, "restricted": record.restricted, "imported": True}
        broker.audit.append("login", account=str(record.ref), detail=detail)
    old = broker.store.account(record.ref)
    broker.store.save(record if old is None else replace(record, generation=old.generation))
    saved = broker.store.account(record.ref)
    assert saved is not None  # noqa: S101  # it was written a line above
    return saved


def _record(provider: Provider, method: AuthMethod, ref: CredentialRef, credential: Credential) -> Record:
    base_url, hosts = reach(provider, method, credential.parameters)
    return Record(
        ref=ref,
        credential=credential,
        hosts=hosts,
        endpoints=endpoint_hosts(method, credential.parameters),
        base_url=base_url,
        restricted=method.standing == "restricted",
    )
