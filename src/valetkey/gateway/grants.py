"""Makes grants: what the decision has to know about an account, from its record or its provider's declaration."""

from __future__ import annotations

from collections.abc import Mapping

from valetkey.credential import CredentialRef, ExchangedKey
from valetkey.errors import InvalidBaseUrl, InvalidProvider
from valetkey.gateway import pattern
from valetkey.gateway.decide import Grant
from valetkey.gateway.pattern import WrongPattern
from valetkey.inject import reach
from valetkey.provider import Provider
from valetkey.store import Record

__all__ = ["declared", "stored"]


def stored(record: Record, provider: Provider) -> Grant:
    """Give the grant of a login: its own sealed hosts. Raises: InvalidProvider."""
    credential = record.credential
    exchanged = credential.base_url if isinstance(credential, ExchangedKey) else None
    return _grant(record.ref, provider, exchanged or record.base_url, record.hosts)


def declared(ref: CredentialRef, provider: Provider, *, parameters: Mapping[str, str] | None = None) -> Grant | None:
    """Give the grant that a login with these parameters, else the declared defaults, would have.

    None where its address wants more. The parameters have to have passed their patterns.

    Raises: InvalidProvider.
    """
    places: list[tuple[str, tuple[str, ...]]] = []
    for method in provider.auth:
        values = {p.key: p.default for p in method.parameters if p.default is not None} | dict(parameters or {})
        try:
            places.append(reach(provider, method, values))
        except (InvalidProvider, InvalidBaseUrl):
            continue  # a parameter without a default
    if not places:
        return None
    hosts = tuple(dict.fromkeys(host for _, hosts in places for host in hosts))
    return _grant(ref, provider, places[0][0], hosts)


def _grant(ref: CredentialRef, provider: Provider, base_url: str, hosts: tuple[str, ...]) -> Grant:
    try:
        off_limits = tuple(pattern.read(text, host_needed=False) for text in provider.api.off_limits)
        for host in hosts:
            pattern.read_host(host, stars_anywhere=True)
    except WrongPattern as wrong:
        # What is off limits must not open because it cannot be read.
        raise InvalidProvider(
            f"hosts or off_limits of {provider.id} cannot be matched: one {wrong.message}",
            hint=wrong.hint,
            provider=provider.id,
        ) from None
    return Grant(ref=ref, base_url=base_url, hosts=hosts, off_limits=off_limits)
