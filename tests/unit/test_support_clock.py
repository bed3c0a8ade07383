"""The fake clock: the tests of everything else stand on it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from valetkey.clock import Clock
from valetkey.testing.clock import START, FakeClock


def test_advancing_moves_both_clocks_and_jumping_only_the_wall() -> None:
    clock = FakeClock()
    before = clock.monotonic()
    clock.advance(30)
    clock.jump(-3600)
    assert clock.now() == START + timedelta(seconds=30 - 3600)
    assert clock.monotonic() - before == 30


@pytest.mark.anyio
async def test_waiting_moves_the_clock_and_is_written_down() -> None:
    fake = FakeClock()
    clock: Clock = fake
    await clock.sleep(5)
    clock.pause(2.5)
    assert fake.waits == [5, 2.5]
    assert clock.now() == START + timedelta(seconds=7.5)


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        FakeClock().advance(-1)
