"""What a person sees: tables that fit the terminal, text without control characters, times in words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from valetkey.characters import UNSEEN
from valetkey.errors import UsageError

__all__ = ["ago", "fitted", "plain", "plain_json", "since", "table", "until", "width_of"]

# Text from a server must not move the cursor, colour the screen or change the title of a terminal.
_CONTROL = re.compile(rf"[\x00-\x08\x0b-\x1f{UNSEEN}]")
_IN_JSON = re.compile(f"[{UNSEEN}]")
_GAP = "  "
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
# A column gives way to others only down to this.
_MINIMUM = 6


def plain(text: str) -> str:
    """Give `text` with control characters shown as `?`; tabs and line ends stay."""
    return _CONTROL.sub("?", text)


def plain_json(document: str) -> str:
    """Give a JSON text with the control characters that JSON leaves as they are written as escapes (RFC 8259, 7)."""
    return _IN_JSON.sub(lambda found: f"\\u{ord(found.group()):04x}", document)


def width_of(text: str) -> int:
    """Give the number of terminal cells that `text` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> list[str]:
    """Lay out rows below headings; with `width`, the widest columns give way until each line fits."""
    lines = [[plain(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in [headings, *rows]]
    widths = [max(width_of(row[i]) for row in lines) for i in range(len(headings))]
    if width is not None:
        room = width - len(_GAP) * (len(widths) - 1)
        while sum(widths) > room and max(widths) > _MINIMUM:
            widths[widths.index(max(widths))] -= 1
    return [_GAP.join(fitted(cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in lines]


def fitted(text: str, width: int) -> str:
    """Give `text` in exactly `width` cells: cut with an ellipsis, or filled up."""
    if width_of(text) > width:
        kept = ""
        for character in text:
            if width_of(kept) + width_of(character) > width - 1:
                break
            kept += character
        text = kept + "…"
    return text + " " * (width - width_of(text))


def until(end: datetime | None, now: datetime) -> str:
    """Say how long something still lives: `in 3 h`, `2 days ago`, or `-` where it has no end."""
    if end is None:
        return "-"
    return f"in {_span(end - now)}" if end >= now else f"{_span(now - end)} ago"


def ago(then: datetime, now: datetime) -> str:
    """Say how long ago something was."""
    return f"{_span(max(now - then, timedelta(0)))} ago"


def since(text: str, now: datetime) -> datetime:
    """Read `--since`. Raises: UsageError."""
    try:
        if span := re.fullmatch(r"(\d{1,6})([smhd])", text):
            return now - timedelta(**{_UNITS[span[2]]: int(span[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--since {text[:40]!r} is no time", hint="give it as 30m, 1h, 2d or 2026-11-22T12:00"
        ) from None


def _span(length: timedelta) -> str:
    seconds = round(length.total_seconds())
    for unit, size in (("day", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit != "day" and seconds >= size):
            count = round(seconds / size)
            return f"{count} {unit}{'s' if unit == 'day' and count != 1 else ''}"
    return f"{seconds} s"
