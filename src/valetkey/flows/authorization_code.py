"""Browser login: authorization code with PKCE (RFC 6749 section 4.1, RFC 7636), by loopback (RFC 8252) or by paste."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit

from valetkey.credential import ApiKey, Credential, Identity, OAuthToken
from valetkey.errors import (
    CompletionFailed,
    InvalidParameter,
    LoginDenied,
    MissingParameter,
    RefreshNotSupported,
    TransportError,
)
from valetkey.flow import OpenBrowser, PendingAuthorization
from valetkey.flows import form, probe, token_endpoint
from valetkey.flows.context import Context
from valetkey.flows.pending import check_alive, pending
from valetkey.flows.token_endpoint import Granted, Refused, check_header_safe
from valetkey.inject import fill
from valetkey.pointer import look_up
from valetkey.provider import CreateKey, Redirect

__all__ = ["AuthorizationCodeFlow", "read_pasted", "same"]

# What an authorization response holds (RFC 6749 section 4.1.2, RFC 9207).
RESPONSE_FIELDS = ("code", "state", "iss", "error", "error_description")
# RFC 7636 section 4.1 recommends 32 random bytes; the same for state.
RANDOM_BYTES = 32
LONGEST_PASTE_CHARS = 32 * 1024


class AuthorizationCodeFlow:
    """An AuthFlow that ends in an OAuthToken, or in an ApiKey where the login creates one."""

    kind = "authorization-code"

    def __init__(self, context: Context) -> None:
        self._context = context

    async def initiate(self, *, redirect_uri: str | None = None) -> PendingAuthorization:
        """Make the URL to open. Without `redirect_uri` the answer is pasted.

        Raises: InvalidParameter for a redirect_uri that is not as declared; MissingParameter.
        """
        context, method = self._context, self._context.method
        context.check_client()
        parameters = await form.resolve(context, context.parameters)
        redirect = method.redirect or Redirect()
        target = _by_hand(redirect) if redirect_uri is None else _declared(redirect_uri, redirect, context)
        state, verifier = secrets.token_urlsafe(RANDOM_BYTES), secrets.token_urlsafe(RANDOM_BYTES)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {}
        if method.client_id is not None:
            query = {"response_type": "code", "client_id": method.client_id}
        in_callback = redirect.state == "callback"
        query[redirect.parameter] = f"{target}?{urlencode({'state': state})}" if in_callback else target
        if method.scope:
            query["scope"] = " ".join(method.scope)
        query |= {"code_challenge": challenge, "code_challenge_method": "S256"}
        if not in_callback:
            query["state"] = state
        query |= {name: fill(value, parameters) for name, value in method.authorization_parameters.items()}
        endpoint = context.url(method.authorization_endpoint or "", parameters)
        url = f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"
        action = OpenBrowser(authorization_url=url, redirect_uri=target, paste=redirect_uri is None)
        return pending(context, action, parameters=parameters, private={"state": state, "code_verifier": verifier})

    async def poll(self, pending: PendingAuthorization) -> PendingAuthorization | Credential:
        """Say whether the loopback has its answer: whoever listens puts it into `private["answer"]` as JSON."""
        answer = pending.private.get("answer")
        if answer is None:
            check_alive(self._context, pending)
            return pending
        return await self.complete(pending, json.loads(answer))

    async def complete(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> Credential:
        """Exchange the code.

        `{"code", "state"}` comes from the loopback and must have our state. `{"pasted"}` may be a URL, a query string
        or `code#state`, and then must have it too. A bare pasted code is taken without: the user brought it here
        himself, and the server gives nothing for a code of another login, because that has another verifier (RFC 7636).
        """
        check_alive(self._context, pending)
        code = self._code(pending, answer)
        context, method = self._context, self._context.method
        url = context.url(method.token_endpoint or "", pending.parameters)
        try:
            granted = await token_endpoint.ask(context, url, self._fields(pending, code), body=method.token.body)
            if isinstance(granted, Granted):
                return await self._credential(granted, pending)
        except TransportError as error:
            raise CompletionFailed(
                f"the code could not be exchanged at {context.id}: {error.message}",
                hint=error.hint,
                provider=context.id,
            ) from error
        said = granted if isinstance(granted, Refused) else f"HTTP {granted.status}"
        raise CompletionFailed(
            f"{context.id} did not take the code: {said}",
            hint=f"run `{context.login}` again: a code works once, and not for long",
            provider=context.id,
        )

    async def refresh(self, credential: Credential) -> Credential:
        """Spend the refresh token (RFC 6749 section 6)."""
        if not isinstance(credential, OAuthToken):
            raise RefreshNotSupported(
                f"the key that {self._context.id} made at login cannot be renewed",
                hint=f"run `{self._context.login}`",
                provider=self._context.id,
            )
        return await token_endpoint.refresh(self._context, credential)

    async def validate(self, credential: Credential) -> Identity:
        """Ask the probe."""
        return await probe.validate(self._context, credential)

    def _code(self, pending: PendingAuthorization, answer: Mapping[str, str]) -> str:
        context = self._context
        form.check_known(answer, ["pasted", *RESPONSE_FIELDS], context)
        pasted = answer.get("pasted")
        found = dict(answer) if pasted is None else read_pasted(pasted, context)
        code, error = found.get("code", ""), found.get("error", "")
        if not code and not error:
            raise MissingParameter(
                "there is no code in the answer",
                hint="paste the address that the browser shows after you approved, or the code",
                provider=context.id,
            )
        bare = pasted is not None and found.keys() == {"code"}
        # An error without a state can only end this login, which whoever pastes may do anyway.
        if not bare and not (error and not found.get("state")):
            self._check_state(pending, found)
        if error:
            raise self._declined(found)
        issuer = context.method.issuer
        # RFC 9207 section 2.4: another issuer's answer is a mix-up attack.
        if issuer is not None and "iss" in found and found["iss"] != fill(issuer, pending.parameters):
            raise CompletionFailed(
                f"the answer comes from another server than {context.id}'s",
                hint=f"run `{context.login}` again",
                provider=context.id,
            )
        if not (code.isascii() and code.isprintable()):
            raise InvalidParameter("this is not a code", hint="copy it again, alone and whole", provider=context.id)
        return code

    def _check_state(self, pending: PendingAuthorization, found: Mapping[str, str]) -> None:
        if not same(found.get("state", ""), pending.private["state"]):
            what = "belongs to another login" if found.get("state") else "does not say which login it belongs to"
            raise CompletionFailed(
                f"the answer {what}: its state is not ours",
                hint=f"run `{self._context.login}` again and use the newest page",
                provider=self._context.id,
            )

    def _declined(self, found: Mapping[str, str]) -> LoginDenied | CompletionFailed:
        context = self._context
        refused = token_endpoint.refused(found["error"], found.get("error_description", ""))
        if refused.error == "access_denied":
            return LoginDenied(
                f"the login was refused at {context.id}: {refused}",
                hint=f"run `{context.login}` again and approve it",
                provider=context.id,
            )
        return CompletionFailed(
            f"{context.id} ended the login: {refused}",
            hint=f"run `{context.login}` again, or use another --method",
            provider=context.id,
        )

    def _fields(self, pending: PendingAuthorization, code: str) -> dict[str, str]:
        method, token = self._context.method, self._context.method.token
        assert isinstance(pending.action, OpenBrowser)  # noqa: S101  # made by our own initiate
        fields = {"code": code, "code_verifier": pending.private["code_verifier"]}
        if token.key is None:
            redirect_uri = pending.action.redirect_uri
            fields |= {"grant_type": "authorization_code", "redirect_uri": redirect_uri}
        if method.client_id is not None and token.send_client_id:
            fields["client_id"] = method.client_id
        if token.send_state:
            fields["state"] = pending.private["state"]
        return fields | {name: fill(value, pending.parameters) for name, value in token.parameters.items()}

    async def _credential(self, granted: Granted, pending: PendingAuthorization) -> Credential:
        context, method = self._context, self._context.method
        if method.token.key is not None:
            key = check_header_safe(look_up(granted.body, method.token.key), "key")
            return ApiKey(method=method.id, key=key, parameters=pending.parameters)
        now = context.clock.now()
        token = token_endpoint.read_token(granted, method=method, now=now, parameters=pending.parameters)
        if method.create_key is not None:
            return await self._create_key(method.create_key, token)
        return token

    async def _create_key(self, create: CreateKey, token: OAuthToken) -> ApiKey:
        context = self._context
        values = {**token.parameters, "access_token": token.access_token.reveal()}
        given = {name.lower(): fill(template, values) for name, template in create.headers.items()}
        kind, content = token_endpoint.encode({}, create.body)
        headers = {"authorization": f"Bearer {values['access_token']}", "content-type": kind, **given}
        url = context.url(create.post, token.parameters)
        response = await context.http.request("POST", url, headers=headers, body=content)
        if response.status == 403:
            raise CompletionFailed(
                f"{context.provider.name} does not let this account create keys (HTTP 403)",
                hint="ask an administrator of the organisation for the right to create keys, or for a key",
                provider=context.id,
            )
        if not 200 <= response.status < 300:
            raise CompletionFailed(
                f"{context.provider.name} did not create a key (HTTP {response.status})",
                hint=f"run `{context.login}` again, or log in with an API key",
                provider=context.id,
            )
        key = check_header_safe(look_up(response.json(), create.key), "key")
        return ApiKey(method=context.method.id, key=key, parameters=token.parameters)


def same(given: str, ours: str) -> bool:
    """Compare two states in constant time."""
    return secrets.compare_digest(given.encode(), ours.encode())


def _by_hand(redirect: Redirect) -> str:
    """Give the redirect_uri for a login that is pasted: the provider's own page, else a loopback that nobody hears."""
    if redirect.paste is not None:
        return redirect.paste
    loopback = redirect.loopback
    if loopback is None:
        return ""
    # Any port goes (RFC 8252 section 7.3): one that nobody is likely to hold, out of the dynamic range.
    port = loopback.ports[0] if loopback.ports else 49152 + secrets.randbelow(16384)
    return f"http://{loopback.host}:{port}{loopback.path}"


