"""What token endpoints answer, well and badly, and what is made of it."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from urllib.parse import quote

import pytest

from tests.support.declarations import flow, jwt, method, provider
from valetkey.credential import ApiKey, OAuthToken, Secret
from valetkey.errors import RefreshFailed, RefreshRejected, UnclearAnswer
from valetkey.flows.token_endpoint import (
    Granted,
    Refused,
    Unavailable,
    claims_of,
    local_time,
    read_answer,
    read_token,
    revoke,
    seconds,
)
from valetkey.http import HttpClient, Response
from valetkey.provider import AuthMethod, Token
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import START, FakeClock

REFRESH_TOKEN = "rt-" + "r" * 40


def answer(status: int, body: object, **headers: str) -> Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}, body=content)


def read(response: Response, *, errors_in_200: bool = False) -> Granted | Refused | Unavailable:
    return read_answer(response, errors_in_200=errors_in_200, now=START)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": "invalid_grant"}, "invalid_grant"),
        ({"error": {"code": "refresh_token_reused", "message": "x"}}, "refresh_token_reused"),
        ({"type": "error", "error": {"type": "not_found_error"}}, "not_found_error"),
        ({"code": "refresh_token_expired"}, "refresh_token_expired"),
        ({"error": {"weird": 1}}, ""),
        ({"error": 7}, ""),
        ([], ""),
        (b"<html>no</html>", ""),
        (b"", ""),
    ],
)
def test_an_error_code_is_found_wherever_the_server_puts_it(body: object, error: str) -> None:
    refused = read(answer(400, body))
    assert isinstance(refused, Refused)
    assert refused.error == error


def test_an_error_in_a_success_is_an_error() -> None:
    assert isinstance(read(answer(200, {"error": "access_denied"})), Refused)


def test_an_error_beside_a_token_counts_only_where_the_declaration_says_so() -> None:
    both = answer(200, {"error": "bad_verification_code", "access_token": "t"})
    assert isinstance(read(both), Granted)
    assert isinstance(read(both, errors_in_200=True), Refused)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_an_overloaded_server_says_nothing_about_the_login(status: int) -> None:
    assert isinstance(read(answer(status, {"error": "invalid_grant"})), Unavailable)


def test_slow_down_is_heard_through_a_429() -> None:
    refused = read(answer(429, {"error": "slow_down", "interval": "15"}))
    assert isinstance(refused, Refused)
    assert refused.interval == 15


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'"x"', b"\xff\xfe", b"\x1f\x8b\x08\x00", b"[" * 100_000])
def test_a_success_that_is_no_object_is_unclear(body: bytes) -> None:
    with pytest.raises(UnclearAnswer):
        read(answer(200, body))


def test_a_redirect_is_not_followed() -> None:
    with pytest.raises(UnclearAnswer, match="redirects"):
        read(answer(302, b"", location="https://elsewhere.example/"))


def test_what_was_sent_does_not_come_back_in_the_error() -> None:
    secret = "rt-" + "s/+=" * 10
    said = f"token {secret}, {quote(secret, safe='')}, {base64.b64encode(secret.encode()).decode()}"
    body = {"error": f"bad {secret}", "error_description": f"{said} is\n\x1b[31m unknown " + "y" * 500}
    refused = read_answer(answer(400, body), errors_in_200=False, now=START, sent=[secret])
    text = str(refused)
    forms = (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode()[:20])
    assert [form for form in forms if form in text] == []
    assert text.isprintable()
    assert isinstance(refused, Refused)
    assert len(refused.description) <= 200


@pytest.mark.parametrize("device_code", ["d", "pending", "authorization_pending"])
def test_the_error_code_stays_as_it_is_whatever_was_sent(device_code: str) -> None:
    refused = read_answer(
        answer(400, {"error": "authorization_pending"}), errors_in_200=False, now=START, sent=[device_code]
    )
    assert isinstance(refused, Refused)
    assert refused.error == "authorization_pending"


def test_what_is_too_short_to_be_a_secret_stays_in_the_description() -> None:
    body = {"error": "invalid_grant", "error_description": "the code is expired"}
    assert str(read_answer(answer(400, body), errors_in_200=False, now=START, sent=["e", "expired"])) == (
        "invalid_grant (the code is expired)"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5.0),
        (899.5, 899.5),
        ("5", 5.0),
        (" 7 ", 7.0),
        ("3600.0", 3600.0),
        (0, None),
        (-1, None),
        ("-5", None),
        (float("nan"), None),
        ("NaN", None),
        (float("inf"), None),
        ("1e999", None),
        (10**400, None),
        (1e15, None),
        (True, None),
        (None, None),
        ("soon", None),
        ([5], None),
    ],
)
def test_seconds_are_read_or_left(value: object, expected: float | None) -> None:
    assert seconds(value) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("17", 17.0),
        ("999999999", 86400.0),
        ("Sun, 22 Nov 2026 10:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 09:00:00 GMT", 0.0),
        ("tomorrow", None),
        ("-3", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_of_the_servers_own_clock(header: str, expected: float | None) -> None:
    unavailable = read(answer(429, {}, retry_after=header, date="Sun, 22 Nov 2026 10:00:00 GMT"))
    assert isinstance(unavailable, Unavailable)
    assert unavailable.retry_after == expected


@pytest.mark.parametrize("length", range(1, 9))
def test_claims_are_read_with_the_padding_put_back(length: int) -> None:
    assert claims_of(Secret(jwt({"sub": "é" * length}))) == {"sub": "é" * length}


DEEP = base64.urlsafe_b64encode(b"[" * 99_999).decode()


@pytest.mark.parametrize(
    "token", [pytest.param(f"a.{DEEP}.c", id="deep"), "opaque", "a.b.c", "..", "a.!!.c", "a.W10.c", "é.é.é", "x" * 50]
)
def test_what_is_no_jwt_has_no_claims(token: str) -> None:
    assert claims_of(Secret(token)) == {}


@pytest.mark.parametrize("value", ["2026-11-22T10:10:00Z", 1795342200, "1795342200", 1795342200.0])
def test_a_servers_time_is_measured_by_its_own_clock(value: object) -> None:
    given = answer(200, {}, date="Sun, 22 Nov 2026 10:00:00 GMT")
    assert local_time(value, given, START) == START + timedelta(minutes=10)


@pytest.mark.parametrize("value", ["later", None, 1e300, -1e300, float("nan"), [], 4e12])
def test_a_time_that_is_none_is_left(value: object) -> None:
    assert local_time(value, answer(200, {}), START) is None


# --- renewal -----------------------------------------------------------------------------------

OLD = OAuthToken(
    method="device",
    access_token=Secret("at-" + "o" * 40),
    refresh_token=Secret(REFRESH_TOKEN),
    id_token=Secret(jwt({"sub": "me"})),
    issued_at=START - timedelta(hours=1),
    expires_at=START,
    scope=("api",),
)


async def renewed(server: AuthorizationServer, http: HttpClient, **changes: object) -> OAuthToken:
    declared = replace(method("device", server.url), token=Token(**changes))  # type: ignore[arg-type]  # a table's
    credential = await flow(declared, server.url, http=http, clock=FakeClock()).refresh(OLD)
    assert isinstance(credential, OAuthToken)
    return credential


@pytest.mark.anyio
async def test_a_renewal_spends_the_refresh_token(authorization_server: AuthorizationServer, http: HttpClient) -> None:
    authorization_server.answers(
        "/token", json={"access_token": "new", "refresh_token": "next", "expires_in": 600, "token_type": "bearer"}
    )
    new = await renewed(authorization_server, http)
    sent = authorization_server.calls("/token")[0]
    assert sent.form == {"grant_type": "refresh_token", "refresh_token": REFRESH_TOKEN, "client_id": "client"}
    assert (new.access_token.reveal(), new.refresh_token) == ("new", Secret("next"))
    assert new.expires_at == START + timedelta(seconds=600)


@pytest.mark.anyio
async def test_a_renewal_may_be_json_with_scope(authorization_server: AuthorizationServer, http: HttpClient) -> None:
    authorization_server.answers("/token", json={"access_token": "new"})
    await renewed(authorization_server, http, refresh_body="json", send_scope=True)
    sent = authorization_server.calls("/token")[0]
    assert sent.headers["content-type"] == "application/json"
    assert sent.json["scope"] == "openid api"


@pytest.mark.anyio
async def test_what_a_renewal_leaves_out_stays(authorization_server: AuthorizationServer, http: HttpClient) -> None:
    authorization_server.answers("/token", json={"access_token": "new"})
    new = await renewed(authorization_server, http)
    assert new.refresh_token == OLD.refresh_token
    assert new.id_token == OLD.id_token
    assert new.scope == OLD.scope
    assert new.expires_at is None


@pytest.mark.anyio
async def test_a_new_refresh_token_is_kept_though_the_rest_is_missing(
    authorization_server: AuthorizationServer, http: HttpClient
) -> None:
    authorization_server.answers("/token", json={"refresh_token": "next"})
    new = await renewed(authorization_server, http)
    assert new == replace(OLD, refresh_token=Secret("next"))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("expires_from", "body", "life"),
    [
        ("expires_in", {"expires_in": "3600"}, 3600),
        ("expires_in", {"expires_in": 3600.5}, 3600.5),
        ("expires_in", {"expires_in": -1}, 99),
        ("expires_in", {}, 99),
        ("none", {"expires_in": 3600}, 99),
        ("access_token", {"expires_in": 3600}, 3600),
        ("access_token", {}, 99),
    ],
)
async def test_the_life_is_where_the_declaration_says(
    authorization_server: AuthorizationServer, http: HttpClient, expires_from: str, body: dict[str, object], life: float
) -> None:
    authorization_server.answers("/token", json={"access_token": "new", **body})
    new = await renewed(authorization_server, http, expires_from=expires_from, default_expires_in=99)
    assert new.expires_at == START + timedelta(seconds=life)


def test_the_life_may_be_in_the_access_token() -> None:
    body = {"access_token": jwt({"exp": 1795342200}), "expires_in": 5}
    granted = read(answer(200, body, date="Sun, 22 Nov 2026 10:00:00 GMT"))
    assert isinstance(granted, Granted)
    declared = replace(method("device", "http://127.0.0.1"), token=Token(expires_from="access_token"))
    token = read_token(granted, method=declared, now=START, parameters={})
    assert token.expires_at == START + timedelta(minutes=10)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "token"),
    [
        (400, {"error": "invalid_grant", "error_description": "gone"}, {}),
        (200, {"error": "invalid_grant"}, {"errors_in_200": True}),
        (400, {"error": {"code": "refresh_token_reused"}}, {"final_errors": ("refresh_token_reused",)}),
        (401, {"detail": "no"}, {"final_status": (401,)}),
        (404, b"<html>", {"final_status": (404,)}),
    ],
)
async def test_a_dead_refresh_token_is_rejected(
    authorization_server: AuthorizationServer, http: HttpClient, status: int, body: object, token: dict[str, object]
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    authorization_server.answers("/token", status=status, body=content)
    with pytest.raises(RefreshRejected) as caught:
        await renewed(authorization_server, http, **token)
    assert caught.value.hint == "run `valetkey login test --method device`"


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 503])
async def test_any_other_refusal_may_be_tried_again(
    authorization_server: AuthorizationServer, http: HttpClient, status: int
) -> None:
    authorization_server.answers("/token", status=status, json={"error": "invalid_client"})
    with pytest.raises(RefreshFailed):
        await renewed(authorization_server, http)


@pytest.mark.anyio
async def test_retry_after_is_handed_on(authorization_server: AuthorizationServer, http: HttpClient) -> None:
    authorization_server.answers("/token", status=429, headers={"retry-after": "42"})
    with pytest.raises(RefreshFailed) as caught:
        await renewed(authorization_server, http)
    assert caught.value.retry_after == 42


@pytest.mark.anyio
@pytest.mark.parametrize(
    "case",
    ["html", "gzip html", "3 MB", "empty", "redirect", "dropped", "broken gzip", "no token", "token with line break"],
)
async def test_an_answer_that_is_none_leaves_the_old_token(
    authorization_server: AuthorizationServer, http: HttpClient, case: str
) -> None:
    match case:
        case "html":
            authorization_server.answers("/token", text="<html>sign in</html>")
        case "gzip html":
            authorization_server.answers("/token", text="<html>sign in</html>", gzip=True)
        case "3 MB":
            authorization_server.answers("/token", body=b" " * 3_000_000)
        case "empty":
            authorization_server.answers("/token")
        case "redirect":
            authorization_server.redirects("/token", f"{authorization_server.url}/elsewhere")
        case "dropped":
            authorization_server.drops("/token", after=b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{")
        case "broken gzip":
            authorization_server.answers("/token", body=b"\x1f\x8bxx", headers={"content-encoding": "gzip"})
        case "no token":
            authorization_server.answers("/token", json={"expires_in": 5})
        case "token with line break":
            authorization_server.answers("/token", json={"access_token": "a\r\nx-evil: 1"})
    with pytest.raises(RefreshFailed) as caught:
        await renewed(authorization_server, http)
    assert caught.value.__cause__ is not None
    assert authorization_server.calls("/elsewhere") == []


@pytest.mark.anyio
async def test_a_gzipped_answer_is_read(authorization_server: AuthorizationServer, http: HttpClient) -> None:
    authorization_server.answers("/token", json={"access_token": "new"}, gzip=True)
    assert (await renewed(authorization_server, http)).access_token.reveal() == "new"


@pytest.mark.anyio
async def test_without_a_refresh_token_only_a_login_helps(
    authorization_server: AuthorizationServer, http: HttpClient
) -> None:
    declared = method("device", authorization_server.url)
    subject = flow(declared, authorization_server.url, http=http, clock=FakeClock())
    with pytest.raises(RefreshRejected, match="without a refresh token"):
        await subject.refresh(replace(OLD, refresh_token=None))


# --- revocation --------------------------------------------------------------------------------


async def revoked(server: AuthorizationServer, http: HttpClient, declared: AuthMethod, token: OAuthToken = OLD) -> bool:
    return await revoke(provider(server.url, declared), declared, token, http)


@pytest.mark.anyio
async def test_the_refresh_token_is_revoked(authorization_server: AuthorizationServer, http: HttpClient) -> None:
    authorization_server.answers("/revoke")
    assert await revoked(authorization_server, http, method("device", authorization_server.url))
    assert authorization_server.calls("/revoke")[0].form == {
        "token": REFRESH_TOKEN,
        "token_type_hint": "refresh_token",
        "client_id": "client",
    }


@pytest.mark.anyio
async def test_an_access_token_is_revoked_where_there_is_no_other(
    authorization_server: AuthorizationServer, http: HttpClient
) -> None:
    authorization_server.answers("/revoke")
    declared = replace(method("device", authorization_server.url), revocation_body="json")
    assert await revoked(authorization_server, http, declared, replace(OLD, refresh_token=None))
    assert authorization_server.calls("/revoke")[0].json["token_type_hint"] == "access_token"


@pytest.mark.anyio
@pytest.mark.parametrize("case", ["refused", "dropped", "not declared", "a key"])
async def test_a_revocation_that_fails_is_said_and_not_raised(
    authorization_server: AuthorizationServer, http: HttpClient, case: str
) -> None:
    declared = method("device", authorization_server.url)
    if case == "refused":
        authorization_server.answers("/revoke", status=503)
    if case == "dropped":
        authorization_server.drops("/revoke")
    if case == "not declared":
        declared = replace(declared, revocation_endpoint=None)
    if case == "a key":
        key = ApiKey(method="device", key=Secret("k" * 40))
        assert not await revoke(provider(authorization_server.url, declared), declared, key, http)
    else:
        assert not await revoked(authorization_server, http, declared)
