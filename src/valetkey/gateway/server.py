"""The gateway: listens, and holds what all connections share. One event loop, one thread."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from valetkey.clock import Clock
from valetkey.credential import CredentialRef
from valetkey.errors import StoreError, Unreachable
from valetkey.gateway.approvals import Approvals
from valetkey.gateway.client import ClientConnection
from valetkey.gateway.credentials import Credentials
from valetkey.gateway.dial import Dialler
from valetkey.gateway.grants import grantable
from valetkey.gateway.heap import Heap
from valetkey.gateway.mcp import McpRelay
from valetkey.gateway.plan import Plan, Planner, Tunnel
from valetkey.gateway.run_access import RunAccess
from valetkey.gateway.run_endpoints import RunEndpoints
from valetkey.gateway.run_sockets import RunSockets
from valetkey.gateway.upstream import Pool, UpstreamConnection

if TYPE_CHECKING:
    from valetkey.audit.recorder import Audit
    from valetkey.broker import Broker
    from valetkey.gateway.authority import Authority
    from valetkey.gateway.decide import Grant
    from valetkey.gateway.ring import Ring
    from valetkey.gateway.runs import Run
    from valetkey.gateway.trace import Trace

__all__ = ["EngineSettings", "Gateway"]

log = logging.getLogger(__name__)

_BACKLOG = 4096


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How long the gateway waits, in seconds, and how much it takes.

    `head_seconds`: for the head of a request, and a TLS handshake. `idle_seconds`: for the next request.
    `response_seconds`: for the head of an answer; models think for minutes. `stream_seconds`: for the next byte of a
    body, either way. `total_seconds`: for a request and its answer, but for what is relayed. `most_connections`:
    of clients; above it one that has shown no key yet has to go. `most_of_a_run`: of one run. `max_body_bytes` 0: no
    limit. `keep_bodies`: the trace gets the beginning of both bodies. `hold_for_login_seconds`: for a login that a
    request of a run lacks; 0: not at all.
    """

    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    response_seconds: float = 600.0
    stream_seconds: float = 600.0
    total_seconds: float = 86400.0
    most_connections: int = 65536
    most_of_a_run: int = 1024
    max_body_bytes: int = 0
    hold_for_login_seconds: float = 0.0
    keep_bodies: bool = False


