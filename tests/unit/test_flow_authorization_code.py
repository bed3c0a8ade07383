"""The browser login: its URL, what comes back or is pasted, and the exchange of the code."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.support.declarations import BEARER_KEY, flow, jwt, method
from valetkey.credential import ApiKey, Identity, OAuthToken, Secret
from valetkey.errors import (
    CompletionFailed,
    InvalidParameter,
    LoginDenied,
    LoginExpired,
    MissingParameter,
    RefreshNotSupported,
    ValetkeyError,
    ValidationFailed,
)
from valetkey.flow import AuthFlow, OpenBrowser, PendingAuthorization
from valetkey.http import HttpClient
from valetkey.provider import AuthMethod, CreateKey, Inject, Loopback, Redirect, Token
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import START, FakeClock

CODE = "code-" + "c" * 30
TOKENS = {"access_token": "at-" + "a" * 40, "refresh_token": "rt-" + "r" * 40, "expires_in": 3600}
PASTE = "https://login.example/code/callback"

Begin = Callable[..., AuthFlow]


@pytest.fixture
def declared(authorization_server: AuthorizationServer) -> AuthMethod:
    return method("authorization-code", authorization_server.url)


@pytest.fixture
def begin(authorization_server: AuthorizationServer, declared: AuthMethod, http: HttpClient, clock: FakeClock) -> Begin:
    def made(changed: AuthMethod | None = None) -> AuthFlow:
        return flow(changed or declared, authorization_server.url, http=http, clock=clock)

    return made


def query(pending: PendingAuthorization) -> dict[str, str]:
    assert isinstance(pending.action, OpenBrowser)
    return {name: values[0] for name, values in parse_qs(urlsplit(pending.action.authorization_url).query).items()}


def sent(server: AuthorizationServer) -> dict[str, str]:
    return server.calls("/token")[-1].form


@pytest.mark.anyio
async def test_the_url_has_pkce_and_a_state_of_its_own(begin: Begin) -> None:
    pending = await begin().initiate(redirect_uri="http://127.0.0.1:4567/callback")
    asked = query(pending)
    verifier = pending.private["code_verifier"]
    digest = hashlib.sha256(verifier.encode()).digest()
    assert asked["code_challenge"] == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert asked["state"] == pending.private["state"] != verifier
    assert len(asked["state"]) >= 43
    assert {name: asked[name] for name in ("response_type", "client_id", "redirect_uri", "scope")} == {
        "response_type": "code",
        "client_id": "client",
        "redirect_uri": "http://127.0.0.1:4567/callback",
        "scope": "openid api",
    }
    assert asked["code_challenge_method"] == "S256"
    assert verifier not in repr(pending)
    assert pending.expires_at == START + timedelta(minutes=10)


@pytest.mark.anyio
async def test_no_two_logins_share_anything(begin: Begin) -> None:
    one, other = await begin().initiate(), await begin().initiate()
    assert not {one.id, *one.private.values()} & {other.id, *other.private.values()}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:4567/other",
        "http://127.0.0.1/callback",
        "http://localhost:4567/callback",
        "https://127.0.0.1:4567/callback",
        "http://127.0.0.1:4567/callback?x=1",
        "http://127.0.0.1:4567@evil.example/callback",
        "http://evil.example:4567/callback",
        "http://127.0.0.1:99999999/callback",
        "",
    ],
)
async def test_only_the_declared_redirect_is_sent(begin: Begin, uri: str) -> None:
    with pytest.raises(InvalidParameter):
        await begin().initiate(redirect_uri=uri)


@pytest.mark.anyio
async def test_only_the_declared_ports_are_sent(begin: Begin, declared: AuthMethod) -> None:
    redirect = Redirect(loopback=Loopback(host="localhost", ports=(1455, 1457), path="/auth/callback"))
    subject = begin(replace(declared, redirect=redirect))
    assert query(await subject.initiate(redirect_uri="http://localhost:1457/auth/callback"))
    with pytest.raises(InvalidParameter):
        await subject.initiate(redirect_uri="http://localhost:1456/auth/callback")
    assert query(await subject.initiate())["redirect_uri"] == "http://localhost:1455/auth/callback"


@pytest.mark.anyio
async def test_a_paste_uses_the_providers_page_where_there_is_one(begin: Begin, declared: AuthMethod) -> None:
    pending = await begin(replace(declared, redirect=Redirect(paste=PASTE))).initiate()
    assert isinstance(pending.action, OpenBrowser)
    assert pending.action.paste
    assert query(pending)["redirect_uri"] == PASTE


@pytest.mark.anyio
async def test_a_code_from_the_loopback_is_exchanged(
    authorization_server: AuthorizationServer, begin: Begin, clock: FakeClock
) -> None:
    authorization_server.answers("/token", json={**TOKENS, "scope": "openid api"})
    uri = "http://127.0.0.1:4567/callback"
    pending = await begin().initiate(redirect_uri=uri)
    token = await begin().complete(pending, {"code": CODE, "state": pending.private["state"]})
    assert isinstance(token, OAuthToken)
    assert token.expires_at == START + timedelta(hours=1)
    assert token.scope == ("openid", "api")
    assert sent(authorization_server) == {
        "grant_type": "authorization_code",
        "code": CODE,
        "redirect_uri": uri,
        "client_id": "client",
        "code_verifier": pending.private["code_verifier"],
    }


def wrapped(text: str) -> str:
    return "\n  ".join(text[i : i + 20] for i in range(0, len(text), 20)) + "\r\n"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "form",
    [
        "http://127.0.0.1:4567/callback?code={code}&state={state}",
        "http://127.0.0.1:4567/callback?state={state}&scope=a+b&session_state=x&code={code}",
        "https://login.example/code/callback?code={code}&state={state}#",
        "https://login.example/code/callback?code={code}#{hash_state}",
        '"http://127.0.0.1:4567/callback?code={code}&state={state}"',
        "<http://127.0.0.1:4567/callback?code={code}&state={state}>",
        "?code={code}&state={state}",
        "code={code}&state={state}",
        "state={state}&code={code}",
        "scope=x&code={code}&state={state}",
        "{code}#{state}",
        "  {code}#{state}\n",
        "{code}",
    ],
)
async def test_every_form_of_paste_is_taken(authorization_server: AuthorizationServer, begin: Begin, form: str) -> None:
    authorization_server.answers("/token", json=TOKENS)
    pending = await begin().initiate()
    state = pending.private["state"]
    text = form.format(code=CODE, state=state, hash_state=f"state={state}")
    for pasted in (text, wrapped(text)):
        assert isinstance(await begin().complete(pending, {"pasted": pasted}), OAuthToken)
        assert sent(authorization_server)["code"] == CODE


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"code": CODE}, CompletionFailed),
        ({"code": CODE, "state": ""}, CompletionFailed),
        ({"code": CODE, "state": "other"}, CompletionFailed),
        ({"code": CODE, "state": "ä"}, CompletionFailed),
        ({"pasted": f"{CODE}#other"}, CompletionFailed),
        ({"pasted": f"{CODE}#"}, CompletionFailed),
        ({"pasted": f"http://127.0.0.1:1/callback?code={CODE}&state=other"}, CompletionFailed),
        ({"pasted": f"http://127.0.0.1:1/callback?code={CODE}"}, CompletionFailed),
        ({"pasted": f"code={CODE}&state=other"}, CompletionFailed),
        ({"pasted": ""}, MissingParameter),
        ({"pasted": " \n"}, MissingParameter),
        ({"pasted": "https://login.example/authorize?client_id=x&state=y"}, InvalidParameter),
        ({"pasted": "http://127.0.0.1:1/callback?code=a&code=b&state=x"}, InvalidParameter),
        ({"pasted": "http://127.0.0.1:1/callback"}, InvalidParameter),
        ({"pasted": "x" * 40_000}, InvalidParameter),
        ({"pasted": "co\x00de"}, InvalidParameter),
        ({"pasted": "cöde"}, InvalidParameter),
        ({}, MissingParameter),
        ({"code": "", "state": "x"}, MissingParameter),
        ({"key": "sk"}, InvalidParameter),
        ({"code": CODE, "state": "x", "extra": "1"}, InvalidParameter),
    ],
)
async def test_what_is_not_our_answer_reaches_no_server(
    authorization_server: AuthorizationServer, begin: Begin, answer: dict[str, str], expected: type[ValetkeyError]
) -> None:
    pending = await begin().initiate()
    with pytest.raises(expected) as caught:
        await begin().complete(pending, answer)
    assert caught.value.hint
    assert authorization_server.requests == []


@pytest.mark.anyio
@pytest.mark.parametrize(("error", "expected"), [("access_denied", LoginDenied), ("server_error", CompletionFailed)])
@pytest.mark.parametrize("with_state", [True, False])
async def test_an_error_in_the_pasted_url_is_told(
    begin: Begin, error: str, expected: type[ValetkeyError], with_state: bool
) -> None:
    pending = await begin().initiate()
    asked = {"error": error, "error_description": "you said\nno"}
    if with_state:
        asked["state"] = pending.private["state"]
    with pytest.raises(expected, match=rf"{error} \(you said no\)"):
        await begin().complete(pending, {"pasted": f"http://127.0.0.1:1/callback?{urlencode(asked)}"})


@pytest.mark.anyio
async def test_another_issuer_is_refused(
    authorization_server: AuthorizationServer, begin: Begin, declared: AuthMethod
) -> None:
    authorization_server.answers("/token", json=TOKENS)
    subject = begin(replace(declared, issuer="https://login.example"))
    pending = await subject.initiate()
    ours = {"code": CODE, "state": pending.private["state"]}
    with pytest.raises(CompletionFailed, match="another server"):
        await subject.complete(pending, {**ours, "iss": "https://login.example/"})
    assert authorization_server.requests == []
    assert isinstance(await subject.complete(pending, {**ours, "iss": "https://login.example"}), OAuthToken)


@pytest.mark.anyio
async def test_a_code_works_once(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/token", json=TOKENS)
    authorization_server.answers("/token", status=400, json={"error": "invalid_grant"})
    pending = await begin().initiate()
    await begin().complete(pending, {"pasted": CODE})
    with pytest.raises(CompletionFailed, match="invalid_grant") as caught:
        await begin().complete(pending, {"pasted": CODE})
    assert "a code works once" in caught.value.hint


@pytest.mark.anyio
async def test_a_login_that_lay_too_long_is_over(begin: Begin, clock: FakeClock) -> None:
    pending = await begin().initiate()
    clock.advance(601)
    with pytest.raises(LoginExpired):
        await begin().complete(pending, {"pasted": CODE})
    with pytest.raises(LoginExpired):
        await begin().poll(pending)


@pytest.mark.anyio
@pytest.mark.parametrize("case", ["html", "3 MB", "empty", "redirect", "dropped", "no token", "503", "429"])
async def test_an_answer_that_is_none_ends_the_login(
    authorization_server: AuthorizationServer, begin: Begin, case: str
) -> None:
    match case:
        case "html":
            authorization_server.answers("/token", text="<html>", gzip=True)
        case "3 MB":
            authorization_server.answers("/token", body=b" " * 3_000_000)
        case "empty":
            authorization_server.answers("/token")
        case "redirect":
            authorization_server.redirects("/token", authorization_server.url + "/elsewhere")
        case "dropped":
            authorization_server.drops("/token")
        case "no token":
            authorization_server.answers("/token", json={"token_type": "bearer"})
        case status:
            authorization_server.answers("/token", status=int(status))
    pending = await begin().initiate()
    with pytest.raises(CompletionFailed):
        await begin().complete(pending, {"pasted": CODE})
    assert authorization_server.calls("/elsewhere") == []


@pytest.mark.anyio
async def test_state_and_json_where_the_declaration_wants_them(
    authorization_server: AuthorizationServer, begin: Begin, declared: AuthMethod
) -> None:
    authorization_server.answers("/token", json=TOKENS)
    subject = begin(replace(declared, token=Token(body="json", send_state=True), redirect=Redirect(paste=PASTE)))
    pending = await subject.initiate()
    await subject.complete(pending, {"pasted": f"{CODE}#{pending.private['state']}"})
    call = authorization_server.calls("/token")[0]
    assert call.json["state"] == pending.private["state"]
    assert call.json["redirect_uri"] == PASTE


# --- logins that end in a key --------------------------------------------------------------------


@pytest.fixture
def creating(authorization_server: AuthorizationServer, declared: AuthMethod) -> AuthMethod:
    create = CreateKey(post=f"{authorization_server.url}/create_api_key", key="raw_key")
    return replace(declared, inject=BEARER_KEY, create_key=create)


@pytest.mark.anyio
async def test_a_login_may_end_by_creating_a_key(
    authorization_server: AuthorizationServer, begin: Begin, creating: AuthMethod
) -> None:
    key = "sk-" + "k" * 40
    authorization_server.answers("/token", json=TOKENS)
    authorization_server.answers("/create_api_key", json={"raw_key": key})
    pending = await begin(creating).initiate()
    created = await begin(creating).complete(pending, {"pasted": CODE})
    assert created == ApiKey(method="authorization-code", key=Secret(key))
    call = authorization_server.calls("/create_api_key")[0]
    assert (call.method, call.body) == ("POST", b"")
    assert call.headers["authorization"] == f"Bearer {TOKENS['access_token']}"
    assert call.headers["content-type"] == "application/x-www-form-urlencoded"
    with pytest.raises(RefreshNotSupported):
        await begin(creating).refresh(created)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (403, b"{}", "does not let this account create keys"),
        (500, b"", "did not create"),
        (200, b"<html>", "not JSON"),
        (200, b'{"raw_key": "a\\nb"}', "no usable key"),
        (200, b"{}", "no usable key"),
    ],
)
async def test_a_key_that_was_not_created_says_why(
    authorization_server: AuthorizationServer, begin: Begin, creating: AuthMethod, status: int, body: bytes, text: str
) -> None:
    authorization_server.answers("/token", json=TOKENS)
    authorization_server.answers("/create_api_key", status=status, body=body)
    pending = await begin(creating).initiate()
    with pytest.raises(CompletionFailed, match=text):
        await begin(creating).complete(pending, {"pasted": CODE})


@pytest.mark.anyio
async def test_a_server_without_clients_and_state_gives_a_key(
    authorization_server: AuthorizationServer, begin: Begin, declared: AuthMethod
) -> None:
    """The state rides in the callback; the answer is the key itself."""
    plain = replace(
        declared,
        client_id=None,
        scope=(),
        redirect=Redirect(loopback=Loopback(host="localhost"), parameter="callback_url", state="callback"),
        token=Token(body="json", key="/key", send_client_id=False, parameters={"code_challenge_method": "S256"}),
    )
    authorization_server.answers("/token", json={"key": "sk-or-" + "k" * 40, "user_id": "u"})
    subject = begin(plain)
    pending = await subject.initiate(redirect_uri="http://localhost:4567/callback")
    asked = query(pending)
    state = pending.private["state"]
    assert set(asked) == {"callback_url", "code_challenge", "code_challenge_method"}
    assert asked["callback_url"] == f"http://localhost:4567/callback?state={state}"
    created = await subject.complete(pending, {"pasted": f"http://localhost:4567/callback?state={state}&code={CODE}"})
    assert isinstance(created, ApiKey)
    assert authorization_server.calls("/token")[0].json == {
        "code": CODE,
        "code_verifier": pending.private["code_verifier"],
        "code_challenge_method": "S256",
    }


# --- who it is -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_login_that_does_not_say_whose_it_is_cannot_fill_the_header(
    authorization_server: AuthorizationServer, begin: Begin, declared: AuthMethod
) -> None:
    inject = (Inject(set={"authorization": "Bearer {access_token}", "x-account": "{account_id}"}),)
    authorization_server.answers("/token", json=TOKENS)
    subject = begin(replace(declared, inject=inject))
    token = await subject.complete(await subject.initiate(), {"pasted": CODE})
    with pytest.raises(ValidationFailed, match="account_id"):
        await subject.validate(token)


@pytest.mark.anyio
async def test_account_and_email_come_from_the_id_token(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    authorization_server.answers("/token", json={**TOKENS, "id_token": jwt({"sub": "u1", "email": "a@example.test"})})
    authorization_server.answers("/api/probe", json={"name": "Ann"})
    pending = await begin().initiate()
    token = await begin().complete(pending, {"pasted": CODE})
    assert await begin().validate(token) == Identity(account_id="u1", name="Ann", email="a@example.test")
    assert authorization_server.calls("/api/probe")[0].headers["authorization"] == f"Bearer {TOKENS['access_token']}"
