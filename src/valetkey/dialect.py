"""The Dialect protocol: how to ask, list models, read text and token counts out of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

__all__ = ["Dialect", "End", "Message", "Model", "Part", "Question", "Usage"]

# "length": cut at the token limit. "refusal": the model or a filter declined.
End = Literal["stop", "length", "refusal"]


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request to be sent: `path` is joined to the provider's base_url, `body` becomes JSON."""

    path: str
    body: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts as the provider counts them."""

    input_tokens: int = 0
    output_tokens: int = 0

    def merged(self, later: Usage | None) -> Usage:
        """Take in what a later part says. Counts are totals so far, so that the larger one is the newer one."""
        if later is None:
            return self
        return Usage(
            input_tokens=max(self.input_tokens, later.input_tokens),
            output_tokens=max(self.output_tokens, later.output_tokens),
        )


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one server-sent event, or a whole answer, says: text, counts, an error's kind, the end.

    `end` says how the model's turn ended; counts may still follow it. After `done` nothing follows. `message` is the
    server's own word on an error: it may hold anything, and is cleaned before it is shown.
    """

    text: str = ""
    usage: Usage | None = None
    error: str | None = None
    message: str = ""
    end: End | None = None
    done: bool = False


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that the provider lists."""

    id: str
    name: str = ""


class Dialect(Protocol):
    """One wire format. Pure: it makes and reads bytes, and sends nothing."""

    @property
    def id(self) -> str:
        """Give the name that declarations use."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Give the headers that every request of this dialect needs."""
        ...

    def ask(
        self, *, model: str, messages: Sequence[Message], stream: bool = True, max_output_tokens: int | None = None
    ) -> Question:
        """Make the request that asks `model` for the next turn."""
        ...

    def models(self) -> str:
        """Give the path that lists models where the declaration names none."""
        ...

    def read_models(self, answer: object) -> list[Model]:
        """Read the decoded JSON of a model list. Raises: UnclearAnswer."""
        ...

    def read(self, *, event: str, data: str) -> Part:
        """Read one server-sent event. Unknown events are an empty Part. Raises: UnclearAnswer."""
        ...

    def read_whole(self, answer: object) -> Part:
        """Read the decoded JSON of an answer that was not streamed. Raises: UnclearAnswer."""
        ...
