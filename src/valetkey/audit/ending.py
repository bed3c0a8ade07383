"""Verifies the end of an audit, for whoever has no time for the whole of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from valetkey.audit import chain
from valetkey.audit.reader import reading
from valetkey.audit.signing import last_signed

__all__ = ["End", "verify_end"]

# In some hundredths of a second.
_AT_THE_END = 1000
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class End:
    """What `verify_end` found in order: how many entries there are, how many of them it looked at, and are signed."""

    entries: int
    looked_at: int
    signed: int


def verify_end(path: Path, key: str | None, *, at_the_end: int = _AT_THE_END) -> End:
    """Verify the last checkpoint and so many entries at the end of an audit, or all since that checkpoint.

    `key` is the pinned one, None where nothing was signed yet. What was done to entries long before shows in `verify`
    alone. Raises: AuditBroken, AuditUnwritable, WrongMode.
    """
    with reading(path) as connection:
        if connection is None:
            return End(entries=0, looked_at=0, signed=0)
        (entries,) = connection.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchone()
        _, signed, signed_hash = last_signed(connection, key or "")
        if signed > entries:
            raise chain.broken(entries + 1, f"it is missing: {signed} were signed")
        seq = begin = max(0, min(entries - at_the_end, signed - 1))
        row = connection.execute("SELECT hash FROM entry WHERE seq = ?", (begin,)).fetchone()
        if begin and row is None:
            raise chain.broken(begin, "it is missing")
        last = row[0] if begin else chain.FIRST
        if _HASH.fullmatch(last) is None:
            raise chain.broken(begin, "it was changed")
        for number, body, told in connection.execute(
            "SELECT seq, body, hash FROM entry WHERE seq > ? ORDER BY seq", (begin,)
        ):
            seq += 1
            last = chain.link(last, chain.content_hash(body.encode()))
            if number != seq or last != told:
                raise chain.broken(seq, "it was changed, or one before it is missing")
            if seq == signed and last != signed_hash:
                raise chain.broken(seq, "its checkpoint is of another chain")
        return End(entries=entries, looked_at=entries - begin, signed=signed)
