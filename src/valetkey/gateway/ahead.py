"""Renews what live valet keys and runs are granted before anybody asks for it (docs/serve.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import timedelta

from valetkey.access import Access
from valetkey.broker import Broker
from valetkey.clock import Clock
from valetkey.credential import CredentialRef, Health
from valetkey.errors import ValetkeyError
from valetkey.freshness import age_of, fresh_for

__all__ = ["LONGEST_SECONDS", "SHORTEST_SECONDS", "Ahead"]

# A new key, a new login and a clock that was set are seen within this time; a look at an account costs 0.1 ms.
LONGEST_SECONDS = 30.0
SHORTEST_SECONDS = 1.0
# Whatever else there is was given by a person or is read at use: nothing in it gets old here.
_RENEWED = frozenset(("oauth-token", "exchanged-key"))

log = logging.getLogger(__name__)


class Ahead:
    """Looks after the accounts that `granted` names. The broker renews, keeps to the back-off, and does it once.

    One that needs a login is left alone until somebody has logged in.
    """

    def __init__(self, *, broker: Broker, granted: Callable[[], Iterable[CredentialRef]], clock: Clock) -> None:
        self._broker = broker
        self._granted = granted
        self._clock = clock
        self._under_way: dict[CredentialRef, asyncio.Task[None]] = {}
        self._due: dict[CredentialRef, float] = {}
        self._running = False

    async def run(self) -> None:
        """Go on until it is cancelled. A second call, while one runs, returns at once."""
        if self._running:
            return
        self._running = True
        try:
            while True:
                await self._clock.sleep(await self.look())
        finally:
            self._running = False
            # What they wait for goes on in a thread of the broker's, and is saved.
            for task in self._under_way.values():
                task.cancel()

    async def look(self) -> float:
        """Begin what is due and give the seconds to the next look."""
        granted = set(self._granted())
        now = self._clock.monotonic()
        self._due = {ref: due for ref, due in self._due.items() if ref in granted}
        self._under_way = {ref: task for ref, task in self._under_way.items() if not task.done()}
        for ref in sorted(granted - self._under_way.keys()):
            if self._due.get(ref, now) > now:
                continue
            self._due[ref] = now + LONGEST_SECONDS
            self._under_way[ref] = asyncio.create_task(self._renew(ref))
            # A living token is dealt with in this turn; a dead one is waited for, but not by the others.
            await asyncio.sleep(0)
        waiting = [due for ref, due in self._due.items() if ref not in self._under_way or self._under_way[ref].done()]
        left = min(waiting, default=now + LONGEST_SECONDS) - self._clock.monotonic()
        return min(max(left, SHORTEST_SECONDS), LONGEST_SECONDS)

    async def _renew(self, ref: CredentialRef) -> None:
        try:
            account = self._broker.store.account(ref)
            if account is None or account.kind not in _RENEWED or account.health is Health.NEEDS_LOGIN:
                return
            access = await self._broker.access(str(ref), use="renewal")
        except ValetkeyError as error:
            # The account's health says it to whoever asks.
            log.info("%s is not renewed ahead: %s", ref, error.message)
        else:
            self._due[ref] = self._clock.monotonic() + min(_seconds_left(access, self._clock), LONGEST_SECONDS)


def _seconds_left(access: Access, clock: Clock) -> float:
    """Say how long it stays fresh; a stale one is being renewed, and looked at again soon."""
    if access.credential is None:
        return LONGEST_SECONDS
    interval = timedelta(seconds=access.method.refresh_interval) if access.method.refresh_interval else None
    left = fresh_for(access.credential, age_of(access.credential, clock.now()), refresh_interval=interval)
    return LONGEST_SECONDS if left is None else max(left.total_seconds(), SHORTEST_SECONDS)
