"""What a running gateway does when it is asked over its control socket, and the state that it tells."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from valetkey.access import sole_secret
from valetkey.account_state import in_store
from valetkey.broker import Broker
from valetkey.credential import CredentialRef, Health, Secret, expires_at_of, login_command
from valetkey.errors import StoreLocked, WrongKey
from valetkey.gateway.access_requests import Scope
from valetkey.gateway.approvals import Approvals
from valetkey.gateway.audited import Audited
from valetkey.gateway.metrics import Metrics
from valetkey.gateway.ring import Ring
from valetkey.gateway.row import Row
from valetkey.gateway.runs import Runs
from valetkey.gateway.server import Gateway
from valetkey.gateway.telemetry import Telemetry
from valetkey.gateway.trace import Trace
from valetkey.stores.passphrase import Passphrase
from valetkey.stores.sqlite import SqliteStore

__all__ = ["Operating", "Parts"]

# More are for `list --json`, page by page.
_MOST_ACCOUNTS = 1000
# Of a run; what was refused before these has been got over.
_MOST_ROWS = 2000

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the gateway is built of."""

    store: SqliteStore
    broker: Broker
    ring: Ring
    trace: Trace
    metrics: Metrics
    telemetry: Telemetry | None
    approvals: Approvals
    audited: Audited
    gateway: Gateway


