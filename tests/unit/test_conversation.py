"""Conversations: what is said is kept, strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.chat import conversation
from valetkey.chat.conversation import Conversation
from valetkey.config import Paths
from valetkey.dialect import Message
from valetkey.errors import RecordDamaged, UsageError
from valetkey.store import Document, Store
from valetkey.stores import open_store
from valetkey.testing.clock import START, FakeClock


@pytest.fixture
def store(home: Path, clock: FakeClock) -> Iterator[Store]:
    opened = open_store(Paths(home=home), clock=clock, key_source_kind="key-file")
    yield opened
    opened.close()


def talk(clock: FakeClock, question: str = "what is TLS?") -> Conversation:
    begun = conversation.begin("openai@work", "gpt-x", now=clock.now())
    return begun.with_turn(question, "a protocol", now=clock.now())


def test_a_conversation_comes_back_as_it_was(store: Store, clock: FakeClock) -> None:
    said = talk(clock).with_system("be brief")
    conversation.save(store, said)
    assert conversation.load(store, said.id) == said
    assert [m.role for m in said.messages] == ["system", "user", "assistant"]


def test_new_instructions_take_the_place_of_old_ones(clock: FakeClock) -> None:
    said = talk(clock).with_system("be brief").with_system("be long")
    assert [m.text for m in said.messages if m.role == "system"] == ["be long"]


def test_the_latest_is_the_one_used_last(store: Store, clock: FakeClock) -> None:
    assert conversation.latest(store) is None
    first, second = talk(clock, "first"), talk(clock, "second")
    conversation.save(store, first)
    clock.advance(1)
    conversation.save(store, replace(second, updated_at=clock.now()))
    clock.advance(1)
    conversation.save(store, first.with_turn("again", "yes", now=clock.now()))
    latest = conversation.latest(store)
    assert latest is not None
    assert latest.id == first.id
    assert [title for _, title, _ in conversation.listed(store)] == ["first", "second"]


def test_a_deleted_conversation_is_gone(store: Store, clock: FakeClock) -> None:
    said = talk(clock)
    conversation.save(store, said)
    assert conversation.delete(store, said.id)
    assert not conversation.delete(store, said.id)
    assert conversation.load(store, said.id) is None


def test_the_first_question_is_the_title(clock: FakeClock) -> None:
    assert talk(clock, "  what\nis\tTLS? ").title == "what is TLS?"
    assert talk(clock, "word " * 50).title == ("word " * 12).strip()[:59].rstrip() + "…"
    assert talk(clock).with_turn("second", "yes", now=clock.now()).title == "what is TLS?"


def test_what_was_said_is_not_in_the_files(store: Store, clock: FakeClock, home: Path) -> None:
    conversation.save(store, talk(clock, "the-canary-question"))
    for file in home.rglob("*"):
        if file.is_file():
            assert b"canary" not in file.read_bytes()


def test_a_conversation_that_grew_too_long_is_refused(store: Store, clock: FakeClock) -> None:
    with pytest.raises(UsageError, match="longer than 8 MiB"):
        conversation.save(store, talk(clock, "x" * conversation.MAX_BODY_BYTES))
    assert conversation.listed(store) == []


GOOD = {
    "format": 1,
    "title": "t",
    "name": "openai",
    "model": "m",
    "messages": [{"role": "user", "text": "u"}],
    "created_at": START.isoformat(),
    "updated_at": START.isoformat(),
}


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{",
        json.dumps({**GOOD, "format": 2}),
        json.dumps({**GOOD, "more": 1}),
        json.dumps({k: v for k, v in GOOD.items() if k != "model"}),
        json.dumps({**GOOD, "model": 3}),
        json.dumps({**GOOD, "messages": {}} | {"messages": 3}),
        json.dumps({**GOOD, "messages": [{"role": "robot", "text": "u"}]}),
        json.dumps({**GOOD, "messages": [{"role": "user", "text": "u", "more": 1}]}),
        json.dumps({**GOOD, "messages": [{"role": "user", "text": None}]}),
        json.dumps({**GOOD, "created_at": "yesterday"}),
        json.dumps({**GOOD, "created_at": "2026-11-22T12:00:00"}),
        "[" * 100_000,
    ],
)
def test_what_cannot_be_read_is_told_and_left_alone(store: Store, body: str) -> None:
    store.put_document(Document(kind="conversation", id="c1", title="t", body=body, updated_at=START))
    with pytest.raises(RecordDamaged, match="c1") as caught:
        conversation.load(store, "c1")
    assert "c1" in caught.value.hint
    kept = store.document("conversation", "c1")
    assert kept is not None
    assert kept.body == body


def test_the_good_form_is_read(store: Store) -> None:
    store.put_document(Document(kind="conversation", id="c1", title="t", body=json.dumps(GOOD), updated_at=START))
    read = conversation.load(store, "c1")
    assert read is not None
    assert read.messages == (Message(role="user", text="u"),)


@given(question=st.text(), answer=st.text())
def test_any_text_survives_writing_and_reading(question: str, answer: str) -> None:
    said = conversation.begin("openai", "m", now=START).with_turn(question, answer, now=START)
    body = conversation.written(said)
    document = Document(kind="conversation", id=said.id, title=said.title, body=body, updated_at=START)
    assert conversation.read(document) == said
