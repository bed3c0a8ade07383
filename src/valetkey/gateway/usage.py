"""Reads model and token counts out of answers that pass through, streamed or whole.

A reader never raises and never keeps more than it was made for: what it cannot read is not counted.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from valetkey.dialect import Usage
from valetkey.dialects import anthropic_messages, gemini, openai_chat, openai_responses
from valetkey.dialects.reading import fields

__all__ = ["UsageReader", "usage_reader_for"]

# Of an answer, and of one event: the last event of OpenAI's responses repeats instructions, tools and the whole answer.
LIMIT_BYTES = 256 * 1024
# A server that names no model in the first events names none.
_EVENTS_FOR_MODEL = 8
_LONGEST_MODEL = 200
_NEAR_BYTES = 2048
_MODEL = re.compile(rb'\s*:\s*"([ -!#-\[\]-~]{1,%d})"' % _LONGEST_MODEL)
_NUMBER = re.compile(rb"\s*:\s*([0-9]{1,15})\s*[,}]")


class UsageReader(Protocol):
    """Gets the body of one answer; knows what it says once `finish` was called."""

    model: str | None
    usage: Usage | None

    def feed(self, data: bytes) -> None:
        """Take the next bytes, cut anywhere."""
        ...

    def finish(self) -> None:
        """Read what is left: the answer has ended, or nothing more of it will come."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Where a dialect puts its counts and its model. The objects that hold them stand at the top or below a name."""

    within: str | None
    counts: str
    model: str
    read: Callable[[object], Usage | None]
    has_counts: re.Pattern[bytes]
    counts_mark: bytes
    model_mark: bytes
    # Whose numbers add up to what went in and came out, the indispensable one first; none where only `read` knows.
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]


