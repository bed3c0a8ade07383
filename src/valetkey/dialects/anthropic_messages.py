"""Anthropic messages. base_url has no /v1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from valetkey.dialect import End, Message, Model, Part, Question, Usage
from valetkey.dialects.openai_chat import listed_models
from valetkey.dialects.reading import counted, decoded, error_in, expected, fields, worded
from valetkey.errors import UnclearAnswer

__all__ = ["AnthropicMessages", "usage_in"]

# The API requires a limit; this one no model is too small for.
DEFAULT_MAX_TOKENS = 4096


class AnthropicMessages:
    """`POST /v1/messages`, `GET /v1/models`."""

    id = "anthropic-messages"
    headers: Mapping[str, str] = MappingProxyType({"anthropic-version": "2023-06-01"})

    def ask(
        self, *, model: str, messages: Sequence[Message], stream: bool = True, max_output_tokens: int | None = None
    ) -> Question:
        """Make the request. System messages stand beside the others."""
        system = "\n\n".join(m.text for m in messages if m.role == "system")
        body: dict[str, object] = {
            "model": model,
            "max_tokens": DEFAULT_MAX_TOKENS if max_output_tokens is None else max_output_tokens,
            "messages": [{"role": m.role, "content": m.text} for m in messages if m.role != "system"],
            "stream": stream,
        }
        if system:
            body["system"] = system
        return Question(path="/v1/messages", body=body, headers=self.headers)

    def models(self) -> str:
        """Give the path of the model list, in one page."""
        return "/v1/models?limit=1000"

    def read_models(self, answer: object) -> list[Model]:
        """Read `{"data": [{"id", "display_name"}]}`. Raises: UnclearAnswer."""
        return listed_models(answer)

    def read(self, *, event: str, data: str) -> Part:
        """Read one event. Input is counted in the first, output in the last but one. Raises: UnclearAnswer."""
        content = decoded(data)
        match worded(content.get("type")) or event:
            case "content_block_delta":
                delta = fields(content.get("delta"))
                return Part(text=worded(delta.get("text")) if delta.get("type") == "text_delta" else "")
            case "message_start":
                return Part(usage=usage_in(fields(content.get("message")).get("usage")))
            case "message_delta":
                reason = fields(content.get("delta")).get("stop_reason")
                return Part(usage=usage_in(content.get("usage")), end=_end(reason))
            case "message_stop":
                return Part(done=True)
            case "error":
                return error_in(content) or Part(error="error", done=True)
            case _:
                return Part()

    def read_whole(self, answer: object) -> Part:
        """Read a `message` object. Raises: UnclearAnswer."""
        message = expected(answer)
        error = error_in(message)
        if error is not None:
            return error
        blocks = message.get("content")
        if not isinstance(blocks, list):
            raise UnclearAnswer("the answer has no content", hint="check the provider's base_url and dialect")
        text = "".join(worded(b.get("text")) for b in map(fields, blocks) if b.get("type") == "text")
        end = _end(message.get("stop_reason")) or "stop"
        return Part(text=text, usage=usage_in(message.get("usage")), end=end, done=True)


def _end(reason: object) -> End | None:
    match reason:
        case "max_tokens" | "model_context_window_exceeded":
            return "length"
        case "refusal":
            return "refusal"
        case _:
            return "stop" if worded(reason) else None


def usage_in(value: object) -> Usage | None:
    """Read the counts that stand in `usage`; None where there are none."""
    counts = fields(value)
    return (
        None if not counts else Usage(input_tokens=_input(counts), output_tokens=counted(counts.get("output_tokens")))
    )


def _input(counts: Mapping[str, object]) -> int:
    # What went through the cache is not in input_tokens.
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    return sum(counted(counts.get(name)) for name in names)
