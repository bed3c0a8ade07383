"""Finds the account that logs in at a host by user and password, as git and docker want it (RFC 7617)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from valetkey.access import Access, from_environment
from valetkey.credential import Credential, CredentialRef, Identity, Secret, secrets_of
from valetkey.errors import InvalidParameter, InvalidProvider
from valetkey.inject import fill, host_matches, variables_of
from valetkey.provider import AuthMethod, Provider

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["Candidate", "Pair", "candidates", "choose", "pair_at"]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An account that logs in somewhere by user and password. `name` is what the broker is asked for."""

    name: str
    ref: CredentialRef
    provider: Provider
    method: AuthMethod
    credential: Credential
    hosts: tuple[str, ...]
    base_url: str
    identity: Identity


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What goes into Basic."""

    user: str
    password: Secret


def candidates(broker: Broker, tool: str) -> Iterator[Candidate]:
    """Give the accounts of providers that come with `tool` or take Basic anywhere; of each the one that counts first.

    As everywhere, the environment counts where nothing is stored. Raises: StoreError, InvalidParameter.
    """
    for provider in broker.catalogue.all():
        if tool not in provider.tools and not any(r.basic for m in provider.auth for r in m.inject):
            continue
        first = broker.resolve(provider.id)
        stored = [account.ref for account in broker.store.accounts(provider=provider.id)]
        for ref in sorted(stored, key=lambda ref: ref != first):
            candidate = _stored(broker, provider, ref)
            if candidate is not None:
                yield candidate
        if first not in stored and (found := from_environment(broker.environ, first, provider)) is not None:
            yield _of(found, provider.id)


def choose(
    found: Sequence[Candidate], *, host: str, tool: str, username: str | None = None, path: str = ""
) -> Candidate | None:
    """Give the account for this host (lower case, with its port); None where there is none.

    With a `username` only an account of that name. Without, the one that the path names, else the first.
    """
    here = [c for c in found if _is_for(host, c) and _template(c, host, tool) is not None]
    if username is not None:
        here = [c for c in here if username.casefold() in _names(c, host, tool)]
    words = {word.casefold() for word in path.split("/") if word}
    return next((c for c in here if words & _names(c, host, tool)), here[0] if here else None)


def _is_for(host: str, candidate: Candidate) -> bool:
    """Say whether the account is for this host: at another port than https' own only where that port was declared."""
    name, colon, port = host.partition(":") if not host.startswith("[") else (host.partition("]")[0] + "]", "", "")
    if host.startswith("["):
        _, colon, port = host.partition("]:")
    if "@" in host or (colon and not port.isdigit()):
        return False
    if colon and int(port) != 443:
        return host in candidate.hosts or host == urlsplit(candidate.base_url).netloc.lower()
    return host_matches(name, candidate.hosts) or host_matches(host, candidate.hosts)


def pair_at(candidate: Candidate, credential: Credential, *, host: str, tool: str) -> Pair:
    """Fill in user and password. Raises: InvalidParameter when either would break the line it is written on."""
    template = _template(candidate, host, tool)
    assert template is not None  # noqa: S101  # `choose` looked
    user, password = _filled(candidate, credential, template)
    if ":" in user or not (user + password).isprintable() or not password:
        raise InvalidParameter(
            f"user and password of {candidate.ref} cannot be handed on: one is empty or holds a control character",
            hint=f"log in again: `valetkey login {candidate.ref.provider}`",
            provider=candidate.ref.provider,
        )
    return Pair(user=user, password=Secret(password))


def _stored(broker: Broker, provider: Provider, ref: CredentialRef) -> Candidate | None:
    record = broker.store.load(ref)
    method = None if record is None else provider.method(record.credential.method)
    if record is None or method is None:
        return None
    return Candidate(
        name=str(ref),
        ref=ref,
        provider=provider,
        method=method,
        credential=record.credential,
        hosts=record.hosts,
        base_url=record.base_url,
        identity=record.identity,
    )


def _of(access: Access, name: str) -> Candidate:
    assert access.credential is not None  # noqa: S101  # the environment's always has one
    return Candidate(
        name=name,
        ref=access.ref,
        provider=access.provider,
        method=access.method,
        credential=access.credential,
        hosts=access.hosts,
        base_url=access.base_url,
        identity=access.identity,
    )


def _template(candidate: Candidate, host: str, tool: str) -> str | None:
    """Give the declared `user:password` for this host, as inject.py takes it: of several rules the last."""
    parameters = candidate.credential.parameters
    rules = [rule for rule in candidate.method.inject if rule.basic is not None]
    for rule in reversed(rules):
        if not rule.hosts or host_matches(host, tuple(fill(h, parameters).lower() for h in rule.hosts)):
            return rule.basic
    # A declaration that names the tool and no form: whoever the account is, with its secret.
    return "" if not rules and tool in candidate.provider.tools else None


def _filled(candidate: Candidate, credential: Credential, template: str) -> tuple[str, str]:
    if not template:
        secrets = list(secrets_of(credential).values())
        return candidate.identity.name or candidate.ref.account, secrets[0].reveal() if len(secrets) == 1 else ""
    values = variables_of(credential, account_id=candidate.identity.account_id)
    user, _, password = template.partition(":")
    return fill(user, values), fill(password, values)


def _names(candidate: Candidate, host: str, tool: str) -> set[str]:
    """Give the names that a person may call this account by."""
    identity = candidate.identity
    names = {candidate.ref.account, identity.name, identity.email}
    template = _template(candidate, host, tool) or ""
    user = template.partition(":")[0]
    with suppress(InvalidProvider):  # a source that is read at use tells its user only then
        names.add(fill(user, variables_of(candidate.credential, account_id=identity.account_id)))
    return {name.casefold() for name in names if name}
