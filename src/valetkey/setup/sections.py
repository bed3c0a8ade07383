"""A value set in text that has `[sections]` with `name = value` lines, and all else left as it is written.

It looks at lines alone. Whoever calls it reads the result with a real reader and sees that it says what it should.
"""

from __future__ import annotations

import re

__all__ = ["newline_of", "with_section", "with_value"]


def newline_of(text: str) -> str:
    """Give the line end that this text has."""
    return "\r\n" if "\r\n" in text else "\n"


def with_value(text: str, *, header: str, name: str, value: str) -> str:
    """Set a value in a section, which is made at the end where there is none."""
    lines = text.splitlines(keepends=True)
    newline = newline_of(text)
    fresh = f"{name} = {value}{newline}"
    at = next((i for i, line in enumerate(lines) if line.split("#")[0].split(";")[0].strip() == header), None)
    if at is None:
        return with_section(text, f"{header}{newline}{fresh}")
    for i in range(at + 1, len(lines)):
        if lines[i].startswith("["):
            break
        if re.match(rf"{re.escape(name)}\s*[=:]", lines[i]):
            lines[i] = fresh
            return "".join(lines)
    if not lines[at].endswith("\n"):
        lines[at] += newline
    lines.insert(at + 1, fresh)
    return "".join(lines)


def with_section(text: str, section: str) -> str:
    """Put a section at the end, behind an empty line."""
    newline = newline_of(text)
    if text and not text.endswith("\n"):
        text += newline
    return text + (newline if text.strip() else "") + section
