"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

__all__ = ["START", "FakeClock", "SteppedClock"]

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class FakeClock:
    """A valetkey.clock.Clock. Waiting takes no time and moves it; `waits` holds what was waited, in seconds."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._monotonic = 1000.0
        self._lock = threading.Lock()
        self.waits: list[float] = []

    def now(self) -> datetime:
        """Give the wall-clock time in UTC."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Give seconds that only grow."""
        with self._lock:
            return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass: both clocks move."""
        if seconds < 0:
            raise ValueError("time does not run backwards; use jump() for the wall clock")
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as NTP or a person does; the monotonic clock stays."""
        with self._lock:
            self._now += timedelta(seconds=seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait for no time: the clock moves and other tasks get their turn."""
        self._wait(seconds)
        await asyncio.sleep(0)

    def pause(self, seconds: float) -> None:
        """Wait for no time, in a thread of one's own."""
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
        self.advance(seconds)


class SteppedClock(FakeClock):
    """Who sleeps here sleeps until the test has moved the clock far enough, in the loop of the sleepers."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        """Wait for `advance`."""
        self.waits.append(seconds)
        if seconds <= 0:
            return
        woken = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.monotonic() + seconds, woken))
        await woken

    def advance(self, seconds: float) -> None:
        """Let time pass, and wake up whose time it is."""
        super().advance(seconds)
        for end, woken in self._sleepers:
            if self.monotonic() >= end and not woken.done():
                woken.set_result(None)
