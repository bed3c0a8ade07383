"""The form that asks for a key, and what a provider says to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.declarations import BEARER_KEY, REGION, flow, method
from tests.support.tls import CertificateAuthority
from valetkey.credential import ApiKey, Fields, Identity, Secret
from valetkey.errors import (
    ConnectTimeout,
    InvalidParameter,
    KeyForbidden,
    KeyRejected,
    MissingParameter,
    NameNotResolved,
    ProviderFault,
    TlsFailed,
    Unreachable,
    ValetkeyError,
    ValidationFailed,
)
from valetkey.flow import AuthFlow, EnterFields
from valetkey.http import HttpClient
from valetkey.provider import AuthMethod, Call, Parameter
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock

KEY = "sk-" + "x" * 40
Begin = Callable[..., AuthFlow]


@pytest.fixture
def begin(authorization_server: AuthorizationServer, http: HttpClient, clock: FakeClock) -> Begin:
    def made(
        declared: AuthMethod | None = None,
        *,
        parameters: dict[str, str] | None = None,
        environ: dict[str, str] | None = None,
        probe: Call | None = None,
    ) -> AuthFlow:
        return flow(
            declared or method("api-key", authorization_server.url),
            authorization_server.url,
            http=http,
            clock=clock,
            parameters=parameters,
            environ=environ,
            probe=probe,
        )

    return made


async def completed(subject: AuthFlow, answer: dict[str, str]) -> object:
    return await subject.complete(await subject.initiate(), answer)


@pytest.mark.anyio
async def test_the_form_asks_for_key_and_parameters(begin: Begin) -> None:
    declared = replace(method("api-key", "http://x"), parameters=(REGION,), keys_url="https://keys.example/")
    pending = await begin(declared).initiate()
    assert isinstance(pending.action, EnterFields)
    assert pending.action.purpose == "key"
    assert "https://keys.example/" in pending.action.description
    assert [(f.key, f.secret, f.default) for f in pending.action.fields] == [
        ("key", True, None),
        ("region", False, "here"),
    ]


@pytest.mark.anyio
async def test_a_key_is_taken_without_the_blanks_around_it(begin: Begin) -> None:
    assert await completed(begin(), {"key": f"  {KEY}\r\n"}) == ApiKey(method="api-key", key=Secret(KEY))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("a\nb", "line break"),
        ("a\rb", "line break"),
        ("a\x00b", "control"),
        ("a\x7fb", "control"),
        ("clé" + "x" * 40, "ASCII"),
        ("sk\u200b" + "x" * 40, "ASCII"),
        ("x" * 1_000_000, "longer than"),
    ],
)
async def test_what_cannot_be_a_key_is_refused_without_showing_it(begin: Begin, key: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text) as caught:
        await completed(begin(), {"key": key})
    assert key not in str(caught.value.as_dict())


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [{}, {"key": ""}, {"key": "  \n"}])
async def test_an_empty_key_is_missing(begin: Begin, answer: dict[str, str]) -> None:
    with pytest.raises(MissingParameter):
        await completed(begin(), answer)


@pytest.mark.anyio
async def test_a_local_server_may_have_none(authorization_server: AuthorizationServer, begin: Begin) -> None:
    declared = replace(method("api-key", authorization_server.url), optional=True)
    authorization_server.answers("/api/probe", json={})
    subject = begin(declared)
    credential = await subject.complete(await subject.initiate(), {})
    assert credential == ApiKey(method="api-key", key=Secret(""))
    await subject.validate(credential)
    assert "authorization" not in authorization_server.calls("/api/probe")[0].headers


@pytest.mark.anyio
async def test_several_secrets_become_fields(begin: Begin) -> None:
    secrets = (
        Parameter(key="id", label="Key id", pattern="[A-Z0-9]+", secret=True),
        Parameter(key="secret", label="Secret key", secret=True),
        Parameter(key="session", label="Session", secret=True, required=False),
    )
    declared = replace(method("api-key", "http://x"), secrets=secrets, parameters=(REGION,))
    found = await completed(begin(declared), {"id": "AKIA1", "secret": "s" * 40, "region": "there"})
    assert found == Fields(
        method="api-key",
        values={"id": Secret("AKIA1"), "secret": Secret("s" * 40), "session": Secret("")},
        parameters={"region": "there"},
    )
    with pytest.raises(MissingParameter, match="Secret key"):
        await completed(begin(declared), {"id": "AKIA1"})
    with pytest.raises(InvalidParameter, match="Key id"):
        await completed(begin(declared), {"id": "akia", "secret": "s"})
    with pytest.raises(InvalidParameter):
        await completed(begin(declared), {"key": "x"})


# --- the probe -----------------------------------------------------------------------------------


async def probed(begin: Begin, declared: AuthMethod | None = None, *, key: str = KEY, **how: object) -> Identity:
    return await begin(declared, **how).validate(ApiKey(method="api-key", key=Secret(key)))


@pytest.mark.anyio
async def test_nobody_is_called_by_the_key(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/api/me", json={"id": f"of {KEY}", "name": KEY, "mail": "a@example.test"})
    probe = Call(get="/me", account_id="/id", name="/name", email="/mail")
    declared = replace(method("api-key", authorization_server.url), probe=probe)
    assert await probed(begin, declared) == Identity(email="a@example.test")


@pytest.mark.anyio
async def test_the_probe_says_whose_key_it_is(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/api/me", json={"user": {"id": 7, "mail": "a@example.test"}, "plan": "pro"})
    probe = Call(get="/me", account_id="/user/id", email="/user/mail", plan="/plan", headers={"x-version": "1"})
    assert await probed(begin, probe=probe) == Identity(account_id="7", email="a@example.test", plan="pro")
    call = authorization_server.calls("/api/me")[0]
    assert (call.headers["authorization"], call.headers["x-version"]) == (f"Bearer {KEY}", "1")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "expected", "text"),
    [
        (401, KeyRejected, "rejected"),
        (403, KeyForbidden, "forbids"),
        (500, ProviderFault, "fault"),
        (503, ProviderFault, "fault"),
        (404, ValidationFailed, "HTTP 404"),
        (400, ValidationFailed, "HTTP 400"),
        (302, ValidationFailed, "HTTP 302"),
    ],
)
async def test_each_refusal_is_an_error_of_its_own(
    authorization_server: AuthorizationServer, begin: Begin, status: int, expected: type[ValetkeyError], text: str
) -> None:
    authorization_server.answers("/api/probe", status=status, json={"error": f"bad key {KEY}"})
    with pytest.raises(expected, match=text) as caught:
        await probed(begin)
    assert type(caught.value) is expected
    assert caught.value.hint
    assert caught.value.provider == "test"
    assert KEY not in str(caught.value.as_dict())


@pytest.mark.anyio
async def test_a_key_of_another_shape_is_told_only_when_it_is_refused(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    declared = replace(
        method("api-key", authorization_server.url), prefix="sk-other-", keys_url="https://keys.example/"
    )
    authorization_server.answers("/api/probe", json={"name": "Ann"})
    assert await probed(begin, declared) == Identity(name="Ann")
    authorization_server.forget("/api/probe")
    authorization_server.answers("/api/probe", status=401)
    with pytest.raises(KeyRejected, match="start with sk-other-") as caught:
        await probed(begin, declared)
    assert "https://keys.example/" in caught.value.hint
    with pytest.raises(KeyRejected) as caught:
        await probed(begin, declared, key="sk-other-" + "x" * 30)
    assert "start with" not in caught.value.message


@pytest.mark.anyio
async def test_a_good_key_out_of_quota_is_good(authorization_server: AuthorizationServer, begin: Begin) -> None:
    authorization_server.answers("/api/probe", status=429)
    assert await probed(begin) == Identity()


@pytest.mark.anyio
async def test_a_declaration_may_name_statuses_that_accept_and_reject(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    authorization_server.answers("/api/probe", status=400)
    assert await probed(begin, probe=Call(post="/probe", body="{}", accepted=(400,))) == Identity()
    with pytest.raises(KeyRejected):
        await probed(begin, probe=Call(get="/probe", rejected=(400,)))
    assert authorization_server.calls("/api/probe")[0].headers["content-type"] == "application/json"


@pytest.mark.anyio
@pytest.mark.parametrize("probe", [Call(get="/probe"), Call(get="/probe", name="/name")])
async def test_a_web_page_is_no_acceptance(
    authorization_server: AuthorizationServer, begin: Begin, probe: Call
) -> None:
    authorization_server.answers("/api/probe", text="<html>welcome</html>")
    with pytest.raises(ValidationFailed, match="web page"):
        await probed(begin, probe=probe)


@pytest.mark.anyio
async def test_text_where_a_name_is_wanted_is_no_acceptance(
    authorization_server: AuthorizationServer, begin: Begin
) -> None:
    authorization_server.answers("/api/probe", text="fine", content_type="text/plain")
    with pytest.raises(ValidationFailed, match="not JSON"):
        await probed(begin)


@pytest.mark.anyio
async def test_without_a_probe_the_key_is_taken(authorization_server: AuthorizationServer, begin: Begin) -> None:
    assert await probed(begin, probe=Call()) == Identity()
    assert authorization_server.requests == []


@pytest.mark.anyio
async def test_a_server_that_is_not_there(http: HttpClient, clock: FakeClock) -> None:
    subject = flow(method("api-key", "http://127.0.0.1:1"), "http://127.0.0.1:1", http=http, clock=clock)
    with pytest.raises(Unreachable):
        await subject.validate(ApiKey(method="api-key", key=Secret(KEY)))


@pytest.mark.anyio
async def test_a_certificate_that_nobody_vouches_for(
    certificate_authority: CertificateAuthority, http: HttpClient, clock: FakeClock
) -> None:
    with AuthorizationServer(tls=certificate_authority.context()) as server:
        subject = flow(method("api-key", server.url), server.url, http=http, clock=clock)
        with pytest.raises(TlsFailed):
            await subject.validate(ApiKey(method="api-key", key=Secret(KEY)))


class Impatient(HttpClient):
    """Waits 0.2 s where the flow allows more."""

    def send(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]  # it only hands on
        kwargs["timeout_seconds"] = 0.2
        return super().send(*args, **kwargs)  # type: ignore[arg-type]  # it only hands on


@pytest.mark.anyio
async def test_a_server_that_says_nothing(authorization_server: AuthorizationServer, clock: FakeClock) -> None:
    authorization_server.hangs("/api/probe")
    client = Impatient()
    url = authorization_server.url
    with pytest.raises(ConnectTimeout):
        await flow(method("api-key", url), url, http=client, clock=clock).validate(
            ApiKey(method="api-key", key=Secret(KEY))
        )
    client.close()


# --- parameters ----------------------------------------------------------------------------------

ZONE = Parameter(key="zone", label="Zone", options=("a", "b"), required=False)
SITE = Parameter(key="site", label="Site", pattern="[a-z]+")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "environ", "found"),
    [
        ({"site": "x"}, {}, {"site": "x", "zone": "", "region": "here"}),
        ({"site": " x ", "zone": "b"}, {}, {"site": "x", "zone": "b", "region": "here"}),
        ({"site": "x"}, {"TEST_REGION": "env"}, {"site": "x", "zone": "", "region": "env"}),
        ({"site": "x", "region": "mine"}, {"TEST_REGION": "env"}, {"site": "x", "zone": "", "region": "mine"}),
        ({"site": "x", "region": ""}, {}, {"site": "x", "zone": "", "region": "here"}),
    ],
)
async def test_parameters_come_from_user_environment_and_default(
    begin: Begin, given: dict[str, str], environ: dict[str, str], found: dict[str, str]
) -> None:
    declared = replace(method("api-key", "http://x"), parameters=(SITE, ZONE, REGION))
    for subject, answer in (
        (begin(declared, environ=environ), {"key": KEY, **given}),
        (begin(declared, environ=environ, parameters=given), {"key": KEY}),
    ):
        credential = await completed(subject, answer)
        assert isinstance(credential, ApiKey)
        assert credential.parameters == found


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, MissingParameter),
        ({"site": ""}, MissingParameter),
        ({"site": "X"}, InvalidParameter),
        ({"site": "x\n"}, None),
        ({"site": "x.evil"}, InvalidParameter),
        ({"site": "x", "zone": "c"}, InvalidParameter),
        ({"site": "x", "region": "a/b"}, InvalidParameter),
        ({"site": "x", "region": "a" * 5000}, InvalidParameter),
        ({"site": "x", "nothing": "1"}, InvalidParameter),
    ],
)
async def test_parameters_are_looked_at(
    begin: Begin, given: dict[str, str], expected: type[ValetkeyError] | None
) -> None:
    declared = replace(method("api-key", "http://x"), parameters=(SITE, ZONE, REGION), inject=BEARER_KEY)
    if expected is None:
        await completed(begin(declared), {"key": KEY, **given})
        return
    with pytest.raises(expected) as caught:
        await completed(begin(declared), {"key": KEY, **given})
    assert caught.value.hint


@pytest.mark.anyio
async def test_a_command_may_give_the_default(begin: Begin, tmp_path: Path) -> None:
    script = tmp_path / "project"
    script.write_text("#!/bin/sh\necho abc\necho more\n")
    script.chmod(0o700)
    declared = replace(method("api-key", "http://x"), parameters=(replace(SITE, default_from=(str(script),)),))
    credential = await completed(begin(declared), {"key": KEY})
    assert isinstance(credential, ApiKey)
    assert credential.parameters == {"site": "abc"}
    for broken in (("/nowhere/to/be/found",), ("false",)):
        declared = replace(method("api-key", "http://x"), parameters=(replace(SITE, default_from=broken),))
        with pytest.raises(MissingParameter):
            await completed(begin(declared), {"key": KEY})


@pytest.mark.anyio
async def test_a_name_that_nobody_has(http: HttpClient, clock: FakeClock) -> None:
    """RFC 6761 section 6.4: `.invalid` has no address anywhere."""
    url = "https://name.invalid"
    with pytest.raises(NameNotResolved):
        await flow(method("api-key", url), url, http=http, clock=clock).validate(
            ApiKey(method="api-key", key=Secret(KEY))
        )
