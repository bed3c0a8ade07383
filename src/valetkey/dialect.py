"""The Dialect protocol: how to ask, list models, read text and token counts out of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

__all__ = ["Dialect", "Message", "Model", "Part", "Question", "Usage"]


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


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one server-sent event, or a whole answer, says: text, counts, an error's kind, the end."""

    text: str = ""
    usage: Usage | None = None
    error: str | None = None
    done: bool = False


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that the provider lists."""

    id: str
    name: str = ""


class Dialect(Protocol):
    """One wire format. Pure: it makes and reads bytes, and sends nothing."""

    id: str

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
