"""What the trace keeps of one request, and how everything secret goes out of it before it is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import unquote

from valetkey import log
from valetkey.characters import UNSEEN

__all__ = ["BODY_LIMIT_BYTES", "Cleaner", "Row", "is_failure", "is_refusal", "line"]

BODY_LIMIT_BYTES = 8192
_LONGEST = 2048
# No count of tokens is larger, and SQLite's integers end at 2**63.
_HIGHEST = 2**53
# Paths repeat, and looking for secrets in one takes some 20 µs.
_REMEMBERED = 4096
_CONTROL = re.compile(rf"[\x00-\x1f{UNSEEN}]")
_CONTROL_IN_BODY = re.compile(rf"[\x00-\x08\x0b\x0c\x0e-\x1f{UNSEEN}]")


class Row(NamedTuple):
    """One request as the engine saw it; it may hold secrets until a `Cleaner` had it.

    `at`: Unix time of its beginning. `client`: the id of a valet key, "" where none was recognised. `account`:
    `provider@account`, or "". `outcome`: "ok" when the provider's answer was passed on, else the code of what was
    answered in its place. `way`: base-url, proxy, intercepted, tunnel.
    """

    at: float
    client: str
    account: str
    method: str
    host: str
    path: str
    status: int
    outcome: str
    way: str
    bytes_in: int
    bytes_out: int
    first_byte_ms: float | None
    duration_ms: float
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    request_body: str | bytes | None = None
    response_body: str | bytes | None = None


def is_refusal(row: Row) -> bool:
    """Say whether the gateway itself said no."""
    # A refused call of a tool is answered as JSON-RPC wants it, with 200 or 202.
    return row.outcome == "tool_refused" or (row.outcome != "ok" and 400 <= row.status < 500)


def is_failure(row: Row) -> bool:
    """Say whether it failed on the way, or the provider answered with an error."""
    return not is_refusal(row) and (row.outcome != "ok" or row.status >= 400)


class Cleaner:
    """Takes out of rows what is secret, what is no text, and what is too long. For one thread."""

    def __init__(self) -> None:
        self._texts = _Remembered(line)
        self._paths = _Remembered(lambda path: line(path.partition("?")[0].partition("#")[0]))
        # Client, account, method, host, path, outcome, way and model of rows that stayed as they were.
        self._clean: set[tuple[object, ...]] = set()
        self._generation = log.generation()

    def clean(self, rows: Iterable[Row]) -> list[Row]:
        """Give the rows as they may be written. Raises: TypeError, AttributeError when one is no row."""
        if self._generation != log.generation():
            self._generation = log.generation()
            self._texts.clear()
            self._paths.clear()
            self._clean.clear()
        return [row if self._is_clean(row) else self._cleaned(row) for row in rows]

    def _is_clean(self, row: Row) -> bool:
        """Say whether nothing in it has to be changed: the same words come again and again."""
        return row[1:6] + row[7:9] + row[13:14] in self._clean and _plain(row)

    def _cleaned(self, row: Row) -> Row:
        text, path = self._texts, self._paths
        cleaned = Row(
            row.at,
            text[row.client],
            text[row.account],
            text[row.method],
            text[row.host],
            path[row.path],
            row.status,
            text[row.outcome],
            text[row.way],
            row.bytes_in,
            row.bytes_out,
            row.first_byte_ms,
            row.duration_ms,
            None if row.model is None else text[row.model],
            None if row.input_tokens is None else min(row.input_tokens, _HIGHEST),
            None if row.output_tokens is None else min(row.output_tokens, _HIGHEST),
            None if row.request_body is None else _body(row.request_body),
            None if row.response_body is None else _body(row.response_body),
        )
        if cleaned == row and _plain(row):
            if len(self._clean) >= _REMEMBERED:
                self._clean.clear()
            self._clean.add(row[1:6] + row[7:9] + row[13:14])
        return cleaned


def _plain(row: Row) -> bool:
    return (
        row.request_body is None
        and row.response_body is None
        and (row.input_tokens or 0) <= _HIGHEST
        and (row.output_tokens or 0) <= _HIGHEST
    )


class _Remembered(dict[str, str]):
    """What was made of texts. Most repeat: the way to the answer is a look-up in C."""

    def __init__(self, make: Callable[[str], str]) -> None:
        self._make = make

    def __missing__(self, text: str) -> str:
        found = self._make(text)
        if len(self) >= _REMEMBERED:
            self.clear()
        if len(text) <= _LONGEST:
            self[text] = found
        return found


def line(text: str) -> str:
    """Give a text as it may be written: without secrets, on one line, not too long."""
    return _CONTROL.sub("?", _redacted(text))[:_LONGEST]


def _redacted(text: str) -> str:
    """Take secrets out, those too that are percent-encoded in a way that nobody does without meaning to."""
    found = log.redact(text)
    decoded, times = found, 0
    while "%" in decoded and times < 3:
        decoded, times = unquote(decoded), times + 1
        clean = log.redact(decoded)
        if clean != decoded:
            found = decoded = clean
    return found


def _body(body: str | bytes) -> str:
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    # The end of a body that was cut may be the beginning of a secret.
    text = log.without_beginning(log.redact(text))
    text = _CONTROL_IN_BODY.sub("?", text)
    return text.encode()[:BODY_LIMIT_BYTES].decode("utf-8", "ignore")
