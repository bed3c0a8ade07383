"""Verifies an audit: the same rules as docs/verify_audit.py, which knows nothing of this package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from valetkey.audit.chain import FIRST, broken, canonical, content_hash, link
from valetkey.audit.signing import good_signature
from valetkey.errors import UsageError

__all__ = ["HEADER", "Anchor", "Verified", "lines_of", "verify"]

HEADER = {"audit": "valetkey", "version": 1}
_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
# No entry comes near; a line without an end must not fill the memory.
_LONGEST_LINE = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """What somebody has kept elsewhere: the hash of the chain up to an entry."""

    seq: int
    hash: str

    @classmethod
    def read(cls, text: str) -> Anchor:
        """Read `SEQ:HASH`. Raises: UsageError."""
        found = re.fullmatch(r"([1-9][0-9]{0,17}):([0-9a-f]{64})", text.strip())
        if found is None:
            raise UsageError("the anchor is not of the form SEQ:HASH", hint="give it as `audit verify` printed it")
        return cls(seq=int(found[1]), hash=found[2])

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found to be in order. `hidden` entries are there as bare hashes; `signed` is the last signed entry."""

    entries: int
    hidden: int
    checkpoints: int
    signed: int
    end: Anchor | None


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Give the lines of a file; one without an end comes in pieces, and is found to be no line."""
    return iter(lambda: file.readline(_LONGEST_LINE + 1), b"")


def verify(lines: Iterable[bytes], *, key: str | None, anchor: Anchor | None, whole: bool) -> Verified:
    """Go through an audit, line by line, and say what it holds. `key` is the public key, 64 hex digits.

    `whole`: it has to end with a checkpoint, as every export does. Raises: AuditBroken, with the entry's number.
    """
    state = _State(key, anchor)
    given = iter(lines)
    if next(given, b"") != canonical(HEADER) + b"\n":
        raise broken(0, "it does not begin as an audit does")
    for line in given:
        state.take(_read(line, state.seq + 1))
    if anchor is not None and state.seq < anchor.seq:
        raise broken(state.seq + 1, f"it was cut off: the anchor is of entry {anchor.seq}")
    if whole and (state.signed != state.seq or state.checkpoints == 0):
        raise broken(state.signed + 1, "no checkpoint signs it: the end was changed or cut off")
    return Verified(
        entries=state.seq,
        hidden=state.hidden,
        checkpoints=state.checkpoints,
        signed=state.signed,
        end=Anchor(seq=state.seq, hash=state.last) if state.seq else None,
    )


class _State:
    def __init__(self, key: str | None, anchor: Anchor | None) -> None:
        self._key = key
        self._anchor = anchor
        self.seq = 0
        self.last = FIRST
        self.hidden = 0
        self.checkpoints = 0
        self.signed = 0

    def take(self, line: dict[str, Any]) -> None:
        match line:
            case {"entry": dict() as entry, "hash": str() as told, **rest} if not rest:
                if entry.get("seq") != self.seq + 1:
                    raise broken(self.seq + 1, "another entry stands in its place")
                self._go_on(content_hash(canonical(entry)), told)
            case {"content": str() as content, "hash": str() as told, **rest} if not rest and _HASH.fullmatch(content):
                self.hidden += 1
                self._go_on(content, told)
            case {"checkpoint": dict() as checkpoint, "signature": str() as signature, **rest} if not rest:
                self._checkpoint(checkpoint, signature)
            case _:
                raise broken(self.seq + 1, "it is no entry")

    def _go_on(self, content: str, told: str) -> None:
        self.seq += 1
        self.last = link(self.last, content)
        if self.last != told:
            raise broken(self.seq, "it was changed, or one before it is missing")
        if self._anchor is not None and self._anchor.seq == self.seq and self._anchor.hash != self.last:
            raise broken(self.seq, "it is not what the anchor was taken of")

    def _checkpoint(self, checkpoint: dict[str, Any], signature: str) -> None:
        at = max(self.seq, 1)
        told = checkpoint.get("seq")
        if isinstance(told, int) and told > self.seq:
            raise broken(self.seq + 1, "it is missing: a checkpoint of a later one is there")
        if (told, checkpoint.get("hash")) != (self.seq, self.last):
            raise broken(at, "its checkpoint is of another place")
        if checkpoint.get("number") != self.checkpoints + 1:
            raise broken(at, "a checkpoint before it is missing, or was put in")
        body = canonical(checkpoint)
        if self._key is None or not _SIGNATURE.fullmatch(signature) or not good_signature(self._key, body, signature):
            raise broken(at, "its checkpoint is signed with another key, or was changed")
        self.checkpoints += 1
        self.signed = self.seq


def _read(line: bytes, seq: int) -> dict[str, Any]:
    """Read one line, which has to be canonical: then no byte of it can be another one."""
    try:
        value = json.loads(line) if len(line) <= _LONGEST_LINE else None
        same = isinstance(value, dict) and canonical(value) + b"\n" == line
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise broken(seq, "its line cannot be read")
    assert isinstance(value, dict)  # noqa: S101  # `same` says so
    return value
