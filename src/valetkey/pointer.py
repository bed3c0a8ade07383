"""JSON pointers (RFC 6901): where in an answer a declaration says that something is."""

from __future__ import annotations

__all__ = ["look_up", "text_at"]


def look_up(document: object, pointer: str) -> object:
    """Give what the pointer names, None where nothing is. Without a leading slash it is one member's name."""
    parts = (
        [p.replace("~1", "/").replace("~0", "~") for p in pointer[1:].split("/")] if pointer[:1] == "/" else [pointer]
    )
    for part in parts if pointer else []:
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return None
    return document


def text_at(document: object, pointer: str | None) -> str | None:
    """Give a string or a number there as text; None for anything else, or when it is empty."""
    found = None if pointer is None else look_up(document, pointer)
    if isinstance(found, str):
        return found or None
    if isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    return None
