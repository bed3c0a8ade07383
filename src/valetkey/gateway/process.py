"""The long-running process: builds the gateway out of its parts, looks after it, and ends it well."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Container, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any

from valetkey.audit.recorder import Audit
from valetkey.broker import Broker
from valetkey.clock import Clock, written
from valetkey.config import Config, Paths
from valetkey.credential import Secret
from valetkey.errors import AuthorityBroken, GatewayFailed, StoreLocked, ValetkeyError, WrongMode
from valetkey.gateway.ahead import Ahead
from valetkey.gateway.approvals import Approvals
from valetkey.gateway.audited import Audited
from valetkey.gateway.authority import Authority
from valetkey.gateway.control import Control
from valetkey.gateway.dial import Dialler
from valetkey.gateway.metrics import Metrics
from valetkey.gateway.operating import Operating, Parts
from valetkey.gateway.place import Place
from valetkey.gateway.ring import Ring
from valetkey.gateway.run_notes import RunNotes
from valetkey.gateway.server import EngineSettings, Gateway
from valetkey.gateway.telemetry import telemetry
from valetkey.gateway.trace import Trace
from valetkey.http import HttpClient
from valetkey.providers import Catalogue, catalogue
from valetkey.stores import modes, open_store
from valetkey.stores.passphrase import VARIABLE, from_environment

__all__ = ["DRAIN_SECONDS", "Listening", "assembled", "harden", "serve"]

# What streams gets so long to come to its end.
DRAIN_SECONDS = 30.0
# Revocation counts within a second, by whichever process it is done.
_LOOK_SECONDS = 0.25
_SWITCH_SECONDS = 0.0005
# The loop waits for another process that writes to the audit, and no request can go on meanwhile.
_AUDIT_BUSY_SECONDS = 1.0
_RESERVED_FILES = 64
_MOST_CONNECTIONS = 65536
# How often is looked whether we are still needed, in looks.
_SELDOM = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where to listen, and after how many idle seconds to end; None for never."""

    host: str
    port: int
    idle_exit_seconds: float | None


def harden() -> None:
    """Keep what this process makes and holds from others: modes, and no core dump that would hold every secret."""
    os.umask(0o077)
    with suppress(ValueError, OSError):  # where the hard limit is lower already
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):
        # A shell gives 1024, and a request takes two.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(
    config: Config,
    *,
    environ: Mapping[str, str],
    clock: Clock,
    version: str,
    listening: Listening,
    ready: Callable[[Mapping[str, object]], None],
) -> int:
    """Run the gateway of this home until somebody ends it, and give the exit status: 0, or 130 for Ctrl-C.

    `ready` is called once it answers. Raises: GatewayFailed where it cannot start; ConfigError, StoreError.
    """
    harden()
    # The trace's thread gives the interpreter back after this; with Python's 5 ms a request may wait for that long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    place = Place(config.paths, environ)
    place.claim()
    try:
        return _loop()(_Process(config, environ, clock, version, listening, place, ready).run())
    finally:
        place.leave()


def _loop() -> Callable[[Coroutine[Any, Any, int]], int]:
    try:
        import uvloop
    except ImportError:  # no wheel for this platform; it works, at some three quarters of the speed
        return asyncio.run
    return uvloop.run


