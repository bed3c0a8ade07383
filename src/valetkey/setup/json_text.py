"""A member set in the text of a JSON object (RFC 8259), and everything else left as it is written."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valetkey.errors import SetupRefused
from valetkey.setup.taking_back import Facts

__all__ = ["facts", "load", "with_members"]

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def load(content: bytes | None, path: Path | str) -> dict[str, Any]:
    """Give the object. Raises: SetupRefused for a file that is not one plain JSON object."""
    if content is None:
        return {}

    def refused(why: str) -> SetupRefused:
        return SetupRefused(f"{path} is left as it is: {why}", hint="mend it, or make the setting by hand")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise refused("it has a name twice in one object, and tools differ in which counts")
        return found

    def number(text: str) -> Any:
        raise ValueError(text)

    try:
        found = json.loads(content.decode(), object_pairs_hook=once, parse_constant=number)
    except (ValueError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise refused(f"it is not plain JSON{line}; comments would be lost") from None
    if not isinstance(found, dict):
        raise refused("it holds no JSON object")
    return found


def facts(content: bytes) -> Facts:
    """Give each value that is no object, with its place. Raises: SetupRefused."""
    found: Facts = Counter()

    def walk(value: object, place: tuple[str, ...]) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(inner, (*place, name))
        else:
            found[place, json.dumps(value)] += 1

    if content:
        walk(load(content, "the file"), ())
    return found


def with_members(content: bytes | None, path: Path, members: dict[tuple[str, ...], str | None]) -> bytes:
    """Give the text with each of these members, named by its path, set to a string; None takes it out.

    Raises: SetupRefused.
    """
    expected = load(content, path)
    text = "{}\n" if content is None else content.decode()
    for names, value in members.items():
        if value is None:
            text = _without(expected, text, names)
            continue
        holder = expected
        for name in names[:-1]:
            inner = holder.setdefault(name, {})
            if not isinstance(inner, dict):
                raise SetupRefused(
                    f"{path} is left as it is: {'.'.join(names[:-1])} is no object there",
                    hint="mend it, or make the setting by hand",
                )
            holder = inner
        holder[names[-1]] = value
        text = _set(text, _skip(text, 0), names, value)
    return text.encode()


@dataclass(frozen=True)
class _Member:
    name: str
    at: int
    value_at: int
    value_end: int


def _members(text: str, at: int) -> tuple[list[_Member], int]:
    """Find the members of the object whose `{` is at `at`, and its `}`. The text was read before: it is well formed."""
    found: list[_Member] = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, end = _DECODER.raw_decode(text, at)
        value_at = _skip(text, _skip(text, end) + 1)
        value_end = _DECODER.raw_decode(text, value_at)[1]
        found.append(_Member(name, at, value_at, value_end))
        at = _skip(text, value_end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found, at


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _set(text: str, at: int, names: tuple[str, ...], value: str) -> str:
    found, end = _members(text, at)
    member = next((m for m in found if m.name == names[0]), None)
    if member is None:
        return _insert(text, at, end, found, names, value)
    if len(names) == 1:
        return text[: member.value_at] + json.dumps(value, ensure_ascii=False) + text[member.value_end :]
    return _set(text, member.value_at, names[1:], value)


def _without(expected: dict[str, Any], text: str, names: tuple[str, ...]) -> str:
    """Take a member out of the text, and of what the text is to say; it may be missing."""
    holder: Any = expected
    at = _skip(text, 0)
    for name in names[:-1]:
        holder = holder.get(name)
        if not isinstance(holder, dict):
            return text
        at = next(m.value_at for m in _members(text, at)[0] if m.name == name)
    if names[-1] not in holder:
        return text
    del holder[names[-1]]
    found, _ = _members(text, at)
    index = next(i for i, m in enumerate(found) if m.name == names[-1])
    if index + 1 < len(found):
        return text[: found[index].at] + text[found[index + 1].at :]
    begin = found[index - 1].value_end if index else at + 1
    return text[:begin] + text[found[index].value_end :]


def _insert(text: str, at: int, end: int, found: list[_Member], names: tuple[str, ...], value: str) -> str:
    """Put it first: the lines of the others stay what they are, commas too."""
    newline = "\r\n" if "\r\n" in text else "\n"
    outer = _indent(text, at)
    # What stands between the brace and the first member says how this object is laid out.
    between = text[at + 1 : found[0].at] if found else newline + outer + _step(text)
    if "\n" not in between:
        return f"{text[: at + 1]}{between}{_written(names, value, None, '')}, {text[found[0].at :]}"
    indent = between.rpartition("\n")[2]
    written = _written(names, value, _step(text), indent).replace("\n", newline)
    if found:
        return f"{text[: at + 1]}{newline}{indent}{written},{text[at + 1 :]}"
    return f"{text[: at + 1]}{newline}{indent}{written}{newline}{outer}{text[end:]}"


def _written(names: tuple[str, ...], value: str, step: str | None, indent: str) -> str:
    held: Any = value
    for name in reversed(names[1:]):
        held = {name: held}
    written = json.dumps(held, indent=step, ensure_ascii=False)
    return f"{json.dumps(names[0])}: " + written.replace("\n", "\n" + indent)


def _indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _step(text: str) -> str:
    """Give one step of indentation as this file has it."""
    match = re.search(r"\{[ \t]*\r?\n([ \t]+)\"", text)
    return match[1] if match else "  "