class Operating:
    """A gateway that runs. `about` is what it says of itself; `changed` is called when that becomes another."""

    def __init__(
        self,
        parts: Parts,
        *,
        about: Mapping[str, object],
        changed: Callable[[Mapping[str, object]], None],
        stop: Callable[[bool], None],
    ) -> None:
        self._parts = parts
        self._clock = parts.broker.clock
        self._about = dict(about)
        self._changed = changed
        self._stop = stop
        self._heard_at = self._clock.monotonic()
        self._declarations = self._look_at_files()

    # --- what goes on ----------------------------------------------------------------------------

    @property
    def about(self) -> dict[str, object]:
        """What `running` of serving.py gives to others."""
        return dict(self._about)

    @property
    def locked(self) -> bool:
        """Whether the store cannot be read before somebody unlocks it."""
        return not self._parts.store.keys.is_open

    def heard(self) -> None:
        """Note that somebody asks."""
        self._heard_at = self._clock.monotonic()

    def idle_seconds(self) -> float:
        """Say for how long there was neither a request nor a call; 0 while one goes on or a valet key or run counts."""
        gateway = self._parts.gateway
        if gateway.active or self._parts.ring.live():
            self.heard()
            return 0.0
        return self._clock.monotonic() - max(self._heard_at, gateway.last_activity)

    def granted(self) -> set[CredentialRef]:
        """Give the accounts that valet keys and runs which count now may use."""
        return {grant.ref for live in self._parts.ring.live() for grant in live.client.grants}

    def runs(self) -> list[str]:
        """Give the ids of the runs that count now."""
        return [live.client.id for live in self._parts.ring.live() if live.client.kind == "run"]

    def end_run(self, run: str) -> None:
        """Take back what a run was granted, and close what it has open. Raises: StoreError."""
        Runs(self._parts.store, self._clock).end(run)
        self.refresh()

    def look(self) -> None:
        """Read keys and accounts anew where anybody has changed the store."""
        if self._parts.ring.changed():
            self.refresh()
        else:
            self._tell()  # the engine looks too, at each request

    def look_at_declarations(self) -> None:
        """Read the user's own declarations anew where one was written or removed."""
        if self._look_at_files() != self._declarations:
            self.refresh()

    def refresh(self) -> None:
        """Read keys, accounts and declarations anew now, and close what goes on with a key that counts no more."""
        files = self._look_at_files()
        for path in {path for path, *_ in files ^ self._declarations}:
            self._parts.broker.catalogue.forget(path.stem)
        self._declarations = files
        try:
            # Whatever opens without asking anybody is open: `token` is answered from here.
            if self._parts.store.source_kind() is not None:
                self._parts.store.keys.ready()
        except (StoreLocked, WrongKey) as error:
            log.info("the store does not open: %s", error.message)
        self._parts.gateway.refresh()
        self._tell()

    def _look_at_files(self) -> frozenset[tuple[Path, int, int]]:
        found = []
        for path in self._parts.broker.catalogue.files():
            with suppress(OSError):  # removed in between
                status = path.stat()
                found.append((path, status.st_mtime_ns, status.st_ino))
        return frozenset(found)

    def _tell(self) -> None:
        """Say to whoever looks whether the store is locked: `list` asks nobody."""
        locked = self.locked
        if self._about.get("locked") != locked:
            self._about["locked"] = locked
            self._changed(self._about)

    # --- what is asked ---------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """Give how the gateway is, and its accounts as `list` shows them."""
        parts, locked = self._parts, self.locked
        accounts = in_store(parts.broker, limit=_MOST_ACCOUNTS)
        if locked:
            accounts = [replace(a, health=Health.LOCKED) for a in accounts]
        return {
            **self._about,
            "locked": locked,
            "key_source": parts.store.source_kind(),
            "keys": sum(live.client.kind == "key" for live in parts.ring.live()),
            "runs": sum(live.client.kind == "run" for live in parts.ring.live()),
            "problems": parts.ring.problems(),
            "active": parts.gateway.active,
            "approvals": len(self.pending()),
            "trace_dropped": parts.trace.dropped,
            "accounts": [a.as_dict() for a in accounts],
        }

    async def unrecovered(self, run: str) -> list[dict[str, object]]:
        """Give the accounts whose last answer to this run was 401 or 403: something has to be done about them."""
        rows = await asyncio.to_thread(self._parts.trace.newest, f"run:{run}", _MOST_ROWS)
        last: dict[str, Row] = {}
        for row in rows:
            if row.account and row.outcome in ("ok", "needs_login"):
                last.setdefault(row.account, row)
        return [_unrecovered(name, row.status) for name, row in last.items() if row.status in (401, 403)]

    def withheld(self, run: str) -> list[dict[str, str]]:
        """Give the tools of MCP servers that this run was not shown, for they have changed."""
        return [{"server": server, "tool": tool} for server, tool in self._parts.gateway.mcp.withheld_from(run)]

    def metrics(self) -> bytes:
        """Give the counters as Prometheus reads them."""
        return self._parts.metrics.text()

    async def token(self, name: str) -> dict[str, object]:
        """Give a stored account's fresh secret, as `valetkey token` prints it.

        Never what the environment holds: it is this process's, and not that of whoever asks.
        """
        ref = self._parts.broker.resolve(name)
        # Of a name with its account, the broker looks nowhere else.
        access = await self._parts.broker.access(str(ref), use="token")
        secret = sole_secret(access)
        return {
            "provider": ref.provider,
            "account": ref.account,
            "source": access.source,
            "token": secret.reveal(),
            "expires_at": None if access.credential is None else expires_at_of(access.credential),
        }

    def lock(self) -> None:
        """Forget the store's key and what it opened. From now on every request is refused."""
        self._parts.store.keys.lock()
        self._parts.broker.forget()
        self.refresh()

    async def unlock(self, passphrase: Secret | None) -> None:
        """Open the store, with the passphrase where it has one. Raises: StoreLocked, WrongKey."""
        keys = self._parts.store.keys
        given = None if passphrase is None or keys.source_kind() != "passphrase" else Passphrase(lambda: passphrase)
        try:
            # Half a second of scrypt, or a keychain that asks its user: the requests go on meanwhile.
            await asyncio.to_thread(keys.unlock, given)
        finally:
            self.refresh()

    def stop(self, *, now: bool) -> None:
        """End, after what is under way or at once."""
        self._stop(now)

    def pending(self) -> list[dict[str, object]]:
        """Give what waits for a person, the oldest first."""
        found = [*self._parts.approvals.pending(), *self._parts.gateway.access.pending()]
        return [asdict(pending) for pending in sorted(found, key=lambda pending: pending.since)]

    def settled(self) -> list[dict[str, object]]:
        """Give what waits no more, the newest first, and who decided on it."""
        found = [*self._parts.approvals.recent(), *self._parts.gateway.access.recent()]
        return [asdict(settled) for settled in sorted(found, key=lambda settled: settled.at, reverse=True)]

    def settle(self, id: str, *, approved: bool, by: str, scope: Scope | None = None) -> Scope:
        """Decide on one of them, for once or for the run; say which it was.

        Without a scope, what is held is let through once, and what a run asked for is allowed for as long as it lives.

        Raises: UnknownApproval, UsageError, NotLoggedIn, StoreError.
        """
        approvals, access = self._parts.approvals, self._parts.gateway.access
        if all(pending.id != id for pending in approvals.pending()):
            access.settle(id, approved, by, scope or "run")
            return scope or "run"
        if approved and scope == "run" and approvals.find(id).kind == "request":
            access.check_allowable(approvals.find(id))
            access.allow(approvals.settle(id, approved, by, "run"), by)
            return "run"
        approvals.settle(id, approved, by)
        return "once"


def _unrecovered(account: str, status: int) -> dict[str, object]:
    provider, _, name = account.partition("@")
    command = login_command(CredentialRef(provider=provider, account=name))
    hint = f"run `{command}`" if status == 401 else f"see what {account} may do, or run `{command}`"
    return {"account": account, "status": status, "hint": hint}
