"""Reads audit.db, for `audit show`, `verify` and `export`; it never makes or changes a file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from valetkey.audit import chain
from valetkey.audit.chain import broken, canonical, content_hash
from valetkey.audit.verify import HEADER
from valetkey.errors import AuditUnwritable
from valetkey.stores import modes

__all__ = ["is_about", "lines", "newest", "reading"]

_BUSY_SECONDS = 5.0
_FIELDS = {"account", "at", "detail", "kind", "salt", "seq", "who"}
_NO_END = 2**63 - 1


def newest(path: Path, limit: int, *, wanted: Callable[[Mapping[str, Any]], bool]) -> list[dict[str, Any]]:
    """Give the newest entries that are wanted, with their hashes, the newest last.

    Raises: AuditBroken, AuditUnwritable.
    """
    found: list[dict[str, Any]] = []
    with reading(path) as connection:
        if connection is None:
            return found
        for seq, body, told in connection.execute("SELECT seq, body, hash FROM entry ORDER BY seq DESC"):
            entry = _entry(body)
            if set(entry) != _FIELDS:
                raise broken(seq, "it cannot be read")
            if wanted(entry):
                found.append({**entry, "hash": told})
                if len(found) == limit:
                    break
    return found[::-1]


def is_about(entry: Mapping[str, Any], client: str) -> bool:
    """Say whether an entry is a client's (`run:ID`, `key:ID`), or tells of it, as the issue of a key does."""
    detail = entry.get("detail")
    return entry.get("who") == client or (isinstance(detail, dict) and detail.get("client") == client)


def lines(path: Path, *, client: str | None = None, signed_alone: bool = False) -> Iterator[bytes]:
    """Give the audit as it is exported and verified, line by line: each checkpoint behind the entry that it signs.

    With `client` the entries of others are bare hashes; with `signed_alone` it ends with the last checkpoint. Raises:
    AuditUnwritable.
    """
    yield canonical(HEADER) + b"\n"
    with reading(path) as connection:
        if connection is None:
            return
        signed = {
            seq: (body, signature)
            for seq, body, signature in connection.execute("SELECT seq, body, signature FROM checkpoint")
        }
        end = max(signed, default=0) if signed_alone else _NO_END
        for seq, body, told in connection.execute(
            "SELECT seq, body, hash FROM entry WHERE seq <= ? ORDER BY seq", (end,)
        ):
            yield _line(body, told, client)
            if seq in signed:
                yield _checkpoint(*signed.pop(seq))
        # Of entries that are gone: whoever verifies has to see them.
        for _, left in sorted(signed.items()):
            yield _checkpoint(*left)


def _line(body: str, told: str, client: str | None) -> bytes:
    # By its bytes, not by what they mean: what was changed in the file has to show.
    if client is None or is_about(_entry(body), client):
        return b'{"entry":%b,"hash":%b}\n' % (body.encode(), canonical(told))
    return canonical({"content": content_hash(body.encode()), "hash": told}) + b"\n"


def _checkpoint(body: str, signature: str) -> bytes:
    return b'{"checkpoint":%b,"signature":%b}\n' % (body.encode(), canonical(signature))


def _entry(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Give a connection in one read transaction: all of it is of one moment. None where there is no audit yet."""
    if not modes.check_file(str(path)):
        yield None
        return
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
            connection.text_factory = lambda text: text.decode("utf-8", "replace")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:  # made a moment ago
                yield None
                return
            if version > chain.SCHEMA:
                raise AuditUnwritable(f"{path} was written by a newer Valetkey", hint="update Valetkey")
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as error:
        raise chain.unwritable(str(path), error) from error