def _form(
    counts: str,
    model: str,
    read: Callable[[object], Usage | None],
    *,
    within: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> _Form:
    counts_mark, model_mark = (b'"%b"' % name.encode() for name in (counts, model))
    return _Form(
        within=within,
        counts=counts,
        model=model,
        read=read,
        # OpenAI sends `"usage": null` with every event but the last.
        has_counts=re.compile(rb"%b\s*:\s*\{" % counts_mark),
        counts_mark=counts_mark,
        model_mark=model_mark,
        inputs=tuple(b'"%b"' % name.encode() for name in inputs),
        outputs=tuple(b'"%b"' % name.encode() for name in outputs),
    )


_FORMS: Mapping[str, _Form] = {
    "openai-chat": _form(
        "usage", "model", openai_chat.usage_in, inputs=["prompt_tokens"], outputs=["completion_tokens"]
    ),
    "openai-responses": _form(
        "usage",
        "model",
        openai_responses.usage_in,
        within="response",
        inputs=["input_tokens"],
        outputs=["output_tokens"],
    ),
    "anthropic-messages": _form(
        "usage",
        "model",
        anthropic_messages.usage_in,
        within="message",
        inputs=["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"],
        outputs=["output_tokens"],
    ),
    "gemini": _form("usageMetadata", "modelVersion", gemini.usage_in),
}
# How the paths end on which models answer, and what is spoken there, whatever else the provider speaks.
_ENDINGS = {
    "/completions": "openai-chat",
    "/embeddings": "openai-chat",
    "/responses": "openai-responses",
    "/messages": "anthropic-messages",
    ":generateContent": "gemini",
    ":streamGenerateContent": "gemini",
    # Claude on Vertex.
    ":rawPredict": "anthropic-messages",
    ":streamRawPredict": "anthropic-messages",
}
_KINDS = {"application/json": False, "text/event-stream": True}


def usage_reader_for(*, dialect: str, path: str, content_type: str) -> Callable[[], UsageReader] | None:
    """Give what makes readers for answers to `path`; None where no model answers, or not in JSON or events.

    `dialect` is the provider's declared one. The path tells better what is spoken; at a provider whose dialect is
    "none", nothing is.
    """
    form, streamed = _chosen(dialect, path, content_type)
    if form is None:
        return None
    return functools.partial(_Events if streamed else _Whole, form)


@functools.lru_cache(maxsize=1024)
def _chosen(dialect: str, path: str, content_type: str) -> tuple[_Form | None, bool]:
    streamed = _KINDS.get(content_type.partition(";")[0].strip().lower())
    if streamed is None or dialect == "none":
        return None, False
    path = path.partition("?")[0].rstrip("/")
    last = path[path.rfind("/") :]
    ending = last[last.rfind(":") :] if ":" in last else last
    return _FORMS.get(_ENDINGS.get(ending, "")), streamed


class _Whole:
    """Reads an answer that is one JSON document."""

    def __init__(self, form: _Form) -> None:
        self.model: str | None = None
        self.usage: Usage | None = None
        self._form = form
        self._pieces: list[bytes] | None = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        if self._pieces is None:
            return
        self._size += len(data)
        if self._size > LIMIT_BYTES:
            self._pieces = None
        else:
            self._pieces.append(data)

    def finish(self) -> None:
        if self._pieces is None:
            return
        document = b"".join(self._pieces)
        self._pieces = None
        if self._read_alone(document):
            return
        answer = _decoded(document)
        for part in answer if isinstance(answer, list) else [answer]:
            _take(self, self._form, part)

    def _read_alone(self, document: bytes) -> bool:
        """Decode the counts and the model alone, in a third of the time; False where that cannot be.

        Neither name can be found inside a text: there the quotes around it have backslashes before them. A name that
        stands twice may be another one's.
        """
        form, find = self._form, document.find
        at, model_at = find(form.counts_mark), find(form.model_mark)
        if at < 0 or model_at < 0 or find(form.counts_mark, at + 1) >= 0 or find(form.model_mark, model_at + 1) >= 0:
            return False
        model = _MODEL.match(document, model_at + len(form.model_mark))
        if model is None or form.has_counts.match(document, at) is None:
            return False
        input_tokens, output_tokens = _sum_of(document, form.inputs, at), _sum_of(document, form.outputs, at)
        if input_tokens is None or output_tokens is None:
            return False
        self.usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        self.model = model[1].decode("ascii")
        return True


class _Events:
    """Reads server-sent events (WHATWG HTML section 9.2), whose data stand on one line in all of these dialects.

    Only lines that may tell something new are decoded.
    """

    def __init__(self, form: _Form) -> None:
        self.model: str | None = None
        self.usage: Usage | None = None
        self._form = form
        self._left = bytearray()
        self._too_long = False
        self._for_model = _EVENTS_FOR_MODEL

    def feed(self, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        if end == len(data) and not self._left and not self._too_long:
            self._read(data)  # as servers send it: whole events
            return
        if end:
            begin = data.index(b"\n") + 1 if self._too_long else 0
            lines = bytes(self._left) + data[begin:end]
            self._left.clear()
            self._too_long = False
            self._read(lines)
        if not self._too_long:
            self._left += data[end:]
            if len(self._left) > LIMIT_BYTES:
                self._left.clear()
                self._too_long = True

    def finish(self) -> None:
        lines = bytes(self._left)
        self._left.clear()
        self._read(lines)

    def _read(self, lines: bytes) -> None:
        if self._for_model or self._form.has_counts.search(lines):
            for line in lines.split(b"\n"):
                if line.startswith(b"data:") and len(line) <= LIMIT_BYTES:
                    self._read_data(line[5:])

    def _read_data(self, data: bytes) -> None:
        tells_model = self._for_model and self._form.model_mark in data
        self._for_model = max(0, self._for_model - 1)
        if tells_model or self._form.has_counts.search(data):
            _take(self, self._form, _decoded(data))
            if self.model is not None:
                self._for_model = 0


def _take(reader: _Whole | _Events, form: _Form, answer: object) -> None:
    if not isinstance(answer, dict):
        return
    _take_from(reader, form, answer)
    if form.within is not None and form.within in answer:
        _take_from(reader, form, fields(answer[form.within]))


def _take_from(reader: _Whole | _Events, form: _Form, holder: Mapping[str, object]) -> None:
    model = holder.get(form.model)
    if reader.model is None and model and isinstance(model, str):
        reader.model = model[:_LONGEST_MODEL]
    usage = form.read(holder.get(form.counts))
    if usage is not None:
        reader.usage = usage.merged(reader.usage)


def _sum_of(document: bytes, names: tuple[bytes, ...], at: int) -> int | None:
    """Add up the numbers behind these names, near `at`; None without the first, or where one is no plain number."""
    total = 0
    for name in names:
        begin = document.find(name, at, at + _NEAR_BYTES)
        if begin >= 0:
            number = _NUMBER.match(document, begin + len(name))
            if number is None:
                return None
            total += int(number[1])
        elif name is names[0]:
            return None
    return total if names else None


_decode = json.JSONDecoder().decode


def _decoded(document: bytes) -> object:
    try:
        return _decode(document.decode())
    except (ValueError, RecursionError):
        return None
