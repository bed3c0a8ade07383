"""Anthropic messages."""

from __future__ import annotations

import json

import pytest

from valetkey.dialect import End, Message, Model, Part, Usage
from valetkey.dialects.anthropic_messages import AnthropicMessages

DIALECT = AnthropicMessages()


def read(event: dict[str, object], *, named: str = "message") -> Part:
    return DIALECT.read(event=named, data=json.dumps(event))


def test_a_question_always_has_a_limit_and_a_version() -> None:
    messages = [Message(role="system", text="s"), Message(role="user", text="u")]
    question = DIALECT.ask(model="m", messages=messages)
    assert question.path == "/v1/messages"
    assert question.headers == {"anthropic-version": "2023-06-01"}
    assert question.body["max_tokens"] == 4096
    assert question.body["system"] == "s"
    assert question.body["messages"] == [{"role": "user", "content": "u"}]
    assert DIALECT.ask(model="m", messages=messages, max_output_tokens=5).body["max_tokens"] == 5


@pytest.mark.parametrize(
    ("event", "part"),
    [
        ({"type": "ping"}, Part()),
        ({"type": "content_block_start", "content_block": {"type": "text", "text": ""}}, Part()),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}}, Part(text="Hi")),
        ({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hmm"}}, Part()),
        ({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{"}}, Part()),
        (
            {"type": "message_start", "message": {"usage": {"input_tokens": 1, "cache_read_input_tokens": 31}}},
            Part(usage=Usage(input_tokens=32)),
        ),
        (
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
            Part(usage=Usage(output_tokens=5), end="stop"),
        ),
        ({"type": "message_stop"}, Part(done=True)),
    ],
)
def test_an_event_is_read(event: dict[str, object], part: Part) -> None:
    assert read(event) == part


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        (None, None),
    ],
)
def test_the_end_is_told(reason: str | None, end: End | None) -> None:
    assert read({"type": "message_delta", "delta": {"stop_reason": reason}}) == Part(end=end)


def test_the_counts_of_a_stream_add_up() -> None:
    start = read({"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}).usage
    delta = read({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 70}}).usage
    assert start is not None
    assert start.merged(delta) == Usage(input_tokens=9, output_tokens=70)
    assert start.merged(None) == start


def test_a_whole_answer_leaves_thinking_out() -> None:
    answer = {
        "content": [{"type": "thinking", "thinking": "hmm"}, {"type": "text", "text": "Hi"}],
        "stop_reason": "max_tokens",
        "usage": {"input_tokens": 1, "output_tokens": 5},
    }
    usage = Usage(input_tokens=1, output_tokens=5)
    assert DIALECT.read_whole(answer) == Part(text="Hi", usage=usage, end="length", done=True)


def test_a_model_has_a_name_for_people() -> None:
    assert DIALECT.read_models({"data": [{"id": "c", "display_name": "C"}]}) == [Model(id="c", name="C")]
