"""Real servers for a whole test session: the language model and the mock of many APIs."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.support.server_process import node_server, running

__all__ = ["ApiMock", "ModelServer", "api_mock", "model_server"]


@dataclass(frozen=True, kw_only=True)
class ModelServer:
    """llama.cpp with SmolLM2-135M. `base_url` ends in /v1; below it chat/completions, responses, messages, models."""

    url: str
    model: str
    api_key: str = field(repr=False)

    @property
    def base_url(self) -> str:
        """Give the address that an OpenAI client wants."""
        return f"{self.url}/v1"


@dataclass(frozen=True, kw_only=True)
class ApiMock:
    """npm aimock: answers every question with `reply`, or 401 without `api_key`, in the dialects of many providers."""

    url: str
    reply: str
    api_key: str = field(repr=False)


@contextlib.contextmanager
def model_server() -> Iterator[ModelServer]:
    """Start the model behind a random key."""
    key = "sk-local-" + secrets.token_hex(20)
    with running([sys.executable, "-m", "valetkey.demo_model"], {"api_key": key, "n_predict": 64}) as said:
        yield ModelServer(url=said["url"], model=said["model"], api_key=key)


@contextlib.contextmanager
def api_mock(
    replies: Mapping[str, str] | None = None, *, calls: Mapping[str, Mapping[str, object]] | None = None
) -> Iterator[ApiMock]:
    """Start the mock behind a random key; `replies` maps patterns of the question to answers.

    `calls` maps tools to arguments: a question that says `use <tool>` is answered by a call of it first.
    """
    key = "mock-" + secrets.token_hex(20)
    reply = "Hello from the mock."
    settings = {"api_keys": [key], "replies": dict(replies or {}), "calls": dict(calls or {}), "reply": reply}
    with running(node_server("aimock"), settings) as said:
        yield ApiMock(url=said["url"], reply=reply, api_key=key)
