"""What every flow promises (valetkey.testing.suites.flows), for each of the six kinds, and what ours promise beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.support.declarations import KINDS, flow, method
from valetkey.credential import ApiKey, Credential, ExchangedKey, OAuthToken, Secret, secrets_of
from valetkey.errors import (
    InvalidParameter,
    MissingParameter,
    ProviderCheckFailed,
    ValetkeyError,
)
from valetkey.flow import AuthFlow, PendingAuthorization
from valetkey.http import HttpClient
from valetkey.provider import AuthKind, Parameter
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import START, FakeClock
from valetkey.testing.suites.flows import FlowCase, FlowSuite

KEY = "sk-" + "k" * 40
ACCESS_TOKEN = "at-" + "a" * 40
REFRESH_TOKEN = "rt-" + "r" * 40
SECRETS = (KEY, ACCESS_TOKEN, REFRESH_TOKEN, "dc-" + "d" * 40)
REGION = Parameter(key="region", label="Region", default="here", pattern="[a-z]+")
PROJECT = Parameter(key="project", label="Project", pattern="[a-z]+")
POLLED: tuple[AuthKind, ...] = ("device", "device-exchange", "authorization-code")
FORMS: tuple[AuthKind, ...] = ("api-key", "cloud", "custom")

pytestmark = pytest.mark.anyio
each_kind = pytest.mark.parametrize("kind", KINDS)
Begin = Callable[..., AuthFlow]


@pytest.fixture
def begin(authorization_server: AuthorizationServer, http: HttpClient, clock: FakeClock) -> Begin:
    server = authorization_server
    codes = {"device_code": SECRETS[3], "user_code": "ABCD-EFGH", "verification_uri": "https://login.example/device"}
    server.answers("/device", json={**codes, "expires_in": 900})
    server.answers("/token", json={"access_token": ACCESS_TOKEN, "refresh_token": REFRESH_TOKEN, "expires_in": 3600})
    server.answers("/exchange", json={"token": KEY, "refresh_in": 1500})

    def made(kind: AuthKind, parameters: Mapping[str, str] | None = None) -> AuthFlow:
        declared = method(kind, server.url)
        # A custom server's parameters are what it is, and those are the same for all.
        if kind != "custom":
            declared = replace(declared, parameters=(PROJECT, REGION))
            parameters = {"project": "abc"} if parameters is None else parameters
        return flow(declared, server.url, http=http, clock=clock, parameters=parameters)

    return made


def answer_of(kind: AuthKind, pending: PendingAuthorization, server: AuthorizationServer) -> dict[str, str]:
    match kind:
        case "api-key" | "cloud":
            return {"key": KEY}
        case "custom":
            return {"name": "Lab", "base_url": server.url, "key": KEY, "allow_http": "yes"}
        case "authorization-code":
            return {"code": "the-code", "state": pending.private["state"]}
        case "device" | "device-exchange":
            return {}


async def logged_in(subject: AuthFlow, kind: AuthKind, server: AuthorizationServer) -> Credential:
    pending = await subject.initiate()
    return await subject.complete(pending, answer_of(kind, pending, server))


class TestFlows(FlowSuite):
    """Each of them."""

    @pytest.fixture(params=KINDS)
    def case(self, request: pytest.FixtureRequest, authorization_server: AuthorizationServer, begin: Begin) -> FlowCase:
        kind: AuthKind = request.param
        server, renewal = authorization_server, "/exchange" if request.param == "device-exchange" else "/token"

        def answers(path: str, **answer: Any) -> None:
            server.forget(path)
            server.answers(path, **answer)

        def probe(status: int) -> None:
            for path in ("/api/probe", "/v1/models"):
                answers(path, status=status, json={"name": f"secret {KEY}" if status != 200 else "Lab", "data": []})

        def end() -> None:
            for path, status in (("/token", 400), ("/exchange", 401)):
                answers(path, status=status, json={"error": "invalid_grant"})

        return FlowCase(
            flow=begin(kind),
            provider="test",
            method=kind,
            answer=lambda pending: answer_of(kind, pending, server),
            sends=lambda: len(server.requests),
            secrets=SECRETS,
            probe=probe,
            renew=(lambda: answers(renewal, json={"access_token": "next", "token": "next"}))
            if kind in POLLED
            else None,
            end=end if kind in POLLED else None,
            # A server of the user's own has a health check in place of the probe.
            checked=ProviderCheckFailed if kind == "custom" else None,
        )


@each_kind
async def test_a_flow_knows_its_kind_and_how_long_a_login_may_take(begin: Begin, kind: AuthKind) -> None:
    assert begin(kind).kind == kind
    assert (await begin(kind).initiate()).expires_at > START


@each_kind
async def test_a_login_ends_in_a_credential_of_its_own_kind(
    authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind
) -> None:
    credential = await logged_in(begin(kind), kind, authorization_server)
    expected: dict[AuthKind, type[object]] = {
        "api-key": ApiKey,
        "cloud": ApiKey,
        "custom": ApiKey,
        "device": OAuthToken,
        "authorization-code": OAuthToken,
        "device-exchange": ExchangedKey,
    }
    assert type(credential) is expected[kind]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "custom"])
async def test_defaults_are_filled_in(authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind) -> None:
    credential = await logged_in(begin(kind), kind, authorization_server)
    assert credential.parameters == {"project": "abc", "region": "here"}


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "custom"])
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, MissingParameter),
        ({"project": ""}, MissingParameter),
        ({"project": "NO"}, InvalidParameter),
        ({"project": "abc", "region": "../x"}, InvalidParameter),
        ({"project": "abc", "undeclared": "1"}, InvalidParameter),
    ],
)
async def test_parameters_that_are_not_as_declared_end_the_login(
    authorization_server: AuthorizationServer,
    begin: Begin,
    kind: AuthKind,
    parameters: dict[str, str],
    expected: type[ValetkeyError],
) -> None:
    with pytest.raises(expected) as caught:
        await logged_in(begin(kind, parameters), kind, authorization_server)
    assert caught.value.hint
    assert authorization_server.requests == []


@pytest.mark.parametrize("kind", POLLED)
async def test_a_poll_says_pending_or_done(
    authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind
) -> None:
    subject = begin(kind)
    pending = await subject.initiate()
    if kind == "authorization-code":
        assert await subject.poll(pending) == pending
        answer = json.dumps(answer_of(kind, pending, authorization_server))
        pending = replace(pending, private={**pending.private, "answer": answer})
    else:
        authorization_server.forget("/token")
        authorization_server.answers("/token", status=400, json={"error": "authorization_pending"})
        authorization_server.answers("/token", json={"access_token": ACCESS_TOKEN})
        assert await subject.poll(pending) == pending
    assert not isinstance(await subject.poll(pending), PendingAuthorization)


@pytest.mark.parametrize("kind", POLLED)
async def test_a_token_is_renewed_and_what_it_does_not_change_stays(
    authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind
) -> None:
    credential = await logged_in(begin(kind), kind, authorization_server)
    path = "/exchange" if kind == "device-exchange" else "/token"
    authorization_server.forget(path)
    authorization_server.answers(path, json={"access_token": "next", "token": "next"})
    renewed = await begin(kind).refresh(credential)
    assert type(renewed) is type(credential)
    assert renewed.parameters == credential.parameters
    assert [secret.reveal() for secret in secrets_of(renewed).values()] == ["next"]
    old, new = (c.grant if isinstance(c, ExchangedKey) else c for c in (credential, renewed))
    assert isinstance(old, OAuthToken)
    assert isinstance(new, OAuthToken)
    assert new.refresh_token == old.refresh_token == Secret(REFRESH_TOKEN)


@each_kind
async def test_a_good_credential_is_good(
    authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind
) -> None:
    credential = await logged_in(begin(kind), kind, authorization_server)
    authorization_server.answers("/api/probe", json={"name": "Lab"})
    authorization_server.answers("/v1/models", json={"data": []})
    assert (await begin(kind).validate(credential)).name == "Lab"
    sent = authorization_server.requests[-1].headers["authorization"]
    assert sent == f"Bearer {next(iter(secrets_of(credential).values())).reveal()}"
