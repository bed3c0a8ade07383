"""What the accounts of a run serve to it through their endpoints: asked once however many want it, kept for a while."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from valetkey.credential import Credential, CredentialRef, login_command
from valetkey.endpoint import Endpoint, Granted, Issued
from valetkey.endpoints import endpoint_for
from valetkey.errors import InvalidProvider, NotLoggedIn, ValetkeyError
from valetkey.frames import DroppedFrames
from valetkey.gateway import answers
from valetkey.gateway.answers import Answer
from valetkey.gateway.message import ReadHead
from valetkey.gateway.runs import ENDPOINT_TOKEN, Run

if TYPE_CHECKING:
    from valetkey.broker import Broker
    from valetkey.clock import Clock
    from valetkey.gateway.plan import Plan
    from valetkey.gateway.ring import LiveKey
    from valetkey.provider import AuthMethod
    from valetkey.store import Record

__all__ = ["RunEndpoints"]

log = logging.getLogger(__name__)

# An SDK whose first try came to no end asks again a second later: it is to read why, and who issues is not asked again.
_FAILURE_SECONDS = 5.0


class _Place(NamedTuple):
    run: str
    ref: CredentialRef
    route: str


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What was issued, or why nothing was. It counts for this login (`generation`) alone, and by both clocks."""

    found: Issued | ValetkeyError
    generation: int
    until: float
    until_wall: datetime | None


class RunEndpoints:
    """The endpoints of the runs' accounts. Used in the engine's loop only."""

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._kept: dict[_Place, _Kept] = {}
        self._asking: dict[tuple[_Place, int], asyncio.Task[Issued | ValetkeyError]] = {}

    async def answer(self, plan: Plan, live: LiveKey, head: ReadHead) -> Answer:
        """Answer a request for an account that is served here. Where `live` is a run, it came by that run's socket."""
        ref, run = plan.ref, live.key
        if ref is None or not isinstance(run, Run):
            return answers.failed(
                403, "not_for_this_use", "this account serves short-lived keys to runs, and nothing else", "use a run"
            )
        token = run.placeholders.get(ref, {}).get(ENDPOINT_TOKEN)
        if token is None or not _shows(head, token):
            return answers.failed(
                403,
                "endpoint_refused",
                f"the request does not show the token that {ref} has in run {run.id}",
                "send what the run has in its environment as Authorization",
                provider=ref.provider,
            )
        try:
            return await self._issued(plan, run, ref)
        except ValetkeyError as error:
            log.info("run %s gets nothing of %s: %s", run.id, ref, error.message)
            return answers.of_error(error)

    async def _issued(self, plan: Plan, run: Run, ref: CredentialRef) -> Answer:
        record, method = self._login(ref)
        endpoint = endpoint_for(method.endpoint or "")
        route = plan.endpoint
        if route is None or route not in endpoint.routes or plan.method != "GET":
            return answers.failed(
                404,
                "no_endpoint",
                f"{ref} serves nothing here, and its API is asked by the tool itself, signed",
                f"ask for {' or '.join(endpoint.routes)} by GET",
                provider=ref.provider,
            )
        place = _Place(run.id, ref, route)
        found = self._still_good(place, record.generation)
        if found is None:
            found = await asyncio.shield(self._ask(place, record, endpoint, method, run.agent))
        if isinstance(found, ValetkeyError):
            raise found
        made = Answer(200, "ok", {}, b"cache-control: no-store\r\n")
        made.body = found.content.reveal().encode()
        return made

    def _login(self, ref: CredentialRef) -> tuple[Record, AuthMethod]:
        """Look at each request whether the login is there: what is logged out is served no more."""
        record, provider = self._broker.store.load(ref), self._broker.catalogue.get(ref.provider)
        if record is None:
            raise NotLoggedIn(
                f"no credential is stored for {ref}", provider=ref.provider, hint=f"run `{login_command(ref)}`"
            )
        method = provider.method(record.credential.method)
        if method is None or method.endpoint is None:
            raise InvalidProvider(
                f"the login of {ref} has no endpoint any more",
                provider=ref.provider,
                hint=f"run `{login_command(ref)}` again",
            )
        return record, method

    # --- once --------------------------------------------------------------------------------

    def _still_good(self, place: _Place, generation: int) -> Issued | ValetkeyError | None:
        kept = self._kept.get(place)
        if kept is None or kept.generation != generation or self._clock.monotonic() >= kept.until:
            return None
        # The monotonic clock stands still while a machine sleeps; the other one may be set back.
        return None if kept.until_wall is not None and self._clock.now() >= kept.until_wall else kept.found

    def _ask(
        self, place: _Place, record: Record, endpoint: Endpoint, method: AuthMethod, agent: str | None
    ) -> asyncio.Task[Issued | ValetkeyError]:
        """Give the one question that is under way; it goes on where who asked has gone."""
        key = place, record.generation
        asking = self._asking.get(key)
        if asking is None:
            granted = Granted(
                ref=place.ref,
                run=place.run,
                method=method,
                parameters=record.credential.parameters,
                credential=lambda: self._credential(place.ref, agent),
            )
            asking = asyncio.get_running_loop().create_task(self._asked(place, record.generation, endpoint, granted))
            self._asking[key] = asking
            asking.add_done_callback(lambda _: self._asking.pop(key, None))
        return asking

    async def _asked(
        self, place: _Place, generation: int, endpoint: Endpoint, granted: Granted
    ) -> Issued | ValetkeyError:
        found: Issued | ValetkeyError
        try:
            with DroppedFrames():
                found = await endpoint.issue(place.route, granted)
        except ValetkeyError as error:
            found = error
        now, until_wall = self._clock.monotonic(), None
        if isinstance(found, Issued):
            until_wall = found.again_until
            until = now if until_wall is None else now + (until_wall - self._clock.now()).total_seconds()
        else:
            until = now + _FAILURE_SECONDS
        self._kept[place] = _Kept(found=found, generation=generation, until=until, until_wall=until_wall)
        return found

    async def _credential(self, ref: CredentialRef, agent: str | None) -> Credential:
        access = await self._broker.access(str(ref), use="run", agent=agent)
        if access.credential is None:
            raise NotLoggedIn(f"{ref} holds no credential", provider=ref.provider, hint=f"run `{login_command(ref)}`")
        return access.credential

    def forget_all_but(self, runs: Container[str]) -> None:
        """Drop what was issued to runs that count no more."""
        self._kept = {place: kept for place, kept in self._kept.items() if place.run in runs}


def _shows(head: ReadHead, token: str) -> bool:
    """Say whether Authorization is the token, alone or behind a scheme. In constant time."""
    for name, value in head.credentials:
        if name == b"authorization":
            return hmac.compare_digest(value.strip().rpartition(b" ")[2], token.encode())
    return False
