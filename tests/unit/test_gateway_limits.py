"""Requests a minute, tokens a day, requests at a time: counted by a clock that is given in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.gateway.limits import Limits, Meter

DAY = 86400.0
# 2026-11-22 12:00 UTC.
NOON = 1795348800.0
START = 1000.0


def meter(
    *,
    rpm: int | None = None,
    tokens: int | None = None,
    concurrent: int | None = None,
    tokens_today: int = 0,
    unix: float = NOON,
) -> Meter:
    """Give a meter whose clock says START where the wall clock says `unix`."""
    limits = Limits(requests_per_minute=rpm, tokens_per_day=tokens, concurrent=concurrent)
    return Meter(limits, now=START, unix_offset=unix - START, tokens_today=tokens_today)


def test_without_limits_all_is_admitted() -> None:
    counting = meter()
    assert [counting.admit(START) for _ in range(1000)] == [None] * 1000
    counting.done(tokens=10**9)
    assert counting.admit(START) is None
    assert counting.active == 1000


def test_a_minute_has_room_for_so_many_and_tells_when_there_is_room_again() -> None:
    counting = meter(rpm=3)
    assert [counting.admit(START + at) for at in (0, 10, 20)] == [None, None, None]
    assert counting.admit(START + 20) == 40
    assert counting.admit(START + 59.5) == 0.5
    # Just a minute after the first one: its place is free, and only its.
    assert counting.admit(START + 60) is None
    assert counting.admit(START + 60) == 10
    assert counting.admit(START + 70) is None
    assert counting.admit(START + 70) == 10


def test_what_was_refused_does_not_count() -> None:
    counting = meter(rpm=1, concurrent=5)
    assert counting.admit(START) is None
    for second in range(1, 60):
        assert counting.admit(START + second) == 60 - second
    assert counting.admit(START + 60) is None
    assert counting.active == 2


@settings(deadline=None)
@given(
    rpm=st.integers(1, 8),
    gaps=st.lists(st.integers(0, 240), max_size=120),
)
def test_no_minute_ever_has_more_and_who_waits_as_told_gets_in(rpm: int, gaps: list[int]) -> None:
    """Quarters of a second, which floats hold exactly."""
    counting, now, admitted = meter(rpm=rpm), START, list[float]()
    for gap in gaps:
        now += gap / 4
        wait = counting.admit(now)
        if wait is not None:
            assert 0 < wait <= 60
            assert sum(now - 60 < at <= now for at in admitted) == rpm
            now += wait
            assert counting.admit(now) is None
        admitted.append(now)
        assert sum(now - 60 < at <= now for at in admitted) <= rpm


def test_tokens_of_a_day_run_out_until_midnight_utc() -> None:
    counting = meter(tokens=100)
    assert counting.admit(START) is None
    counting.done(tokens=99)
    assert counting.admit(START + 1) is None
    counting.done(tokens=1)
    assert counting.tokens_today(START + 2) == 100
    assert counting.admit(START + 2) == DAY / 2 - 2
    assert counting.admit(START + DAY / 2 - 1) == 1
    assert counting.admit(START + DAY / 2) is None
    assert counting.tokens_today(START + DAY / 2) == 0


def test_who_is_under_way_may_pass_the_limit_and_the_next_may_not() -> None:
    counting = meter(tokens=100)
    assert [counting.admit(START), counting.admit(START)] == [None, None]
    counting.done(tokens=80)
    counting.done(tokens=80)
    assert counting.admit(START) is not None


def test_what_today_took_before_counts_only_today() -> None:
    counting = meter(tokens=100, tokens_today=100)
    assert counting.admit(START) == DAY / 2
    # Made before midnight, asked first after it.
    late = meter(tokens=100, tokens_today=100, unix=NOON + DAY / 2 - 1)
    assert late.admit(START + 1) is None


def test_a_wall_clock_that_was_set_moves_midnight() -> None:
    counting = meter(tokens=100, tokens_today=100)
    counting.unix_offset += DAY / 2 - 60
    assert counting.admit(START) == 60


def test_so_many_at_a_time() -> None:
    counting = meter(concurrent=2)
    assert [counting.admit(START), counting.admit(START)] == [None, None]
    assert counting.admit(START) == 1
    counting.done()
    assert counting.admit(START) is None
    assert counting.admit(START + 3600) == 1


@pytest.mark.parametrize("limit", ["rpm", "tokens", "concurrent"])
def test_each_limit_counts_without_the_others(limit: str) -> None:
    counting = meter(**{limit: 1})
    assert counting.admit(START) is None
    if limit == "tokens":
        counting.done(tokens=1)
    assert counting.admit(START) is not None


def test_nothing_is_counted_where_a_later_limit_refuses() -> None:
    counting = meter(rpm=2, concurrent=1)
    assert counting.admit(START) is None
    for _ in range(5):
        assert counting.admit(START) == 1
    counting.done()
    assert counting.admit(START) is None
