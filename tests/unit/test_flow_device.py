"""The device login of RFC 8628: codes, waiting, and every way it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.declarations import flow, method
from valetkey.credential import OAuthToken, Secret
from valetkey.errors import (
    CompletionFailed,
    InitiationFailed,
    InvalidParameter,
    LoginDenied,
    LoginExpired,
    LoginTimeout,
    PollFailed,
    ProviderFault,
    TransportError,
    Unreachable,
    ValetkeyError,
)
from valetkey.flow import AuthFlow, EnterUserCode, PendingAuthorization
from valetkey.http import HttpClient
from valetkey.login import poll_until_complete, progress
from valetkey.provider import AuthMethod, Device, Parameter, Token
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import START, FakeClock

DEVICE_CODE = "dc-" + "d" * 40
CODES: dict[str, object] = {
    "device_code": DEVICE_CODE,
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://login.example/device",
    "expires_in": 900,
    "interval": 5,
}
PENDING = {"error": "authorization_pending"}
TOKENS = {"access_token": "at-" + "a" * 40, "token_type": "bearer", "refresh_token": "rt-" + "r" * 40}

Begin = Callable[..., AuthFlow]


@pytest.fixture
def begin(authorization_server: AuthorizationServer, http: HttpClient, clock: FakeClock) -> Begin:
    def made(declared: AuthMethod | None = None, parameters: dict[str, str] | None = None) -> AuthFlow:
        declared = declared or method("device", authorization_server.url)
        return flow(declared, authorization_server.url, http=http, clock=clock, parameters=parameters)

    return made


def action(pending: PendingAuthorization) -> EnterUserCode:
    assert isinstance(pending.action, EnterUserCode)
    return pending.action


@pytest.mark.anyio
async def test_the_user_gets_a_code_and_a_page(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/device", json={**CODES, "verification_uri_complete": "https://login.example/d?c=1"})
    pending = await begin().initiate()
    assert action(pending) == EnterUserCode(
        user_code="WDJB-MJHT",
        verification_uri="https://login.example/device",
        verification_uri_complete="https://login.example/d?c=1",
        expires_in=900,
        interval=5,
    )
    assert pending.expires_at == START + timedelta(seconds=900)
    assert authorization_server.calls("/device")[0].form == {"client_id": "client", "scope": "openid api"}
    assert DEVICE_CODE not in repr(pending)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "interval"),
    [
        ({"interval": "7"}, 7),
        ({"interval": 2.2}, 3),
        ({"interval": -5}, 5),
        ({"interval": "NaN"}, 5),
        ({"interval": "x"}, 5),
        ({"interval": None}, 5),
        ({"interval": 0}, 5),
        ({"interval": 10**6}, 300),
        ({"interval": 10**12}, 5),
    ],
)
async def test_the_interval_is_one_that_can_be_waited(
    authorization_server: AuthorizationServer, begin: Begin, given: dict[str, object], interval: int
) -> None:
    authorization_server.answers("/device", json={**CODES, **given})
    assert action(await begin().initiate()).interval == interval


@pytest.mark.anyio
@pytest.mark.parametrize(("given", "life"), [(None, 600), ("900", 900), (899.5, 900), (-1, 600), ("soon", 600)])
async def test_a_login_lives_ten_minutes_where_the_server_does_not_say(
    authorization_server: AuthorizationServer, begin: Begin, given: object, life: int
) -> None:
    authorization_server.answers("/device", json={**CODES, "expires_in": given})
    assert action(await begin().initiate()).expires_in == life


@pytest.mark.anyio
@pytest.mark.parametrize(
    "change",
    [
        {"device_code": None},
        {"user_code": ""},
        {"user_code": 12},
        {"user_code": "A" * 65},
        {"user_code": "A\x1b[2J"},
        {"verification_uri": None},
        {"verification_uri": "javascript:alert(1)"},
        {"verification_uri": "file:///etc/passwd"},
        {"verification_uri": "-oProxyCommand=x"},
        {"verification_uri": "https://x/\x1b]0;x\x07"},
        {"verification_uri_complete": "ssh://x"},
    ],
)
async def test_codes_that_cannot_be_shown_end_the_login(
    authorization_server: AuthorizationServer, begin: Begin, change: dict[str, object]
) -> None:
    authorization_server.answers("/device", json={**CODES, **change})
    with pytest.raises(InitiationFailed):
        await begin().initiate()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b"", "does not offer"),
        (400, b'{"error": "unauthorized_client", "error_description": "no"}', r"unauthorized_client \(no\)"),
        (200, b'{"error": "device_flow_disabled"}', "device_flow_disabled"),
        (503, b"", "now"),
        (200, b"<html>", "not a JSON object"),
        (302, b"", "redirects"),
    ],
)
async def test_a_login_that_cannot_begin_says_why(
    authorization_server: AuthorizationServer, begin: Begin, status: int, body: bytes, text: str
) -> None:
    authorization_server.answers("/device", status=status, body=body)
    with pytest.raises(InitiationFailed, match=text):
        await begin().initiate()


@pytest.mark.anyio
async def test_a_server_that_is_not_there_is_named(http: HttpClient, clock: FakeClock) -> None:
    subject = flow(method("device", "http://127.0.0.1:1"), "http://127.0.0.1:1", http=http, clock=clock)
    with pytest.raises(InitiationFailed, match=r"127\.0\.0\.1:1 cannot be reached") as caught:
        await subject.initiate()
    assert isinstance(caught.value.__cause__, Unreachable)


@pytest.mark.anyio
async def test_a_login_that_needs_an_app_of_ones_own_says_how(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    declared = replace(method("device", authorization_server.url), client_id="")
    with pytest.raises(InitiationFailed, match="an OAuth app of your own") as caught:
        await begin(declared).initiate()
    assert "[providers.test]" in caught.value.hint


@pytest.mark.anyio
async def test_pending_then_slow_down_for_good_then_tokens(
    authorization_server: AuthorizationServer, begin: Begin, clock: FakeClock
) -> None:
    """The first poll waits too, slow_down adds 5 s for good, and errors may come with status 200."""
    authorization_server.answers("/device", json=CODES)
    authorization_server.answers("/token", status=400, json=PENDING)
    authorization_server.answers("/token", status=200, json={"error": "slow_down"})
    authorization_server.answers("/token", status=200, json=PENDING)
    authorization_server.answers("/token", status=400, json={"error": "slow_down", "interval": "20"})
    authorization_server.answers("/token", status=400, json={"error": "slow_down", "interval": 1})
    authorization_server.answers("/token", json=TOKENS)
    subject = begin()
    token = await poll_until_complete(subject, await subject.initiate(), clock=clock)
    assert isinstance(token, OAuthToken)
    assert token.access_token.reveal() == TOKENS["access_token"]
    assert token.refresh_token == Secret(TOKENS["refresh_token"])
    assert clock.waits == [5, 5, 10, 10, 20, 25]
    assert authorization_server.calls("/token")[0].form == {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": DEVICE_CODE,
        "client_id": "client",
    }


@pytest.mark.anyio
async def test_while_the_server_is_away_the_pace_slows_down(
    authorization_server: AuthorizationServer, begin: Begin, clock: FakeClock
) -> None:
    authorization_server.answers("/device", json=CODES)
    authorization_server.answers("/token", status=503)
    authorization_server.drops("/token")
    authorization_server.answers("/token", status=429)
    authorization_server.answers("/token", status=400, json=PENDING)
    authorization_server.answers("/token", json=TOKENS)
    subject = begin()
    await poll_until_complete(subject, await subject.initiate(), clock=clock)
    assert clock.waits == [5, 10, 20, 40, 5]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"error": "expired_token"}, LoginExpired),
        ({"error": "access_denied", "error_description": "the user said no"}, LoginDenied),
        ({"error": "incorrect_device_code"}, PollFailed),
        ({"error": "unsupported_grant_type"}, PollFailed),
        ({"access_token": "a b\n"}, PollFailed),
        ({"hello": 1}, PollFailed),
        ([], PollFailed),
    ],
)
@pytest.mark.parametrize("status", [200, 400])
async def test_what_ends_a_login_ends_it_at_once(
    authorization_server: AuthorizationServer,
    begin: Begin,
    clock: FakeClock,
    answer: object,
    expected: type[ValetkeyError],
    status: int,
) -> None:
    authorization_server.answers("/device", json=CODES)
    authorization_server.answers("/token", status=status, json=answer)
    subject = begin()
    with pytest.raises(expected) as caught:
        await poll_until_complete(subject, await subject.initiate(), clock=clock)
    assert len(authorization_server.calls("/token")) == 1
    assert caught.value.provider == "test"
    assert DEVICE_CODE not in str(caught.value)


@pytest.mark.anyio
async def test_the_servers_limit_and_ours_are_two_errors(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    authorization_server.answers("/device", json={**CODES, "expires_in": 60})
    authorization_server.answers("/token", status=400, json=PENDING)
    subject = begin()
    pending = await subject.initiate()
    with pytest.raises(LoginExpired):
        await poll_until_complete(subject, pending, clock=FakeClock())
    with pytest.raises(LoginTimeout, match="30 s"):
        await poll_until_complete(subject, pending, clock=FakeClock(), timeout=timedelta(seconds=30))


@pytest.mark.anyio
async def test_a_jumping_clock_ends_nothing(
    authorization_server: AuthorizationServer, begin: Begin, clock: FakeClock
) -> None:
    authorization_server.answers("/device", json=CODES)
    authorization_server.answers("/token", status=400, json=PENDING)
    authorization_server.answers("/token", json=TOKENS)
    subject = begin()
    pending = await subject.initiate()

    class Jumping:
        async def poll(self, pending: PendingAuthorization) -> object:
            clock.jump(86400)
            return await subject.poll(pending)

    assert isinstance(await poll_until_complete(Jumping(), pending, clock=clock), OAuthToken)


@pytest.mark.anyio
async def test_one_poll_tells_what_can_be_tried_again(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/device", json=CODES)
    authorization_server.answers("/token", status=502)
    subject = begin()
    with pytest.raises(TransportError) as caught:
        await subject.poll(await subject.initiate())
    assert isinstance(caught.value, ProviderFault)
    assert caught.value.retryable


@pytest.mark.anyio
async def test_complete_insists_and_takes_no_answer(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/device", json=CODES)
    authorization_server.answers("/token", status=400, json=PENDING)
    subject = begin()
    pending = await subject.initiate()
    with pytest.raises(CompletionFailed, match="not been entered"):
        await subject.complete(pending, {})
    with pytest.raises(InvalidParameter):
        await subject.complete(pending, {"code": "x"})


@pytest.mark.anyio
async def test_an_enterprise_host_is_kept_of_what_was_pasted(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    domain = Parameter(key="domain", label="Host", host=True, pattern=r"[a-z0-9.-]+", default="github.example")
    declared = replace(
        method("device", authorization_server.url),
        parameters=(domain,),
        device_authorization_endpoint=authorization_server.url + "/{domain}/device",
    )
    authorization_server.answers("/company.ghe.example/device", json=CODES)
    pending = await begin(declared, {"domain": "https://company.ghe.example/login?x=1"}).initiate()
    assert pending.parameters == {"domain": "company.ghe.example"}
    with pytest.raises(InvalidParameter):
        await begin(declared, {"domain": "evil host!"}).initiate()


# --- a device login that ends in a code and the server's verifier ----------------------------------


@pytest.fixture
def variant(authorization_server: AuthorizationServer) -> AuthMethod:
    url = authorization_server.url
    device = Device(
        body="json",
        fields={"device_code": ("device_auth_id",), "user_code": ("user_code", "usercode")},
        verification_uri="https://login.example/codex/device",
        expires_in=900,
        poll=f"{url}/poll",
        poll_body="json",
        poll_parameters={"device_auth_id": "{device_code}", "user_code": "{user_code}"},
        answer="authorization_code",
        redirect_uri=f"{url}/deviceauth/callback",
    )
    return replace(method("device", url), device=device, scope=(), token=Token(pending_status=(403, 404)))


@pytest.mark.anyio
async def test_a_poll_that_ends_in_a_code_is_exchanged_with_the_servers_verifier(
    authorization_server: AuthorizationServer, begin: Begin, variant: AuthMethod, clock: FakeClock
) -> None:
    authorization_server.answers(
        "/device", json={"device_auth_id": DEVICE_CODE, "usercode": "ABCD-1234", "interval": "5"}
    )
    authorization_server.answers("/poll", status=403, json={"error": {"code": "deviceauth_authorization_unknown"}})
    authorization_server.answers("/poll", status=404, text="<html>")
    authorization_server.answers(
        "/poll", json={"authorization_code": "the-code", "code_verifier": "the-verifier", "code_challenge": "x"}
    )
    authorization_server.answers("/token", json=TOKENS)
    subject = begin(variant)
    pending = await subject.initiate()
    assert action(pending).verification_uri == "https://login.example/codex/device"
    assert action(pending).expires_in == 900
    assert isinstance(await poll_until_complete(subject, pending, clock=clock), OAuthToken)
    assert authorization_server.calls("/device")[0].json == {"client_id": "client"}
    assert authorization_server.calls("/poll")[0].json == {"device_auth_id": DEVICE_CODE, "user_code": "ABCD-1234"}
    assert authorization_server.calls("/token")[0].form == {
        "grant_type": "authorization_code",
        "code": "the-code",
        "redirect_uri": f"{authorization_server.url}/deviceauth/callback",
        "code_verifier": "the-verifier",
        "client_id": "client",
    }


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 503])
async def test_a_code_that_the_server_does_not_take_back_ends_the_login(
    authorization_server: AuthorizationServer, begin: Begin, variant: AuthMethod, status: int
) -> None:
    authorization_server.answers("/device", json={"device_auth_id": DEVICE_CODE, "user_code": "ABCD-1234"})
    authorization_server.answers("/poll", json={"authorization_code": "the-code", "code_verifier": "the-verifier"})
    authorization_server.answers("/token", status=status)
    subject = begin(variant)
    with pytest.raises(PollFailed):
        await subject.poll(await subject.initiate())


@pytest.mark.anyio
async def test_progress_runs_to_the_end(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/device", json={**CODES, "expires_in": 3})
    clock = FakeClock()
    seen = [p async for p in progress(await begin().initiate(), clock=clock)]
    assert [(p.elapsed.total_seconds(), p.remaining.total_seconds(), p.state) for p in seen] == [
        (0, 3, "waiting"),
        (1, 2, "waiting"),
        (2, 1, "waiting"),
        (3, 0, "expired"),
    ]
