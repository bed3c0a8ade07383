"""What a person sees: tables that fit, text that cannot move the cursor, times in words."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from valetkey.chat.ask import cleaned
from valetkey.cli.approvals import _lines
from valetkey.cli.output import ago, plain, plain_json, table, until, width_of
from valetkey.testing.clock import START


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_table_fits_the_terminal_whatever_is_in_it(width: int) -> None:
    rows = [("a" * 200, "b", "日本語" * 30), ("x", "y" * 50, "z")]
    lines = table(("ONE", "TWO", "THREE"), rows, width=width)
    assert len(lines) == 3
    assert all(width_of(line) <= max(width, 3 * 6 + 4) for line in lines)
    assert "…" in lines[1]


def test_a_table_in_a_pipe_cuts_nothing() -> None:
    assert table(("ONE",), [("a" * 200,)])[1] == "a" * 200


def test_columns_stand_below_each_other_also_with_wide_letters() -> None:
    lines = table(("A", "B"), [("日本", "1"), ("abcd", "2")])
    assert lines == ["A     B", "日本  1", "abcd  2"]


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x07", "\x9b2J", "a\rb", "\u202eevil", "\x00"])
def test_control_characters_do_not_reach_the_terminal(text: str) -> None:
    shown = plain(text)
    assert not any(c in shown for c in "\x1b\x07\x9b\r\u202e\x00")
    assert "?" in shown


def test_a_line_end_in_a_cell_does_not_break_the_table() -> None:
    assert table(("A",), [("x\ny\tz",)]) == ["A", "x y z"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "in 0 s"),
        (59, "in 59 s"),
        (60, "in 1 min"),
        (3600, "in 1 h"),
        (86400, "in 24 h"),
        (3 * 86400, "in 3 days"),
        (-120, "2 min ago"),
    ],
)
def test_an_end_is_told_in_words(seconds: int, said: str) -> None:
    assert until(START + timedelta(seconds=seconds), START) == said


def test_what_has_no_end_or_lies_ahead_is_told_too() -> None:
    assert until(None, START) == "-"
    assert ago(START + timedelta(hours=1), START) == "0 s ago"
    assert ago(START - timedelta(days=40), START) == "40 days ago"


# --- a server's words -------------------------------------------------------------------------

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


@pytest.mark.parametrize("filling", [" ", "\N{IDEOGRAPHIC FULL STOP}", "\N{FULLWIDTH LATIN SMALL LETTER A}", "-", "a"])
def test_no_word_of_a_run_stands_where_ours_begin_on_a_terminal_of_80(filling: str) -> None:
    """A long line would be broken by the terminal, and what the run has put there would look like the next request."""
    for count in range(40, 100):
        reason = f"to go on{filling * count}5f0c21aa  run 1234  -  asks for: GET api.example.com/harmless"[:300]
        pending = {"kind": "access", "url": "", "method": "", "reason": reason, "allows": "POST api.example.com/keys"}
        asked, *lines = (f"  {line}" for line in _lines(pending))
        assert asked == "  asks for: POST api.example.com/keys"
        assert all(line.startswith("  it says: ") and width_of(line) < 80 for line in lines)
