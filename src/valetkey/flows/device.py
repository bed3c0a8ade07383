"""Device login (RFC 8628): the user types a short code elsewhere while we ask whether it is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import assert_never

from valetkey.credential import Credential, Identity, OAuthToken
from valetkey.errors import (
    CompletionFailed,
    InitiationFailed,
    InvalidParameter,
    LoginDenied,
    LoginExpired,
    PollFailed,
    ProviderFault,
    RefreshNotSupported,
    TransportError,
    UnclearAnswer,
)
from valetkey.flow import EnterUserCode, PendingAuthorization
from valetkey.flows import form, probe, token_endpoint
from valetkey.flows.context import Context
from valetkey.flows.pending import LIFE_SECONDS, pending
from valetkey.flows.token_endpoint import Granted, Refused, Unavailable
from valetkey.inject import fill

__all__ = ["DeviceFlow", "action_of", "ask_once", "begin"]

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:device_code"
# RFC 8628 section 3.5: "If no value is provided, clients MUST use 5 as the default", and 5 more on slow_down.
DEFAULT_INTERVAL_SECONDS = 5
SLOW_DOWN_SECONDS = 5
LONGEST_INTERVAL_SECONDS = 300
# RFC 8628 section 3.2 leaves the length open; a page shows it and a person types it.
LONGEST_USER_CODE_CHARS = 64


class DeviceFlow:
    """An AuthFlow that ends in an OAuthToken."""

    kind = "device"

    def __init__(self, context: Context) -> None:
        self._context = context

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        """Get the codes (RFC 8628 section 3.1)."""
        return await begin(self._context)

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        """Ask the token endpoint once (RFC 8628 section 3.4). Wait `action.interval` seconds before each call."""
        return await ask_once(self._context, pending)

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        """Ask once more and insist: for a user who says that the code has been entered."""
        if answer:
            raise InvalidParameter(
                "a device login takes no answer", hint="enter the code on the page shown", provider=self._context.id
            )
        return _finished(await ask_once(self._context, pending), self._context)

    async def refresh(self, credential: Credential) -> Credential:
        """Spend the refresh token (RFC 6749 section 6)."""
        if not isinstance(credential, OAuthToken):
            raise RefreshNotSupported(
                f"this credential of {self._context.id} cannot be renewed",
                hint=f"run `{self._context.login}`",
                provider=self._context.id,
            )
        return await token_endpoint.refresh(self._context, credential)

    async def validate(self, credential: Credential) -> Identity:
        """Ask the probe."""
        return await probe.validate(self._context, credential)


def _finished(result: PendingAuthorization | OAuthToken, context: Context) -> OAuthToken:
    if isinstance(result, PendingAuthorization):
        raise CompletionFailed(
            "the code has not been entered yet",
            hint=f"enter it at {action_of(result).verification_uri}, then go on waiting",
            provider=context.id,
        )
    return result


def action_of(pending: PendingAuthorization) -> EnterUserCode:
    """Give what a device login shows. Raises: InvalidParameter for a login of another kind."""
    if isinstance(pending.action, EnterUserCode):
        return pending.action
    raise InvalidParameter("this is not a device login", hint="begin the login again", provider=pending.provider)


async def begin(context: Context) -> PendingAuthorization:
    """Get device_code and user_code.

    Raises: InitiationFailed, MissingParameter, InvalidParameter.
    """
    context.check_client()
    parameters = await form.resolve(context, context.parameters)
    method = context.method
    fields = {} if method.client_id is None else {"client_id": method.client_id}
    if method.scope:
        fields["scope"] = " ".join(method.scope)
    url = context.url(method.device_authorization_endpoint or "", parameters)
    try:
        answer = await token_endpoint.ask(context, url, fields, body=method.device.body)
    except TransportError as error:
        raise InitiationFailed(
            f"the login at {context.id} could not begin: {error.message}", hint=error.hint, provider=context.id
        ) from error
    match answer:
        case Granted():
            return _shown(context, answer, parameters)
        case Refused(status=404):
            raise InitiationFailed(
                f"{context.id} does not offer the device login here ({answer})",
                hint="enable it in the account's settings, or use another --method",
                provider=context.id,
            )
        case Refused():
            raise InitiationFailed(
                f"{context.id} refused to begin the login: {answer}",
                hint="check the client id, or use another --method",
                provider=context.id,
            )
        case Unavailable():
            raise InitiationFailed(
                f"{context.id} cannot begin a login now (HTTP {answer.status})",
                hint="try again later",
                provider=context.id,
            )
        case _:
            assert_never(answer)


def _shown(context: Context, granted: Granted, parameters: Mapping[str, str]) -> PendingAuthorization:
    device = context.method.device
    device_code = _text(context, granted, "device_code")
    user_code = _text(context, granted, "user_code")
    uri = (
        device.verification_uri
        or _text(context, granted, "verification_uri")
        or _text(context, granted, "verification_url")
    )
    if not device_code or not user_code or not uri or len(user_code) > LONGEST_USER_CODE_CHARS:
        raise InitiationFailed(
            f"the answer of {context.id} lacks a device code, a user code or the page for it",
            hint="use another --method",
            provider=context.id,
        )
    uri = fill(uri, parameters) if device.verification_uri else uri
    complete = _text(context, granted, "verification_uri_complete") or None
    for shown in (uri, complete):
        _check_page(shown, context)
    life = token_endpoint.seconds(_field(context, granted, "expires_in")) or device.expires_in or LIFE_SECONDS
    interval = token_endpoint.seconds(_field(context, granted, "interval")) or DEFAULT_INTERVAL_SECONDS
    action = EnterUserCode(
        user_code=user_code,
        verification_uri=uri,
        verification_uri_complete=complete,
        expires_in=math.ceil(life),
        interval=min(math.ceil(interval), LONGEST_INTERVAL_SECONDS),
    )
    return pending(
        context, action, parameters=parameters, private={"device_code": device_code}, life_seconds=action.expires_in
    )


def _check_page(uri: str | None, context: Context) -> None:
    # It is printed, made into a QR code and opened: it must not be a command, a file or an escape sequence.
    if uri is not None and not (uri.startswith(("https://", "http://")) and uri.isprintable() and " " not in uri):
        raise InitiationFailed(
            f"the page that {context.id} names is no web address", hint="use another --method", provider=context.id
        )


def _field(context: Context, granted: Granted, name: str) -> object:
    for candidate in context.method.device.fields.get(name, (name,)):
        if granted.body.get(candidate) is not None:
            return granted.body[candidate]
    return None


def _text(context: Context, granted: Granted, name: str) -> str:
    value = _field(context, granted, name)
    return value if isinstance(value, str) and value.isprintable() else ""


async def ask_once(context: Context, pending: PendingAuthorization) -> PendingAuthorization | OAuthToken:
    """Ask whether the user is done.

    Raises: LoginExpired, LoginDenied, PollFailed; TransportError to be retried at a slower pace (RFC 8628 section 3.5).
    """
    device, parameters = context.method.device, pending.parameters
    action = action_of(pending)
    url = context.url(device.poll or context.method.token_endpoint or "", parameters)
    body = device.poll_body or context.method.token.body
    try:
        answer = await token_endpoint.ask(context, url, _poll_fields(context, pending, action), body=body)
        if isinstance(answer, Granted) and device.answer == "authorization_code":
            return await _exchange_code(context, answer, parameters)
        if isinstance(answer, Granted):
            now = context.clock.now()
            return token_endpoint.read_token(answer, method=context.method, now=now, parameters=parameters)
    except UnclearAnswer as error:
        raise PollFailed(
            f"the login at {context.id} failed: {error.message}", hint=error.hint, provider=context.id
        ) from error
    if isinstance(answer, Unavailable):
        raise ProviderFault(
            f"{context.id} cannot say now whether the code was entered (HTTP {answer.status})",
            hint="wait; it is asked again",
            provider=context.id,
        )
    return _not_yet(context, pending, action, answer)


def _poll_fields(context: Context, pending: PendingAuthorization, action: EnterUserCode) -> dict[str, str]:
    device, client_id = context.method.device, context.method.client_id
    device_code = pending.private["device_code"]
    if device.poll_parameters:
        known = {**pending.parameters, "device_code": device_code, "user_code": action.user_code}
        if client_id is not None:
            known["client_id"] = client_id
        return {name: fill(template, known) for name, template in device.poll_parameters.items()}
    fields = {"grant_type": GRANT_TYPE, "device_code": device_code}
    if client_id is not None:
        fields["client_id"] = client_id
    extra = context.method.token.parameters.items()
    return {**fields, **{name: fill(template, pending.parameters) for name, template in extra}}


def _not_yet(
    context: Context, pending: PendingAuthorization, action: EnterUserCode, answer: Refused
) -> PendingAuthorization:
    match answer.error:
        case "authorization_pending":
            return pending
        case "slow_down":
            # For good (RFC 8628 section 3.5). GitHub names the new interval; a shorter one is no slowing down.
            wished = math.ceil(answer.interval or 0)
            slower = wished if wished > action.interval else action.interval + SLOW_DOWN_SECONDS
            return replace(pending, action=replace(action, interval=min(slower, LONGEST_INTERVAL_SECONDS)))
        case "access_denied":
            raise LoginDenied(
                f"the login was refused at {context.id}: {answer}",
                hint=f"run `{context.login}` again and approve it",
                provider=context.id,
            )
        case "expired_token":
            raise LoginExpired(
                f"the code for {context.id} has expired",
                hint=f"run `{context.login}` again and enter the new code in time",
                provider=context.id,
            )
        case _ if answer.status in context.method.token.pending_status:
            return pending
        case _:
            raise PollFailed(
                f"{context.id} ended the login: {answer}",
                hint=f"run `{context.login}` again, or use another --method",
                provider=context.id,
            )


async def _exchange_code(context: Context, granted: Granted, parameters: Mapping[str, str]) -> OAuthToken:
    """The poll's answer is a code with the server's own verifier, to be exchanged as after a browser login."""
    code, verifier = _text(context, granted, "authorization_code"), _text(context, granted, "code_verifier")
    method = context.method
    fields = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": fill(method.device.redirect_uri or "", parameters),
        "code_verifier": verifier,
    }
    if method.client_id is not None:
        fields["client_id"] = method.client_id
    url = context.url(method.token_endpoint or "", parameters)
    try:
        answer = await token_endpoint.ask(context, url, fields, body=method.token.body)
    except TransportError as error:
        # Not to be retried: the poll has given its code out, and will not give another.
        raise PollFailed(
            f"the code of {context.id} could not be exchanged: {error.message}",
            hint=f"run `{context.login}` again",
            provider=context.id,
        ) from error
    if not isinstance(answer, Granted):
        said = answer if isinstance(answer, Refused) else f"HTTP {answer.status}"
        raise PollFailed(
            f"{context.id} did not take its own code: {said}",
            hint=f"run `{context.login}` again",
            provider=context.id,
        )
    return token_endpoint.read_token(answer, method=method, now=context.clock.now(), parameters=parameters)
