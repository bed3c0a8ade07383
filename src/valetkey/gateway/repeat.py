"""Tells a head that has come before on the same connection, but for the number in its Content-Length.

A client sends nearly the same head again and again. What the parser and every check have taken once, byte for byte,
need not be parsed, looked up and decided on once more: only the length of the body is another, and it is a plain
number. This halves the work before a request is sent on.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valetkey.gateway.credentials import Ready
    from valetkey.gateway.exchange import Exchange
    from valetkey.gateway.message import ReadHead
    from valetkey.gateway.plan import Plan
    from valetkey.gateway.ring import LiveKey

__all__ = ["Repeat"]

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
# Digits of a length, and what ends the line.
_LONGEST = 12


class Repeat:
    """A request that came in one piece and was sent on, and what was made of it. It holds until `epoch` has moved."""

    __slots__ = (
        "_after",
        "_before",
        "epoch",
        "head",
        "headers",
        "keep_alive",
        "live",
        "method",
        "out",
        "plan",
        "ready",
        "token",
        "url",
        "version",
    )

    def __init__(
        self, exchange: Exchange, head: ReadHead, live: LiveKey, plan: Plan, before: bytes, after: bytes
    ) -> None:
        # The bytes around the length; `_after` is empty where the head has none.
        self._before = before
        self._after = after
        self.method = exchange.method
        self.url = exchange.url
        self.version = exchange.version
        self.keep_alive = exchange.keep_alive
        self.headers = exchange.headers
        self.token = exchange.token
        self.epoch = exchange.gateway.epoch
        self.head = head
        self.live = live
        self.plan = plan
        # The head as it is sent, up to its length, with the credential of `ready`.
        self.ready: Ready | None = None
        self.out = b""

    @classmethod
    def of(cls, exchange: Exchange, head: ReadHead, live: LiveKey, plan: Plan) -> Repeat | None:
        """Give it for a request whose raw head is known; None where its framing is more than a length."""
        if head.chunked or head.expect or head.websocket or not exchange.keep_alive:
            return None
        raw = exchange.raw_head
        if not raw.endswith(b"\r\n\r\n"):
            return None
        found = _LENGTH.search(raw)
        if found is None:
            return cls(exchange, head, live, plan, raw, b"")
        return cls(exchange, head, live, plan, raw[: found.start(1)], raw[found.end(1) :])

    def body_in(self, data: bytes) -> bytes | None:
        """Give the body where `data` is this head again with all of its body behind it, and nothing else."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        at = len(before)
        if not after:
            return b"" if len(data) == at else None
        end = data.find(b"\r", at, at + _LONGEST)
        digits = data[at:end]
        # As `message.read_length` wants it: digits alone, and no zero before others.
        if end < 0 or not digits.isdigit() or (digits[0] == 0x30 and len(digits) > 1):
            return None
        if not data.startswith(after, end):
            return None
        begin = end + len(after)
        return data[begin:] if len(data) - begin == int(digits) else None
