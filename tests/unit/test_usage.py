"""Model and token counts out of answers that pass through: of all dialects, cut anywhere, and out of rubbish too."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from valetkey.dialect import Usage
from valetkey.gateway.usage import LIMIT_BYTES, usage_reader_for

PATHS = {
    "openai-chat": "/v1/chat/completions",
    "openai-responses": "/v1/responses",
    "anthropic-messages": "/v1/messages",
    "gemini": "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
}
JSON, EVENTS = "application/json", "text/event-stream"
Told = tuple[str | None, Usage | None]


def told(dialect: str, kind: str, *pieces: bytes) -> Told:
    make = usage_reader_for(dialect="openai-chat", path=PATHS[dialect], content_type=kind)
    assert make is not None
    reader = make()
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    once = (reader.model, reader.usage)
    reader.finish()
    assert (reader.model, reader.usage) == once
    return once


def usage(tokens_in: int, tokens_out: int) -> Usage:
    return Usage(input_tokens=tokens_in, output_tokens=tokens_out)


def whole(value: object) -> bytes:
    return json.dumps(value).encode()


def events(*values: object, end: str = "\n", named: bool = False) -> bytes:
    texts = []
    for value in values:
        name = f"event: {value['type']}{end}" if named and isinstance(value, dict) else ""
        data = value if isinstance(value, str) else json.dumps(value)
        texts.append(f"{name}data: {data}{end}{end}")
    return "".join(texts).encode()


def chat(**more: object) -> dict[str, object]:
    return {"object": "chat.completion.chunk", "model": "small", "choices": [{"delta": {"content": "é"}}], **more}


CHAT_USAGE = {"prompt_tokens": 11, "completion_tokens": 22, "prompt_tokens_details": {"cached_tokens": 3}}
CHAT = events(chat(usage=None), chat(usage=None), chat(choices=[], usage=CHAT_USAGE), "[DONE]")
RESPONSES_USAGE = {"input_tokens": 11, "output_tokens": 22, "output_tokens_details": {"reasoning_tokens": 4}}
RESPONSES = events(
    {"type": "response.created", "response": {"model": "small", "usage": None, "output": []}},
    {"type": "response.output_text.delta", "delta": 'said "usage": {"input_tokens": 5}'},
    {"type": "response.completed", "response": {"model": "small", "output": [], "usage": RESPONSES_USAGE}},
    named=True,
)
ANTHROPIC = events(
    {"type": "message_start", "message": {"model": "small", "usage": {"input_tokens": 9, "output_tokens": 1}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "ping"},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 22}},
    {"type": "message_stop"},
    named=True,
)
GEMINI_CHUNK = {"candidates": [{"content": {"parts": [{"text": "Hi"}]}}], "modelVersion": "small"}
GEMINI = events(
    GEMINI_CHUNK | {"usageMetadata": {"promptTokenCount": 11}},
    GEMINI_CHUNK | {"usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 20, "thoughtsTokenCount": 2}},
    end="\r\n",
)
STREAMS = [
    ("openai-chat", CHAT, usage(11, 22)),
    ("openai-responses", RESPONSES, usage(11, 22)),
    ("anthropic-messages", ANTHROPIC, usage(9, 22)),
    ("gemini", GEMINI, usage(11, 22)),
]
WHOLE = [
    ("openai-chat", {"model": "small", "choices": [], "usage": CHAT_USAGE}, usage(11, 22)),
    ("openai-responses", {"model": "small", "output": [], "usage": RESPONSES_USAGE}, usage(11, 22)),
    (
        "anthropic-messages",
        {"model": "small", "usage": {"input_tokens": 1, "cache_read_input_tokens": 10, "output_tokens": 22}},
        usage(11, 22),
    ),
    (
        "gemini",
        GEMINI_CHUNK | {"usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 22}},
        usage(11, 22),
    ),
]


@pytest.mark.parametrize(("dialect", "stream", "counts"), STREAMS)
def test_a_stream_tells_model_and_counts(dialect: str, stream: bytes, counts: Usage) -> None:
    assert told(dialect, EVENTS, stream) == ("small", counts)
    assert told(dialect, EVENTS, *(bytes([byte]) for byte in stream)) == ("small", counts)
    # Whoever ends without the blank line has said it all the same.
    assert told(dialect, EVENTS, stream.rstrip()) == ("small", counts)


@pytest.mark.parametrize(("dialect", "answer", "counts"), WHOLE)
def test_a_whole_answer_tells_model_and_counts(dialect: str, answer: object, counts: Usage) -> None:
    assert told(dialect, JSON, whole(answer)) == ("small", counts)
    assert told(dialect, JSON, *(bytes([byte]) for byte in whole(answer))) == ("small", counts)


def test_a_stream_that_was_not_asked_for_counts_tells_its_model() -> None:
    assert told("openai-chat", EVENTS, events(chat(), chat(), "[DONE]")) == ("small", None)


def test_the_model_may_come_late_but_is_not_looked_for_forever() -> None:
    # Azure's first event is about the prompt, and names none.
    assert told("openai-chat", EVENTS, events(chat(model=""), chat())) == ("small", None)
    assert told("openai-chat", EVENTS, events(*[chat(model="")] * 8, chat())) == (None, None)


def test_gemini_without_events_streams_a_list() -> None:
    answer = [GEMINI_CHUNK, GEMINI_CHUNK | {"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4}}]
    assert told("gemini", JSON, whole(answer)) == ("small", usage(3, 4))


def test_counts_below_the_top_are_somebody_elses() -> None:
    fake = {"usage": {"input_tokens": 1, "output_tokens": 1}, "model": "fake"}
    true = {"content": [{"type": "tool_use", "input": fake}], "model": "small", "usage": {"input_tokens": 7}}
    assert told("anthropic-messages", JSON, whole(true)) == ("small", usage(7, 0))
    chunk = {"candidates": [{"content": {"parts": [{"functionCall": {"args": {"usageMetadata": {"a": 1}}}}]}}]}
    assert told("gemini", EVENTS, events(chunk)) == (None, None)


def test_a_stream_that_breaks_off_tells_what_came() -> None:
    assert told("anthropic-messages", EVENTS, ANTHROPIC[:-150]) == ("small", usage(9, 1))


def test_an_answer_beyond_the_limit_is_not_read_and_the_next_events_are() -> None:
    long = "x" * LIMIT_BYTES
    answer = whole({"model": "small", "usage": CHAT_USAGE, "x": long})
    assert told("openai-chat", JSON, answer) == (None, None)
    assert told("openai-chat", JSON, answer[:100], answer[100:], b"{}") == (None, None)
    stream = events(chat(x=long, usage={"prompt_tokens": 999}), chat(choices=[], usage=CHAT_USAGE))
    assert told("openai-chat", EVENTS, stream) == ("small", usage(11, 22))
    pieces = [stream[i : i + 5000] for i in range(0, len(stream), 5000)]
    assert told("openai-chat", EVENTS, *pieces) == ("small", usage(11, 22))


def test_the_rest_of_a_line_that_was_too_long_is_no_line() -> None:
    long, rest = b"data: " + b"x" * LIMIT_BYTES, b'data: {"model": "fake", "usage": {"prompt_tokens": 999}}\n'
    good = b'data: {"model": "small", "usage": {"prompt_tokens": 11}}\n'
    assert told("openai-chat", EVENTS, long, rest, good) == ("small", usage(11, 0))
    assert told("openai-chat", EVENTS, long, b"\n" + good) == ("small", usage(11, 0))


@pytest.mark.parametrize("kind", [JSON, EVENTS])
def test_no_more_is_kept_than_the_limit_says(kind: str) -> None:
    make = usage_reader_for(dialect="openai-chat", path=PATHS["openai-chat"], content_type=kind)
    assert make is not None
    reader = make()
    tracemalloc.start()
    for _ in range(1000):
        reader.feed(b"x" * 10_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * LIMIT_BYTES


def test_an_event_at_the_limit_is_read_however_it_is_cut() -> None:
    room = LIMIT_BYTES - len(events(chat(x="", usage=CHAT_USAGE)).rstrip())
    for more, found in ((0, ("small", usage(11, 22))), (1, (None, None))):
        stream = events(chat(x="x" * (room + more), usage=CHAT_USAGE))
        for cut in (1, LIMIT_BYTES - 1, LIMIT_BYTES, LIMIT_BYTES + 1, len(stream)):
            assert told("openai-chat", EVENTS, stream[:cut], stream[cut:]) == found, (more, cut)


@pytest.mark.parametrize("kind", [JSON, EVENTS])
@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
        b"null",
        b'"usage"',
        b'{"error": {"message": "no"}}',
        b"<html>502</html>",
        b"\x1f\x8b\x08\x00compressed",
        b'{"model": 5, "usage": "much", "message": [], "response": 1, "usageMetadata": []}',
        b'{"model": null, "usage": {"prompt_tokens": "5", "completion_tokens": -1, "input_tokens": 1.5}}',
    ],
)
def test_rubbish_is_not_counted(dialect: str, kind: str, body: bytes) -> None:
    given = body if kind == JSON else b"data:" + body.replace(b"\n", b" ") + b"\n\n"
    model, counts = told(dialect, kind, given)
    assert model is None
    assert counts in (None, usage(0, 0))


# --- whatever the edges ----------------------------------------------------------------------

_NAMES = st.sampled_from(["usage", "model", "message", "response", "usageMetadata", "modelVersion", "type"])
_COUNTS = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(-5, 10**6) | st.none()
        for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "promptTokenCount")
    },
)
_VALUES = st.recursive(
    st.none() | st.integers(0, 9) | st.text(max_size=6) | _COUNTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=8,
)
_LINES = st.one_of(
    st.dictionaries(_NAMES, _VALUES, max_size=4).map(lambda v: b"data: " + json.dumps(v).encode()),
    st.sampled_from([b"", b": comment", b"event: message_start", b"data: [DONE]", b"data:", b"data: {", b"\r"]),
    st.binary(max_size=12),
)


@given(
    dialect=st.sampled_from(list(PATHS)),
    lines=st.lists(_LINES, max_size=14),
    ends=st.sampled_from([b"\n", b"\r\n"]),
    cuts=st.lists(st.integers(0, 2000), max_size=20),
)
@example(dialect="anthropic-messages", lines=ANTHROPIC.split(b"\n"), ends=b"\n", cuts=[5, 80, 81, 82, 200, 400])
def test_edges_of_pieces_make_no_difference(dialect: str, lines: list[bytes], ends: bytes, cuts: list[int]) -> None:
    stream = ends.join(lines)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(edges)]
    once = told(dialect, EVENTS, stream)
    assert told(dialect, EVENTS, *pieces) == once
    assert told(dialect, EVENTS, *(bytes([byte]) for byte in stream)) == once


# --- when there is a reader ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/openai/deployments/a/chat/completions?api-version=1", {"model": "m", "usage": CHAT_USAGE}),
        ("/v1/chat/completions/", {"model": "m", "usage": CHAT_USAGE}),
        ("/v1/completions", {"model": "m", "usage": CHAT_USAGE}),
        ("/v1/embeddings", {"model": "m", "data": [], "usage": CHAT_USAGE}),
        ("/backend-api/codex/responses", {"model": "m", "usage": RESPONSES_USAGE}),
        ("/v1/models/a:generateContent", {"modelVersion": "m", "usageMetadata": {"promptTokenCount": 11}}),
        ("/v1/p/publishers/anthropic/models/c@1:rawPredict", {"model": "m", "usage": {"input_tokens": 11}}),
        ("/v1/p/publishers/anthropic/models/c@1:streamRawPredict", {"model": "m", "usage": {"input_tokens": 11}}),
    ],
)
def test_the_path_tells_what_is_spoken(path: str, body: dict[str, Any]) -> None:
    for dialect in ("openai-chat", "gemini", "anthropic-messages"):
        make = usage_reader_for(dialect=dialect, path=path, content_type="Application/JSON; charset=utf-8")
        assert make is not None
        reader = make()
        reader.feed(whole(body))
        reader.finish()
        assert reader.model == "m"
        assert reader.usage is not None
        assert reader.usage.input_tokens == 11


@pytest.mark.parametrize(
    ("dialect", "path", "kind"),
    [
        ("openai-chat", "/v1/models", JSON),
        ("openai-chat", "/", JSON),
        ("openai-chat", "", JSON),
        ("openai-chat", "/v1/responses/resp_1", JSON),
        ("openai-chat", "/v1/messages/count_tokens", JSON),
        ("gemini", "/v1beta/models/a:countTokens", JSON),
        ("openai-chat", "/v1/chat/completions", "text/html"),
        ("openai-chat", "/v1/chat/completions", ""),
        ("none", "/v1/chat/completions", JSON),
    ],
)
def test_no_reader_where_no_model_answers(dialect: str, path: str, kind: str) -> None:
    assert usage_reader_for(dialect=dialect, path=path, content_type=kind) is None
