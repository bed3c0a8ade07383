"""A token that buys a short-lived key, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.declarations import flow, method
from valetkey.credential import ExchangedKey, Identity, OAuthToken, Secret
from valetkey.errors import CompletionFailed, PollFailed, RefreshFailed, RefreshRejected, ValetkeyError
from valetkey.flow import AuthFlow, PendingAuthorization
from valetkey.http import HttpClient
from valetkey.login import poll_until_complete
from valetkey.provider import AuthMethod, Exchange
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import START, FakeClock

ACCESS_TOKEN = "gho_" + "g" * 36
KEY = "tid=abc;exp=1;proxy-ep=x." + "k" * 20
CODES = {
    "device_code": "dc",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://login.example/device",
    "expires_in": 900,
}
BOUGHT: dict[str, object] = {"token": KEY, "refresh_in": 1500}

Begin = Callable[..., AuthFlow]


@pytest.fixture
def begin(authorization_server: AuthorizationServer, http: HttpClient, clock: FakeClock) -> Begin:
    authorization_server.answers("/device", json=CODES)
    authorization_server.answers("/token", json={"access_token": ACCESS_TOKEN})

    def made(declared: AuthMethod | None = None) -> AuthFlow:
        declared = declared or method("device-exchange", authorization_server.url)
        return flow(declared, authorization_server.url, http=http, clock=clock)

    return made


def bought(**changes: object) -> ExchangedKey:
    grant = OAuthToken(method="device-exchange", access_token=Secret(ACCESS_TOKEN), issued_at=START)
    return ExchangedKey(
        method="device-exchange",
        key=Secret("old-key"),
        grant=replace(grant, **changes),  # type: ignore[arg-type]  # a table's
        issued_at=START,
        expires_at=START,
    )


@pytest.mark.anyio
async def test_the_token_buys_a_key(authorization_server: AuthorizationServer, begin: Begin, clock: FakeClock) -> None:
    api = f"{authorization_server.url}/elsewhere"
    authorization_server.answers("/exchange", json={**BOUGHT, "endpoints": {"api": api}})
    authorization_server.answers("/elsewhere/probe", json={"name": "Ann"})
    subject = begin()
    key = await poll_until_complete(subject, await subject.initiate(), clock=clock)
    assert isinstance(key, ExchangedKey)
    assert (key.key.reveal(), key.base_url) == (KEY, api)
    assert key.grant.access_token.reveal() == ACCESS_TOKEN
    assert key.refresh_at == clock.now() + timedelta(seconds=1500)
    assert authorization_server.calls("/exchange")[0].headers["authorization"] == f"Bearer {ACCESS_TOKEN}"
    assert await subject.validate(key) == Identity(name="Ann")
    assert authorization_server.calls("/elsewhere/probe")[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.anyio
async def test_a_wrong_clock_here_changes_no_life(authorization_server: AuthorizationServer, begin: Begin) -> None:
    """`expires_at` is told in the server's time; its Date header says how far that is from ours."""
    authorization_server.answers("/exchange", json={**BOUGHT, "expires_at": int(time.time()) + 1800})
    key = await begin().refresh(bought())
    assert isinstance(key, ExchangedKey)
    assert key.expires_at is not None
    assert abs(key.expires_at - START - timedelta(minutes=30)) < timedelta(minutes=1)


