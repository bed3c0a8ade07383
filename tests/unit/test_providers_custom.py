"""Servers of the user's own: names, addresses, the file that is written, and what they are found to speak."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.config import Paths
from valetkey.credential import ApiKey, Secret
from valetkey.errors import (
    BuiltInProvider,
    InvalidBaseUrl,
    InvalidName,
    ProviderCheckFailed,
    ProviderExists,
    StoreUnwritable,
    UnknownProvider,
    UsageError,
)
from valetkey.http import HttpClient, Response
from valetkey.inject import headers_for, join
from valetkey.provider import DialectId
from valetkey.providers import catalogue
from valetkey.providers.custom import declare, name_to_id, normalise, remove
from valetkey.providers.probing import Answering, check, models_request, probe_dialects
from valetkey.testing.local_server import Answer, Drop, LocalServer, Received, Reply

# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("acme", "acme"),
        ("My Lab", "my-lab"),
        ("  My   Läb #2! ", "my-lab-2"),
        ("Ünïcödé_GPU", "unicode-gpu"),
        ("a--b", "a-b"),
        ("../../etc", "etc"),
        ("x" * 64, "x" * 64),
    ],
)
def test_a_name_becomes_an_id(name: str, made: str) -> None:
    assert name_to_id(name) == made


@pytest.mark.parametrize("name", ["", " ", "模型", "---", "..", "\0", "x" * 65, "x" * 10_000])
def test_a_name_that_makes_no_id_is_refused(name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        name_to_id(name)
    assert len(str(caught.value)) < 100


@settings(deadline=None)
@given(st.text(max_size=200))
def test_whatever_the_name_the_id_is_one_or_none(name: str) -> None:
    try:
        made = name_to_id(name)
    except InvalidName:
        return
    assert re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?", made)
    assert name_to_id(made) == made


# --- addresses -------------------------------------------------------------------------------

GOOD_URLS: list[tuple[str, DialectId, str]] = [
    ("https://api.acme.example/v1", "openai-chat", "https://api.acme.example/v1"),
    ("https://api.acme.example/v1/", "openai-chat", "https://api.acme.example/v1"),
    ("  https://api.acme.example//v1///  ", "openai-chat", "https://api.acme.example/v1"),
    ("https://API.Acme.example:443/v1", "openai-chat", "https://api.acme.example/v1"),
    ("https://api.acme.example/v1/chat/completions", "openai-chat", "https://api.acme.example/v1"),
    ("https://api.acme.example/v1/chat/completions/", "openai-chat", "https://api.acme.example/v1"),
    ("https://api.acme.example/v1/models", "openai-chat", "https://api.acme.example/v1"),
    ("https://api.acme.example/v1/responses", "openai-responses", "https://api.acme.example/v1"),
    ("https://api.deepseek.com", "openai-chat", "https://api.deepseek.com"),
    ("https://api.deepseek.com/", "openai-chat", "https://api.deepseek.com"),
    ("https://api.acme.example/api/paas/v4", "openai-chat", "https://api.acme.example/api/paas/v4"),
    ("http://10.0.0.5:8000", "openai-chat", "http://10.0.0.5:8000/v1"),
    ("http://10.0.0.5:8000/v1", "openai-chat", "http://10.0.0.5:8000/v1"),
    ("http://localhost:11434/", "openai-chat", "http://localhost:11434/v1"),
    ("https://gpu.internal", "openai-responses", "https://gpu.internal/v1"),
    ("http://[::1]:8080/v1", "openai-chat", "http://[::1]:8080/v1"),
    ("http://[fd12:3456::1]:8080", "openai-chat", "http://[fd12:3456::1]:8080/v1"),
    ("http://box.local:80/v1", "openai-chat", "http://box.local/v1"),
    ("https://api.acme.example/v1", "anthropic-messages", "https://api.acme.example"),
    ("https://api.acme.example/v1/messages", "anthropic-messages", "https://api.acme.example"),
    ("https://api.acme.example/anthropic", "anthropic-messages", "https://api.acme.example/anthropic"),
    ("https://api.acme.example/anthropic/v1/", "anthropic-messages", "https://api.acme.example/anthropic"),
    ("https://api.acme.example/v1beta", "gemini", "https://api.acme.example"),
    ("https://api.acme.example/v1beta/models/g-1:generateContent", "gemini", "https://api.acme.example"),
]


@pytest.mark.parametrize(("given_url", "dialect", "expected"), GOOD_URLS)
def test_an_address_is_brought_into_the_dialect_s_form(given_url: str, dialect: DialectId, expected: str) -> None:
    assert normalise(given_url, dialect) == expected
    assert normalise(expected, dialect) == expected


BAD_URLS = [
    "",
    "api.acme.example/v1",
    "//api.acme.example",
    "ftp://api.acme.example",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "https://",
    "https:///v1",
    "https://user:hunter2@api.acme.example",
    "https://user@api.acme.example",
    "https://api.acme.example@evil.example/v1",
    "https://api.acme.example/v1?key=1",
    "https://api.acme.example/v1?",
    "https://api.acme.example/v1#a",
    "https://api acme.example",
    "https://api.acme.example/a b",
    "https://api.acme.example\\@evil.example",
    "https://api.acme.example/\nv1",
    "https://api.acme.example/../v1",
    "https://api.acme.example:0/v1",
    "https://api.acme.example:99999/v1",
    "https://api.acme.example:abc/v1",
    "https://[::1/v1",
    "https://-bad.example/v1",
    "https://a..b/v1",
    "https://äpi.example/v1",
    "http://api.acme.example/v1",
    "http://8.8.8.8/v1",
    "http://gpu-box:8000/v1",
    "http://[2001:db8::1]/v1",
    "http://169.254.169.254/latest",
    "https://169.254.169.254/latest",
    "http://169.254.1.1/v1",
    "http://[fe80::1]/v1",
    "http://[fd00:ec2::254]/v1",
    "http://[::ffff:169.254.169.254]/v1",
    "http://metadata.google.internal/v1",
    "http://metadata.google.internal./v1",
    "http://0.0.0.0:8000/v1",
    "http://2130706433/v1",
    "https://2130706433/v1",
    "https://0x7f000001/v1",
    "https://127.1/v1",
    "http://127.1/v1",
    "http://0251.0376.0251.0376/v1",
    "https://100.100.100.200/v1",
    "https://" + "a" * 300 + ".example/v1",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_address_is_refused_with_a_hint(url: str) -> None:
    with pytest.raises(InvalidBaseUrl) as caught:
        normalise(url, "openai-chat")
    assert caught.value.hint
    assert "hunter2" not in caught.value.message
    assert len(caught.value.message) < 300


@settings(deadline=None)
@given(
    st.sampled_from(["https://api.acme.example", "http://10.0.0.5:8000", "http://localhost", "https://[::1]:1"]),
    st.lists(st.sampled_from(["", "v1", "v1beta", "api", "models", "messages", "chat", "completions", "responses"])),
    st.sampled_from(["openai-chat", "openai-responses", "anthropic-messages", "gemini"]),
)
def test_an_address_in_its_form_stays_as_it_is(root: str, segments: list[str], dialect: DialectId) -> None:
    once = normalise("/".join([root, *segments]), dialect)
    assert not once.endswith("/")
    assert normalise(once, dialect) == normalise(normalise(once, dialect), dialect)
    assert normalise(once + "/", dialect) == normalise(once, dialect)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        url = normalise(text, "openai-chat")
    except InvalidBaseUrl:
        return
    assert url.startswith(("https://", "http://"))


# --- what is written -------------------------------------------------------------------------


@pytest.fixture
def paths(home: Path) -> Paths:
    return Paths(home=home)


def test_a_declared_server_can_be_used_at_once(paths: Paths) -> None:
    found = catalogue(paths)
    made = declare(found, name="My Lab", base_url="https://lab.example/v1/", dialect="openai-chat", model="big")
    assert made == found.get("my-lab")
    assert (made.name, made.default_model, made.origin) == ("My Lab", "big", "user")
    assert made.api.hosts == ("lab.example",)
    method = made.auth[0]
    key = ApiKey(method=method.id, key=Secret("k"))
    url = join(made.api.base_url, "/models")
    headers = headers_for(key, method=method, url=url, hosts=made.api.hosts, headers={"x-api-key": "other"})
    assert headers == {"authorization": "Bearer k"}


@pytest.mark.parametrize(
    ("dialect", "header"),
    [("openai-chat", "authorization"), ("anthropic-messages", "x-api-key"), ("gemini", "x-goog-api-key")],
)
def test_each_dialect_has_its_own_header(paths: Paths, dialect: DialectId, header: str) -> None:
    made = declare(catalogue(paths), name="lab", base_url="https://lab.example", dialect=dialect)
    assert header in made.auth[0].inject[0].set


def test_the_header_of_the_key_can_be_chosen(paths: Paths) -> None:
    made = declare(
        catalogue(paths),
        name="lab",
        base_url="https://lab.example",
        dialect="anthropic-messages",
        key_header="authorization",
    )
    assert made.auth[0].inject[0].set["authorization"] == "Bearer {key}"
    assert "x-api-key" in made.auth[0].inject[0].remove


def test_the_file_is_for_its_owner_alone_and_nothing_is_left_beside_it(paths: Paths) -> None:
    declare(catalogue(paths), name="lab", base_url="https://lab.example/v1", dialect="openai-chat")
    path = paths.providers / "lab.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(paths.providers.stat().st_mode) == 0o700
    assert [p.name for p in paths.providers.iterdir()] == ["lab.toml"]


@pytest.mark.parametrize("name", ['Quo"te', "back\\slash", "[brackets] = 1 # no", "emoji 🚗 lab", "'apostrophe'"])
def test_any_name_survives_the_file(paths: Paths, name: str) -> None:
    made = declare(catalogue(paths), name=name, base_url="https://lab.example/v1", dialect="openai-chat")
    assert catalogue(paths).get(made.id).name == name


def test_a_private_server_without_a_key_needs_no_yes(paths: Paths) -> None:
    made = declare(
        catalogue(paths), name="lab", base_url="http://10.0.0.5:8000/v1", dialect="openai-chat", key_needed=False
    )
    assert made.api.base_url == "http://10.0.0.5:8000/v1"
    assert made.auth[0].optional
    assert made.auth[0].inject == ()
    assert not made.api.allow_http


def test_a_key_over_plain_http_needs_a_yes(paths: Paths) -> None:
    found = catalogue(paths)
    with pytest.raises(InvalidBaseUrl, match="plain http"):
        declare(found, name="lab", base_url="http://10.0.0.5:8000/v1", dialect="openai-chat")
    assert not (paths.providers / "lab.toml").exists()
    made = declare(found, name="lab", base_url="http://10.0.0.5:8000/v1", dialect="openai-chat", allow_http=True)
    assert made.api.allow_http
    assert made.auth[0].inject


def test_a_yes_to_plain_http_is_not_kept_where_there_is_none(paths: Paths) -> None:
    made = declare(
        catalogue(paths), name="lab", base_url="https://lab.example/v1", dialect="openai-chat", allow_http=True
    )
    assert not made.api.allow_http


def test_like_copies_all_but_the_address(paths: Paths) -> None:
    found = catalogue(paths)
    made = declare(found, name="lab", base_url="http://10.0.0.5:8000", like="vllm", allow_http=True)
    vllm = found.get("vllm")
    assert made.api.base_url == "http://10.0.0.5:8000/v1"
    assert made.api.hosts == ("10.0.0.5:8000",)
    assert (made.api.dialect, made.api.probe) == (vllm.api.dialect, vllm.api.probe)
    assert made.auth[0].inject == vllm.auth[0].inject


@pytest.mark.parametrize("like", ["openai", "anthropic", "huggingface", "azure-openai", "vertex", "chatgpt", "ollama"])
def test_a_copy_sends_nothing_to_the_servers_of_its_original(paths: Paths, like: str) -> None:
    found = catalogue(paths)
    made = declare(found, name="copy", base_url="https://lab.example/v1", like=like)
    text = (paths.providers / "copy.toml").read_text()
    assert set(re.findall(r"https?://([^/\"]+)", text)) == {"lab.example"}
    # A variable that holds the original's key must not become this server's.
    assert made.auth[0].environment == ()


def test_a_built_in_id_is_refused(paths: Paths) -> None:
    with pytest.raises(BuiltInProvider):
        declare(catalogue(paths), name="OpenAI", base_url="https://lab.example/v1", dialect="openai-chat")


def test_an_id_is_declared_once_unless_replaced(paths: Paths) -> None:
    found = catalogue(paths)
    declare(found, name="lab", base_url="https://lab.example/v1", dialect="openai-chat")
    with pytest.raises(ProviderExists):
        declare(found, name="Lab", base_url="https://lab.example/v2", dialect="openai-chat")
    made = declare(found, name="Lab", base_url="https://lab.example/v2", dialect="openai-chat", replace_existing=True)
    assert found.get("lab") == made


def test_without_dialect_and_like_there_is_nothing_to_declare(paths: Paths) -> None:
    with pytest.raises(UsageError):
        declare(catalogue(paths), name="lab", base_url="https://lab.example/v1")


def test_an_unknown_like_is_refused(paths: Paths) -> None:
    with pytest.raises(UnknownProvider):
        declare(catalogue(paths), name="lab", base_url="https://lab.example/v1", like="vlm-nothing-near")


def test_a_folder_that_is_a_file_is_named(paths: Paths) -> None:
    paths.providers.write_text("")
    with pytest.raises(StoreUnwritable):
        declare(catalogue(paths), name="lab", base_url="https://lab.example/v1", dialect="openai-chat")


def test_a_removed_server_is_unknown(paths: Paths) -> None:
    found = catalogue(paths)
    declare(found, name="lab", base_url="https://lab.example/v1", dialect="openai-chat")
    remove(found, "lab")
    with pytest.raises(UnknownProvider):
        found.get("lab")


def test_a_broken_file_can_be_removed(paths: Paths) -> None:
    paths.providers.mkdir()
    (paths.providers / "lab.toml").write_text("id =")
    found = catalogue(paths)
    remove(found, "lab")
    assert found.problems == []


@pytest.mark.parametrize("name", ["openai", "gemini"])
def test_a_built_in_provider_stays(paths: Paths, name: str) -> None:
    with pytest.raises(BuiltInProvider):
        remove(catalogue(paths), name)


@pytest.mark.parametrize("name", ["nothing", "../config", "", "x" * 5000])
def test_only_what_is_there_can_be_removed(paths: Paths, name: str) -> None:
    with pytest.raises(UnknownProvider):
        remove(catalogue(paths), name)


# --- what a server speaks --------------------------------------------------------------------


@pytest.fixture
def http() -> Iterator[HttpClient]:
    client = HttpClient()
    yield client
    client.close()


def serving(*routes: str, key: str = "") -> LocalServer:
    """Give a server that has these routes, and wants a key for them where one is given."""

    def respond(request: Received) -> Reply:
        sent = request.headers.get("authorization", "") + request.headers.get("x-api-key", "")
        if request.path not in routes:
            return Answer(status=404, body=b"{}")
        if key and key not in sent:
            return Answer(status=401, body=b"{}")
        if request.path.endswith("/models"):
            return Answer(headers={"content-type": "application/json"}, body=json.dumps({"data": []}).encode())
        return Answer(status=400, body=b'{"error": "messages is required"}')

    return LocalServer(respond)


@pytest.mark.anyio
async def test_the_dialects_that_answer_are_found_with_their_base(http: HttpClient) -> None:
    with serving("/v1/chat/completions", "/v1/messages") as server:
        found = await probe_dialects(server.url, key=None, http=http)
        assert found == [
            Answering(dialect="openai-chat", base_url=f"{server.url}/v1"),
            Answering(dialect="anthropic-messages", base_url=server.url),
        ]


@pytest.mark.anyio
@pytest.mark.parametrize("pasted", ["/v1", "/v1/", "/v1/chat/completions"])
async def test_probing_takes_whatever_address_was_pasted(http: HttpClient, pasted: str) -> None:
    with serving("/v1/chat/completions", "/v1/responses") as server:
        found = await probe_dialects(server.url + pasted, key=None, http=http)
        assert [a.dialect for a in found] == ["openai-chat", "openai-responses"]
        assert {a.base_url for a in found} == {f"{server.url}/v1"}


@pytest.mark.anyio
async def test_a_refused_key_still_shows_the_route(http: HttpClient) -> None:
    with serving("/v1/chat/completions", key="right") as server:
        found = await probe_dialects(server.url, key=None, http=http)
        assert [a.dialect for a in found] == ["openai-chat"]


@pytest.mark.anyio
async def test_a_gatekeeper_that_refuses_everything_tells_nothing(http: HttpClient) -> None:
    with (
        LocalServer(lambda _: Answer(status=401, body=b"{}")) as server,
        pytest.raises(ProviderCheckFailed, match="wants a key"),
    ):
        await probe_dialects(server.url, key=None, http=http)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "reply",
    [Answer(status=404), Answer(headers={"content-type": "text/html"}, body=b"<html>"), Answer(status=502), Drop()],
)
async def test_a_server_that_speaks_nothing_we_know_is_named(http: HttpClient, reply: Reply) -> None:
    with LocalServer(lambda _: reply) as server, pytest.raises(ProviderCheckFailed) as caught:
        await probe_dialects(server.url, key=None, http=http)
    assert caught.value.hint


@pytest.mark.anyio
async def test_a_route_must_differ_from_one_that_nobody_has(http: HttpClient) -> None:
    def respond(request: Received) -> Reply:
        if request.path == "/v1/messages":
            return Answer(headers={"content-type": "text/html; charset=utf-8"}, body=b"<html>")
        return Answer(status=400 if request.path == "/v1/responses" else 405 if "chat" in request.path else 404)

    with LocalServer(respond) as server:
        assert [a.dialect for a in await probe_dialects(server.url, key=None, http=http)] == ["openai-responses"]


class PublicServer(HttpClient):
    """Answers for a public host, as loopback cannot: 400 at one address, 404 elsewhere."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_seconds: float | None = None,
    ) -> Response:
        return Response(status=400 if url == self._url else 404, headers={}, body=b"{}")


