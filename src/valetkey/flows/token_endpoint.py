"""The one place that talks to token endpoints (RFC 6749 section 5, RFC 7009); how each differs is `provider.Token`."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import assert_never
from urllib.parse import urlencode

from valetkey.credential import Credential, ExchangedKey, OAuthToken, Secret
from valetkey.errors import RefreshFailed, RefreshRejected, TransportError, UnclearAnswer
from valetkey.flows.context import Context
from valetkey.http import HttpClient, Response
from valetkey.inject import fill
from valetkey.log import forms
from valetkey.provider import AuthMethod, Encoding, Provider

__all__ = [
    "Answer",
    "Granted",
    "Refused",
    "Unavailable",
    "ask",
    "check_header_safe",
    "claims_of",
    "encode",
    "local_time",
    "read_answer",
    "read_token",
    "refresh",
    "refused",
    "revoke",
    "seconds",
]

# What an honest server says in one sentence; the rest could be anything.
MAX_DESCRIPTION_CHARS = 200
MAX_ERROR_CHARS = 80
# What is shorter stands in any sentence by chance, and is no secret worth the name.
MIN_SECRET_CHARS = 8
# A life beyond this is a mistake of units (milliseconds) and would overflow a date.
MAX_LIFE_SECONDS = 10 * 365 * 86400.0
MAX_RETRY_AFTER_SECONDS = 86400.0
REVOKE_SECONDS = 10.0
# What we send that is no secret and may well stand in an honest error.
PUBLIC_FIELDS = ("grant_type", "client_id", "scope", "redirect_uri", "token_type_hint", "code_challenge_method")


@dataclass(frozen=True, kw_only=True)
class Granted:
    """The server gave what was asked for. `body` holds secrets."""

    body: Mapping[str, object] = field(repr=False)
    response: Response


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The server said no, in its own words, which are empty where it gave none.

    `error` is the code as it came, to decide by; in text `shown` stands for it, which like `description` is without
    what we sent.
    """

    error: str = field(repr=False)
    shown: str
    description: str
    status: int
    interval: float | None = None

    def __str__(self) -> str:
        named = self.shown or f"HTTP {self.status}"
        return f"{named} ({self.description})" if self.description else named


@dataclass(frozen=True, kw_only=True)
class Unavailable:
    """The server cannot say now: 408, 429 or 5xx. `retry_after` is in seconds."""

    status: int
    retry_after: float | None


Answer = Granted | Refused | Unavailable


async def ask(
    context: Context, url: str, fields: Mapping[str, str], *, body: Encoding, headers: Mapping[str, str] | None = None
) -> Answer:
    """POST the fields and read the answer. Raises: TransportError's, UnclearAnswer for what is no answer at all."""
    kind, content = encode(fields, body)
    sent = {**context.method.token.headers, **(headers or {}), "content-type": kind}
    response = await context.http.request("POST", url, headers=sent, body=content)
    return read_answer(
        response,
        errors_in_200=context.method.token.errors_in_200,
        now=context.clock.now(),
        sent=[value for name, value in fields.items() if value and name not in PUBLIC_FIELDS],
    )


def encode(fields: Mapping[str, str], body: Encoding) -> tuple[str, bytes]:
    """Give content type and body."""
    match body:
        case "form":
            return "application/x-www-form-urlencoded", urlencode(fields).encode()
        case "json":
            return "application/json", json.dumps(dict(fields)).encode()
        case _:
            assert_never(body)


def read_answer(response: Response, *, errors_in_200: bool, now: datetime, sent: list[str] | None = None) -> Answer:
    """Sort an answer. An `error` counts before the status says anything; what was `sent` is taken out of its text.

    Raises: UnclearAnswer for a redirect, and for a success that is not a JSON object.
    """
    document = _object(response)
    refusal = None if document is None else _refusal(document, response.status, sent or [])
    success = 200 <= response.status < 300
    if refusal is not None and refusal.error in ("authorization_pending", "slow_down"):
        return refusal
    if response.status in (408, 429) or response.status >= 500:
        return Unavailable(status=response.status, retry_after=_retry_after(response, now))
    if success and document is not None:
        # Some servers put errors into a success (GitHub, Kimi); an `error` beside a token is somebody's extra field.
        if refusal is not None and (errors_in_200 or "access_token" not in document):
            return refusal
        return Granted(body=document, response=response)
    if 400 <= response.status < 500:
        return refusal or Refused(error="", shown="", description="", status=response.status)
    what = "redirects elsewhere" if 300 <= response.status < 400 else "is not a JSON object"
    raise UnclearAnswer(
        f"the token endpoint's answer (HTTP {response.status}) {what}",
        hint="check the address; a proxy or a sign-in page may be in the way",
    )


