"""OpenAI chat completions."""

from __future__ import annotations

import json

import pytest

from valetkey.dialect import End, Message, Model, Part, Usage
from valetkey.dialects.openai_chat import OpenAIChat

DIALECT = OpenAIChat()


def read(chunk: object) -> Part:
    return DIALECT.read(event="message", data=json.dumps(chunk))


def test_a_question_asks_for_counts_only_in_a_stream() -> None:
    messages = [Message(role="system", text="s"), Message(role="user", text="u")]
    streamed = DIALECT.ask(model="m", messages=messages, max_output_tokens=5)
    assert streamed.path == "/chat/completions"
    assert streamed.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
    }
    assert "stream_options" not in DIALECT.ask(model="m", messages=messages, stream=False).body


@pytest.mark.parametrize(
    ("choice", "part"),
    [
        ({"delta": {"role": "assistant", "content": None}, "finish_reason": None}, Part()),
        ({"delta": {"content": "Hi"}}, Part(text="Hi")),
        ({"delta": {"reasoning_content": "hmm", "reasoning": "hmm"}}, Part()),
        ({"delta": {"refusal": "No."}}, Part(text="No.", end="refusal")),
        ({"delta": {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}]}}, Part(text="a")),
        ({"delta": {"tool_calls": [{"index": 0}]}}, Part()),
    ],
)
def test_a_chunk_says_its_text(choice: object, part: Part) -> None:
    assert read({"choices": [choice]}) == part


@pytest.mark.parametrize(
    ("reason", "end"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "refusal"), ("tool_calls", "stop"), (None, None)],
)
def test_the_end_is_told(reason: str | None, end: End | None) -> None:
    assert read({"choices": [{"delta": {}, "finish_reason": reason}]}) == Part(end=end)


def test_counts_come_in_a_chunk_without_choices() -> None:
    chunk = {"choices": [], "usage": {"prompt_tokens": 32, "completion_tokens": 5, "total_tokens": 37}}
    assert read(chunk) == Part(usage=Usage(input_tokens=32, output_tokens=5))
    assert read({"choices": [], "usage": None}) == Part()


@pytest.mark.parametrize("count", [True, -1, "5", 5.5, None])
def test_a_count_that_is_none_counts_nothing(count: object) -> None:
    chunk = {"choices": [], "usage": {"prompt_tokens": count, "completion_tokens": 5}}
    assert read(chunk) == Part(usage=Usage(input_tokens=0, output_tokens=5))


def test_done_is_no_json() -> None:
    assert DIALECT.read(event="message", data="[DONE]") == Part(done=True)


def test_an_error_may_be_words_alone() -> None:
    part = read({"error": "model is loading"})
    assert (part.error, part.message) == ("error", "model is loading")


def test_a_whole_answer() -> None:
    answer = {
        "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    usage = Usage(input_tokens=3, output_tokens=1)
    assert DIALECT.read_whole(answer) == Part(text="Hi", usage=usage, end="length", done=True)


def test_a_model_list_may_be_bare() -> None:
    items = [{"id": "a"}, {"id": "b", "display_name": "B"}, {"no": "id"}]
    expected = [Model(id="a"), Model(id="b", name="B")]
    assert DIALECT.read_models({"data": items}) == expected
    assert DIALECT.read_models(items) == expected
