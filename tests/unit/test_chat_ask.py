"""Asking: what is sent, what comes back, and what is said when it does not."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import quote

import pytest

from valetkey.access import Access
from valetkey.chat.ask import MAX_ANSWER_BYTES, ask, cleaned
from valetkey.credential import ApiKey, CredentialRef, Secret
from valetkey.dialect import Message, Part, Usage
from valetkey.errors import (
    HostsNotAccepted,
    KeyForbidden,
    NeedsLogin,
    ProviderFault,
    RequestRefused,
    UnclearAnswer,
    UnknownModel,
    Unreachable,
    ValetkeyError,
)
from valetkey.http import HttpClient
from valetkey.provider import Api, AuthMethod, Inject, Provider, Shape
from valetkey.testing.local_server import Answer, Drop, LocalServer, Received, Reply

KEY = "sk-" + "old" * 12
NEW_KEY = "sk-" + "new" * 12
METHOD = AuthMethod(id="api-key", kind="api-key", inject=(Inject(set={"authorization": "Bearer {key}"}),))
SAID = [Message(role="user", text="hi")]


def sse(*chunks: object) -> bytes:
    return b"".join(f"data: {c if isinstance(c, str) else json.dumps(c)}\n\n".encode() for c in chunks)


def delta(text: str) -> object:
    return {"choices": [{"delta": {"content": text}}]}


STOP = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
COUNTS = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
WHOLE = sse(delta("Hé"), delta("llo"), STOP, COUNTS, "[DONE]")


def stream(body: bytes) -> Answer:
    return Answer(headers={"content-type": "text/event-stream"}, body=body)


def refused(status: int, message: str, **headers: str) -> Answer:
    body = json.dumps({"error": {"type": "x", "message": message}}).encode()
    return Answer(status=status, headers={"content-type": "application/json", **headers}, body=body)


@pytest.fixture
def http() -> Iterator[HttpClient]:
    client = HttpClient()
    yield client
    client.close()


def access_to(server: LocalServer, *, key: str | None = KEY, api: Api | None = None) -> Access:
    api = api or Api(base_url=f"{server.url}/v1", dialect="openai-chat", hosts=("127.0.0.1",))
    return Access(
        ref=CredentialRef(provider="acme"),
        provider=Provider(id="acme", name="Acme", api=api, auth=(METHOD,)),
        method=METHOD,
        credential=None if key is None else ApiKey(method="api-key", key=Secret(key)),
        source="stored",
        base_url=api.base_url.replace("{server}", server.url),
        hosts=api.hosts,
    )


def unwanted(_: Access) -> Access:
    raise AssertionError("nobody asked for another credential")


def text_of(parts: Iterator[Part]) -> str:
    return "".join(part.text for part in parts)


def test_an_answer_comes_in_parts_with_its_counts(http: HttpClient) -> None:
    with LocalServer(lambda _: stream(WHOLE)) as server:
        parts = list(ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted))
    assert "".join(p.text for p in parts) == "Héllo"
    assert [p.usage for p in parts if p.usage] == [Usage(input_tokens=3, output_tokens=2)]
    assert parts[-1].done
    request = server.requests[0]
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.json["messages"] == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "body",
    [
        WHOLE.replace(b"\n", b"\r\n"),
        WHOLE.replace(b"\n", b"\r"),
        b": comment\n\n" + WHOLE.replace(b"data: {", b"event: message\nid: 1\nretry: 5\ndata: {"),
        WHOLE.replace(
            b'{"choices": [{"delta": {"content": "llo"}}]}', b'{"choices":\ndata: [{"delta": {"content": "llo"}}]}'
        ),
        WHOLE.replace(b"data: ", b"data:"),
        sse(delta("Hé"), delta("llo"), STOP),
        b"\xef\xbb\xbf" + WHOLE,
    ],
)
def test_every_form_of_event_stream_is_read(http: HttpClient, body: bytes) -> None:
    with LocalServer(lambda _: stream(body)) as server:
        assert text_of(ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted)) == "Héllo"


def test_an_event_stream_is_utf8_whatever_its_header_says(http: HttpClient) -> None:
    body = WHOLE.replace(rb"\u00e9", "é".encode())
    answer = Answer(headers={"content-type": "text/event-stream; charset=iso-8859-1"}, body=body)
    with LocalServer(lambda _: answer) as server:
        assert text_of(ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted)) == "Héllo"


def test_an_answer_split_at_every_byte_is_read(http: HttpClient) -> None:
    body = WHOLE.replace(rb"\u00e9", "é".encode())
    pieces = b"".join(b"1\r\n" + bytes([byte]) + b"\r\n" for byte in body) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    with LocalServer(lambda _: Drop(after=head + pieces)) as server:
        assert text_of(ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted)) == "Héllo"


def test_an_answer_that_is_not_streamed_is_read_all_the_same(http: HttpClient) -> None:
    body = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode()
    with LocalServer(lambda _: Answer(headers={"content-type": "application/json"}, body=body)) as server:
        parts = ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted, stream=False)
        assert text_of(parts) == "Hi"
    assert server.requests[0].json["stream"] is False


def test_nothing_is_put_in_where_nothing_is_needed(http: HttpClient) -> None:
    with LocalServer(lambda _: stream(WHOLE)) as server:
        text_of(ask(access_to(server, key=None), model="m", messages=SAID, http=http, renew=unwanted))
    assert "authorization" not in server.requests[0].headers


def test_a_refused_credential_is_renewed_once(http: HttpClient) -> None:
    def respond(request: Received) -> Reply:
        good = request.headers["authorization"] == f"Bearer {NEW_KEY}"
        return stream(WHOLE) if good else refused(401, "expired")

    rejected: list[Access] = []
    with LocalServer(respond) as server:

        def renew(old: Access) -> Access:
            rejected.append(old)
            return access_to(server, key=NEW_KEY)

        access = access_to(server)
        assert text_of(ask(access, model="m", messages=SAID, http=http, renew=renew)) == "Héllo"
    assert rejected == [access]
    assert len(server.requests) == 2


def test_a_credential_that_stays_refused_ends_it(http: HttpClient) -> None:
    with LocalServer(lambda _: refused(401, "no")) as server:
        keys = iter([NEW_KEY])
        with pytest.raises(NeedsLogin) as caught:
            text_of(
                ask(
                    access_to(server),
                    model="m",
                    messages=SAID,
                    http=http,
                    renew=lambda _: access_to(server, key=next(keys)),
                )
            )
    assert "valetkey login acme" in caught.value.hint
    assert len(server.requests) == 2


def test_the_same_credential_is_not_sent_twice(http: HttpClient) -> None:
    with LocalServer(lambda _: refused(401, "no")) as server, pytest.raises(NeedsLogin):
        text_of(ask(access_to(server), model="m", messages=SAID, http=http, renew=lambda old: old))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "error", "hint"),
    [
        (refused(403, "no"), KeyForbidden, "valetkey models acme"),
        (refused(404, "no"), UnknownModel, "valetkey models acme"),
        (refused(400, "no"), RequestRefused, "valetkey models acme"),
        (refused(429, "no", **{"retry-after": "20"}), ProviderFault, "try again in 20 s"),
        (refused(429, "no"), ProviderFault, "try again later"),
        (refused(503, "no"), ProviderFault, "try again later"),
        (Answer(status=302, headers={"location": "https://elsewhere.test/"}), UnclearAnswer, "base_url"),
        (Answer(headers={"content-type": "text/html"}, body=b"<html>"), UnclearAnswer, "base_url"),
        (stream(b"data: <html>\n\n"), UnclearAnswer, "base_url"),
        (stream(sse(delta("Hi"), {"error": {"type": "overloaded", "message": "no"}})), ProviderFault, "try again"),
        (stream(sse(delta("Hi"))), ProviderFault, "ask again"),
        (stream(b""), ProviderFault, "ask again"),
        (Drop(), Unreachable, "server is up"),
    ],
)
def test_each_refusal_has_its_own_error(http: HttpClient, answer: Reply, error: type[ValetkeyError], hint: str) -> None:
    with LocalServer(lambda _: answer) as server, pytest.raises(error) as caught:
        text_of(ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted))
    assert hint in caught.value.hint
    assert len(server.requests) == 1


def test_a_connection_that_breaks_within_the_answer_gives_what_came(http: HttpClient) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9999\r\n\r\n"
    with LocalServer(lambda _: Drop(after=head + sse(delta("Hi")))) as server:
        parts = ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted)
        assert next(parts).text == "Hi"
        with pytest.raises(ProviderFault, match="broke off"):
            next(parts)


@pytest.mark.parametrize(
    "shown", [str, lambda key: f"Bearer {key}", lambda key: f"x{key}x", lambda key: key[:6] + "***" + key[-4:]]
)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_no_error_repeats_the_credential(http: HttpClient, status: int, shown: Callable[[str], str]) -> None:
    answer = refused(status, f"Incorrect API key: {shown(KEY)}.\x1b[2J")
    with LocalServer(lambda _: answer) as server, pytest.raises(ValetkeyError) as caught:
        text_of(ask(access_to(server), model="m", messages=SAID, http=http, renew=lambda old: old))
    said = json.dumps(caught.value.as_dict(), ensure_ascii=False)
    assert "Incorrect API key: " in said
    assert KEY not in said
    assert KEY[-4:] not in said
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("form", [str, lambda key: quote(key, safe=""), lambda key: b64encode(key.encode()).decode()])
def test_a_secret_is_found_in_every_usual_form(form: Callable[[str], str]) -> None:
    key = "a+b/c=" * 6
    credential = ApiKey(method="api-key", key=Secret(key))
    assert cleaned(f"you sent <{form(key)}>!", credential) == "you sent <…>!"


def test_an_answer_without_an_end_is_not_kept_in_memory(http: HttpClient) -> None:
    body = b'"' + b"x" * MAX_ANSWER_BYTES
    answer = Answer(headers={"content-type": "application/json"}, body=body)
    with LocalServer(lambda _: answer) as server, pytest.raises(UnclearAnswer, match="too long"):
        text_of(ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted))


def test_long_words_of_a_server_are_cut() -> None:
    assert len(cleaned("a b " * 1000, None)) == 300


def test_a_server_that_does_not_know_stream_options_is_asked_without(http: HttpClient) -> None:
    def respond(request: Received) -> Reply:
        return refused(400, "stream_options: extra") if "stream_options" in request.json else stream(WHOLE)

    with LocalServer(respond) as server:
        assert text_of(ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted)) == "Héllo"
    assert len(server.requests) == 2


def test_a_question_never_goes_to_a_host_of_no_account(http: HttpClient) -> None:
    with LocalServer(lambda _: stream(WHOLE)) as server:
        access = replace(access_to(server), hosts=("api.acme.test",))
        with pytest.raises(HostsNotAccepted):
            text_of(ask(access, model="m", messages=SAID, http=http, renew=unwanted))
    assert server.requests == []


def test_a_declaration_bends_the_question(http: HttpClient) -> None:
    shape = Shape(
        dialect="openai-chat",
        path="/deployments/{model}/chat?api-version=1",
        set={"tier": "flex", "stream?": False},
        rename={"max_tokens": "max_completion_tokens"},
        remove=("model",),
    )
    api = Api(base_url="{server}", dialect="openai-chat", hosts=("127.0.0.1",), shapes=(shape,))
    with LocalServer(lambda _: stream(WHOLE)) as server:
        access = access_to(server, api=api)
        text_of(ask(access, model="a/b", messages=SAID, http=http, renew=unwanted, max_output_tokens=9))
    request = server.requests[0]
    assert request.path == "/deployments/a%2Fb/chat"
    assert request.query == {"api-version": "1"}
    assert request.json["tier"] == "flex"
    assert request.json["stream"] is True
    assert request.json["max_completion_tokens"] == 9
    assert "model" not in request.json
    assert "max_tokens" not in request.json


def test_leaving_early_closes_the_connection(http: HttpClient) -> None:
    with LocalServer(lambda _: stream(WHOLE)) as server:
        parts = ask(access_to(server), model="m", messages=SAID, http=http, renew=unwanted)
        assert next(parts).text == "Hé"
        parts.close()  # type: ignore[attr-defined]  # an Iterator here, a generator in fact
        with pytest.raises(StopIteration):
            next(parts)
