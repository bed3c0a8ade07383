"""A gateway in a thread of its own, with the real parts and a store in memory, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from tests.support.brokers import Declared
from tests.support.runs import clear
from valetkey.audit.recorder import Audit
from valetkey.broker import Broker
from valetkey.clock import Clock, SystemClock
from valetkey.config import Paths
from valetkey.credential import ApiKey, Credential, CredentialRef, Secret
from valetkey.gateway.authority import Authority
from valetkey.gateway.dial import Dialler
from valetkey.gateway.heap import Heap
from valetkey.gateway.keys import Keys
from valetkey.gateway.limits import Limits
from valetkey.gateway.ring import Ring
from valetkey.gateway.row import Row
from valetkey.gateway.runs import BegunRun, Runs
from valetkey.gateway.server import EngineSettings, Gateway
from valetkey.http import HttpClient
from valetkey.inject import endpoint_hosts, reach
from valetkey.provider import Api, AuthMethod, Inject, Provider
from valetkey.store import Record
from valetkey.testing.memory_store import MemoryStore

__all__ = ["KEY", "Raw", "Rows", "RunningGateway", "acme", "running_gateway"]

T = TypeVar("T")

# Of the form of a key, and made at run time.
KEY = "sk-" + "canary" + os.urandom(12).hex()


def acme(
    base_url: str,
    *,
    id: str = "acme",
    dialect: Literal["openai-chat", "anthropic-messages", "none"] = "openai-chat",
    **api: Any,
) -> Provider:
    """Give a provider whose key goes into Authorization, as the user's own server."""
    host = base_url.split("/")[2]
    method = AuthMethod(
        id="api-key", kind="api-key", inject=(Inject(set={"Authorization": "Bearer {key}"}),), environment=()
    )
    return Provider(
        id=id,
        name=id.title(),
        api=Api(base_url=base_url, dialect=dialect, hosts=(host,), **api),
        auth=(method,),
        origin="user",
    )


