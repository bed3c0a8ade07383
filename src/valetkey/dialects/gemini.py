"""Gemini's generateContent. base_url is the host alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from urllib.parse import quote

from valetkey.dialect import End, Message, Model, Part, Question, Usage
from valetkey.dialects.reading import counted, decoded, error_in, expected, fields, listed, worded
from valetkey.errors import UnclearAnswer

__all__ = ["Gemini", "usage_in"]


class Gemini:
    """`POST /v1beta/models/{model}:streamGenerateContent`, `GET /v1beta/models`."""

    id = "gemini"
    headers: Mapping[str, str] = MappingProxyType({})

    def ask(
        self, *, model: str, messages: Sequence[Message], stream: bool = True, max_output_tokens: int | None = None
    ) -> Question:
        """Make the request; the model stands in the path."""
        system = [{"text": m.text} for m in messages if m.role == "system"]
        body: dict[str, object] = {"contents": [_content(m) for m in messages if m.role != "system"]}
        if system:
            body["systemInstruction"] = {"parts": system}
        if max_output_tokens is not None:
            body["generationConfig"] = {"maxOutputTokens": max_output_tokens}
        call = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return Question(path=f"/v1beta/models/{quote(model.removeprefix('models/'), safe='')}:{call}", body=body)

    def models(self) -> str:
        """Give the path of the model list, in one page."""
        return "/v1beta/models?pageSize=1000"

    def read_models(self, answer: object) -> list[Model]:
        """Read `{"models": [{"name": "models/…"}]}`, those that generate. Raises: UnclearAnswer."""
        items = expected(answer).get("models")
        if not isinstance(items, list):
            raise UnclearAnswer("the answer is no list of models", hint="check the provider's base_url and dialect")
        return [
            Model(id=worded(m["name"]).removeprefix("models/"), name=worded(m.get("displayName")))
            for m in map(fields, items)
            if worded(m.get("name")) and _generates(m)
        ]

    def read(self, *, event: str, data: str) -> Part:
        """Read one chunk: the same object as a whole answer, and no mark of the last. Raises: UnclearAnswer."""
        chunk = decoded(data)
        return error_in(chunk) or _part(chunk)

    def read_whole(self, answer: object) -> Part:
        """Read a `GenerateContentResponse`. Raises: UnclearAnswer."""
        error = error_in(answer)
        if error is not None:
            return error
        part = _part(expected(answer))
        if part.end is None and not part.text:
            raise UnclearAnswer("the answer has no candidates", hint="check the provider's base_url and dialect")
        return Part(text=part.text, usage=part.usage, end=part.end or "stop", done=True)


def _content(message: Message) -> dict[str, object]:
    return {"role": "user" if message.role == "user" else "model", "parts": [{"text": message.text}]}


def _generates(model: Mapping[str, object]) -> bool:
    methods = model.get("supportedGenerationMethods")
    return not isinstance(methods, list) or "generateContent" in methods


def _part(chunk: Mapping[str, object]) -> Part:
    text, end = "", None
    for candidate in map(fields, listed(chunk.get("candidates"))[:1]):
        parts = [fields(p) for p in listed(fields(candidate.get("content")).get("parts"))]
        text = "".join(worded(p.get("text")) for p in parts if p.get("thought") is not True)
        end = _end(candidate.get("finishReason"))
    if worded(fields(chunk.get("promptFeedback")).get("blockReason")):
        end = "refusal"
    return Part(text=text, usage=usage_in(chunk.get("usageMetadata")), end=end)


def _end(reason: object) -> End | None:
    match reason:
        case "STOP":
            return "stop"
        case "MAX_TOKENS":
            return "length"
        case _:
            # SAFETY, RECITATION, BLOCKLIST, PROHIBITED_CONTENT, SPII, OTHER …: the rest are refusals of some kind.
            return "refusal" if worded(reason) else None


def usage_in(value: object) -> Usage | None:
    """Read the counts that stand in `usageMetadata`; None where there are none."""
    counts = fields(value)
    if not counts:
        return None
    return Usage(
        input_tokens=counted(counts.get("promptTokenCount")),
        output_tokens=counted(counts.get("candidatesTokenCount")) + counted(counts.get("thoughtsTokenCount")),
    )
