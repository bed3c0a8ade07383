"""What a person's terminal gets of a server's words."""

from __future__ import annotations

import json

import pytest

from valetkey.chat.ask import cleaned
from valetkey.cli.output import plain, plain_json, table

# ESC [ and its one-byte form, a title, a bell, a line's return, erasing, right to left, half a character.
HOSTILE = "a\x1b[31mb\x9b2Jc\x1b]0;title\x07d\re\x7ff\u202eg\u2066h\u061ci\u2028j\ud800k"


def _is_harmless(text: str) -> bool:
    text.encode()
    return not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u061c\u2028\u202e\u2066" for c in text)


def test_text_for_a_terminal_moves_no_cursor_and_can_be_written() -> None:
    assert _is_harmless(plain(HOSTILE))
    assert _is_harmless(cleaned(HOSTILE, None))
    assert all(_is_harmless(line) for line in table(["NAME"], [[HOSTILE]]))


def test_json_for_a_terminal_moves_no_cursor_either_and_means_the_same() -> None:
    document = plain_json(json.dumps({"name": HOSTILE}, ensure_ascii=False))
    assert _is_harmless(document)
    assert json.loads(document) == {"name": HOSTILE}


@pytest.mark.parametrize("text", ["ä ö ü", "日本語", "\U0001f511", "a\tb\nc", "שלום"])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text
    assert json.loads(plain_json(json.dumps(text, ensure_ascii=False))) == text
