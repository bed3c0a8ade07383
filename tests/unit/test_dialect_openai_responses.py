"""OpenAI responses."""

from __future__ import annotations

import json

import pytest

from valetkey.dialect import Message, Part, Usage
from valetkey.dialects.openai_responses import OpenAIResponses

DIALECT = OpenAIResponses()
USAGE = {"input_tokens": 45, "output_tokens": 4, "total_tokens": 49}
COUNTED = Usage(input_tokens=45, output_tokens=4)


def read(event: dict[str, object], *, named: str = "message") -> Part:
    return DIALECT.read(event=named, data=json.dumps(event))


def test_a_question_keeps_nothing_at_the_server() -> None:
    messages = [
        Message(role="system", text="s"),
        Message(role="user", text="u"),
        Message(role="assistant", text="a"),
    ]
    question = DIALECT.ask(model="m", messages=messages, max_output_tokens=5)
    assert question.path == "/responses"
    assert question.body["instructions"] == "s"
    assert question.body["store"] is False
    assert question.body["max_output_tokens"] == 5
    assert question.body["input"] == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
        {
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "a", "annotations": []}],
        },
    ]


def test_without_a_system_message_there_are_no_instructions() -> None:
    assert "instructions" not in DIALECT.ask(model="m", messages=[Message(role="user", text="u")]).body


@pytest.mark.parametrize(
    ("event", "part"),
    [
        ({"type": "response.output_text.delta", "delta": "Hi"}, Part(text="Hi")),
        ({"type": "response.refusal.delta", "delta": "No"}, Part(text="No")),
        ({"type": "response.reasoning_summary_text.delta", "delta": "hmm"}, Part()),
        ({"type": "response.output_text.done", "text": "Hi"}, Part()),
        (
            {"type": "response.completed", "response": {"status": "completed", "usage": USAGE}},
            Part(usage=COUNTED, end="stop", done=True),
        ),
        (
            {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "max_output_tokens"}}},
            Part(end="length", done=True),
        ),
        (
            {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "content_filter"}}},
            Part(end="refusal", done=True),
        ),
        (
            {"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error"}}},
            Part(error="server_error", done=True),
        ),
        ({"type": "response.failed", "response": {"status": "failed"}}, Part(error="failed", done=True)),
        (
            {"type": "error", "code": "rate_limit_exceeded", "message": "slow"},
            Part(error="rate_limit_exceeded", message="slow", done=True),
        ),
    ],
)
def test_an_event_is_read(event: dict[str, object], part: Part) -> None:
    assert read(event) == part


def test_the_name_of_an_event_serves_where_the_type_is_missing() -> None:
    assert read({"delta": "Hi"}, named="response.output_text.delta") == Part(text="Hi")


def test_a_whole_answer_leaves_reasoning_out() -> None:
    answer = {
        "status": "completed",
        "output": [
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hmm"}]},
            {"type": "message", "content": [{"type": "output_text", "text": "Hi"}]},
        ],
        "usage": USAGE,
    }
    assert DIALECT.read_whole(answer) == Part(text="Hi", usage=COUNTED, end="stop", done=True)


def test_a_whole_refusal_is_told() -> None:
    answer = {"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No"}]}]}
    assert DIALECT.read_whole(answer) == Part(text="No", end="refusal", done=True)


def test_a_failed_answer_is_an_error() -> None:
    answer = {"status": "failed", "output": [], "error": {"code": "server_error", "message": "oh"}}
    assert DIALECT.read_whole(answer) == Part(error="server_error", message="oh", done=True)
