"""The providers that the benchmark's proxies forward to: one that is fast, and one that streams and takes notes.

Both speak TLS with a certificate of the run and want the real key. The fast one is an nginx with one answer; the other
one is a small server on uvloop: `python -m bench.upstream FILE` runs it, and FILE has its settings as JSON.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import httptools
import uvloop

__all__ = ["ANSWER", "MODELS", "QUESTION", "Settings", "nginx_upstream"]

MODEL = "bench-model"
ANSWER_BYTES = 488
CHUNK = bytes(256 * 1024)


def _answer() -> bytes:
    """Give a chat completion of 488 bytes."""
    answer: dict[str, Any] = {
        "id": "chatcmpl-0123456789abcdef",
        "object": "chat.completion",
        "created": 1760000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 21, "completion_tokens": 17, "total_tokens": 38},
        "system_fingerprint": "fp_0123456789",
    }
    words = "A valet key opens the door and starts the car. "
    missing = ANSWER_BYTES - len(json.dumps(answer))
    answer["choices"][0]["message"]["content"] = (words * 9)[:missing]
    return json.dumps(answer).encode()


ANSWER = _answer()
MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
WRONG_KEY = json.dumps({"error": {"message": "wrong key", "type": "invalid_request_error", "code": "bad_key"}}).encode()
QUESTION = json.dumps(
    {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a helpful assistant that answers in one sentence."},
            {"role": "user", "content": "What does a valet key do, and what does it not do? Answer in one sentence."},
        ],
        "max_tokens": 64,
        "temperature": 0.2,
    }
).encode()


def nginx_upstream(folder: Path, *, port: int, pair: Path, key: str) -> str:
    """Give the configuration of the fast one."""
    return f"""
    worker_processes 1;
    daemon off;
    pid {folder}/upstream.pid;
    error_log stderr crit;
    events {{ worker_connections 8192; }}
    http {{
      access_log off;
      keepalive_requests 1000000000;
      keepalive_timeout 3600s;
      client_body_temp_path {folder}/upstream-body;
      server {{
        listen 127.0.0.1:{port} ssl backlog=4096;
        ssl_certificate {pair};
        ssl_certificate_key {pair};
        ssl_session_cache shared:bench:1m;
        default_type application/json;
        location = /v1/chat/completions {{
          if ($http_authorization != "Bearer {key}") {{ return 401 '{WRONG_KEY.decode()}'; }}
          return 200 '{ANSWER.decode()}';
        }}
        location = /v1/models {{
          if ($http_authorization != "Bearer {key}") {{ return 401 '{WRONG_KEY.decode()}'; }}
          return 200 '{MODELS.decode()}';
        }}
      }}
    }}
    """


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`key` is what a good credential begins with: behind it stands the number of its rotation, if any."""

    port: int
    pair: str
    key: str

    def text(self) -> str:
        return json.dumps(asdict(self))


class Provider(asyncio.Protocol):
    """One connection. Requests in sequence: no client of the benchmark pipelines."""

    # (number of the request, number of the credential, when it came), in the order of coming.
    notes: list[tuple[int, int, float]] = []  # noqa: RUF012  # one for the whole process, on purpose

    def __init__(self, key: str) -> None:
        self._expected = b"Bearer " + key.encode()
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._authorization = b""
        self._number = -1
        self._body: list[bytes] = []
        self._received = 0

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._parser = self._transport = None  # both point back to this
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        assert self._parser is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- what the parser calls ---

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"authorization":
            self._authorization = value
        elif lower == b"x-bench-number":
            self._number = int(value)

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        if self._received <= 65536:  # what is uploaded is counted, not kept
            self._body.append(body)

    def on_message_complete(self) -> None:
        url, body, received = self._url, b"".join(self._body), self._received
        good = self._authorization.startswith(self._expected)
        if good and self._number >= 0:
            generation = int(self._authorization[len(self._expected) :].strip(b"-") or b"0")
            self.notes.append((self._number, generation, time.monotonic()))
        self._begin()
        path, _, query = url.partition(b"?")
        if not good and path != b"/bench/notes":
            self._reply(401, WRONG_KEY)
        elif path == b"/v1/models":
            self._reply(200, MODELS)
        elif path == b"/v1/files":
            self._reply(200, json.dumps({"bytes": received}).encode())
        elif path == b"/v1/files/big":
            self._task = asyncio.get_running_loop().create_task(self._send_big(int(query.partition(b"=")[2])))
        elif path == b"/bench/notes":
            self._reply(200, json.dumps(self.notes).encode())
            self.notes.clear()
        elif path == b"/v1/chat/completions":
            self._complete(body)
        else:
            self._reply(404, b"{}")

    # --- answers ---

    def _reply(self, status: int, body: bytes) -> None:
        assert self._transport is not None
        self._transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            + body
        )

    def _complete(self, body: bytes) -> None:
        """Answer a chat; `events` and `interval` of a streamed one say how much comes, no `events`: one and silence."""
        wanted = json.loads(body)
        if not wanted.get("stream"):
            self._reply(200, ANSWER)
            return
        assert self._transport is not None
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n"
        self._transport.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + _event())
        if "events" in wanted:
            stream = self._send_events(wanted["events"] - 1, wanted.get("interval", 0.1))
            self._task = asyncio.get_running_loop().create_task(stream)

    async def _send_events(self, count: int, interval: float) -> None:
        for _ in range(count):
            await asyncio.sleep(interval)
            if self._transport is None:
                return
            self._transport.write(_event())
        if self._transport is not None:
            self._transport.write(b"0\r\n\r\n")

    async def _send_big(self, size: int) -> None:
        assert self._transport is not None
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % size)
        while size:
            await self._writable.wait()
            if self._transport is None:
                return
            part = CHUNK[:size]
            self._transport.write(part)
            size -= len(part)


def _event() -> bytes:
    """Give one event as a chunk, with the time at which it was made: CLOCK_MONOTONIC is one for all processes."""
    delta = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
    event = {"object": "chat.completion.chunk", "model": MODEL, "choices": [delta], "at": time.monotonic()}
    data = f"data: {json.dumps(event)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve(settings: Settings) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.pair)
    server = await asyncio.get_running_loop().create_server(
        lambda: Provider(settings.key), "127.0.0.1", settings.port, ssl=context, backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(Settings(**json.loads(Path(sys.argv[1]).read_text()))))
