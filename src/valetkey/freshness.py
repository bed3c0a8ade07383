"""How much life a credential has left. `valetkey token` imports this: nothing heavier than enum and datetime."""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from valetkey.credential import Credential

__all__ = ["LEAST_LEFT", "Freshness", "age_of", "fresh_for", "freshness", "judge"]

# A tool may use what it gets for a while: helpers promise 6 minutes (features E8).
LEAST_LEFT = timedelta(minutes=6)
# What is on its way when it dies is refused by the provider.
IN_FLIGHT = timedelta(seconds=5)


class Freshness(enum.Enum):
    """What may be done with a credential: use it; use it and renew it; renew it first."""

    FRESH = enum.auto()
    STALE = enum.auto()
    DEAD = enum.auto()


def judge(age: timedelta, *, life: timedelta | None, renew_after: timedelta | None = None) -> Freshness:
    """Judge what is this old and was to live this long.

    Renewal begins at 75 % of its life and with 6 minutes left, or at half its life where it lives under
    12 minutes; `renew_after` may ask for it sooner.
    """
    if life is not None:
        if age >= life - min(IN_FLIGHT, life / 4):
            return Freshness.DEAD
        if age >= _stale_at(life):
            return Freshness.STALE
    if renew_after is not None and age >= renew_after:
        return Freshness.STALE
    return Freshness.FRESH


def _stale_at(life: timedelta) -> timedelta:
    return life - max(life / 4, min(LEAST_LEFT, life / 2))


def age_of(credential: Credential, now: datetime) -> timedelta:
    """Give the age by the wall clock; never negative, whatever the clock did since it was issued."""
    from valetkey.credential import issued_at_of

    issued = issued_at_of(credential)
    return max(timedelta(0), now - issued) if issued is not None else timedelta(0)


def freshness(credential: Credential, age: timedelta, *, refresh_interval: timedelta | None = None) -> Freshness:
    """Judge a credential; the server's `refresh_in` and the declared interval may make it stale sooner."""
    from valetkey.credential import issued_at_of

    if issued_at_of(credential) is None:
        return Freshness.FRESH
    life, renew_after = _spans(credential, refresh_interval)
    return judge(age, life=life, renew_after=renew_after)


def fresh_for(credential: Credential, age: timedelta, *, refresh_interval: timedelta | None = None) -> timedelta | None:
    """Give for how long it will be fresh, negative where it is not; None where it has no end."""
    from valetkey.credential import issued_at_of

    if issued_at_of(credential) is None:
        return None
    life, renew_after = _spans(credential, refresh_interval)
    ends = [] if renew_after is None else [renew_after]
    if life is not None:
        ends.append(_stale_at(life))
    return min(ends) - age if ends else None


def _spans(credential: Credential, interval: timedelta | None) -> tuple[timedelta | None, timedelta | None]:
    """Give its life, and when it is to be renewed whatever its life is."""
    from valetkey.credential import ExchangedKey, expires_at_of, issued_at_of

    issued, ends = issued_at_of(credential), expires_at_of(credential)
    if issued is None:
        return None, None
    sooner = [interval] if interval is not None else []
    if isinstance(credential, ExchangedKey) and credential.refresh_at is not None:
        sooner.append(credential.refresh_at - issued)
    return (None if ends is None else ends - issued), min(sooner, default=None)
