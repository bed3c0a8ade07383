"""How much life is left: the table of docs/broker.md."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from valetkey.credential import ApiKey, ExchangedKey, OAuthToken, Secret
from valetkey.freshness import Freshness, age_of, freshness

ISSUED = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
FRESH, STALE, DEAD = Freshness.FRESH, Freshness.STALE, Freshness.DEAD


def token(life_seconds: float | None) -> OAuthToken:
    ends = None if life_seconds is None else ISSUED + timedelta(seconds=life_seconds)
    return OAuthToken(method="m", access_token=Secret("a"), issued_at=ISSUED, expires_at=ends)


@pytest.mark.parametrize(
    ("life", "age", "expected"),
    [
        (3600, 0, FRESH),
        (3600, 2699, FRESH),
        (3600, 2700, STALE),  # 75 %
        (3600, 3594, STALE),
        (3600, 3595, DEAD),  # 5 s before its end
        (1200, 839, FRESH),
        (1200, 840, STALE),  # 6 min before its end
        (480, 239, FRESH),
        (480, 240, STALE),  # half
        (60, 29, FRESH),
        (60, 30, STALE),
        (60, 55, DEAD),
        (8, 3.9, FRESH),
        (8, 4, STALE),
        (8, 6, DEAD),  # three quarters of a very short life
        (None, 10**9, FRESH),
        (0, 0, DEAD),
        (-5, 0, DEAD),
    ],
)
def test_a_token_is_fresh_then_stale_then_dead(life: float | None, age: float, expected: Freshness) -> None:
    assert freshness(token(life), timedelta(seconds=age)) is expected


def test_a_key_without_an_end_stays_fresh() -> None:
    assert freshness(ApiKey(method="m", key=Secret("k")), timedelta(days=10_000)) is FRESH


def test_a_declared_interval_makes_an_endless_token_stale() -> None:
    interval = timedelta(days=8)
    assert freshness(token(None), timedelta(days=7), refresh_interval=interval) is FRESH
    assert freshness(token(None), timedelta(days=8), refresh_interval=interval) is STALE


def test_the_servers_refresh_in_makes_an_exchanged_key_stale_sooner() -> None:
    key = ExchangedKey(
        method="m",
        key=Secret("k"),
        grant=token(None),
        issued_at=ISSUED,
        expires_at=ISSUED + timedelta(hours=1),
        refresh_at=ISSUED + timedelta(minutes=10),
    )
    assert freshness(key, timedelta(minutes=9)) is FRESH
    assert freshness(key, timedelta(minutes=10)) is STALE


def test_a_clock_that_was_set_back_gives_no_negative_age() -> None:
    assert age_of(token(3600), ISSUED - timedelta(days=1)) == timedelta(0)
    assert age_of(token(3600), ISSUED + timedelta(minutes=5)) == timedelta(minutes=5)