def _object(response: Response) -> dict[str, object] | None:
    try:
        document = response.json()
    except UnclearAnswer:
        return None
    return document if isinstance(document, dict) else None


def _refusal(document: Mapping[str, object], status: int, sent: list[str]) -> Refused | None:
    error = document.get("error")
    # RFC 6749 section 5.2 has `error`; others nest it or call it `code`.
    code = (error.get("code") or error.get("type")) if isinstance(error, dict) else error
    if status >= 400:
        code = code or document.get("code")
    if not isinstance(code, str) or not code:
        return None
    description = document.get("error_description")
    return Refused(
        error=_sanitised(code, MAX_ERROR_CHARS, []),
        shown=_sanitised(code, MAX_ERROR_CHARS, sent),
        description=_sanitised(description, MAX_DESCRIPTION_CHARS, sent) if isinstance(description, str) else "",
        status=status,
        interval=seconds(document.get("interval")),
    )


def refused(error: str, description: str) -> Refused:
    """Give an authorization response's error (RFC 6749 section 4.1.2.1), sanitised."""
    code = _sanitised(error, MAX_ERROR_CHARS, [])
    return Refused(
        error=code,
        shown=code,
        description=_sanitised(description, MAX_DESCRIPTION_CHARS, []),
        status=400,
    )


def _sanitised(text: str, limit: int, sent: list[str]) -> str:
    for secret in sent:
        if len(secret) >= MIN_SECRET_CHARS:
            for form in forms(secret):
                text = text.replace(form, "…")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: limit * 4]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def seconds(value: object) -> float | None:
    """Read a number of seconds, written as number or text; None where it is no sensible one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and 0 < number <= MAX_LIFE_SECONDS else None


def _retry_after(response: Response, now: datetime) -> float | None:
    # RFC 9110 section 10.2.3: seconds or a date. The date is the server's, so it is measured from the server's own.
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    wished = _date(text)
    if wished is None:
        return None
    wait = (wished - (_date(response.headers.get("date", "")) or now)).total_seconds()
    return min(max(wait, 0.0), MAX_RETRY_AFTER_SECONDS)


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def local_time(value: object, response: Response, now: datetime) -> datetime | None:
    """Read a server's point in time (epoch seconds or RFC 3339) in terms of our clock, by the answer's Date header.

    So a wrong clock here neither shortens nor lengthens a life. None where it is no sensible time.
    """
    moment = _moment(value)
    if moment is None:
        return None
    server_now = _date(response.headers.get("date", "")) or now
    life = (moment - server_now).total_seconds()
    return None if abs(life) > MAX_LIFE_SECONDS else now + timedelta(seconds=life)


def _moment(value: object) -> datetime | None:
    if isinstance(value, str) and not value.replace(".", "", 1).isdecimal():
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            return None
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    try:
        return datetime.fromtimestamp(float(value), UTC) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError, OSError):
        return None


def claims_of(token: Secret) -> dict[str, object]:
    """Read a JWT's claims, empty where it is none. The signature is not checked: never base trust on them."""
    parts = token.reveal().split(".")
    if len(parts) != 3:
        return {}
    try:
        # RFC 7515 section 2 leaves the padding out; Python wants it.
        document = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def check_header_safe(value: object, what: str) -> Secret:
    """Give a secret that may stand in a header. Raises: UnclearAnswer, without a part of it."""
    if isinstance(value, str) and value and value.isascii() and value.isprintable() and value.strip() == value:
        return Secret(value)
    raise UnclearAnswer(f"the answer has no usable {what}", hint="try again; if it stays so, the provider has changed")


def read_token(
    granted: Granted, *, method: AuthMethod, now: datetime, parameters: Mapping[str, str], old: OAuthToken | None = None
) -> OAuthToken:
    """Read a token answer (RFC 6749 section 5.1). What a renewal's answer leaves out stays as it was in `old`.

    Raises: UnclearAnswer when there is nothing usable in it.
    """
    body = granted.body
    refresh_token = _optional(body.get("refresh_token"), "refresh token")
    if old is not None and refresh_token is not None and not body.get("access_token"):
        # The old refresh token may be spent with this answer: the new one is kept whatever else is missing.
        return replace(old, refresh_token=refresh_token)
    access_token = check_header_safe(body.get("access_token"), "access token")
    scope = body.get("scope")
    token_type = body.get("token_type")
    return OAuthToken(
        method=method.id,
        access_token=access_token,
        refresh_token=refresh_token or (old.refresh_token if old else None),
        issued_at=now,
        expires_at=_expires_at(granted, access_token, method, now),
        token_type=token_type if isinstance(token_type, str) and token_type else "Bearer",
        scope=tuple(scope.split()) if isinstance(scope, str) else (old.scope if old else method.scope),
        id_token=_optional(body.get("id_token"), "id token") or (old.id_token if old else None),
        parameters=parameters,
    )


