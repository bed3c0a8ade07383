"""Servers of the user's own: adds them, takes them away with all that hangs on them, and accepts new hosts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from valetkey.address import is_here
from valetkey.credential import CredentialRef, Secret
from valetkey.errors import ProviderCheckFailed, TransportError, ValetkeyError
from valetkey.inject import endpoint_hosts, reach
from valetkey.provider import DialectId, Provider
from valetkey.providers import custom, probing

if TYPE_CHECKING:
    from valetkey.broker import Broker

__all__ = ["Change", "accept", "add", "changes_of", "remove"]


async def add(
    broker: Broker,
    name: str,
    *,
    base_url: str,
    dialect: DialectId | None,
    like: str | None,
    model: str | None,
    key: Secret | None,
    key_header: custom.KeyHeader | None,
    allow_http: bool,
    verify: bool,
) -> Provider:
    """Do what `sdk.add_provider` promises."""
    asked = allow_http
    # Nobody is on the way to a server on this machine.
    allow_http = allow_http or is_here(urlsplit(base_url.strip()).hostname or "")
    # Before anything is asked: the server has nothing to do with the name.
    custom.check_free(broker.catalogue, custom.name_to_id(name))
    spoken, url = dialect, base_url
    if spoken is None and like is not None:
        spoken = broker.catalogue.get(like).api.dialect
    if spoken is None:
        answering = await probing.probe_dialects(base_url, key=key, http=broker.http, allow_http=allow_http)
        spoken, url = answering[0].dialect, answering[0].base_url
    url = custom.normalise(url, spoken)
    custom.check_base_url(url, with_key=key is not None, allow_http=allow_http)
    needed = key is not None or asked
    if verify and key is None:
        needed = await _wants_key(broker, url, spoken)
    elif verify:
        await probing.check(url, spoken, key=key, http=broker.http)
    declared = custom.declare(
        broker.catalogue,
        name=name,
        base_url=url,
        dialect=spoken,
        model=model,
        key_needed=needed,
        like=like,
        allow_http=allow_http,
        key_header=key_header,
    )
    if key is not None:
        try:
            await _log_in(broker, declared, key)
        except ValetkeyError:
            custom.remove(broker.catalogue, declared.id)
            raise
    return declared


async def _wants_key(broker: Broker, base_url: str, dialect: DialectId) -> bool:
    """Say whether the server wants a key before it lists models. Raises: ProviderCheckFailed when it does neither."""
    url, headers = probing.models_request(base_url, dialect, None)
    try:
        answer = await broker.http.request("GET", url, headers=headers, timeout_seconds=probing.CHECK_SECONDS)
    except TransportError as error:
        raise ProviderCheckFailed(error.message, hint=error.hint) from error
    if answer.status in (401, 403):
        return True
    await probing.check(base_url, dialect, key=None, http=broker.http)
    return False


async def _log_in(broker: Broker, provider: Provider, key: Secret) -> None:
    from valetkey.sdk import logins

    under_way = logins(broker)
    pending = await under_way.begin(provider.id, method=provider.auth[0].id)
    # The server was asked with this key already, if it was to be asked at all.
    await under_way.complete(pending, {"key": key.reveal()}, verify=False)


async def remove(broker: Broker, id: str) -> tuple[CredentialRef, ...]:
    """Do what `sdk.remove_provider` promises."""
    from valetkey.chat.models import default_model, set_default_model
    from valetkey.sdk import logout

    if not any(path.stem == id for path in broker.catalogue.files()):
        # Refused by what knows why: it is built in, a plugin's, or not there.
        custom.remove(broker.catalogue, id)
    accounts = tuple(account.ref for account in broker.store.accounts(provider=id))
    for ref in accounts:
        await logout(str(ref), broker=broker)
        broker.store.delete_document("models", str(ref))
    broker.store.delete_document("models", id)
    chosen = default_model(broker.store)
    if chosen is not None and chosen.provider == id:
        set_default_model(broker.store, None)
    custom.remove(broker.catalogue, id)
    return accounts


# --- hosts that a declaration names since the login --------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a login would send its credential to by today's declaration, and did not by that of its day."""

    ref: CredentialRef
    hosts: tuple[str, ...]
    base_url: str
    endpoints: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


def changes_of(broker: Broker, provider: Provider) -> list[Change]:
    """Give the accounts whose sealed hosts are not those of the declaration. Raises: StoreError."""
    found = []
    for account in broker.store.accounts(provider=provider.id):
        record = broker.store.load(account.ref)
        method = None if record is None else provider.method(record.credential.method)
        if record is None or method is None or method.kind == "custom":
            continue
        base_url, hosts = reach(provider, method, record.credential.parameters)
        endpoints = endpoint_hosts(method, record.credential.parameters)
        before, now = {*record.hosts, *record.endpoints}, {*hosts, *endpoints}
        if before != now or record.base_url != base_url:
            found.append(
                Change(
                    ref=record.ref,
                    hosts=hosts,
                    base_url=base_url,
                    endpoints=endpoints,
                    added=tuple(sorted(now - before)),
                    removed=tuple(sorted(before - now)),
                )
            )
    return found


def accept(broker: Broker, change: Change) -> None:
    """Seal the declaration's hosts into the account. Raises: GenerationConflict when it was renewed meanwhile."""
    record = broker.store.load(change.ref)
    if record is not None:
        if broker.audit is not None:
            broker.audit.append("accept", account=str(change.ref), detail={"added": list(change.added)})
        broker.store.save(replace(record, hosts=change.hosts, endpoints=change.endpoints, base_url=change.base_url))