@dataclass
class Rows:
    """A trace in memory."""

    rows: list[Row] = field(default_factory=list)
    names: Mapping[str, str] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Keep it."""
        self.rows.append(row)

    def name_clients(self, names: Mapping[str, str]) -> None:
        """Take what clients are called."""
        self.names = dict(names)


class RunningGateway:
    """The gateway, and the means to give it accounts and keys. All but `call` is safe from the test's thread."""

    def __init__(
        self, *providers: Provider, clock: Clock, store: MemoryStore | None, home: Path, logged_in: bool = True
    ) -> None:
        self.clock = clock
        self.store = store or MemoryStore(clock=clock)
        self.catalogue = Declared(known=providers)
        self.broker = Broker(
            store=self.store,
            catalogue=self.catalogue,  # type: ignore[arg-type]  # the part of a Catalogue that is used
            http=HttpClient(timeout_seconds=60),
            clock=clock,
            environ={},
        )
        self.keys = Keys(self.store, clock)
        self.runs = Runs(self.store, clock)
        self.trace = Rows()
        self.home = home
        self.gateway: Gateway
        self.loop: asyncio.AbstractEventLoop
        for provider in providers if logged_in else ():
            self.log_in(provider.id)

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return self.gateway.port

    @property
    def url(self) -> str:
        """Its address."""
        return self.gateway.url

    def log_in(
        self, name: str, key: str = KEY, *, credential: Credential | None = None, method: str | None = None
    ) -> Record:
        """Store an account (`provider@account`) with this key or credential; a stored one is replaced."""
        provider_id, _, account = name.partition("@")
        provider = self.catalogue.get(provider_id)
        way = provider.method(method) if method else provider.auth[0]
        assert way is not None
        credential = credential or ApiKey(method=way.id, key=Secret(key))
        base_url, hosts = reach(provider, way, credential.parameters)
        ref = CredentialRef(provider=provider_id, account=account or "default")
        old = self.store.account(ref)
        return self.store.save(
            Record(
                ref=ref,
                credential=credential,
                hosts=hosts,
                base_url=base_url,
                endpoints=endpoint_hosts(way, credential.parameters),
                generation=0 if old is None else old.generation,
            )
        )

    def key(self, *grants: str, policy: str = "", limits: Limits | None = None, **more: Any) -> str:
        """Make a valet key for these accounts (all providers where none is named) and give its token."""
        names = grants or tuple(provider.id for provider in self.catalogue.all())
        refs = [self.broker.resolve(name) for name in names]
        _, token = self.keys.issue(
            grants=refs,
            catalogue=self.catalogue,  # type: ignore[arg-type]  # the part of a Catalogue that is used
            environ={},
            policy=policy or None,
            policy_file="policy.toml",
            limits=limits,
            **more,
        )
        return token.reveal()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def begin(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin a coroutine in the gateway's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def do(self, work: Any) -> Any:
        """Run plain code in the gateway's thread."""

        async def run() -> Any:
            return work()

        return self.call(run())

    def raw(self, *, context: ssl.SSLContext | None = None, host: str = "localhost") -> Raw:
        """Connect."""
        return Raw(self.port, context=context, host=host)

    def begin_run(self, *grants: str, id: str = "run-1", policy: str | None = None, **more: Any) -> BegunRun:
        """Begin a run with these accounts, and let the gateway see it."""
        begun = self.runs.begin(
            run=id,
            grants=[self.broker.resolve(name) for name in grants],
            catalogue=self.catalogue,  # type: ignore[arg-type]  # the part of a Catalogue that is used
            environ={},
            paths=Paths(home=self.home),
            policy=policy,
            policy_file="policy.toml",
            **more,
        )
        self.do(self.gateway.refresh)
        return begun

    def run_raw(self, run: BegunRun) -> Raw:
        """Connect by a run's socket."""
        return Raw(run.folder / "gateway.sock")

    def wait_for_rows(self, count: int) -> list[Row]:
        """Wait until that many requests are in the trace."""
        for _ in range(6000):
            if len(self.trace.rows) >= count:
                return self.trace.rows
            threading.Event().wait(0.01)
        raise AssertionError(f"{len(self.trace.rows)} of {count} rows came")


@contextlib.contextmanager
def running_gateway(
    *providers: Provider,
    home: Path,
    ca_file: Path | None = None,
    clock: Clock | None = None,
    settings: EngineSettings | None = None,
    store: MemoryStore | None = None,
    dialler: Dialler | None = None,
    plain_loop: bool = False,
    logged_in: bool = True,
    port: int = 0,
    heap: Heap | None = None,
    audit: Audit | None = None,
) -> Iterator[RunningGateway]:
    """Run it until the block ends; all its providers have an account with KEY, unless `logged_in` says otherwise."""
    clock = clock or SystemClock()
    running = RunningGateway(*providers, clock=clock, store=store, home=home, logged_in=logged_in)
    ready = threading.Event()
    failed: list[BaseException] = []
    stop: asyncio.Event

    async def main() -> None:
        nonlocal stop
        stop = asyncio.Event()
        running.loop = asyncio.get_running_loop()
        running.gateway = Gateway(
            broker=running.broker,
            ring=Ring(running.store, running.catalogue, clock, {}),  # type: ignore[arg-type]  # as above
            dialler=dialler or Dialler(ca_file=None if ca_file is None else str(ca_file), environ={}),
            clock=clock,
            trace=running.trace,  # type: ignore[arg-type]  # the part of a Trace that the engine uses
            authority=Authority(Paths(home=home), clock),
            settings=settings,
            heap=heap,
            audit=audit,
        )
        await running.gateway.start(port=port)
        ready.set()
        await stop.wait()
        await running.gateway.drain(0)

    def run() -> None:
        try:
            if plain_loop:
                asyncio.run(main())
            else:
                import uvloop

                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(main())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(60)
    if failed:
        raise failed[0]
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(lambda: stop.set())
        thread.join(30)
        running.broker.close()
        clear(home)
    if failed:
        raise failed[0]


class Raw:
    """A client on a socket: bytes out, bytes in."""

    def __init__(self, at: int | Path, *, context: ssl.SSLContext | None = None, host: str = "localhost") -> None:
        """Connect to a port of loopback, or to a Unix socket."""
        self.socket: socket.socket
        if isinstance(at, Path):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(60)
            self.socket.connect(str(at))
        else:
            self.socket = socket.create_connection(("127.0.0.1", at), timeout=60)
        self._buffer = b""
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname=host)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *pieces: bytes | str) -> Raw:
        """Send each piece by itself."""
        for piece in pieces:
            self.socket.sendall(piece.encode("latin-1") if isinstance(piece, str) else piece)
        return self

    def tls(self, context: ssl.SSLContext, host: str) -> Raw:
        """Begin TLS inside."""
        self.socket = context.wrap_socket(self.socket, server_hostname=host)
        return self

    def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of an answer: status, and headers with lower-case names."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                raise EOFError(f"closed after {self._buffer!r}")
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        return int(first.split(" ")[1]), {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}

    def answer(self, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read one whole answer."""
        status, headers = self.head()
        if head_only or status in (204, 304) or status < 200:
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, self._chunked()
        if "content-length" in headers:
            return status, headers, self.exactly(int(headers["content-length"]))
        return status, headers, self.rest()

    def exactly(self, size: int) -> bytes:
        """Read so many bytes."""
        while len(self._buffer) < size:
            if not self._more():
                raise EOFError(f"closed after {len(self._buffer)} of {size} bytes")
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def until(self, mark: bytes) -> bytes:
        """Read up to and with a mark."""
        while mark not in self._buffer:
            if not self._more():
                raise EOFError(f"closed after {self._buffer!r}")
        found, _, self._buffer = self._buffer.partition(mark)
        return found + mark

    def rest(self) -> bytes:
        """Read to the end of the connection; a reset ends it too."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self._more():
                pass
        found, self._buffer = self._buffer, b""
        return found

    def closed(self) -> bool:
        """Wait for the end of the connection, and say whether nothing came before it."""
        return self.rest() == b""

    def _chunked(self) -> bytes:
        found = b""
        while size := int(self.until(b"\r\n"), 16):
            found += self.exactly(size)
            assert self.exactly(2) == b"\r\n"
        while self.until(b"\r\n") != b"\r\n":
            pass
        return found

    def _more(self) -> bool:
        data = self.socket.recv(65536)
        self._buffer += data
        return bool(data)

    def close(self) -> None:
        """Go away."""
        self.socket.close()
