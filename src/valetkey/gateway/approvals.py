"""Requests that wait until a person has decided on them. In memory only: a restart approves nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from valetkey.clock import Clock
from valetkey.errors import UnknownApproval
from valetkey.gateway.decide import Client, Hold
from valetkey.log import redact

__all__ = ["Approvals", "Outcome", "Pending", "Settled"]

Outcome = Literal["approved", "denied", "timed-out"]

_OUTCOMES: dict[bool | None, Outcome] = {True: "approved", False: "denied", None: "timed-out"}

_log = logging.getLogger(__name__)
# Design section 7.
WAIT_SECONDS = 180.0
# Each holds a connection, and a person reads them one by one: more than these are somebody's mistake, or an attack.
MOST = 100
MOST_OF_A_CLIENT = 20
_KEPT = 200
_LONGEST_TEXT = 300


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What waits, as it may be shown: without query and secrets. `client` is a key's id; `until` ends the waiting."""

    id: str
    client: str
    client_name: str
    account: str
    method: str
    url: str
    rule: str
    place: str
    reason: str
    since: datetime
    until: datetime


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What became of one, and who said so: "" where nobody did (the time was over, the client went away)."""

    pending: Pending
    outcome: Outcome | Literal["gone"]
    by: str
    at: datetime


class _Entry:
    def __init__(self, pending: Pending, ends: float) -> None:
        self.pending = pending
        self.ends = ends
        self.decision: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.by = ""


class Approvals:
    """Lives in one event loop; all of it is called there."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Hears what a person says before it counts; what this raises is told to the person, and nothing is decided.
        self.decided: Callable[[Pending, bool, str], None] = lambda pending, approved, by: None
        self._entries: dict[str, _Entry] = {}
        self._settled: deque[Settled] = deque(maxlen=_KEPT)

    async def wait(self, hold: Hold, *, client: Client, name: str = "") -> Outcome:
        """Wait until somebody settles it, 180 s at most. Cancelling it takes the request away. `name` is the client's.

        Where too many wait already it is denied at once; `no_room` says why.
        """
        if self.no_room(client) is not None:
            _log.warning("denied without asking, for too many wait: %s", client.id)
            return "denied"
        entry = self._enter(hold, client, name)
        timer = asyncio.ensure_future(self._time_out(entry))
        outcome: Outcome | Literal["gone"] = "gone"
        try:
            await asyncio.wait((entry.decision, timer), return_when=asyncio.FIRST_COMPLETED)
            outcome = _OUTCOMES[entry.decision.result() if entry.decision.done() else None]
            return outcome
        finally:
            timer.cancel()
            self._leave(entry, outcome)

    def no_room(self, client: Client) -> str | None:
        """Say why no further request of this client may wait; None where one may."""
        if len(self._entries) >= MOST:
            return f"{MOST} requests wait for a decision already"
        if sum(entry.pending.client == client.id for entry in self._entries.values()) >= MOST_OF_A_CLIENT:
            return f"{MOST_OF_A_CLIENT} requests of this client wait for a decision already"
        return None

    def pending(self) -> list[Pending]:
        """Give what waits, the oldest first."""
        return [entry.pending for entry in self._entries.values() if self._waits(entry)]

    def recent(self) -> list[Settled]:
        """Give what waits no more, the newest first; so many as memory may hold."""
        return list(reversed(self._settled))

    def settle(self, id: str, approved: bool, by: str) -> Pending:
        """Decide on one, once. Raises: UnknownApproval when it is settled, over or gone, or never was.

        What `decided` raises too: then it waits still.
        """
        entry = self._entries.get(id)
        if entry is None or not self._waits(entry):
            raise UnknownApproval(
                "no request of this id waits for a decision (any more)", hint="see `valetkey approvals list`"
            )
        self.decided(entry.pending, approved, by)
        entry.by = _shown(by)
        entry.decision.set_result(approved)
        return entry.pending

    def _waits(self, entry: _Entry) -> bool:
        # After a suspend the timer may come later than its time.
        return not entry.decision.done() and self._clock.monotonic() < entry.ends

    def _enter(self, hold: Hold, client: Client, name: str) -> _Entry:
        then, now = hold.then, self._clock.now()
        target = then.target
        pending = Pending(
            id=secrets.token_hex(4),
            client=client.id,
            client_name=_shown(name),
            account="" if then.grant is None else str(then.grant),
            method=then.method,
            url=_shown(f"{target.scheme}://{target.authority}{target.path}"),
            rule=hold.rule.text,
            place=hold.rule.place,
            reason=_shown(hold.reason),
            since=now,
            until=now + timedelta(seconds=WAIT_SECONDS),
        )
        entry = _Entry(pending, self._clock.monotonic() + WAIT_SECONDS)
        self._entries[pending.id] = entry
        return entry

    async def _time_out(self, entry: _Entry) -> None:
        while (left := entry.ends - self._clock.monotonic()) > 0:
            await self._clock.sleep(left)

    def _leave(self, entry: _Entry, outcome: Outcome | Literal["gone"]) -> None:
        del self._entries[entry.pending.id]
        pending = entry.pending
        self._settled.append(Settled(pending=pending, outcome=outcome, by=entry.by, at=self._clock.now()))
        # A warning, for that is what is logged where nothing is set: who let something through has to be found.
        _log.warning(
            "%s%s: %s %s of %s, held by %s",
            outcome,
            f" by {entry.by}" if entry.by else "",
            pending.method,
            pending.url,
            pending.client,
            pending.place or pending.rule,
        )


def _shown(text: str) -> str:
    kept = "".join(c if c.isprintable() else "?" for c in redact(text))
    return kept if len(kept) <= _LONGEST_TEXT else kept[: _LONGEST_TEXT - 1] + "…"
