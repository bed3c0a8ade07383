"""What the gateway puts into the audit: each account's uses by its clients, refusals, and what persons decided."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from valetkey.audit.recorder import Audit, Counted, who_of
from valetkey.audit.signing import sign_quietly
from valetkey.clock import Clock
from valetkey.config import Paths
from valetkey.gateway.approvals import Pending
from valetkey.gateway.row import Row, is_refusal
from valetkey.stores.sqlite import SqliteStore

__all__ = ["NO_DENIALS", "Audited"]

# Refusals of what is no request, has a login that ended, or came too slowly: nobody wanted what he may not have.
NO_DENIALS = frozenset({"malformed", "needs_login", "body_too_large", "request_timeout", "client_gone", "rewritten"})


class Audited:
    """Records for one gateway, beside the uses that the engine notes itself. It may wait for the disk."""

    def __init__(self, audit: Audit, *, store: SqliteStore, paths: Paths, clock: Clock) -> None:
        self.audit = audit
        self._store = store
        self._paths = paths
        self._clock = clock
        self._minute = self._now_minute()
        self._guard = threading.Lock()
        # By client, account and code: how many more there were in this minute.
        self._denials: dict[tuple[str, str, str], int] = {}

    def __call__(self, rows: Sequence[Row]) -> None:
        """Take a batch of the trace, in its thread: refusals are recorded, one entry a minute for those alike."""
        for row in rows:
            if not is_refusal(row) or row.outcome in NO_DENIALS:
                continue
            key = (who_of(row.client), row.account, row.outcome)
            with self._guard:
                known = self._denials.get(key)
                self._denials[key] = 0 if known is None else known + 1
            if known is None:
                where = {"method": row.method, "host": row.host, "path": row.path}
                detail = {"code": row.outcome, "status": row.status, **where}
                self.audit.tell("denial", who=key[0], account=row.account, detail=detail)

    def decided(self, pending: Pending, approved: bool, by: str, scope: str = "once") -> None:
        """Record what a person says before it counts: without it nothing is approved. Raises: AuditUnwritable."""
        record = self.audit.append if approved else self.audit.tell
        detail = {
            "approved": approved,
            "client": who_of(pending.client),
            "method": pending.method,
            "url": pending.url,
            "rule": pending.place or pending.rule,
        }
        if pending.kind == "access" or scope != "once":
            detail |= {"allows": pending.allows, "scope": scope if approved else ""}
        record("approval", who=f"person:{by}", account=pending.account, detail=detail)

    # --- once a minute -----------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether a minute is over since the last `turn`."""
        return self._now_minute() != self._minute

    def take_over(self) -> list[Counted]:
        """Give what was counted until now, for `turn`. In the engine's loop: it begins a new minute."""
        self._minute = self._now_minute()
        return self.audit.take_over(all=True)

    def turn(self, counted: Sequence[Counted]) -> None:
        """Write what was counted, and sign. In a thread: it waits for the disk."""
        with self._guard:
            denials, self._denials = self._denials, {}
        self.audit.count(counted)
        for (who, account, code), further in denials.items():
            if further:
                self.audit.tell("denials", who=who, account=account, detail={"code": code, "further": further})
        if self._store.keys.is_open:
            sign_quietly(self.audit, self._store, self._paths, self._clock)

    def _now_minute(self) -> int:
        return int(self._clock.now().timestamp() // 60)
