"""OpenAI responses. base_url ends in /v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from valetkey.dialect import End, Message, Model, Part, Question, Usage
from valetkey.dialects.openai_chat import listed_models
from valetkey.dialects.reading import counted, decoded, error_in, expected, fields, listed, worded
from valetkey.errors import UnclearAnswer

__all__ = ["OpenAIResponses", "usage_in"]


class OpenAIResponses:
    """`POST /responses`, `GET /models`."""

    id = "openai-responses"
    headers: Mapping[str, str] = MappingProxyType({})

    def ask(
        self, *, model: str, messages: Sequence[Message], stream: bool = True, max_output_tokens: int | None = None
    ) -> Question:
        """Make the request. Nothing is kept at the server: the conversation is ours."""
        instructions = "\n\n".join(m.text for m in messages if m.role == "system")
        body: dict[str, object] = {
            "model": model,
            "input": [_item(m) for m in messages if m.role != "system"],
            "stream": stream,
            "store": False,
        }
        if instructions:
            body["instructions"] = instructions
        if max_output_tokens is not None:
            body["max_output_tokens"] = max_output_tokens
        return Question(path="/responses", body=body)

    def models(self) -> str:
        """Give the path of the model list."""
        return "/models"

    def read_models(self, answer: object) -> list[Model]:
        """Read `{"data": [{"id"}]}`. Raises: UnclearAnswer."""
        return listed_models(answer)

    def read(self, *, event: str, data: str) -> Part:
        """Read one event; its name stands in `type` too. Raises: UnclearAnswer."""
        if data.strip() == "[DONE]":
            return Part(done=True)
        content = decoded(data)
        kind = worded(content.get("type")) or event
        match kind:
            case "response.output_text.delta" | "response.refusal.delta":
                return Part(text=worded(content.get("delta")))
            case "response.completed" | "response.incomplete" | "response.failed":
                return _ended(fields(content.get("response")))
            case "error":
                return _error(content)
            case _:
                return error_in(content) or Part()

    def read_whole(self, answer: object) -> Part:
        """Read a `response` object. Raises: UnclearAnswer."""
        response = expected(answer)
        error = error_in(response)
        if error is not None:
            return error
        if not isinstance(response.get("output"), list):
            raise UnclearAnswer("the answer has no output", hint="check the provider's base_url and dialect")
        ended = _ended(response)
        return ended if ended.error else Part(text=_text(response), usage=ended.usage, end=ended.end, done=True)


def _item(message: Message) -> dict[str, object]:
    if message.role == "user":
        return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": message.text}]}
    return {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": message.text, "annotations": []}],
    }


def _contents(response: Mapping[str, object]) -> list[Mapping[str, object]]:
    messages = [fields(item) for item in listed(response.get("output"))]
    return [fields(c) for m in messages if m.get("type") == "message" for c in listed(m.get("content"))]


def _text(response: Mapping[str, object]) -> str:
    return "".join(worded(c.get("text")) or worded(c.get("refusal")) for c in _contents(response))


def _ended(response: Mapping[str, object]) -> Part:
    if response.get("status") == "failed":
        return error_in(response) or Part(error="failed", done=True)
    return Part(usage=usage_in(response.get("usage")), end=_end(response), done=True)


def _end(response: Mapping[str, object]) -> End:
    reason = fields(response.get("incomplete_details")).get("reason")
    if reason == "max_output_tokens":
        return "length"
    if reason == "content_filter" or any(c.get("type") == "refusal" for c in _contents(response)):
        return "refusal"
    return "stop"


def _error(content: Mapping[str, object]) -> Part:
    # The published form is flat; some servers nest it as in an HTTP error.
    nested = error_in(content)
    if nested is not None:
        return nested
    return Part(error=worded(content.get("code")) or "error", message=worded(content.get("message")), done=True)


def usage_in(value: object) -> Usage | None:
    """Read the counts that stand in `usage`; None where there are none."""
    counts = fields(value)
    if not counts:
        return None
    return Usage(input_tokens=counted(counts.get("input_tokens")), output_tokens=counted(counts.get("output_tokens")))