class Gateway:
    """Takes requests of keys and runs, and sends them on with the real credential. Made and used in one event loop."""

    def __init__(
        self,
        *,
        broker: Broker,
        ring: Ring,
        dialler: Dialler,
        clock: Clock,
        trace: Trace | None = None,
        authority: Authority | None = None,
        approvals: Approvals | None = None,
        audit: Audit | None = None,
        settings: EngineSettings | None = None,
        heap: Heap | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.broker = broker
        self.ring = ring
        self.trace = trace
        self.authority = authority
        self.audit = audit
        self.approvals = approvals or Approvals(clock)
        self.settings = settings or EngineSettings()
        self.now = clock.monotonic
        self.credentials = Credentials(broker, clock)
        self.endpoints = RunEndpoints(broker, clock)
        self.mcp = McpRelay(broker.store, clock)
        self.planner = Planner(broker.catalogue)
        self.pool = Pool(lambda: self.tick)
        self.connections: set[ClientConnection] = set()
        self.draining = False
        # Counts the changes of keys and accounts: what was decided before one holds no more.
        self.epoch = 0
        # The time of the last sweep: near enough for what is waited for.
        self.tick = clock.monotonic()
        self.active = 0
        self.last_activity = clock.monotonic()
        self._clock = clock
        self._dialler = dialler
        self._heap = heap or Heap()
        self.access = RunAccess(
            store=broker.store,
            ring=ring,
            clock=clock,
            approvals=self.approvals,
            audit=audit,
            refresh=self.refresh,
            grantable=self._grantable,
        )
        self._servers: list[asyncio.Server] = []
        self._run_sockets = RunSockets(lambda run: ClientConnection(self, run=run))
        self._sweeping: asyncio.TimerHandle | None = None
        self._wall = (clock.monotonic(), clock.now().timestamp())
        self._quiet = asyncio.Event()

    # --- the process's side ------------------------------------------------------------------

    async def start(self, *, host: str = "127.0.0.1", port: int = 4380, listening: socket.socket | None = None) -> None:
        """Listen at a port (0 takes any free one), and at a socket that is bound already.

        Raises: OSError; ConfigError, for a proxy that cannot be used.
        """
        self.ring.refresh()
        try:
            self._servers.append(await self.loop.create_server(self._accepted, host, port, backlog=_BACKLOG))
            if listening is not None:
                unix = await self.loop.create_unix_server(self._accepted, sock=listening, backlog=_BACKLOG)
                self._servers.append(unix)
        except OSError:
            for server in self._servers:
                server.close()
            if listening is not None:
                listening.close()
            raise
        self._run_sockets.follow(self.ring.run_folders())
        await self._dialler.listening([tcp.getsockname()[:2] for tcp in self._servers[0].sockets])
        # What is there now stays: the collector need not look at it again and again.
        gc.freeze()
        self._tick()

    def inside(self, tunnel: Tunnel, *, run: str | None) -> ClientConnection:
        """Make the protocol for what is inside of a tunnel, which came by that run's socket, if by one."""
        return ClientConnection(self, tunnel, run=run)

    def _accepted(self) -> ClientConnection:
        return ClientConnection(self)

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self._servers[0].sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """The address for clients."""
        name = self._servers[0].sockets[0].getsockname()[0]
        return f"http://{f'[{name}]' if ':' in name else name}:{self.port}"

    def refresh(self) -> None:
        """Read keys, runs and accounts anew, and close what ended ones have open."""
        ended = set(self.ring.refresh())
        if self._servers and not self.draining:
            self._run_sockets.follow(self.ring.run_folders())
        self.epoch += 1
        self.credentials.forget()
        self.planner.forget()
        self.endpoints.forget_all_but(self.ring.run_ids())
        self.approvals.look_at_logins(self.generation)
        if self.trace is not None:
            self.trace.name_clients({live.id: live.key.name for live in self.ring.live()})
        if not ended:
            return
        runs = {live.key.id for live in ended if live.client.kind == "run"}
        for connection in list(self.connections):
            tunnel = connection.tunnel
            if (
                connection.run in runs
                or (tunnel is not None and tunnel.live in ended)
                or any(e.live in ended for e in connection.queue)
            ):
                connection.abort()

    def generation(self, account: str) -> int:
        """Give which login of `provider@account` is stored; 0 for none, and where the store cannot be read."""
        provider, _, name = account.partition("@")
        try:
            found = self.broker.store.account(CredentialRef(provider=provider, account=name))
        except StoreError:
            return 0
        return 0 if found is None else found.generation

    def _grantable(self, run: Run, ref: CredentialRef) -> Grant:
        broker = self.broker
        return grantable(ref, store=broker.store, catalogue=broker.catalogue, environ={}, use="run", agent=run.agent)

    async def drain(self, seconds: float = 30.0) -> None:
        """Take no new connections, let what is under way end, then close the rest."""
        self.draining = True
        for server in self._servers:
            server.close()
        self._run_sockets.close()
        self.approvals.end_waiting()
        self.access.end_waiting()
        for connection in list(self.connections):
            if not connection.queue:
                connection.close()
        if self.active:
            self._quiet.clear()
            waiting = asyncio.ensure_future(self._quiet.wait())
            patience = asyncio.ensure_future(self._clock.sleep(seconds))
            await asyncio.wait({waiting, patience}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            patience.cancel()
        for connection in list(self.connections):
            connection.close() if not connection.queue else connection.abort()
        self.pool.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        await asyncio.sleep(0)

    # --- the connections' side ---------------------------------------------------------------

    def look(self) -> None:
        """See whether anybody has changed the store, before anything is decided."""
        if self.ring.changed(thorough=False):
            self.refresh()

    def make_room(self, newest: ClientConnection) -> None:
        """Close a connection that has shown no key where there are too many: the oldest, or else the newest."""
        run = newest.run
        if run is not None and sum(c.run == run for c in self.connections) > self.settings.most_of_a_run:
            newest.abort()
            return
        if len(self.connections) <= self.settings.most_connections:
            return
        unknown = [c for c in self.connections if not c.known and c is not newest]
        (min(unknown, key=lambda c: c.deadline) if unknown else newest).abort()

    def begun(self) -> None:
        """Count a request."""
        self.active += 1

    def ended(self) -> None:
        """Count it off."""
        self.active -= 1
        self.last_activity = self.tick
        if self.draining and self.active == 0:
            self._quiet.set()

    def wall(self, monotonic: float) -> float:
        """Give the time of day, in seconds since 1970, of a moment of the last seconds."""
        return self._wall[1] + (monotonic - self._wall[0])

    async def dial(self, plan: Plan, *, tunnel: bool = False) -> UpstreamConnection:
        """Open a connection for a plan. Raises: AddressRefused, TransportError."""
        protocol: UpstreamConnection
        _, protocol = await self._dialler.dial(
            lambda: UpstreamConnection(self.pool, plan.pool_key),
            # What gets no credential may go anywhere that is public, as the client would go by itself.
            scheme="tunnel" if tunnel or plan.ref is None else plan.scheme,
            host=plan.host_name,
            port=plan.port,
            near_allowed=plan.near_allowed,
        )
        if protocol.transport is None:
            raise Unreachable(f"{plan.host} closed the connection at once", hint="try again", sent=False)
        self.pool.joined(protocol)
        return protocol

    def sweep(self) -> None:
        """End what has waited too long."""
        self.tick = now = self.now()
        self._wall = (now, self._clock.now().timestamp())
        for connection in list(self.connections):
            if connection.deadline < now or connection.too_long(now):
                connection.timed_out()
        self.pool.sweep()
        self._heap.look(len(self.connections) + len(self.pool))

    def _tick(self) -> None:
        self.sweep()
        if self.ring.changed():
            self.refresh()
        self._sweeping = self.loop.call_later(1.0, self._tick)
