"""Asks a provider whether a credential is good, and whose it is."""

from __future__ import annotations

from dataclasses import replace

from valetkey.credential import ApiKey, Credential, ExchangedKey, Identity, OAuthToken, Secret
from valetkey.errors import (
    InvalidProvider,
    KeyForbidden,
    KeyRejected,
    ProviderFault,
    TransportError,
    UnclearAnswer,
    ValidationFailed,
)
from valetkey.flows.context import Context
from valetkey.flows.token_endpoint import claims_of
from valetkey.http import Response
from valetkey.inject import fill, headers_for, join, placed, reach
from valetkey.log import holds_secret
from valetkey.pointer import text_at
from valetkey.provider import AuthMethod, Call

__all__ = ["claimed", "validate"]

# Nothing is stored before the probe has answered, within this: a person waits.
PROBE_SECONDS = 10.0


async def validate(context: Context, credential: Credential) -> Identity:
    """Ask the probe; without one the credential is taken as it is, with whatever identity its tokens claim.

    Raises: KeyRejected, KeyForbidden, ProviderFault, ValidationFailed, and TransportError's others as they come.
    """
    identity = await _claimed_or_asked(context, credential)
    probe = context.method.probe or context.provider.api.probe
    if probe is None or (probe.get is None and probe.post is None):
        return identity
    answer = await _send(context, credential, probe, identity)
    _judge(answer, probe, context, credential)
    # 429 comes after the credential was looked at: it is good, and out of quota. There is nothing else to read.
    return identity if answer.status == 429 else _over(identity, _told(answer, probe, context, credential))


def claimed(method: AuthMethod, credential: Credential) -> Identity:
    """Read account, e-mail and plan from the tokens' claims. Not verified: for show and for headers only."""
    claims = method.claims
    grant = credential.grant if isinstance(credential, ExchangedKey) else credential
    if claims is None or not isinstance(grant, OAuthToken):
        return Identity()
    tokens: dict[str, Secret | None] = {"id_token": grant.id_token, "access_token": grant.access_token}
    documents = [claims_of(token) for name in claims.token if (token := tokens[name]) is not None]

    def first(pointers: tuple[str, ...]) -> str | None:
        found = (text_at(document, pointer) for document in documents for pointer in pointers)
        return next((value for value in found if value), None)

    return Identity(
        account_id=first(claims.account_id),
        name=first(claims.name),
        email=first(claims.email),
        plan=first(claims.plan),
    )


async def _claimed_or_asked(context: Context, credential: Credential) -> Identity:
    identity = claimed(context.method, credential)
    profile = context.method.claims.profile if context.method.claims else None
    if profile is None:
        return identity
    try:
        answer = await _send(context, credential, profile, identity)
        told = _told(answer, profile, context, credential) if answer.status == 200 else Identity()
    except (TransportError, ValidationFailed):
        # Who it is makes nothing better or worse: a token may be good and not allowed to ask.
        return identity
    return _over(identity, told)


def _over(identity: Identity, told: Identity) -> Identity:
    return replace(
        identity,
        account_id=told.account_id or identity.account_id,
        name=told.name or identity.name,
        email=told.email or identity.email,
        plan=told.plan or identity.plan,
    )


async def _send(context: Context, credential: Credential, call: Call, identity: Identity) -> Response:
    base_url, hosts = reach(context.provider, context.method, credential.parameters)
    if isinstance(credential, ExchangedKey) and credential.base_url:
        base_url = credential.base_url
    verb, path = ("GET", call.get) if call.get is not None else ("POST", call.post or "")
    url = join(base_url, fill(path, credential.parameters))
    given = {**context.provider.api.headers, **call.headers}
    if call.body is not None:
        given.setdefault("content-type", "application/json")
    try:
        headers = headers_for(
            credential, method=context.method, url=url, hosts=hosts, headers=given, account_id=identity.account_id
        )
        url = placed(credential, method=context.method, url=url, hosts=hosts, account_id=identity.account_id)
    except InvalidProvider as error:
        # Mostly an account id that the tokens should have told and did not.
        raise ValidationFailed(
            f"{context.provider.name} cannot be asked with this login: {error.message}",
            hint=f"run `{context.login}` again; if it stays so, the provider has changed",
            provider=context.id,
        ) from error
    body = None if call.body is None else call.body.encode()
    try:
        return await context.http.request(verb, url, headers=headers, body=body, timeout_seconds=PROBE_SECONDS)
    except TransportError as error:
        error.provider = context.id
        raise


def _judge(answer: Response, probe: Call, context: Context, credential: Credential) -> None:
    name, status = context.provider.name, answer.status
    html = answer.headers.get("content-type", "").startswith("text/html")
    if status == 429 or status in probe.accepted:
        return
    if status == 401 or status in probe.rejected:
        raise KeyRejected(
            f"{name} rejected the credential (HTTP {status}){_misfit(context, credential)}",
            hint=_where(context),
            provider=context.id,
        )
    if status == 403:
        raise KeyForbidden(
            f"{name} knows the credential and forbids its use (HTTP 403)",
            hint="check the account's plan, the key's permissions and the region",
            provider=context.id,
        )
    if status >= 500:
        raise ProviderFault(
            f"{name} has a fault (HTTP {status})",
            hint="try again later; --no-verify stores without asking",
            provider=context.id,
        )
    if not 200 <= status < 300 or html:
        what = "answered with a web page" if html else f"answered HTTP {status}"
        raise ValidationFailed(
            f"{name} {what} where the credential was to be checked",
            hint="check base_url and parameters; --no-verify stores without asking",
            provider=context.id,
        )


def _misfit(context: Context, credential: Credential) -> str:
    prefix = context.method.prefix
    if not isinstance(credential, ApiKey) or prefix is None or credential.key.reveal().startswith(prefix):
        return ""
    return f"; its keys start with {prefix} and this one does not"


def _where(context: Context) -> str:
    if context.method.keys_url is not None:
        return f"get a key at {context.method.keys_url}, then run `{context.login}`"
    return f"run `{context.login}`"


def _told(answer: Response, call: Call, context: Context, credential: Credential) -> Identity:
    if not any((call.account_id, call.name, call.email, call.plan)):
        return Identity()
    try:
        document = answer.json()
    except UnclearAnswer as error:
        raise ValidationFailed(error.message, hint=error.hint, provider=context.id) from error

    def told(pointer: str | None) -> str | None:
        # What calls an account by its key would have the key in every list, and in the store unsealed.
        text = text_at(document, pointer)
        return None if text is None or holds_secret(text, credential) else text

    return Identity(
        account_id=told(call.account_id), name=told(call.name), email=told(call.email), plan=told(call.plan)
    )
