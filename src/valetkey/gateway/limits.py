"""How much a client may ask for: requests a minute, tokens a day, requests at a time."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

__all__ = ["Limits", "Meter"]

_MINUTE = 60.0
_DAY = 86400
# Nobody knows when a request under way will end.
_WHILE_BUSY = 1.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent: int | None = None


class Meter:
    """Counts what one client asks for. Pure: the time is given in, in seconds of a clock that only grows.

    `unix_offset` is what that clock lacks to Unix time: a day ends at midnight UTC. How many tokens a request takes is
    known when it is done, so those under way may pass the day's limit, and the next one is refused.
    """

    def __init__(self, limits: Limits, *, now: float, unix_offset: float, tokens_today: int = 0) -> None:
        self.limits = limits
        self.unix_offset = unix_offset
        self.active = 0
        self._day_begins = self._day_of(now)
        self._tokens = tokens_today
        # When the last requests came, as many as a minute may have: where the next one is written stands the oldest.
        self._times = array("d", [-math.inf]) * (limits.requests_per_minute or 0)
        self._next = 0

    def admit(self, now: float) -> float | None:
        """Count a request and give None; or count nothing and give the seconds until one may come (Retry-After).

        After None, `done` has to be called once.
        """
        wait = self._wait(now)
        if wait is not None:
            return wait
        if self._times:
            self._times[self._next] = now
            self._next = (self._next + 1) % len(self._times)
        self.active += 1
        return None

    def done(self, tokens: int = 0) -> None:
        """Count the end of a request that was admitted, and what it took."""
        self.active -= 1
        self._tokens += tokens

    def tokens_today(self, now: float) -> int:
        """Give how many tokens the day has taken so far."""
        if not self._day_begins <= now + self.unix_offset < self._day_begins + _DAY:
            self._day_begins, self._tokens = self._day_of(now), 0
        return self._tokens

    def _wait(self, now: float) -> float | None:
        limits = self.limits
        if limits.tokens_per_day is not None and self.tokens_today(now) >= limits.tokens_per_day:
            return _DAY - (now + self.unix_offset) % _DAY
        if self._times:
            # Those of the last minute, without the one just a minute ago (half open, so that N a minute stay N).
            oldest = self._times[self._next]
            if now - oldest < _MINUTE:
                return oldest + _MINUTE - now
        if limits.concurrent is not None and self.active >= limits.concurrent:
            return _WHILE_BUSY
        return None

    def _day_of(self, now: float) -> float:
        return (now + self.unix_offset) // _DAY * _DAY