def assembled(config: Config, *, environ: Mapping[str, str], clock: Clock) -> Parts:
    """Build the gateway: the one place that knows all of its parts.

    Raises: ConfigError, StoreError, AuthorityBroken.
    """
    store = open_store(
        config.paths,
        clock=clock,
        ask_passphrase=_passphrase(environ),
        key_source_kind=config.text("store.key_source") or "auto",
        key_command=config.words("store.key_command"),
        environ=environ,
    )
    ca_file = config.text("network.ca_file")
    audit = Audit(config.paths, clock, busy_seconds=_AUDIT_BUSY_SECONDS)
    audited = Audited(audit, store=store, paths=config.paths, clock=clock)
    # No folder's accounts: a client names its account, or gets the provider's default one.
    broker = Broker(
        store=store,
        catalogue=catalogue(config.paths),
        http=HttpClient(timeout_seconds=config.seconds("network.timeout_seconds"), ca_file=ca_file),
        clock=clock,
        environ=environ,
        audit=audit,
    )
    metrics = Metrics(providers=_Ids(broker.catalogue), open_requests=lambda: gateway.active)
    broker.told = metrics.renewal
    exported = telemetry(endpoint=config.text("trace.otlp_endpoint"), environ=environ)
    trace = Trace(
        config.paths.trace,
        clock,
        [metrics, audited] if exported is None else [metrics, audited, exported],
        keep_days=config.count("trace.keep_days"),
        max_rows=config.count("trace.max_rows"),
    )
    metrics.dropped = lambda: trace.dropped
    ring = Ring(store, broker.catalogue, clock, environ, lambda key: trace.tokens_since(key, _midnight(clock)))
    approvals = Approvals(clock)
    approvals.decided = audited.decided
    gateway = Gateway(
        broker=broker,
        ring=ring,
        trace=trace,
        authority=_authority(config.paths, clock),
        dialler=Dialler(ca_file=ca_file, environ=environ),
        approvals=approvals,
        audit=audit,
        clock=clock,
        settings=EngineSettings(
            response_seconds=config.seconds("gateway.response_seconds"),
            stream_seconds=config.seconds("gateway.stream_seconds"),
            total_seconds=config.seconds("gateway.total_seconds"),
            most_connections=_most_connections(),
            max_body_bytes=config.count("gateway.max_body_bytes") if config.value("gateway.max_body_bytes") else 0,
            hold_for_login_seconds=config.seconds("runs.hold_for_login_seconds"),
            keep_bodies=config.text("trace.bodies") == "on",
        ),
    )
    notes = RunNotes(config.paths)
    approvals.awaiting = notes.awaiting
    gateway.access.note = notes.note
    return Parts(
        store=store,
        broker=broker,
        ring=ring,
        trace=trace,
        metrics=metrics,
        telemetry=exported,
        approvals=approvals,
        audited=audited,
        gateway=gateway,
    )


class _Ids(Container[str]):
    """The providers that there are; one that is not known is looked for, it may be new."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._known = set(catalogue.ids())

    def __contains__(self, name: object) -> bool:
        if name not in self._known:
            self._known = set(self._catalogue.ids())
        return name in self._known


def _most_connections() -> int:
    """Give how many clients there is room for: each may need a connection to a provider, and files are opened too."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, (soft - _RESERVED_FILES) // 2) if soft != resource.RLIM_INFINITY else _MOST_CONNECTIONS


def _authority(paths: Paths, clock: Clock) -> Authority | None:
    """Open the certificate authority, so that its file is there for tools; without it there is the base URL still."""
    authority = Authority(paths, clock)
    try:
        authority.open()
    except (AuthorityBroken, WrongMode, OSError) as error:
        log.error("requests through the proxy cannot be looked into: %s", error)
        return None
    return authority


def _passphrase(environ: Mapping[str, str]) -> Callable[[], Secret]:
    """Give what opens the store without a person: the file that the environment names. Else somebody has to unlock."""
    from_file = from_environment(environ)

    def ask() -> Secret:
        if not environ.get(VARIABLE):
            raise StoreLocked("the store is locked by a passphrase", hint="run `valetkey unlock`")
        return from_file()

    return ask


def _midnight(clock: Clock) -> datetime:
    return datetime.combine(clock.now().date(), time(), UTC)


