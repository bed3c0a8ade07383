"""The clock that everything asks, so that tests can move it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["Clock", "SystemClock", "written"]


# Linux's CLOCK_MONOTONIC and time.monotonic() stand still in suspend; macOS's CLOCK_MONOTONIC does not.
_AGEING: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """What time it is, and how to wait."""

    def now(self) -> datetime:
        """Give the wall-clock time in UTC. It may jump."""
        ...

    def monotonic(self) -> float:
        """Give seconds that only grow. Only differences mean something, and only in this process."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait without holding up the event loop."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait in a thread of one's own."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """Give the wall-clock time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Give seconds that only grow, through suspend too: a token ages while the lid is closed."""
        return time.clock_gettime(_AGEING)

    async def sleep(self, seconds: float) -> None:
        """Wait without holding up the event loop."""
        await asyncio.sleep(seconds)

    def pause(self, seconds: float) -> None:
        """Wait in a thread of one's own."""
        time.sleep(seconds)


def written(moment: datetime, *, timespec: str = "auto") -> str:
    """Give a time in UTC as we write it for others: ISO 8601 with a Z."""
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")
