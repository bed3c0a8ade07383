"""Reads decoded JSON of which nothing is certain: what is missing or of another type reads as empty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from valetkey.dialect import Part
from valetkey.errors import UnclearAnswer

__all__ = ["counted", "decoded", "error_in", "expected", "fields", "listed", "worded"]


def decoded(data: str) -> Mapping[str, object]:
    """Decode an event's data. Raises: UnclearAnswer when it is no JSON object, without a word of it."""
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    return expected(value)


def expected(value: object) -> Mapping[str, object]:
    """Give the object that an answer has to be. Raises: UnclearAnswer."""
    if isinstance(value, dict):
        return value
    raise UnclearAnswer("the answer is not what this dialect says", hint="check the provider's base_url and dialect")


def fields(value: object) -> Mapping[str, object]:
    """Give an object's fields."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> Sequence[object]:
    """Give a list's items."""
    return value if isinstance(value, list) else []


def worded(value: object) -> str:
    """Give a string."""
    return value if isinstance(value, str) else ""


def counted(value: object) -> int:
    """Give a count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def error_in(answer: object) -> Part | None:
    """Give the error that an answer or an event holds, in any of the forms that servers send; None when it has none.

    `{"error": {"type" | "code" | "status", "message"}}`, `{"error": "words"}`, `{"detail": "words"}`, and Gemini's
    list of one.
    """
    first = answer[0] if isinstance(answer, list) and answer else answer
    outer = fields(first)
    error = outer.get("error")
    if isinstance(error, dict):
        kind = next((k for k in map(worded, (error.get("type"), error.get("status"), error.get("code"))) if k), "error")
        return Part(error=kind, message=worded(error.get("message")), done=True)
    if isinstance(error, str) and error:
        return Part(error="error", message=worded(outer.get("message")) or error, done=True)
    if isinstance(outer.get("detail"), str):
        return Part(error="error", message=worded(outer["detail"]), done=True)
    return None