@pytest.mark.anyio
async def test_an_end_before_the_renewal_is_put_right(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/exchange", json={**BOUGHT, "expires_at": int(time.time()) + 60})
    key = await begin().refresh(bought())
    assert isinstance(key, ExchangedKey)
    assert key.refresh_at == START + timedelta(seconds=1500)
    assert key.expires_at == START + timedelta(seconds=1800)


@pytest.mark.anyio
async def test_the_purchase_may_be_a_post_with_headers_of_its_own(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    exchange = Exchange(
        post=f"{authorization_server.url}/buy",
        headers={"Authorization": "token {access_token}", "x-extra": "1"},
        key="/data/key",
        expires_in="/data/ttl",
    )
    authorization_server.answers("/buy", json={"data": {"key": "next", "ttl": "600"}})
    key = await begin(replace(method("device-exchange", authorization_server.url), exchange=exchange)).refresh(bought())
    assert isinstance(key, ExchangedKey)
    assert key.expires_at == START + timedelta(seconds=600)
    call = authorization_server.calls("/buy")[0]
    assert (call.method, call.headers["authorization"], call.headers["x-extra"]) == (
        "POST",
        f"token {ACCESS_TOKEN}",
        "1",
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "expected", "text"),
    [
        (401, b"{}", RefreshRejected, "no key for this login"),
        (403, b"{}", RefreshFailed, "no right"),
        (404, b"{}", RefreshFailed, "refused"),
        (429, b"{}", RefreshFailed, "now"),
        (500, b"{}", RefreshFailed, "now"),
        (302, b"", RefreshFailed, "redirects"),
        (200, b"<html>", RefreshFailed, "not JSON"),
        (200, b"{}", RefreshFailed, "no usable key"),
        (200, b'{"token": "a\\nb"}', RefreshFailed, "no usable key"),
    ],
)
async def test_a_key_that_cannot_be_bought_says_why(
    authorization_server: AuthorizationServer,
    begin: Begin,
    status: int,
    body: bytes,
    expected: type[ValetkeyError],
    text: str,
) -> None:
    authorization_server.answers("/exchange", status=status, body=body)
    with pytest.raises(expected, match=text):
        await begin().refresh(bought())


@pytest.mark.anyio
@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example",
        "http://evil.example",
        "https://127.0.0.1.evil.example",
        "https://user:pw@{host}/x",
        "ftp://{host}",
        "https://{host}/?x=1",
        "//{host}",
        "https://[",
    ],
)
async def test_the_key_goes_nowhere_that_is_not_declared(
    authorization_server: AuthorizationServer, begin: Begin, address: str
) -> None:
    host = authorization_server.url.removeprefix("http://")
    authorization_server.answers("/exchange", json={**BOUGHT, "endpoints": {"api": address.format(host=host)}})
    with pytest.raises(RefreshFailed, match="does not allow"):
        await begin().refresh(bought())


@pytest.mark.anyio
async def test_a_grant_that_ends_is_renewed_first(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.forget("/token")
    authorization_server.answers("/token", json={"access_token": "at-new", "refresh_token": "rt-new"})
    authorization_server.answers("/exchange", json=BOUGHT)
    key = await begin().refresh(bought(expires_at=START, refresh_token=Secret("rt-old")))
    assert isinstance(key, ExchangedKey)
    assert (key.key.reveal(), key.grant.refresh_token) == (KEY, Secret("rt-new"))
    assert authorization_server.calls("/exchange")[0].headers["authorization"] == "Bearer at-new"


@pytest.mark.anyio
async def test_a_rotated_grant_outlives_a_failed_purchase(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    """The old refresh token is spent by then: losing the new one would end the login."""
    authorization_server.forget("/token")
    authorization_server.answers("/token", json={"access_token": "at-new", "refresh_token": "rt-new"})
    authorization_server.answers("/exchange", status=503)
    key = await begin().refresh(bought(expires_at=START, refresh_token=Secret("rt-old")))
    assert isinstance(key, ExchangedKey)
    assert (key.key.reveal(), key.grant.refresh_token) == ("old-key", Secret("rt-new"))


@pytest.mark.anyio
async def test_a_first_purchase_that_fails_for_a_while_is_tried_again(
    authorization_server: AuthorizationServer, begin: Begin, clock: FakeClock
) -> None:
    authorization_server.answers("/exchange", status=503)
    authorization_server.drops("/exchange")
    authorization_server.answers("/exchange", json=BOUGHT)
    subject = begin()
    key = await poll_until_complete(subject, await subject.initiate(), clock=clock)
    assert isinstance(key, ExchangedKey)
    assert len(authorization_server.calls("/token")) == 1
    assert len(authorization_server.calls("/exchange")) == 3


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "expected"), [(401, PollFailed), (403, CompletionFailed)])
async def test_a_first_purchase_that_is_refused_ends_the_login(
    authorization_server: AuthorizationServer, begin: Begin, status: int, expected: type[ValetkeyError]
) -> None:
    authorization_server.answers("/exchange", status=status)
    subject = begin()
    with pytest.raises(expected):
        await subject.poll(await subject.initiate())


@pytest.mark.anyio
async def test_complete_insists(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.forget("/token")
    authorization_server.answers("/token", status=400, json={"error": "authorization_pending"})
    subject = begin()
    pending = await subject.initiate()
    assert isinstance(pending, PendingAuthorization)
    with pytest.raises(CompletionFailed, match="not been entered"):
        await subject.complete(pending, {})
