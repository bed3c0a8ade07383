"""Clocks that a test moves: see valetkey.testing.clock."""

from valetkey.testing.clock import START, FakeClock, SteppedClock

__all__ = ["START", "FakeClock", "SteppedClock"]
