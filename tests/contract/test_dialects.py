"""What every dialect promises, whichever it is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.config import Paths
from valetkey.dialect import Dialect, Message, Part
from valetkey.dialects import dialect_for, question_for
from valetkey.errors import ProviderError, UnclearAnswer
from valetkey.inject import host_matches, join, reach
from valetkey.provider import DialectId, Provider
from valetkey.providers import catalogue

IDS = [name for name in get_args(DialectId) if name != "none"]
MESSAGES = (
    Message(role="system", text="be brief"),
    Message(role="user", text="first"),
    Message(role="assistant", text="answer"),
    Message(role="user", text="second é 😀"),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
# Names that the readers look for, so that the search reaches their depths.
NAMES = st.sampled_from(
    [
        "type",
        "error",
        "message",
        "choices",
        "delta",
        "content",
        "usage",
        "response",
        "candidates",
        "parts",
        "text",
        "finish_reason",
        "status",
        "output",
        "usageMetadata",
        "promptTokenCount",
        "prompt_tokens",
        "input_tokens",
        "stop_reason",
        "refusal",
        "promptFeedback",
        "data",
        "models",
        "id",
        "name",
        "incomplete_details",
        "response.completed",
        "response.failed",
        "message_delta",
        "message_start",
        "content_block_delta",
    ]
)
SHAPED = st.recursive(
    JSON | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=25,
)


@pytest.fixture(params=IDS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return dialect_for(request.param)


def test_every_declared_dialect_is_there() -> None:
    assert [dialect_for(name).id for name in IDS] == IDS


def test_an_undeclared_dialect_is_refused() -> None:
    with pytest.raises(ProviderError, match="no dialect"):
        dialect_for("none")


def test_a_question_holds_all_that_was_said(dialect: Dialect) -> None:
    question = dialect.ask(model="m", messages=MESSAGES, max_output_tokens=7)
    body = json.dumps(question.body, ensure_ascii=False)
    assert all(m.text in body for m in MESSAGES)
    assert "7" in body
    assert question.method == "POST"
    assert "m" in body + question.path


def test_a_stream_is_asked_for_only_when_it_is_wanted(dialect: Dialect) -> None:
    streamed = dialect.ask(model="m", messages=MESSAGES, stream=True)
    whole = dialect.ask(model="m", messages=MESSAGES, stream=False)
    assert (streamed.path, streamed.body) != (whole.path, whole.body)


def test_paths_join_to_a_base_url(dialect: Dialect) -> None:
    assert dialect.ask(model="m", messages=MESSAGES).path.startswith("/")
    assert dialect.models().startswith("/")


@pytest.mark.parametrize("data", ["", "{", "[]", "null", "3", '"x"', "<html>", "[" * 100_000])
def test_an_event_that_is_no_object_is_unclear(dialect: Dialect, data: str) -> None:
    with pytest.raises(UnclearAnswer):
        dialect.read(event="message", data=data)


@pytest.mark.parametrize("answer", [None, [], "x", 3, {}])
def test_a_whole_answer_of_another_form_is_unclear(dialect: Dialect, answer: object) -> None:
    with pytest.raises(UnclearAnswer):
        dialect.read_whole(answer)


@pytest.mark.parametrize("answer", [None, "x", 3, {}, {"data": 3}])
def test_a_model_list_of_another_form_is_unclear(dialect: Dialect, answer: object) -> None:
    with pytest.raises(UnclearAnswer):
        dialect.read_models(answer)


def test_an_unknown_event_is_an_empty_part(dialect: Dialect) -> None:
    assert dialect.read(event="something.new", data='{"type": "something.new"}') == Part()


def test_an_error_in_the_stream_has_kind_and_message(dialect: Dialect) -> None:
    data = '{"type": "error", "error": {"type": "overloaded_error", "message": "too much"}}'
    part = dialect.read(event="error", data=data)
    assert (part.error, part.message, part.done) == ("overloaded_error", "too much", True)


def test_an_error_in_place_of_an_answer_has_kind_and_message(dialect: Dialect) -> None:
    part = dialect.read_whole({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}})
    assert (part.error, part.message) == ("INVALID_ARGUMENT", "no")


@pytest.mark.parametrize("id", IDS)
@given(answer=SHAPED, event=NAMES)
def test_whatever_a_server_sends_is_read_or_unclear(id: str, answer: object, event: str) -> None:
    dialect = dialect_for(id)
    for read in (
        lambda: dialect.read(event=event, data=json.dumps(answer)),
        lambda: dialect.read_whole(answer),
        lambda: dialect.read_models(answer),
    ):
        with contextlib.suppress(UnclearAnswer):
            read()


def built_in() -> list[Provider]:
    providers = catalogue(Paths(home=Path("/nonexistent"))).all()
    return [p for p in providers if p.api.dialect != "none" or p.api.dialects]


@pytest.mark.parametrize("provider", built_in(), ids=lambda p: p.id)
@pytest.mark.parametrize("stream", [True, False])
def test_every_provider_can_be_asked_where_its_credential_may_go(provider: Provider, stream: bool) -> None:
    matched = [rule.match.replace("*", "x") for rule in provider.api.dialects]
    for method in provider.auth:
        values = {p.key: p.default or (p.options[0] if p.options else "some-value") for p in method.parameters}
        base_url, hosts = reach(provider, method, values)
        for model in [provider.default_model or "vendor/model:tag", *matched]:
            _, question = question_for(provider, model=model, messages=MESSAGES, parameters=values, stream=stream)
            url = join(base_url, question.path)
            assert "{" not in url
            assert "/v1/v1" not in url
            assert host_matches(urlsplit(url).netloc, hosts)
