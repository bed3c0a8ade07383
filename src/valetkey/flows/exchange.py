"""Device login whose token buys a short-lived key, again and again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from valetkey.credential import Credential, ExchangedKey, Identity, OAuthToken, Secret
from valetkey.errors import (
    CompletionFailed,
    InvalidParameter,
    PollFailed,
    ProviderFault,
    RefreshFailed,
    RefreshNotSupported,
    RefreshRejected,
    TransportError,
    UnclearAnswer,
)
from valetkey.flow import PendingAuthorization
from valetkey.flows import probe, token_endpoint
from valetkey.flows.context import Context
from valetkey.flows.device import action_of, ask_once, begin
from valetkey.flows.token_endpoint import check_header_safe, local_time, seconds
from valetkey.http import Response
from valetkey.inject import fill, host_matches, reach
from valetkey.pointer import look_up, text_at
from valetkey.provider import Exchange

__all__ = ["DeviceExchangeFlow"]

# A grant that ends within this is renewed first: the purchase itself takes time.
GRANT_MARGIN = timedelta(seconds=60)
# Where `expires_at` lies before `refresh_in`, one clock is wrong; the relative one is right (seen: 25 of 30 min).
AFTER_REFRESH = timedelta(minutes=5)


class DeviceExchangeFlow:
    """An AuthFlow that ends in an ExchangedKey."""

    kind = "device-exchange"

    def __init__(self, context: Context) -> None:
        self._context = context

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        """Get the codes (RFC 8628 section 3.1)."""
        return await begin(self._context)

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        """Ask once; with the token in hand, buy the first key.

        A purchase that fails for a while is tried again at the next poll, with the token kept in `private`: the device
        code is spent by then.
        """
        context = self._context
        if "grant" in pending.private:
            grant = _unpacked(context, pending)
        else:
            answer = await ask_once(context, pending)
            if isinstance(answer, PendingAuthorization):
                return answer
            grant = answer
        try:
            return await buy(context, grant)
        except UnclearAnswer as error:
            raise PollFailed(error.message, hint=error.hint, provider=context.id) from error
        except TransportError:
            return replace(pending, private={**pending.private, "grant": _packed(grant)})
        except RefreshRejected as error:
            raise PollFailed(error.message, hint=error.hint, provider=context.id) from error
        except RefreshFailed as error:
            raise CompletionFailed(error.message, hint=error.hint, provider=context.id) from error

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        """Ask once more and insist."""
        if answer:
            raise InvalidParameter(
                "a device login takes no answer", hint="enter the code on the page shown", provider=self._context.id
            )
        result = await self.poll(pending)
        if isinstance(result, PendingAuthorization):
            raise CompletionFailed(
                "the code has not been entered yet",
                hint=f"enter it at {action_of(result).verification_uri}, then go on waiting",
                provider=self._context.id,
            )
        return result

    async def refresh(self, credential: Credential) -> Credential:
        """Buy the next key; the grant is renewed first where it has an end."""
        context = self._context
        if not isinstance(credential, ExchangedKey):
            raise RefreshNotSupported(
                f"this credential of {context.id} cannot be renewed",
                hint=f"run `{context.login}`",
                provider=context.id,
            )
        grant = credential.grant
        ends = grant.expires_at
        if grant.refresh_token is not None and ends is not None and ends - GRANT_MARGIN <= context.clock.now():
            grant = await token_endpoint.refresh(context, grant)
        try:
            return await buy(context, grant)
        except (TransportError, RefreshFailed) as error:
            if grant.refresh_token != credential.grant.refresh_token:
                # The old refresh token is spent: the new one is handed back to be saved, with the key that there was.
                return replace(credential, grant=grant)
            if isinstance(error, RefreshFailed):
                raise
            raise RefreshFailed(
                f"the next key of {context.id} could not be bought: {error.message}",
                hint=error.hint,
                provider=context.id,
            ) from error

    async def validate(self, credential: Credential) -> Identity:
        """Ask the probe, with the bought key."""
        return await probe.validate(self._context, credential)


async def buy(context: Context, grant: OAuthToken) -> ExchangedKey:
    """Buy a key.

    Raises: RefreshRejected (401: the grant is dead), RefreshFailed (403: no entitlement; other refusals),
    ProviderFault (429, 5xx), UnclearAnswer, and TransportError's others.
    """
    exchange = context.method.exchange or Exchange()
    values = {**grant.parameters, "access_token": grant.access_token.reveal()}
    headers = {name: fill(template, values) for name, template in exchange.headers.items()}
    headers = {"authorization": f"Bearer {values['access_token']}", **{k.lower(): v for k, v in headers.items()}}
    verb, template, body = "GET", exchange.get, None
    if template is None:
        verb, template = "POST", exchange.post or ""
        headers["content-type"], body = token_endpoint.encode({}, exchange.body)
    response = await context.http.request(verb, context.url(template, grant.parameters), headers=headers, body=body)
    _judge(context, response)
    document = response.json()
    now = context.clock.now()
    expires_at, refresh_at = _times(exchange, document, response, now)
    return ExchangedKey(
        method=context.method.id,
        key=check_header_safe(look_up(document, exchange.key), "key"),
        grant=grant,
        issued_at=now,
        expires_at=expires_at,
        refresh_at=refresh_at,
        base_url=_base_url(context, grant, text_at(document, exchange.base_url)),
        parameters=grant.parameters,
    )


def _judge(context: Context, response: Response) -> None:
    name, status = context.provider.name, response.status
    if status == 401:
        raise RefreshRejected(
            f"{name} gives no key for this login any more (HTTP 401)",
            hint=f"run `{context.login}`",
            provider=context.id,
        )
    if status == 403:
        raise RefreshFailed(
            f"this account has no right to {name} (HTTP 403)",
            hint="check that the account has an active subscription, then try again",
            provider=context.id,
        )
    if status == 429 or status >= 500:
        raise ProviderFault(f"{name} gives no key now (HTTP {status})", hint="try again later", provider=context.id)
    if 300 <= status < 400:
        raise UnclearAnswer(f"{name} redirects where a key was to be had", hint="check the address")
    if status >= 400:
        raise RefreshFailed(
            f"{name} refused to give a key (HTTP {status})",
            hint=f"try again later; if it stays so, run `{context.login}`",
            provider=context.id,
        )


def _times(
    exchange: Exchange, document: object, response: Response, now: datetime
) -> tuple[datetime | None, datetime | None]:
    def life(pointer: str | None) -> datetime | None:
        length = None if pointer is None else seconds(look_up(document, pointer))
        return None if length is None else now + timedelta(seconds=length)

    refresh_at = life(exchange.refresh_in)
    absolute = exchange.expires_at
    expires_at = local_time(look_up(document, absolute), response, now) if absolute is not None else None
    expires_at = life(exchange.expires_in) or expires_at
    if refresh_at is not None and expires_at is not None and expires_at < refresh_at:
        expires_at = refresh_at + AFTER_REFRESH
    return expires_at, refresh_at


def _base_url(context: Context, grant: OAuthToken, told: str | None) -> str | None:
    """Take the server's word on where the API is only within what the declaration allows."""
    if told is None:
        return None
    declared, hosts = reach(context.provider, context.method, grant.parameters)
    try:
        parts = urlsplit(told)
        secure = parts.scheme == "https" or parts.scheme == urlsplit(declared).scheme
        plain = parts.username is None and not parts.query and not parts.fragment and told.isprintable()
        allowed = host_matches(parts.netloc.lower(), hosts)
    except ValueError:
        secure = plain = allowed = False
    if secure and plain and allowed:
        return told
    raise UnclearAnswer(
        f"{context.id} names an API address that its declaration does not allow",
        hint="report it; the key was not sent there",
        provider=context.id,
    )


def _packed(grant: OAuthToken) -> str:
    return json.dumps(
        {
            "access_token": grant.access_token.reveal(),
            "refresh_token": grant.refresh_token.reveal() if grant.refresh_token else None,
            "issued_at": grant.issued_at.isoformat(),
            "expires_at": grant.expires_at.isoformat() if grant.expires_at else None,
            "scope": list(grant.scope),
        }
    )


def _unpacked(context: Context, pending: PendingAuthorization) -> OAuthToken:
    packed = json.loads(pending.private["grant"])
    return OAuthToken(
        method=context.method.id,
        access_token=Secret(packed["access_token"]),
        refresh_token=Secret(packed["refresh_token"]) if packed["refresh_token"] else None,
        issued_at=datetime.fromisoformat(packed["issued_at"]),
        expires_at=datetime.fromisoformat(packed["expires_at"]) if packed["expires_at"] else None,
        scope=tuple(packed["scope"]),
        parameters=pending.parameters,
    )