@pytest.mark.anyio
@pytest.mark.parametrize("base", ["https://lab.example", "https://lab.example/v1"])
async def test_a_public_host_is_asked_with_and_without_a_version(base: str) -> None:
    found = await probe_dialects("https://lab.example", key=None, http=PublicServer(f"{base}/chat/completions"))
    assert found == [Answering(dialect="openai-chat", base_url=base)]


@pytest.mark.anyio
async def test_probing_sends_no_key_over_plain_http_without_a_yes(http: HttpClient) -> None:
    with serving("/v1/chat/completions") as server:
        with pytest.raises(InvalidBaseUrl):
            await probe_dialects(server.url, key=Secret("k"), http=http)
        assert server.requests == []
        await probe_dialects(server.url, key=Secret("k"), http=http, allow_http=True)
        assert server.calls("/v1/chat/completions")[0].headers["authorization"] == "Bearer k"
        # The route that nobody has gets nothing.
        assert "authorization" not in server.calls("/valetkey-no-such-route")[0].headers


@pytest.mark.anyio
async def test_a_healthy_server_passes_its_check(http: HttpClient) -> None:
    with serving("/v1/models", key="right") as server:
        await check(f"{server.url}/v1", "openai-chat", key=Secret("right"), http=http)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Answer(status=401), "did not accept the key"),
        (Answer(status=404), "lists no models at /v1/models"),
        (Answer(status=500), "has a fault"),
        (Answer(headers={"content-type": "text/html"}, body=b"<html>"), "lists no models"),
        (Answer(status=302, headers={"location": "https://evil.example/"}), "lists no models"),
        (Drop(), "cannot be reached"),
    ],
)
async def test_a_check_says_what_is_wrong(http: HttpClient, reply: Reply, said: str) -> None:
    with LocalServer(lambda _: reply) as server, pytest.raises(ProviderCheckFailed, match=said):
        await check(f"{server.url}/v1", "openai-chat", key=Secret("k"), http=http)


@pytest.mark.anyio
async def test_a_busy_server_is_well(http: HttpClient) -> None:
    with LocalServer(lambda _: Answer(status=429)) as server:
        await check(f"{server.url}/v1", "openai-chat", key=None, http=http)


def test_the_request_for_models_is_the_dialect_s_own() -> None:
    assert models_request("https://lab.example", "anthropic-messages", Secret("k")) == (
        "https://lab.example/v1/models",
        {"x-api-key": "k", "anthropic-version": "2023-06-01"},
    )
    assert models_request("https://lab.example/v1", "openai-chat", None) == ("https://lab.example/v1/models", {})
