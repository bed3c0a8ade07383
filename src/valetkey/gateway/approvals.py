"""Requests that wait until a person has decided, or has logged in. In memory only: a restart approves nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from valetkey.clock import Clock
from valetkey.credential import CredentialRef, login_command
from valetkey.errors import UnknownApproval, UsageError
from valetkey.gateway.decide import Client, Forward, Hold, allowing
from valetkey.log import redact

__all__ = ["Approvals", "Outcome", "Pending", "Settled", "shown"]

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
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Pending:
    """What waits, as it may be shown: without query and secrets. `client` is a key's id, or `run:ID`.

    `kind`: "request", one that a policy holds; "access", what a run asks for (`reason` is the run's own words, and
    nothing is held); "login", a request that goes on once somebody has logged in. `allows` is what a rule would have to
    say to let it through, or the account that is asked for. `until` ends the waiting, where it ends by itself.
    """

    id: str
    kind: Literal["request", "access", "login"] = "request"
    client: str
    client_name: str
    account: str
    method: str
    url: str
    rule: str
    place: str
    reason: str
    allows: str = ""
    since: datetime
    until: datetime | None


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What became of one, and who said so: "" where nobody did (the time was over, the client went away)."""

    pending: Pending
    outcome: Outcome | Literal["gone"]
    by: str
    at: datetime


class _Entry:
    def __init__(self, pending: Pending, ends: float, generation: int) -> None:
        self.pending = pending
        self.ends = ends
        self.generation = generation
        self.decision: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.by = ""


class Approvals:
    """Lives in one event loop; all of it is called there."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Hears what a person says before it counts; what this raises is told to the person, and nothing is decided.
        # The last word is for how long: "once", or "run" for all that run's requests like it.
        self.decided: Callable[[Pending, bool, str, str], None] = lambda pending, approved, by, scope: None
        self._entries: dict[str, _Entry] = {}
        # Hears of what begins to wait for a login.
        self.awaiting: Callable[[Pending], None] = lambda pending: None
        self._settled: deque[Settled] = deque(maxlen=_KEPT)

    async def wait(self, hold: Hold, *, client: Client, name: str = "") -> Outcome:
        """Wait until somebody settles it, 180 s at most. Cancelling it takes the request away. `name` is the client's.

        Where too many wait already it is denied at once; `no_room` says why.
        """
        if self.no_room(client) is not None:
            _log.warning("denied without asking, for too many wait: %s", client.id)
            return "denied"
        return await self._settled_or_over(self._enter(_held(hold, client, name), WAIT_SECONDS))

    async def wait_for_login(
        self, forward: Forward, *, client: Client, name: str, reason: str, generation: int, seconds: float
    ) -> Outcome:
        """Wait until the account of `forward` has another generation than this (`look_at_logins`): that is "approved".

        As `wait`, but for `seconds` at most. Where too many wait already it is over at once.
        """
        if self.no_room(client) is not None:
            return "timed-out"
        pending = _asked(forward, client, name, kind="login", reason=reason)
        if all((e.pending.client, e.pending.account) != (pending.client, pending.account) for e in self._logins()):
            self.awaiting(pending)
        return await self._settled_or_over(self._enter(pending, seconds, generation))

    def look_at_logins(self, generation_of: Callable[[str], int]) -> None:
        """Let go on what waits for a login that has come. `generation_of` is asked of `provider@account`."""
        for entry in self._logins():
            if generation_of(entry.pending.account) != entry.generation:
                entry.decision.set_result(True)

    def end_waiting(self) -> None:
        """Wait for logins no more: the gateway ends."""
        for entry in self._logins():
            entry.decision.set_result(False)

    def _logins(self) -> list[_Entry]:
        return [e for e in self._entries.values() if e.pending.kind == "login" and self._waits(e)]

    async def _settled_or_over(self, entry: _Entry) -> Outcome:
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
        whose = f"run:{client.id}" if client.kind == "run" else client.id
        if sum(entry.pending.client == whose for entry in self._entries.values()) >= MOST_OF_A_CLIENT:
            return f"{MOST_OF_A_CLIENT} requests of this client wait for a decision already"
        return None

    def pending(self) -> list[Pending]:
        """Give what waits, the oldest first."""
        return [entry.pending for entry in self._entries.values() if self._waits(entry)]

    def recent(self) -> list[Settled]:
        """Give what waits no more, the newest first; so many as memory may hold."""
        return list(reversed(self._settled))

    def settle(self, id: str, approved: bool, by: str, scope: str = "once") -> Pending:
        """Decide on one, once. Raises: UnknownApproval when it is settled, over or gone, or never was.

        UsageError where only a login helps. What `decided` raises too: then it waits still.
        """
        pending = self.find(id)
        if pending.kind == "login" and approved:
            provider, _, account = pending.account.partition("@")
            command = login_command(CredentialRef(provider=provider, account=account))
            raise UsageError(
                f"the request goes on once there is a login for {pending.account}", hint=f"run `{command}`"
            )
        self.decided(pending, approved, by, scope)
        entry = self._entries[id]
        entry.by = shown(by)
        entry.decision.set_result(approved)
        return pending

    def find(self, id: str) -> Pending:
        """Give one that waits. Raises: UnknownApproval."""
        entry = self._entries.get(id)
        if entry is None or not self._waits(entry):
            raise UnknownApproval(
                "no request of this id waits for a decision (any more)", hint="see `valetkey approvals list`"
            )
        return entry.pending

    def _waits(self, entry: _Entry) -> bool:
        # After a suspend the timer may come later than its time.
        return not entry.decision.done() and self._clock.monotonic() < entry.ends

    def _enter(self, asked: Pending, seconds: float, generation: int = 0) -> _Entry:
        now = self._clock.now()
        pending = replace(asked, since=now, until=now + timedelta(seconds=seconds))
        entry = _Entry(pending, self._clock.monotonic() + seconds, generation)
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
            pending.place or pending.rule or f"the login of {pending.account}",
        )


def _held(hold: Hold, client: Client, name: str) -> Pending:
    asked = _asked(hold.then, client, name, kind="request", reason=hold.reason)
    return replace(asked, rule=hold.rule.text, place=hold.rule.place)


def _asked(forward: Forward, client: Client, name: str, *, kind: Literal["request", "login"], reason: str) -> Pending:
    target, what = forward.target, allowing(forward)
    return Pending(
        id=secrets.token_hex(4),
        kind=kind,
        client=f"run:{client.id}" if client.kind == "run" else client.id,
        client_name=shown(name),
        account="" if forward.grant is None else str(forward.grant),
        method=forward.method,
        url=shown(f"{target.scheme}://{target.authority}{target.path}"),
        rule="",
        place="",
        reason=shown(reason),
        # What cannot be shown as it is cannot be allowed for longer than once.
        allows=what if kind == "request" and shown(what) == what else "",
        since=_NEVER,
        until=None,
    )


def shown(text: str) -> str:
    """Give a text as a person may be shown it: on one line, without secrets and control characters, 300 at most."""
    kept = "".join(c if c.isprintable() else "?" for c in redact(text))
    return kept if len(kept) <= _LONGEST_TEXT else kept[: _LONGEST_TEXT - 1] + "…"