class _Process:
    """One run of it, from the first socket to the last."""

    def __init__(
        self,
        config: Config,
        environ: Mapping[str, str],
        clock: Clock,
        version: str,
        listening: Listening,
        place: Place,
        ready: Callable[[Mapping[str, object]], None],
    ) -> None:
        self._config = config
        self._environ = environ
        self._clock = clock
        self._version = version
        self._listening = listening
        self._place = place
        self._ready = ready
        self._ending: asyncio.Event
        self._at_once: asyncio.Event
        self._status = 0

    async def run(self) -> int:
        self._ending, self._at_once = asyncio.Event(), asyncio.Event()
        self._hear_signals()
        parts = assembled(self._config, environ=self._environ, clock=self._clock)
        parts.trace.start()
        try:
            await self._run(parts)
        finally:
            # A renewal that was sent is saved, or its refresh token would be lost: this waits for it.
            await asyncio.to_thread(parts.broker.wait_for_renewals)
            await asyncio.to_thread(parts.trace.close)
            await asyncio.to_thread(parts.audited.turn, parts.audited.take_over())
            await asyncio.to_thread(parts.broker.close)
            if parts.telemetry is not None:
                await asyncio.to_thread(parts.telemetry.close)
        return self._status

    async def _run(self, parts: Parts) -> None:
        await self._listen(parts.gateway)
        operating = Operating(parts, about=self._about(parts.gateway), changed=self._place.publish, stop=self._end)
        control = Control(operating)
        try:
            operating.refresh()
            await control.start(self._place.listen(self._place.control))
            self._place.publish(operating.about)
            self._ready(operating.about)
            await self._until_the_end(parts, operating)
            await self._drain(parts.gateway)
        finally:
            await control.close()

    async def _listen(self, gateway: Gateway) -> None:
        host, port = self._listening.host, self._listening.port
        try:
            await gateway.start(host=host, port=port, listening=self._place.listen(self._place.gateway))
        except OSError as error:
            raise _not_listening(error, host, port) from error

    def _about(self, gateway: Gateway) -> dict[str, object]:
        return {
            "version": self._version,
            "pid": os.getpid(),
            "url": gateway.url,
            "port": gateway.port,
            "socket": str(self._place.gateway),
            "control": str(self._place.control),
            "started_at": written(self._clock.now()),
            "locked": False,
        }

    # --- while it runs ---------------------------------------------------------------------------

    async def _until_the_end(self, parts: Parts, operating: Operating) -> None:
        ahead = Ahead(broker=parts.broker, granted=operating.granted, clock=self._clock)
        going_on = [
            asyncio.create_task(ahead.run(), name="ahead"),
            asyncio.create_task(self._look(operating), name="look"),
            asyncio.create_task(self._turn(parts.audited), name="audit"),
        ]
        ending = asyncio.create_task(self._ending.wait())
        await asyncio.wait([ending, *going_on], return_when=asyncio.FIRST_COMPLETED)
        for task in going_on:
            if task.done() and (fault := task.exception()) is not None:
                # Without it keys would outlive their revocation: better no gateway than such a one.
                log.critical("the gateway ends, for it cannot look after itself", exc_info=fault)
                self._status = 1
            task.cancel()
        ending.cancel()
        await asyncio.gather(*going_on, ending, return_exceptions=True)

    async def _look(self, operating: Operating) -> None:
        looks = 0
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            if not self._place.is_ours():
                # Before the store is looked at, which would make a new one.
                log.warning("the home of this gateway was removed or replaced: it ends")
                self._end(now=False)
                return
            looks += 1
            try:
                self._end_orphans(operating)
                operating.look()
                if looks % _SELDOM == 0:
                    operating.look_at_declarations()
            except (OSError, ValetkeyError) as error:
                # Descriptors or the disk may be short for a moment. The engine looks too, before each request.
                log.warning("keys and declarations could not be looked at: %s", error)
            if looks % _SELDOM == 0:
                self._end_where_idle(operating)

    def _end_orphans(self, operating: Operating) -> None:
        """Take back what a run has whose parent died: it holds its lock for as long as it lives."""
        for run in operating.runs():
            lock = self._config.paths.run_lock(run)
            if lock.exists() and not modes.is_locked(str(lock)):
                log.info("the run %s has ended", run)
                operating.end_run(run)

    async def _turn(self, audited: Audited) -> None:
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            if audited.due:
                await asyncio.to_thread(audited.turn, audited.take_over())

    def _end_where_idle(self, operating: Operating) -> None:
        limit = self._listening.idle_exit_seconds
        if limit is not None and operating.idle_seconds() >= limit:
            log.info("nobody has asked for %.0f s, and no valet key is left: it ends", limit)
            self._end(now=False)

    # --- the end ---------------------------------------------------------------------------------

    def _hear_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, status in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            loop.add_signal_handler(number, self._signalled, status)

    def _signalled(self, status: int) -> None:
        if self._ending.is_set():
            self._end(now=True)
            # Whoever asks a third time does not want to wait for a renewal either.
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
        else:
            self._status = status
            self._end(now=False)

    def _end(self, now: bool) -> None:
        self._ending.set()
        if now:
            self._at_once.set()

    async def _drain(self, gateway: Gateway) -> None:
        """Take nothing new and let what is under way come to its end, until somebody says `now`."""
        draining = asyncio.create_task(gateway.drain(DRAIN_SECONDS))
        at_once = asyncio.create_task(self._at_once.wait())
        await asyncio.wait([draining, at_once], return_when=asyncio.FIRST_COMPLETED)
        at_once.cancel()
        if not draining.done():
            draining.cancel()
            with suppress(asyncio.CancelledError):
                await gateway.drain(0.0)
        await asyncio.gather(draining, at_once, return_exceptions=True)


def _not_listening(error: OSError, host: str, port: int) -> GatewayFailed:
    match error.errno:
        case errno.EADDRINUSE:
            return GatewayFailed(
                f"port {port} of {host} is taken by another program, or by the gateway of another home",
                hint="set gateway.port in config.toml to another one, or run `valetkey serve --port 0`",
            )
        case errno.EACCES:
            return GatewayFailed(
                f"port {port} may not be used without privileges", hint="set gateway.port in config.toml above 1023"
            )
    return GatewayFailed(
        f"the gateway cannot listen on {host}, port {port}: {(error.strerror or type(error).__name__).lower()}",
        hint="set gateway.host in config.toml to an address of this machine, such as 127.0.0.1",
    )
