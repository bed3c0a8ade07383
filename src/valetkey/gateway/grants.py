"""Makes grants: what the decision has to know about an account, from its record or its provider's declaration."""

from __future__ import annotations

from collections.abc import Mapping

from valetkey.access import Use, check_use, without_credential
from valetkey.credential import DEFAULT_ACCOUNT, CredentialRef, ExchangedKey, login_command
from valetkey.errors import InvalidBaseUrl, InvalidProvider, NotLoggedIn
from valetkey.gateway import pattern
from valetkey.gateway.decide import Grant
from valetkey.gateway.pattern import WrongPattern
from valetkey.inject import reach
from valetkey.provider import Provider
from valetkey.providers import Catalogue
from valetkey.store import Record, Store

__all__ = ["declared", "grantable", "granted", "stored"]


def grantable(
    ref: CredentialRef,
    *,
    store: Store,
    catalogue: Catalogue,
    environ: Mapping[str, str],
    use: Use = "gateway",
    agent: str | None = None,
) -> Grant:
    """Give the grant of an account that may be granted now: it is stored, or its server wants no credential.

    `use` is "run" for a run, and `agent` whom that is for.

    Raises: NotLoggedIn, NotForThisUse, UnknownProvider, InvalidProvider, RecordDamaged; InvalidParameter and
    InvalidBaseUrl for what the environment says.
    """
    found = _there(ref, store, catalogue, environ, use, agent)
    if found is None:
        raise NotLoggedIn(
            f"{ref} cannot be granted: no credential is stored for it",
            provider=ref.provider,
            hint=f"run `{login_command(ref)}`",
        )
    return found


def granted(
    ref: CredentialRef,
    *,
    store: Store,
    catalogue: Catalogue,
    environ: Mapping[str, str],
    use: Use = "gateway",
    agent: str | None = None,
) -> Grant:
    """Give the grant of an account that was granted, logged out or not: whoever asks is then told to log in.

    Raises: as `grantable`; NotLoggedIn only where nobody knows the address without a login.
    """
    found = _there(ref, store, catalogue, environ, use, agent)
    found = found or declared(ref, catalogue.get(ref.provider))
    if found is None:
        raise NotLoggedIn(
            f"{ref} is logged out, and nobody knows its address without a login",
            provider=ref.provider,
            hint=f"run `{login_command(ref)}`",
        )
    return found


def _there(
    ref: CredentialRef,
    store: Store,
    catalogue: Catalogue,
    environ: Mapping[str, str],
    use: Use,
    agent: str | None,
) -> Grant | None:
    provider, record = catalogue.get(ref.provider), store.load(ref)
    if record is not None:
        method = provider.method(record.credential.method)
        if method is None:
            raise InvalidProvider(
                f"{provider.id} has no login {record.credential.method!r} any more",
                provider=provider.id,
                hint=f"run `{login_command(ref)}` again",
            )
        # Both count: what the login was bound to, and what its provider says by now.
        restricted = record.restricted or method.standing == "restricted"
        check_use(ref, method, use, restricted=restricted, agent=agent)
        return stored(record, provider)
    open_to_all = without_credential(environ, ref, provider) if ref.account == DEFAULT_ACCOUNT else None
    if open_to_all is None:
        return None
    return _grant(ref, provider, open_to_all.base_url, open_to_all.hosts)


def stored(record: Record, provider: Provider) -> Grant:
    """Give the grant of a login: its own sealed hosts. Raises: InvalidProvider."""
    credential = record.credential
    exchanged = credential.base_url if isinstance(credential, ExchangedKey) else None
    method = provider.method(credential.method)
    signs = method is not None and method.endpoint is not None
    return _grant(record.ref, provider, exchanged or record.base_url, record.hosts, signs=signs)


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
    # Which login it was is forgotten with it: where all have an endpoint, so had that one.
    signs = all(method.endpoint is not None for method in provider.auth)
    return _grant(ref, provider, places[0][0], hosts, signs=signs)


def _grant(
    ref: CredentialRef, provider: Provider, base_url: str, hosts: tuple[str, ...], *, signs: bool = False
) -> Grant:
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
    return Grant(ref=ref, base_url=base_url, hosts=hosts, off_limits=off_limits, signs=signs)
