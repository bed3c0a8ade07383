"""Gemini."""

from __future__ import annotations

import json

import pytest

from valetkey.dialect import End, Message, Model, Part, Usage
from valetkey.dialects.gemini import Gemini

DIALECT = Gemini()


def read(chunk: object) -> Part:
    return DIALECT.read(event="message", data=json.dumps(chunk))


def test_a_question_names_the_model_in_its_path() -> None:
    messages = [
        Message(role="system", text="s"),
        Message(role="user", text="u"),
        Message(role="assistant", text="a"),
    ]
    question = DIALECT.ask(model="models/gemini-x", messages=messages, max_output_tokens=5)
    assert question.path == "/v1beta/models/gemini-x:streamGenerateContent?alt=sse"
    assert question.body == {
        "contents": [
            {"role": "user", "parts": [{"text": "u"}]},
            {"role": "model", "parts": [{"text": "a"}]},
        ],
        "systemInstruction": {"parts": [{"text": "s"}]},
        "generationConfig": {"maxOutputTokens": 5},
    }
    whole = DIALECT.ask(model="gemini-x", messages=messages, stream=False)
    assert whole.path == "/v1beta/models/gemini-x:generateContent"


def test_a_models_name_cannot_leave_its_place_in_the_path() -> None:
    assert DIALECT.ask(model="../x?y#z", messages=[]).path.startswith("/v1beta/models/..%2Fx%3Fy%23z:")


def test_a_chunk_says_text_counts_and_end() -> None:
    chunk = {
        "candidates": [
            {
                "content": {"parts": [{"text": "hmm", "thought": True}, {"text": "H"}, {"text": "i"}]},
                "finishReason": "STOP",
            }
        ],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "thoughtsTokenCount": 5},
    }
    assert read(chunk) == Part(text="Hi", usage=Usage(input_tokens=3, output_tokens=7), end="stop")


@pytest.mark.parametrize(
    ("reason", "end"), [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "refusal"), (None, None)]
)
def test_the_end_is_told(reason: str | None, end: End | None) -> None:
    assert read({"candidates": [{"finishReason": reason}]}) == Part(end=end)


def test_a_blocked_question_is_a_refusal() -> None:
    assert read({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}) == Part(end="refusal")
    assert DIALECT.read_whole({"promptFeedback": {"blockReason": "SAFETY"}}) == Part(end="refusal", done=True)


def test_an_error_may_come_in_a_list() -> None:
    part = DIALECT.read_whole([{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}])
    assert (part.error, part.message) == ("INVALID_ARGUMENT", "no")


def test_the_list_of_models_has_those_that_generate() -> None:
    answer = {
        "models": [
            {"name": "models/a", "displayName": "A", "supportedGenerationMethods": ["generateContent"]},
            {"name": "models/e", "supportedGenerationMethods": ["embedContent"]},
            {"name": "models/b"},
        ]
    }
    assert DIALECT.read_models(answer) == [Model(id="a", name="A"), Model(id="b")]
