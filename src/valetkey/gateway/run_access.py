"""Takes requests for access from runs, and what a person decides: it counts at once, and outlives the gateway."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from valetkey.clock import Clock
from valetkey.credential import CredentialRef
from valetkey.errors import UnknownApproval, UnknownRun, UsageError
from valetkey.gateway import access_requests, placeholders
from valetkey.gateway.access_requests import MOST, MOST_PENDING, AccessRequest, Scope
from valetkey.gateway.approvals import Approvals, Pending, Settled, shown
from valetkey.gateway.runs import Run, Runs
from valetkey.store import Store

if TYPE_CHECKING:
    from valetkey.audit.recorder import Audit
    from valetkey.gateway.ring import Ring

__all__ = ["RunAccess"]


class RunAccess:
    """Lives in the engine's loop. `refresh` reads the store anew; `grantable` raises where an account cannot be granted
    to that run.
    """

    def __init__(
        self,
        *,
        store: Store,
        ring: Ring,
        clock: Clock,
        approvals: Approvals,
        audit: Audit | None,
        refresh: Callable[[], None],
        grantable: Callable[[Run, CredentialRef], object],
    ) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._approvals = approvals
        self._audit = audit
        self._refresh = refresh
        self._grantable = grantable
        self._waiting: set[asyncio.Future[None]] = set()
        self._ending = False
        # Tells a run's log what is asked for in it: the id of the run, and a line.
        self.note: Callable[[str, str], None] = lambda run, line: None

    # --- the run's side ----------------------------------------------------------------------

    def of(self, run: str) -> tuple[AccessRequest, ...]:
        """Give what this run has asked for, the oldest first. Raises: RecordDamaged, StoreError."""
        return access_requests.load(self._store, run)

    def ask(
        self, run: Run, *, method: str = "", url: str = "", allows: str = "", grant: CredentialRef | None, reason: str
    ) -> AccessRequest | str:
        """Ask a person for it, or say why no further one may be asked.

        What was asked for before and was not used up is that request, whatever became of it: nobody is asked twice.

        Raises: AuditUnwritable, StoreError.
        """
        asked = AccessRequest(
            id=secrets.token_hex(4),
            method=method,
            url=shown(url),
            allows=allows,
            grant=grant,
            reason=shown(reason),
            asked_at=self._clock.now(),
        )
        if asked.url != url or shown(allows) != allows:
            return "the address is too long for a person to read, or holds a secret"
        before = self.of(run.id)
        for request in before:
            if request.is_alike(asked) and request.state != "used":
                return request
        if sum(request.state == "pending" for request in before) >= MOST_PENDING:
            return f"{MOST_PENDING} requests of this run wait for a person already"
        if len(before) >= MOST:
            return f"this run has asked {MOST} times, and may ask no more"
        if self._audit is not None:
            detail = {"id": asked.id, "method": asked.method, "url": asked.url, "allows": asked.allows}
            account = "" if grant is None else str(grant)
            self._audit.append("access-requested", who=f"run:{run.id}", account=account, detail=detail)
        self._save(run.id, (*before, asked))
        self.note(run.id, f"the run asks for access, {_allows(asked)}: decide with `valetkey approvals list`")
        return asked

    async def decided(self, run: str, id: str, *, seconds: float) -> None:
        """Wait until somebody has decided on something, so long at most, while this request waits."""
        ends = self._clock.monotonic() + seconds
        while not self._ending and (left := ends - self._clock.monotonic()) > 0:
            if not any(request.id == id and request.state == "pending" for request in self.of(run)):
                return
            heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(heard)
            timer = asyncio.ensure_future(self._clock.sleep(left))
            try:
                await asyncio.wait((heard, timer), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._waiting.discard(heard)
                timer.cancel()

    def use(self, run: str, id: str) -> None:
        """Take it that what was allowed once is done now. Raises: StoreError: then it must not be done."""
        self._save(run, [replace(r, state="used") if r.id == id else r for r in self.of(run)])

    # --- the person's side -------------------------------------------------------------------

    def pending(self) -> list[Pending]:
        """Give what waits, the oldest first."""
        found = [_pending(run, request) for run, request in self._all() if request.state == "pending"]
        return sorted(found, key=lambda pending: pending.since)

    def recent(self) -> list[Settled]:
        """Give what a person has decided for runs that live, the newest first."""
        found = [
            Settled(
                pending=_pending(run, request),
                outcome="denied" if request.state == "denied" else "approved",
                by=request.by,
                at=request.settled_at,
            )
            for run, request in self._all()
            if request.settled_at is not None
        ]
        return sorted(found, key=lambda settled: settled.at, reverse=True)

    def settle(self, id: str, approved: bool, by: str, scope: Scope) -> Pending:
        """Decide on one, once; it counts on return. Raises: UnknownApproval; what `grantable` raises; StoreError.

        AuditUnwritable too. Where it raises nothing is decided.
        """
        run, request = self._find(id)
        pending = _pending(run, request)
        if approved and request.grant is not None:
            if scope == "once":
                raise UsageError(
                    "an account cannot be granted once", hint=f"run `valetkey approvals approve {id} --for-run`"
                )
            self._grantable(run, request.grant)
        self._approvals.decided(pending, approved, by, scope)
        settled = request.settled(scope=scope if approved else None, by=shown(by), at=self._clock.now())
        if approved and request.grant is not None:
            settled = replace(settled, placeholder=_placeholder(run, request.grant))
        self._save(run.id, [settled if r.id == id else r for r in self.of(run.id)])
        self._tell()
        return pending

    def check_allowable(self, pending: Pending) -> None:
        """See that what is held can be allowed for its run. Raises: UsageError."""
        if not pending.client.startswith("run:") or not pending.allows or "*" in pending.url:
            raise UsageError(
                "only what a run asks for can be allowed for the run", hint="approve it once, without --for-run"
            )

    def allow(self, pending: Pending, by: str) -> None:
        """Let a run do from now on what a policy held. Raises: StoreError."""
        run, now = pending.client.removeprefix("run:"), self._clock.now()
        asked = AccessRequest(
            id=pending.id,
            method=pending.method,
            url=pending.url,
            allows=pending.allows,
            grant=None,
            reason="",
            asked_at=pending.since,
        )
        self._save(run, (*self.of(run), asked.settled(scope="run", by=shown(by), at=now)))

    # --- what is kept ------------------------------------------------------------------------

    def _all(self) -> Iterator[tuple[Run, AccessRequest]]:
        for live in self._ring.live():
            if isinstance(live.key, Run):
                for request in live.key.access:
                    yield live.key, request

    def _find(self, id: str) -> tuple[Run, AccessRequest]:
        for run, request in self._all():
            if request.id == id and request.state == "pending":
                return run, request
        raise UnknownApproval(
            "no request of this id waits for a decision (any more)", hint="see `valetkey approvals list`"
        )

    def _save(self, run: str, requests: Sequence[AccessRequest]) -> None:
        access_requests.save(self._store, run, requests, now=self._clock.now())
        try:
            Runs(self._store, self._clock).find(run)
        except UnknownRun:
            # It has ended in between, and whoever ended it may have looked before this was written.
            access_requests.forget(self._store, run)
        self._refresh()

    def end_waiting(self) -> None:
        """Let nobody wait any more: the gateway ends."""
        self._ending = True
        self._tell()

    def _tell(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)


def _pending(run: Run, request: AccessRequest) -> Pending:
    return Pending(
        id=request.id,
        kind="access",
        client=f"run:{run.id}",
        client_name=run.name if run.agent is None else f"{run.name} ({run.agent})",
        account="" if request.grant is None else str(request.grant),
        method=request.method,
        url=request.url,
        rule="",
        place="",
        reason=request.reason,
        allows=_allows(request),
        since=request.asked_at,
        until=None,
    )


def _allows(request: AccessRequest) -> str:
    return request.allows or f"--grant {request.grant}"


def _placeholder(run: Run, ref: CredentialRef) -> str:
    """Make one for an account that a run gets while it lives: of its own tag, so that it reaches no provider."""
    texts = [text for texts in run.placeholders.values() for text in texts.values()]
    mark = next((mark for text in texts for mark in placeholders.marks_in(text.encode())), b"")
    tag = mark.decode().split("_")[1] if mark else placeholders.new_tag()
    return placeholders.made(ref.provider, tag)