def _declared(redirect_uri: str, redirect: Redirect, context: Context) -> str:
    loopback = redirect.loopback
    if redirect_uri == redirect.paste:
        return redirect_uri
    try:
        parts = urlsplit(redirect_uri)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if (
        loopback is not None
        and port is not None
        and (not loopback.ports or port in loopback.ports)
        and redirect_uri == f"http://{loopback.host}:{port}{loopback.path}"
    ):
        return redirect_uri
    raise InvalidParameter(
        f"{context.id} does not send a login back to this address",
        hint="use the declared redirect, or paste",
        provider=context.id,
    )


def read_pasted(text: str, context: Context) -> dict[str, str]:
    """Read what a user copied: a whole URL, `code#state`, a query string or a bare code, line breaks and blanks in it.

    Raises: MissingParameter, InvalidParameter.
    """
    # No part of a URL or a code has blanks: a terminal wrapped the line, or a page did.
    pasted = "".join(text.split()).strip("\"'<>`")
    if not pasted:
        raise MissingParameter("nothing was pasted", hint=f"run `{context.login}` again", provider=context.id)
    if len(pasted) > LONGEST_PASTE_CHARS or not pasted.isprintable():
        raise InvalidParameter(
            "what was pasted is neither an address nor a code", hint="copy it again, alone", provider=context.id
        )
    if "://" in pasted:
        _, _, rest = pasted.partition("?")
        pairs = _pairs(rest.replace("#", "&"), context)
        if not pairs.keys() & {"code", "error"}:
            raise InvalidParameter(
                "the pasted address has no code in it",
                hint="paste the address that the browser shows after you approved",
                provider=context.id,
            )
        return pairs
    query = pasted.lstrip("?&")
    if query.startswith(("code=", "state=", "error=")) or "&code=" in query or "&error=" in query:
        return _pairs(query.replace("#", "&"), context)
    code, hash_sign, state = pasted.partition("#")
    return {"code": code, "state": state} if hash_sign else {"code": code}


def _pairs(query: str, context: Context) -> dict[str, str]:
    """Read a query string. Where `state` is missing it is empty, which no login's is."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in RESPONSE_FIELDS:
            continue
        # RFC 6749 section 3.1: no parameter more than once.
        if name in found:
            raise InvalidParameter(
                f"the pasted address has {name} twice", hint="copy it again, alone", provider=context.id
            )
        found[name] = value
    return {"state": "", **found}
