"""The form that registers a server of the user's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.declarations import flow, method
from valetkey.credential import ApiKey, Identity, Secret
from valetkey.errors import InvalidBaseUrl, InvalidParameter, MissingParameter, ProviderCheckFailed, ValetkeyError
from valetkey.flow import AuthFlow, EnterFields
from valetkey.http import HttpClient
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock

KEY = "sk-" + "x" * 40
Begin = Callable[..., AuthFlow]


@pytest.fixture
def begin(authorization_server: AuthorizationServer, http: HttpClient, clock: FakeClock) -> Begin:
    def made(**parameters: str) -> AuthFlow:
        url = authorization_server.url
        return flow(method("custom", url), url, http=http, clock=clock, parameters=parameters)

    return made


async def completed(subject: AuthFlow, **answer: str) -> ApiKey:
    credential = await subject.complete(await subject.initiate(), answer)
    assert isinstance(credential, ApiKey)
    return credential


@pytest.mark.anyio
async def test_the_form_asks_what_the_server_is(begin: Begin) -> None:
    pending = await begin(name="Lab").initiate()
    assert isinstance(pending.action, EnterFields)
    assert (pending.action.purpose, pending.action.dialect) == ("custom", "openai-chat")
    assert {f.key: f.default for f in pending.action.fields} == {
        "name": "Lab",
        "base_url": None,
        "model": None,
        "key": None,
        "dialect": "openai-chat",
        "allow_http": "no",
    }


@pytest.mark.anyio
async def test_a_private_server_needs_no_key(begin: Begin) -> None:
    found = await completed(begin(), name="Lab", base_url="http://10.0.0.5:8000/v1/", model="m")
    assert found.key == Secret("")
    assert found.parameters == {
        "name": "Lab",
        "base_url": "http://10.0.0.5:8000/v1",
        "model": "m",
        "dialect": "openai-chat",
        "allow_http": "no",
    }


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"base_url": "https://x.example"}, MissingParameter),
        ({"name": "Lab"}, MissingParameter),
        ({"name": "Lab", "base_url": "x.example"}, InvalidBaseUrl),
        ({"name": "Lab", "base_url": "https://u:p@x.example"}, InvalidBaseUrl),
        ({"name": "Lab", "base_url": "https://x.example/?key=1"}, InvalidBaseUrl),
        ({"name": "Lab", "base_url": "http://x.example"}, InvalidBaseUrl),
        ({"name": "Lab", "base_url": "http://169.254.169.254"}, InvalidBaseUrl),
        ({"name": "Lab", "base_url": "http://10.0.0.5", "key": KEY}, InvalidBaseUrl),
        ({"name": "Lab", "base_url": "https://x.example", "dialect": "smtp"}, InvalidParameter),
        ({"name": "Lab", "base_url": "https://x.example", "key": "a\nb"}, InvalidParameter),
        ({"name": "L\x00", "base_url": "https://x.example"}, InvalidParameter),
        ({"name": "x" * 10_000, "base_url": "https://x.example"}, InvalidParameter),
        ({"name": "Lab", "base_url": "https://x.example", "other": "1"}, InvalidParameter),
    ],
)
async def test_what_cannot_be_a_server_is_refused(
    begin: Begin, answer: dict[str, str], expected: type[ValetkeyError]
) -> None:
    with pytest.raises(expected) as caught:
        await completed(begin(), **answer)
    assert caught.value.hint
    assert KEY not in str(caught.value.as_dict())


@pytest.mark.anyio
async def test_a_key_over_http_needs_a_yes(begin: Begin) -> None:
    found = await completed(begin(), name="Lab", base_url="http://10.0.0.5", key=KEY, allow_http="yes")
    assert found.key == Secret(KEY)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("dialect", "base", "path", "header"),
    [
        ("openai-chat", "", "/v1/models", "authorization"),
        ("openai-responses", "/v1", "/v1/models", "authorization"),
        ("openai-chat", "/api/v4", "/api/v4/models", "authorization"),
        ("anthropic-messages", "", "/v1/models", "x-api-key"),
        ("gemini", "", "/v1beta/models", "x-goog-api-key"),
    ],
)
async def test_the_health_check_asks_for_models(
    authorization_server: AuthorizationServer, begin: Begin, dialect: str, base: str, path: str, header: str
) -> None:
    authorization_server.answers(path, json={"data": []})
    url = authorization_server.url + base
    server = await completed(begin(), name="Lab", base_url=url, key=KEY, dialect=dialect, allow_http="yes")
    assert await begin().validate(server) == Identity(name="Lab")
    assert authorization_server.calls(path)[0].headers[header].removeprefix("Bearer ") == KEY


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, "", "rejected the key"),
        (403, "", "rejected the key"),
        (500, "", "fault"),
        (404, "{}", "lists no models"),
        (200, "<html>", "web page"),
    ],
)
async def test_a_sick_server_says_how(
    authorization_server: AuthorizationServer, begin: Begin, status: int, text: str, message: str
) -> None:
    content_type = "text/html" if text.startswith("<") else "application/json"
    authorization_server.answers("/v1/models", status=status, text=text, content_type=content_type)
    server = await completed(begin(), name="Lab", base_url=authorization_server.url)
    with pytest.raises(ProviderCheckFailed, match=message):
        await begin().validate(server)


@pytest.mark.anyio
async def test_a_server_that_is_not_there(begin: Begin) -> None:
    server = await completed(begin(), name="Lab", base_url="http://127.0.0.1:1")
    with pytest.raises(ProviderCheckFailed, match="cannot be reached"):
        await begin().validate(server)
