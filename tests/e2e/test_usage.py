"""Counts as real servers tell them: a real model behind llama.cpp, and a mock that nobody here wrote."""

from __future__ import annotations

import httpx2
import pytest

from tests.support.servers import ApiMock, ModelServer
from valetkey.dialect import Message, Usage
from valetkey.dialects import dialect_for
from valetkey.gateway.usage import UsageReader, usage_reader_for

QUESTION = (Message(role="user", text="Say hello."),)


def asked(dialect: str, base_url: str, key: str, model: str, *, stream: bool) -> UsageReader:
    """Ask as `valetkey ask` does, and let the answer pass through a reader in the pieces in which it comes."""
    question = dialect_for(dialect).ask(model=model, messages=QUESTION, stream=stream, max_output_tokens=16)
    path = question.path if stream else question.path.replace(":streamGenerateContent?alt=sse", ":generateContent")
    headers = {**question.headers, "authorization": f"Bearer {key}", "x-api-key": key, "x-goog-api-key": key}
    with (
        httpx2.Client(trust_env=False, timeout=120) as client,
        client.stream("POST", base_url + path, json=question.body, headers=headers) as response,
    ):
        assert response.status_code == 200, response.read()
        kind = response.headers["content-type"]
        assert ("event-stream" in kind) is stream
        make = usage_reader_for(dialect="openai-chat", path=path, content_type=kind)
        assert make is not None
        reader = make()
        for piece in response.iter_raw():
            reader.feed(piece)
        reader.finish()
    return reader


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", ["openai-chat", "openai-responses", "anthropic-messages"])
def test_a_real_model_tells_its_name_and_its_counts(model: ModelServer, dialect: str, stream: bool) -> None:
    base_url = model.url if dialect == "anthropic-messages" else model.base_url
    found = asked(dialect, base_url, model.api_key, model.model, stream=stream)
    assert found.model
    assert found.usage is not None
    assert 5 < found.usage.input_tokens < 200
    assert 0 < found.usage.output_tokens <= 16


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", ["openai-chat", "openai-responses", "anthropic-messages", "gemini"])
def test_the_mock_of_many_apis_tells_its_counts(aimock: ApiMock, dialect: str, stream: bool) -> None:
    base_url = f"{aimock.url}/v1" if dialect.startswith("openai") else aimock.url
    found = asked(dialect, base_url, aimock.api_key, "a-model", stream=stream)
    # It counts for chat completions alone, and its Gemini does not say which model it is.
    assert found.usage == (Usage(input_tokens=3, output_tokens=5) if dialect == "openai-chat" else Usage())
    assert found.model == (None if dialect == "gemini" else "a-model")
