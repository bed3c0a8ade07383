"""A list to choose from on a terminal: by arrow keys, by number, or by typing a part of the name."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import click

from valetkey.cli.output import plain, width_of

__all__ = ["Entry", "Place", "choose", "moved"]

_UP = frozenset({"\x1b[A", "\x1bOA", "\x10"})
_DOWN = frozenset({"\x1b[B", "\x1bOB", "\x0e"})
_ENTER = frozenset({"\r", "\n"})
_ERASE = frozenset({"\x7f", "\x08"})
_CANCEL = frozenset({"\x1b", "\x04"})


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line: `id` is what is given back, `note` stands behind the label."""

    id: str
    label: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the cursor is, and what was typed so far."""

    at: int = 0
    typed: str = ""


def choose(title: str, entries: Sequence[Entry]) -> str:
    """Let the user choose one. Raises: click.Abort when he leaves with Ctrl-C, Ctrl-D or Escape."""
    from valetkey.cli.terminal import keys

    place, drawn = Place(), 0
    with keys() as pressed:
        drawn = _draw(title, entries, place, drawn)
        for key in pressed:
            if key in _ENTER:
                break
            if key in _CANCEL:
                raise click.Abort
            place = moved(entries, place, key)
            drawn = _draw(title, entries, place, drawn)
        else:
            raise click.Abort
    chosen = entries[place.at]
    _erase(drawn)
    click.echo(f"{plain(title)}: {plain(chosen.label)}", err=True)
    return chosen.id


def moved(entries: Sequence[Entry], place: Place, key: str) -> Place:
    """Say where a key leads. Digits are a number as it stands in the list; letters look for a label or an id."""
    if key in _UP:
        return Place(at=(place.at - 1) % len(entries))
    if key in _DOWN:
        return Place(at=(place.at + 1) % len(entries))
    if key in _ERASE:
        typed = place.typed[:-1]
        at = _found(entries, typed)
        return Place(at=place.at if at is None else at, typed=typed)
    if not key.isprintable():
        return place
    # Where nothing goes on like that, the key begins anew.
    for typed in (place.typed + key, key):
        at = _found(entries, typed)
        if at is not None:
            return Place(at=at, typed=typed)
    return place


def _found(entries: Sequence[Entry], typed: str) -> int | None:
    if typed.isdecimal():
        return int(typed) - 1 if 1 <= int(typed) <= len(entries) else None
    wanted = typed.lower()
    if not wanted:
        return None
    places = [(e.id.lower(), e.label.lower()) for e in entries]
    for test in (str.startswith, str.__contains__):
        for i, names in enumerate(places):
            if any(test(name, wanted) for name in names):
                return i
    return None


def _draw(title: str, entries: Sequence[Entry], place: Place, drawn: int) -> int:
    """Draw as many lines as fit around the cursor over what was drawn before; give how many those are."""
    columns, rows = shutil.get_terminal_size((80, 24))
    room = max(3, min(len(entries), rows - 3))
    first = max(0, min(place.at - room // 2, len(entries) - room))
    lines = [f"{plain(title)} (arrow keys, number or name; Enter)"]
    for i, entry in enumerate(entries[first : first + room], start=first):
        text = f"{'>' if i == place.at else ' '} {i + 1:>2} {plain(entry.label)}"
        if entry.note:
            text += f"  {plain(entry.note)}"
        lines.append(click.style(_cut(text, columns), bold=i == place.at))
    _erase(drawn)
    click.echo("\n".join(lines), err=True)
    return len(lines)


def _cut(text: str, columns: int) -> str:
    while width_of(text) >= columns:
        text = text[:-1]
    return text


def _erase(lines: int) -> None:
    if lines:
        click.echo(f"\x1b[{lines}A\x1b[J", err=True, nl=False, color=True)