def _optional(value: object, what: str) -> Secret | None:
    return None if value is None or value == "" else check_header_safe(value, what)


def _expires_at(granted: Granted, access_token: Secret, method: AuthMethod, now: datetime) -> datetime | None:
    told: datetime | None = None
    life: float | None = None
    match method.token.expires_from:
        case "expires_in":
            life = seconds(granted.body.get("expires_in"))
        case "access_token":
            told = local_time(claims_of(access_token).get("exp"), granted.response, now)
            life = seconds(granted.body.get("expires_in"))
        case "none":
            pass
        case _:
            assert_never(method.token.expires_from)
    if told is not None:
        return told
    life = life or method.token.default_expires_in
    return None if life is None else now + timedelta(seconds=life)


async def refresh(context: Context, old: OAuthToken) -> OAuthToken:
    """Spend the refresh token (RFC 6749 section 6). The caller saves the answer before it uses it.

    Raises: RefreshRejected: invalid_grant or what the declaration calls final; RefreshFailed: anything else.
    """
    method, provider = context.method, context.provider
    if old.refresh_token is None or method.token_endpoint is None:
        raise RefreshRejected(
            f"the login at {provider.id} came without a refresh token and has ended",
            hint=f"run `{context.login}`",
            provider=provider.id,
        )
    fields = {"grant_type": "refresh_token", "refresh_token": old.refresh_token.reveal()}
    if method.client_id is not None and method.token.send_client_id:
        fields["client_id"] = method.client_id
    if method.token.send_scope and method.scope:
        fields["scope"] = " ".join(method.scope)
    fields.update({name: fill(value, old.parameters) for name, value in method.token.parameters.items()})
    body = method.token.refresh_body or method.token.body
    try:
        answer = await ask(context, context.url(method.token_endpoint, old.parameters), fields, body=body)
        if isinstance(answer, Granted):
            return read_token(answer, method=method, now=context.clock.now(), parameters=old.parameters, old=old)
    except TransportError as error:
        raise RefreshFailed(
            f"the login at {provider.id} could not be renewed: {error.message}", hint=error.hint, provider=provider.id
        ) from error
    raise _not_refreshed(answer, context)


def _not_refreshed(answer: Refused | Unavailable, context: Context) -> RefreshRejected | RefreshFailed:
    token, provider = context.method.token, context.provider
    final_status = answer.status in token.final_status
    if isinstance(answer, Unavailable) and not final_status:
        return RefreshFailed(
            f"{provider.id} cannot renew the login now (HTTP {answer.status})",
            hint="try again later; the old token is kept",
            provider=provider.id,
            retry_after=answer.retry_after,
        )
    # RFC 6749 section 5.2: only invalid_grant says that the refresh token is dead; the rest is about us.
    error = answer.error if isinstance(answer, Refused) else ""
    said = str(answer) if isinstance(answer, Refused) else f"HTTP {answer.status}"
    if final_status or error == "invalid_grant" or error in token.final_errors:
        return RefreshRejected(
            f"{provider.id} has ended the login: {said}", hint=f"run `{context.login}`", provider=provider.id
        )
    return RefreshFailed(
        f"{provider.id} refused to renew the login: {said}",
        hint=f"try again later; if it stays so, check the client id and run `{context.login}`",
        provider=provider.id,
    )


async def revoke(provider: Provider, method: AuthMethod, credential: Credential, http: HttpClient) -> bool:
    """Tell the provider that the login is over (RFC 7009): True when it said that it is. Never raises for its answer.

    The refresh token is what ends a login; an access token goes where there is no other.
    """
    grant = credential.grant if isinstance(credential, ExchangedKey) else credential
    if not isinstance(grant, OAuthToken) or method.revocation_endpoint is None:
        return False
    hint, token = ("access_token", grant.access_token)
    if grant.refresh_token is not None:
        hint, token = ("refresh_token", grant.refresh_token)
    fields = {"token": token.reveal(), "token_type_hint": hint}
    if method.client_id is not None and method.token.send_client_id:
        fields["client_id"] = method.client_id
    kind, content = encode(fields, method.revocation_body)
    headers = {**method.token.headers, "content-type": kind}
    url = fill(method.revocation_endpoint, grant.parameters)
    try:
        response = await http.request("POST", url, headers=headers, body=content, timeout_seconds=REVOKE_SECONDS)
    except TransportError:
        return False
    return 200 <= response.status < 300
