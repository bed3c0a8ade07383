"""What every flow promises, run for each of the six kinds: the table of flows, as far as it is the same for all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from tests.support.authorization_server import AuthorizationServer
from tests.support.clock import START, FakeClock
from tests.support.declarations import KINDS, flow, method
from valetkey.credential import ApiKey, Credential, ExchangedKey, Fields, OAuthToken, Secret, secrets_of
from valetkey.errors import (
    InvalidParameter,
    KeyForbidden,
    KeyRejected,
    MissingParameter,
    PollFailed,
    ProviderCheckFailed,
    ProviderFault,
    RefreshNotSupported,
    RefreshRejected,
    ValetkeyError,
    ValidationFailed,
)
from valetkey.flow import AuthFlow, EnterFields, PendingAuthorization
from valetkey.http import HttpClient
from valetkey.provider import AuthKind, Parameter

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


@each_kind
async def test_a_flow_knows_its_kind(begin: Begin, kind: AuthKind) -> None:
    assert begin(kind).kind == kind


@each_kind
async def test_what_the_user_has_to_do_is_json_without_a_secret(begin: Begin, kind: AuthKind) -> None:
    pending = await begin(kind).initiate()
    shown = json.dumps(dataclasses.asdict(pending.action))
    # The state is in the URL that the browser opens; that is what it is for.
    hidden = {value for name, value in pending.private.items() if name != "state"}
    assert not any(value in shown for value in hidden)
    assert not any(value in repr(pending) for value in hidden)
    assert (pending.provider, pending.method) == ("test", kind)
    assert pending.expires_at > START


@each_kind
async def test_a_login_ends_in_a_credential_that_names_its_method(
    authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind
) -> None:
    credential = await logged_in(begin(kind), kind, authorization_server)
    assert credential.method == kind
    expected: dict[AuthKind, type[object]] = {
        "api-key": ApiKey,
        "cloud": ApiKey,
        "custom": ApiKey,
        "device": OAuthToken,
        "authorization-code": OAuthToken,
        "device-exchange": ExchangedKey,
    }
    assert type(credential) is expected[kind]
    assert all(secrets_of(credential).values())
    assert not any(secret in repr(credential) for secret in SECRETS)


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


@each_kind
async def test_an_answer_of_another_kind_is_refused(
    authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind
) -> None:
    subject = begin(kind)
    pending = await subject.initiate()
    sent = len(authorization_server.requests)
    with pytest.raises(InvalidParameter):
        await subject.complete(pending, {**answer_of(kind, pending, authorization_server), "something": "else"})
    assert len(authorization_server.requests) == sent


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("device", "device-exchange")])
async def test_an_empty_answer_is_missing_something(begin: Begin, kind: AuthKind) -> None:
    subject = begin(kind)
    with pytest.raises(MissingParameter):
        await subject.complete(await subject.initiate(), {})


@pytest.mark.parametrize("kind", FORMS)
async def test_a_form_has_nothing_to_poll(begin: Begin, kind: AuthKind) -> None:
    subject = begin(kind)
    pending = await subject.initiate()
    assert isinstance(pending.action, EnterFields)
    with pytest.raises(PollFailed) as caught:
        await subject.poll(pending)
    assert not caught.value.retryable


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


@pytest.mark.parametrize("kind", FORMS)
async def test_a_key_has_no_renewal(authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind) -> None:
    credential = await logged_in(begin(kind), kind, authorization_server)
    with pytest.raises(RefreshNotSupported):
        await begin(kind).refresh(credential)


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


@pytest.mark.parametrize("kind", POLLED)
async def test_a_login_that_the_provider_ended_is_rejected(
    authorization_server: AuthorizationServer, begin: Begin, kind: AuthKind
) -> None:
    credential = await logged_in(begin(kind), kind, authorization_server)
    for path, status in (("/token", 400), ("/exchange", 401)):
        authorization_server.forget(path)
        authorization_server.answers(path, status=status, json={"error": "invalid_grant"})
    with pytest.raises(RefreshRejected) as caught:
        await begin(kind).refresh(credential)
    assert caught.value.hint == f"run `valetkey login test --method {kind}`"


@each_kind
async def test_a_credential_of_another_kind_is_not_renewed(begin: Begin, kind: AuthKind) -> None:
    with pytest.raises(RefreshNotSupported):
        await begin(kind).refresh(Fields(method=kind, values={"user": Secret("u")}))


@each_kind
@pytest.mark.parametrize(
    ("status", "expected"), [(401, KeyRejected), (403, KeyForbidden), (500, ProviderFault), (404, ValidationFailed)]
)
async def test_each_refusal_of_the_probe_is_an_error_of_its_own(
    authorization_server: AuthorizationServer,
    begin: Begin,
    kind: AuthKind,
    status: int,
    expected: type[ValetkeyError],
) -> None:
    credential = await logged_in(begin(kind), kind, authorization_server)
    for path in ("/api/probe", "/v1/models"):
        authorization_server.answers(
            path, status=status, text=f"secret {KEY} {ACCESS_TOKEN}", content_type="text/plain"
        )
    # A server of the user's own has a health check in place of the probe.
    with pytest.raises(ProviderCheckFailed if kind == "custom" else expected) as caught:
        await begin(kind).validate(credential)
    assert not any(secret in str(caught.value.as_dict()) for secret in SECRETS)


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
