"""Keeps what has to be put into a request ready for each granted account, for as long as the broker calls it fresh."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import assert_never
from urllib.parse import quote

from valetkey.access import Access, Use, check_use, without_credential
from valetkey.broker import Broker
from valetkey.clock import Clock
from valetkey.credential import Credential, CredentialRef, secrets_of
from valetkey.errors import NeedsLogin
from valetkey.freshness import age_of, fresh_for
from valetkey.gateway.decide import Client
from valetkey.gateway.message import CREDENTIALS, Header, write_headers
from valetkey.gateway.scrub import Needles
from valetkey.inject import Step, with_cookie

__all__ = ["Credentials", "Placement", "Ready"]

# However long a credential lives, the broker is asked this often: it judges ages by a clock that does not jump.
_LONGEST = timedelta(seconds=60)
# A stale one goes on serving while it is renewed; so often is looked whether it has been.
_STALE = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What the credential does to the headers of a request to one host: bytes, ready to be sent."""

    dropped: frozenset[bytes]
    fixed: bytes = field(repr=False)
    # (name, value, whether it is added to what the client sent, else only where that is absent).
    conditional: tuple[tuple[bytes, bytes, bool], ...] = field(repr=False)
    query: tuple[tuple[str, str], ...] = field(repr=False)
    # What stands in place of the client's valet key, in the path and in the body; None where it may not be there.
    in_path: bytes | None = field(repr=False)
    in_body: bytes | None = field(repr=False)


class Ready:
    """One account's credential, placed. `until` is on the monotonic clock."""

    __slots__ = ("_placements", "access", "needles", "scrubs", "until")

    def __init__(self, access: Access, until: float) -> None:
        self.access = access
        self.until = until
        credential = access.credential
        secrets = () if credential is None else secrets_of(credential).values()
        self.needles = Needles(secret.reveal() for secret in secrets)
        # What answers are looked through for; None where no credential went out.
        self.scrubs = None if credential is None else self.needles
        self._placements: dict[str, Placement] = {}

    def placement(self, origin: str) -> Placement:
        """Give the placement for `https://host[:port]`. Raises: HostsNotAccepted, InvalidParameter."""
        found = self._placements.get(origin)
        if found is None:
            found = self._placements[origin] = _placed(self.access.steps(origin + "/"))
        return found


def _placed(steps: list[Step]) -> Placement:
    """Do the steps that do not look at the request once, and keep the others."""
    fixed: dict[str, str] = {}
    dropped: set[str] = set()
    conditional: list[tuple[bytes, bytes, bool]] = []
    query: list[tuple[str, str]] = []
    replaced: dict[str, str] = {}
    for step in steps:
        match step.kind:
            case "remove":
                fixed.pop(step.name, None)
                dropped.add(step.name)
            case "set":
                fixed[step.name] = step.value
                dropped.add(step.name)
            case "if absent" | "append":
                conditional.append((step.name.encode(), step.value.encode(), step.kind == "append"))
            case "query":
                query.append((step.name, step.value))
            case "cookie":
                # The client's own cookies are dropped like every credential that it sends.
                fixed["cookie"] = with_cookie(fixed.get("cookie", ""), step.name, step.value)
            case "replace":
                replaced[step.name] = step.value
            case _:
                assert_never(step.kind)
    lines: list[Header] = [(name.encode(), value.encode()) for name, value in fixed.items()]
    in_path, in_body = replaced.get("path"), replaced.get("body")
    return Placement(
        dropped=frozenset(name.encode() for name in dropped) - CREDENTIALS,
        fixed=write_headers(lines),
        conditional=tuple(conditional),
        query=tuple(query),
        in_path=None if in_path is None else quote(in_path, safe=":@").encode(),
        in_body=None if in_body is None else json.dumps(in_body)[1:-1].encode(),
    )


class Credentials:
    """The granted accounts' credentials. Asked in the engine's loop only."""

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self._broker = broker
        self._clock = clock
        self._ready: dict[CredentialRef, Ready] = {}
        # What the provider refused together with the login behind it: dead, however long it would live by the clock.
        self._dead: dict[CredentialRef, Credential] = {}
        # How often all was forgotten: what was asked for before is not kept after.
        self._times_forgotten = 0

    def ready(self, ref: CredentialRef) -> Ready | None:
        """Give what is ready now; None where the broker has to be asked."""
        found = self._ready.get(ref)
        return found if found is not None and self._clock.monotonic() < found.until else None

    async def fetch(self, ref: CredentialRef, client: Client, *, rejected: Credential | None = None) -> Ready:
        """Ask the broker for a client that was granted it, which renews where that is due. `rejected` got a 401.

        Raises as `Broker.access` does.
        """
        asked_at = self._times_forgotten
        rejected = rejected or self._dead.get(ref)
        try:
            access = await self._access(ref, client, rejected)
        except NeedsLogin:
            if rejected is not None:
                self._dead[ref] = rejected
            self._replace(ref, None)
            raise
        self._dead.pop(ref, None)
        ready = Ready(access, self._clock.monotonic() + self._fresh_for(access).total_seconds())
        self._replace(ref, ready if asked_at == self._times_forgotten else None)
        return ready

    def _replace(self, ref: CredentialRef, ready: Ready | None) -> None:
        old = self._ready.pop(ref, None)
        if old is not None:
            old.until = 0.0  # connections keep what they sent last
        if ready is not None:
            self._ready[ref] = ready

    async def _access(self, ref: CredentialRef, client: Client, rejected: Credential | None) -> Access:
        broker, agent = self._broker, client.agent
        use: Use = "run" if client.kind == "run" else "gateway"
        if broker.store.account(ref) is None:
            # Never the environment's: it is this process's, and not that of whoever made the key.
            provider = broker.catalogue.get(ref.provider)
            found = without_credential({}, ref, provider)
            if found is not None:
                check_use(ref, found.method, use, restricted=found.method.standing == "restricted", agent=agent)
                return found
        return await broker.access(str(ref), use=use, rejected=rejected, agent=agent)

    def _fresh_for(self, access: Access) -> timedelta:
        if access.credential is None:
            return _LONGEST
        interval = timedelta(seconds=access.method.refresh_interval) if access.method.refresh_interval else None
        left = fresh_for(access.credential, age_of(access.credential, self._clock.now()), refresh_interval=interval)
        return max(_STALE, min(_LONGEST, left)) if left is not None else _LONGEST

    def forget(self) -> None:
        """Ask the broker again for all: somebody has changed the store."""
        self._ready.clear()
        self._times_forgotten += 1
