"""OpenAI chat completions, which most other servers speak too. base_url ends in /v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from valetkey.dialect import End, Message, Model, Part, Question, Usage
from valetkey.dialects.reading import counted, decoded, error_in, expected, fields, listed, worded
from valetkey.errors import UnclearAnswer

__all__ = ["OpenAIChat", "usage_in"]


class OpenAIChat:
    """`POST /chat/completions`, `GET /models`."""

    id = "openai-chat"
    headers: Mapping[str, str] = MappingProxyType({})

    def ask(
        self, *, model: str, messages: Sequence[Message], stream: bool = True, max_output_tokens: int | None = None
    ) -> Question:
        """Make the request. Usage in a stream has to be asked for."""
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": m.role, "content": m.text} for m in messages],
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        if max_output_tokens is not None:
            body["max_tokens"] = max_output_tokens
        return Question(path="/chat/completions", body=body)

    def models(self) -> str:
        """Give the path of the model list."""
        return "/models"

    def read_models(self, answer: object) -> list[Model]:
        """Read `{"data": [{"id"}]}`, or the bare list that some servers send. Raises: UnclearAnswer."""
        return listed_models(answer)

    def read(self, *, event: str, data: str) -> Part:
        """Read one chunk. The chunk with the counts comes after the one with the end. Raises: UnclearAnswer."""
        if data.strip() == "[DONE]":
            return Part(done=True)
        chunk = decoded(data)
        return error_in(chunk) or _part(chunk, "delta")

    def read_whole(self, answer: object) -> Part:
        """Read a `chat.completion`. Raises: UnclearAnswer."""
        error = error_in(answer)
        if error is not None:
            return error
        completion = expected(answer)
        if not listed(completion.get("choices")):
            raise UnclearAnswer("the answer has no choices", hint="check the provider's base_url and dialect")
        part = _part(completion, "message")
        return Part(text=part.text, usage=part.usage, end=part.end or "stop", done=True)


def listed_models(answer: object) -> list[Model]:
    """Read the model list of OpenAI's form. Raises: UnclearAnswer."""
    items = answer if isinstance(answer, list) else expected(answer).get("data")
    if not isinstance(items, list):
        raise UnclearAnswer("the answer is no list of models", hint="check the provider's base_url and dialect")
    found = [fields(item) for item in items]
    return [Model(id=worded(m["id"]), name=_name(m)) for m in found if worded(m.get("id"))]


def _name(model: Mapping[str, object]) -> str:
    return worded(model.get("display_name")) or worded(model.get("name"))


def _part(chunk: Mapping[str, object], holder: str) -> Part:
    text, end = "", None
    for choice in map(fields, listed(chunk.get("choices"))[:1]):
        said = fields(choice.get(holder))
        text = worded(said.get("content")) or _joined(said.get("content")) or worded(said.get("refusal"))
        end = _end(choice.get("finish_reason"), refused=bool(worded(said.get("refusal"))))
    return Part(text=text, usage=usage_in(chunk.get("usage")), end=end)


def _joined(content: object) -> str:
    # Mistral's reasoning models send content as a list of typed parts.
    return "".join(worded(fields(part).get("text")) for part in listed(content) if fields(part).get("type") == "text")


def _end(reason: object, *, refused: bool) -> End | None:
    if reason == "length":
        return "length"
    if refused or reason == "content_filter":
        return "refusal"
    return "stop" if worded(reason) else None


def usage_in(value: object) -> Usage | None:
    """Read the counts that stand in `usage`; None where there are none."""
    counts = fields(value)
    if not counts:
        return None
    return Usage(
        input_tokens=counted(counts.get("prompt_tokens")), output_tokens=counted(counts.get("completion_tokens"))
    )
