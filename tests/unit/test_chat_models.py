"""Models: the lists that providers give, and the names that users give."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from valetkey.access import Access
from valetkey.chat.models import (
    Chosen,
    ModelList,
    choose,
    default_model,
    fetch,
    fetched,
    fetched_lists,
    fixed,
    keep,
    set_default_model,
)
from valetkey.config import Paths
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.dialect import Model
from valetkey.errors import (
    ConfigError,
    KeyForbidden,
    NeedsLogin,
    ProviderFault,
    RecordDamaged,
    UnclearAnswer,
    UnknownModel,
    UnknownProvider,
    UsageError,
    ValetkeyError,
)
from valetkey.http import HttpClient
from valetkey.provider import Api, AuthMethod, Call, Inject, Provider
from valetkey.store import Document, Store
from valetkey.stores import open_store
from valetkey.testing.clock import START, FakeClock
from valetkey.testing.local_server import Answer, LocalServer

KEY = "sk-" + "a1b2" * 9
METHOD = AuthMethod(id="api-key", kind="api-key", inject=(Inject(set={"authorization": "Bearer {key}"}),))


@pytest.fixture
def store(home: Path, clock: FakeClock) -> Iterator[Store]:
    opened = open_store(Paths(home=home), clock=clock, key_source_kind="key-file")
    yield opened
    opened.close()


@pytest.fixture
def http() -> Iterator[HttpClient]:
    client = HttpClient()
    yield client
    client.close()


def access_to(server: LocalServer, api: Api) -> Access:
    return Access(
        ref=CredentialRef(provider="acme"),
        provider=Provider(id="acme", name="Acme", api=api, auth=(METHOD,)),
        method=METHOD,
        credential=ApiKey(method="api-key", key=Secret(KEY)),
        source="stored",
        base_url=f"{server.url}/v1",
        hosts=("127.0.0.1",),
    )


def answering(value: object, status: int = 200) -> LocalServer:
    body = json.dumps(value).encode()
    return LocalServer(lambda _: Answer(status=status, headers={"content-type": "application/json"}, body=body))


def ids(models: list[Model]) -> list[str]:
    return [m.id for m in models]


# --- lists -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "path"),
    [
        (Api(base_url="", dialect="openai-chat"), "/v1/models"),
        (Api(base_url="", dialect="openai-responses"), "/v1/models"),
        (Api(base_url="", dialect="anthropic-messages"), "/v1/models"),
        (Api(base_url="", dialect="openai-chat", models=Call(get="/catalog")), "/v1/catalog"),
    ],
)
def test_the_list_is_asked_for_as_the_dialect_or_the_declaration_says(http: HttpClient, api: Api, path: str) -> None:
    with answering({"data": [{"id": "b"}, {"id": "a"}]}) as server:
        assert ids(fetch(access_to(server, api), http=http)) == ["b", "a"]
    request = server.requests[0]
    assert (request.method, request.path) == ("GET", path)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert ("anthropic-version" in request.headers) == (api.dialect == "anthropic-messages")


def test_keep_and_drop_choose_among_the_models(http: HttpClient) -> None:
    call = Call(get="/models", keep=("gpt-*", "o*"), drop=("*-audio", "*embed*"))
    api = Api(base_url="", dialect="openai-chat", models=call)
    listed = [{"id": i} for i in ("gpt-1", "gpt-1-audio", "o3", "text-embed", "dall-e")]
    with answering({"data": listed}) as server:
        assert ids(fetch(access_to(server, api), http=http)) == ["gpt-1", "o3"]


def test_a_declaration_says_where_the_list_and_the_ids_are(http: HttpClient) -> None:
    api = Api(base_url="", models=Call(get="/all", items="/result/items", id="/meta/slug"))
    with answering({"result": {"items": [{"meta": {"slug": "x"}}, {"meta": {}}, 3]}}) as server:
        assert ids(fetch(access_to(server, api), http=http)) == ["x"]


def test_no_model_is_called_by_the_key(http: HttpClient) -> None:
    listed = [{"id": "a"}, {"id": f"x-{KEY}"}, {"id": quote(KEY, safe="")}]
    with answering({"data": listed}) as server:
        assert ids(fetch(access_to(server, Api(base_url="", dialect="openai-chat")), http=http)) == ["a"]


def test_a_provider_without_a_list_declares_its_models(http: HttpClient) -> None:
    api = Api(base_url="", dialect="openai-chat", models=Call(known=("sonar", "sonar-pro")))
    with answering({}) as server:
        assert ids(fetch(access_to(server, api), http=http)) == ["sonar", "sonar-pro"]
    assert server.requests == []


def test_a_declared_name_and_path_may_hold_the_logins_parameters(http: HttpClient) -> None:
    api = Api(base_url="", dialect="openai-chat", models=Call(get="/list?v={version}", known=("{deployment}",)))
    with answering({"data": [{"id": "a"}]}) as server:
        access = access_to(server, api)
        parameters = {"deployment": "mine", "version": "7"}
        access = replace(access, credential=ApiKey(method="api-key", key=Secret(KEY), parameters=parameters))
        assert ids(fetch(access, http=http)) == ["mine", "a"]
        assert server.requests[0].query == {"v": "7"}


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (None, []),
        (Call(get="/models", known=("a",)), []),
        (Call(known=("{deployment}",)), []),
        (Call(known=("a", "b")), ["a", "b"]),
    ],
)
def test_a_list_is_fixed_when_no_server_and_no_login_adds_to_it(call: Call | None, names: list[str]) -> None:
    assert ids(fixed(Provider(id="acme", name="Acme", api=Api(base_url="", models=call), auth=()))) == names


def test_declared_models_stand_before_listed_ones_once(http: HttpClient) -> None:
    api = Api(base_url="", dialect="openai-chat", models=Call(get="/models", known=("b",)))
    with answering({"data": [{"id": "a"}, {"id": "b"}]}) as server:
        assert ids(fetch(access_to(server, api), http=http)) == ["b", "a"]


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, NeedsLogin), (403, KeyForbidden), (404, UnclearAnswer), (429, ProviderFault), (500, ProviderFault)],
)
def test_a_refused_list_has_its_own_error(http: HttpClient, status: int, error: type[ValetkeyError]) -> None:
    said = {"error": {"message": f"not with {KEY}"}}
    with answering(said, status) as server, pytest.raises(error) as caught:
        fetch(access_to(server, Api(base_url="", dialect="openai-chat")), http=http)
    assert KEY not in str(caught.value)
    assert str(status) in caught.value.message


def test_a_kept_list_comes_back_with_its_age(store: Store, clock: FakeClock) -> None:
    assert fetched(store, "openai") is None
    keep(store, "openai", [Model(id="old")], now=clock.now())
    clock.advance(60)
    kept = keep(store, "openai", [Model(id="a", name="A"), Model(id="b")], now=clock.now())
    assert fetched(store, "openai") == kept
    assert kept.fetched_at == START + timedelta(seconds=60)
    keep(store, "acme@work", [], now=clock.now())
    assert [m.name for m in fetched_lists(store)] == ["acme@work", "openai"]


@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"format": 1, "models": [3], "fetched_at": "x"}'])
def test_a_damaged_list_says_how_to_fetch_it_again(store: Store, body: str) -> None:
    store.put_document(Document(kind="models", id="openai", title="", body=body, updated_at=START))
    with pytest.raises(RecordDamaged) as caught:
        fetched(store, "openai")
    assert "valetkey models openai --refresh" in caught.value.hint


# --- names -----------------------------------------------------------------------------------

LISTS = [
    ModelList(name="openai", models=(Model(id="gpt-x"), Model(id="shared"))),
    ModelList(name="acme@work", models=(Model(id="shared"), Model(id="sonic"))),
]


def provider_of(id: str) -> Provider:
    if id not in ("openai", "openrouter", "acme", "local"):
        raise UnknownProvider(f"there is no provider {id!r}", hint="see `valetkey providers list`")
    default = "small" if id == "local" else None
    return Provider(id=id, name=id, api=Api(base_url=""), auth=(), default_model=default)


def chosen(text: str) -> Chosen:
    return choose(text, provider_of=provider_of, lists=lambda: LISTS)


@pytest.mark.parametrize(
    ("text", "name", "model"),
    [
        ("openai/gpt-x", "openai", "gpt-x"),
        ("openai@work/gpt-x", "openai@work", "gpt-x"),
        ("openrouter/anthropic/claude-x:beta", "openrouter", "anthropic/claude-x:beta"),
        ("openrouter@a.b/x@2024/y", "openrouter@a.b", "x@2024/y"),
        ("local//models/x.gguf", "local", "/models/x.gguf"),
        ("gpt-x", "openai", "gpt-x"),
        ("sonic", "acme@work", "sonic"),
        ("local", "local", "small"),
        (" openai/gpt-x ", "openai", "gpt-x"),
    ],
)
def test_a_model_is_named_by_provider_account_and_id(text: str, name: str, model: str) -> None:
    assert chosen(text) == Chosen(name=name, model=model)


@pytest.mark.parametrize(
    ("text", "error", "hint"),
    [
        ("", UsageError, "PROVIDER/MODEL"),
        ("/gpt-x", UsageError, "PROVIDER/MODEL"),
        ("openai/", UsageError, "PROVIDER/MODEL"),
        ("nobody/gpt-x", UnknownProvider, "providers list"),
        ("shared", UsageError, "-m openai/shared or -m acme@work/shared"),
        ("gpt", UnknownModel, "-m openai/gpt-x"),
        ("nothing-like-it", UnknownModel, "valetkey models PROVIDER"),
        ("openai", UnknownModel, "valetkey models PROVIDER"),
    ],
)
def test_a_name_that_names_no_model_is_told(text: str, error: type[ValetkeyError], hint: str) -> None:
    with pytest.raises(error) as caught:
        chosen(text)
    assert hint in caught.value.hint
    assert caught.value.exit_status == 2


def test_the_default_model_is_kept(store: Store) -> None:
    assert default_model(store) is None
    set_default_model(store, Chosen(name="openrouter@work", model="a/b:c"))
    assert default_model(store) == Chosen(name="openrouter@work", model="a/b:c")
    assert default_model(store, setting="local/x") == Chosen(name="local", model="x")
    set_default_model(store, None)
    assert default_model(store) is None


@pytest.mark.parametrize("setting", ["x", "/x", "local/"])
def test_a_default_model_in_the_settings_has_both_parts(store: Store, setting: str) -> None:
    with pytest.raises(ConfigError, match="names no model"):
        default_model(store, setting=setting)
