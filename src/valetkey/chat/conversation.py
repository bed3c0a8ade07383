"""Conversations, kept as sealed documents: `ask` and chat share them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import cast

from valetkey.dialect import Message
from valetkey.errors import RecordDamaged, UsageError
from valetkey.store import Document, Store

__all__ = ["Conversation", "begin", "delete", "latest", "listed", "load", "read", "save", "written"]

KIND = "conversation"
# More than the longest context that a model takes today, and little enough to open at once.
MAX_BODY_BYTES = 8 * 1024 * 1024
_TITLE_LENGTH = 60
_FORMAT = 1
_KEYS = {"format", "title", "name", "model", "messages", "created_at", "updated_at"}
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """What was said, oldest first. `name` is `provider` or `provider@account`, as the user wrote it."""

    id: str
    title: str
    name: str
    model: str
    messages: tuple[Message, ...]
    created_at: datetime
    updated_at: datetime

    def with_system(self, text: str) -> Conversation:
        """Give the conversation with these instructions in place of any that it had."""
        rest = tuple(m for m in self.messages if m.role != "system")
        return replace(self, messages=(Message(role="system", text=text), *rest))

    def with_turn(self, question: str, answer: str, *, now: datetime) -> Conversation:
        """Give the conversation with one more question and its answer. The first question is the title."""
        turn = (Message(role="user", text=question), Message(role="assistant", text=answer))
        title = self.title or _title(question)
        return replace(self, title=title, messages=(*self.messages, *turn), updated_at=now)


def begin(name: str, model: str, *, now: datetime) -> Conversation:
    """Give an empty conversation. Nothing is kept until it is saved."""
    return Conversation(
        id=secrets.token_hex(6), title="", name=name, model=model, messages=(), created_at=now, updated_at=now
    )


def save(store: Store, conversation: Conversation) -> None:
    """Keep it. Raises: UsageError when it has grown too long, StoreError."""
    body = written(conversation)
    if len(body) > MAX_BODY_BYTES:
        raise UsageError(
            f"the conversation is longer than {MAX_BODY_BYTES // 1024 // 1024} MiB",
            hint="begin a new one: leave out --continue",
        )
    store.put_document(
        Document(kind=KIND, id=conversation.id, title=conversation.title, body=body, updated_at=conversation.updated_at)
    )


def load(store: Store, id: str) -> Conversation | None:
    """Open one, None when there is none. Raises: RecordDamaged when it is not what `save` wrote."""
    document = store.document(KIND, id)
    return None if document is None else read(document)


def latest(store: Store) -> Conversation | None:
    """Open the one that was used last. Raises: RecordDamaged."""
    newest = store.documents(KIND, limit=1)
    return load(store, newest[0][0]) if newest else None


def listed(store: Store, *, limit: int = 50) -> Sequence[tuple[str, str, datetime]]:
    """Give (id, title, updated_at), newest first."""
    return store.documents(KIND, limit=limit)


def delete(store: Store, id: str) -> bool:
    """Remove one; False when there was none."""
    return store.delete_document(KIND, id)


def _title(question: str) -> str:
    words = " ".join(question.split())
    return words if len(words) <= _TITLE_LENGTH else words[: _TITLE_LENGTH - 1].rstrip() + "…"


def written(conversation: Conversation) -> str:
    """Give the JSON that is sealed."""
    return json.dumps(
        {
            "format": _FORMAT,
            "title": conversation.title,
            "name": conversation.name,
            "model": conversation.model,
            "messages": [{"role": m.role, "text": m.text} for m in conversation.messages],
            "created_at": conversation.created_at.isoformat(),
            "updated_at": conversation.updated_at.isoformat(),
        }
    )


def read(document: Document) -> Conversation:
    """Read what `written` gave, and nothing else. Raises: RecordDamaged."""
    try:
        value = json.loads(document.body)
        if not isinstance(value, dict) or set(value) != _KEYS or value["format"] != _FORMAT:
            raise ValueError
        return Conversation(
            id=document.id,
            title=_text(value["title"]),
            name=_text(value["name"]),
            model=_text(value["model"]),
            messages=tuple(_message(m) for m in cast("list[object]", value["messages"])),
            created_at=_time(value["created_at"]),
            updated_at=_time(value["updated_at"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RecordDamaged(
            f"the conversation {document.id} cannot be read",
            hint=f"remove it with `valetkey chat delete {document.id}`, or begin a new one",
        ) from None


def _message(value: object) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "text"} or value["role"] not in _ROLES:
        raise ValueError
    return Message(role=value["role"], text=_text(value["text"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _time(value: object) -> datetime:
    when = datetime.fromisoformat(_text(value))
    if when.tzinfo is None:
        raise ValueError
    return when
