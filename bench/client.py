"""The clients of the benchmark: wrk for load, and for what wrk cannot say, plain sockets in Python.

An Address is one way to reach an upstream: straight, through a proxy's own address, or through its CONNECT. The Python
clients run in a process of their own on the load's core; `Crew` starts it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import multiprocessing
import os
import select
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from bench.running import Busy, Cores, Process, tool
from bench.upstream import QUESTION

__all__ = ["Address", "Answered", "Connection", "Crew", "Load", "closed_loop", "paced", "percentile", "wrk"]

CUT_OFF = "the connection was closed in the middle of an answer"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where requests go. `through`: the proxy's port, for CONNECT with `token`; the request is then to `port`."""

    port: int
    prefix: str = ""
    token: str = field(default="", repr=False)
    ca_file: str = ""
    through: int = 0

    @property
    def scheme(self) -> str:
        return "https" if self.ca_file else "http"

    def url(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{self.prefix}{path}"

    def head(self, method: str, path: str, *, size: int = 0, extra: Mapping[str, str] | None = None) -> bytes:
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        # Behind CONNECT the tunnel has said who it is; a tool still sends a key that it believes in.
        lines.append(f"Authorization: Bearer {'placeholder' if self.through else self.token}")
        if method != "GET":
            lines += ["Content-Type: application/json", f"Content-Length: {size}"]
        lines += [f"{name}: {value}" for name, value in (extra or {}).items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def connect(self, *, timeout: float = 60) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.through or self.port), timeout=timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.through:
            basic = base64.b64encode(f"x:{self.token}".encode()).decode()
            there = f"127.0.0.1:{self.port}"
            plain.sendall(
                f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode()
            )
            reply = b""
            while b"\r\n\r\n" not in reply:
                more = plain.recv(4096)
                if not more:
                    raise ConnectionError(f"CONNECT was not answered: {reply!r}")
                reply += more
            if b" 200" not in reply.split(b"\r\n", 1)[0]:
                raise ConnectionError(f"CONNECT was refused: {reply[:200]!r}")
        if not self.ca_file:
            return plain
        return _context(self.ca_file).wrap_socket(plain, server_hostname="127.0.0.1")


_contexts: dict[str, ssl.SSLContext] = {}


def _context(ca_file: str) -> ssl.SSLContext:
    if ca_file not in _contexts:
        _contexts[ca_file] = ssl.create_default_context(cafile=ca_file)
    return _contexts[ca_file]


@dataclass(frozen=True, kw_only=True)
class Answered:
    status: int
    body: bytes


class Connection:
    """A kept connection that blocks: one request after the other."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.socket = address.connect()
        self._held = b""

    def close(self) -> None:
        self.socket.close()

    def ask(self, method: str = "POST", path: str = "/v1/chat/completions", body: bytes = QUESTION) -> Answered:
        """Send a request and read its whole answer."""
        sent = body if method != "GET" else b""
        self.socket.sendall(self.address.head(method, path, size=len(sent)) + sent)
        return self.answer()

    def answer(self) -> Answered:
        head = self.read_head()
        status = int(head[9:12])
        if b"transfer-encoding: chunked" in head.lower():
            return Answered(status=status, body=b"".join(self.chunks()))
        return Answered(status=status, body=self.read(_length(head)))

    def read_head(self) -> bytes:
        while b"\r\n\r\n" not in self._held:
            self._more()
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def read(self, size: int) -> bytes:
        while len(self._held) < size:
            self._more()
        part, self._held = self._held[:size], self._held[size:]
        return part

    def skip(self, size: int) -> None:
        """Read so many bytes and keep none."""
        size -= len(self._held)
        self._held = b""
        room = bytearray(256 * 1024)
        while size > 0:
            got = self.socket.recv_into(room, min(size, len(room)))
            if not got:
                raise ConnectionError(CUT_OFF)
            size -= got

    def chunks(self) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._held:
                self._more()
            size = int(self._held.partition(b"\r\n")[0].partition(b";")[0], 16)
            self._held = self._held.partition(b"\r\n")[2]
            chunk = self.read(size + 2)[:-2]
            if not size:
                return
            yield chunk

    def _more(self) -> None:
        part = self.socket.recv(65536)
        if not part:
            raise ConnectionError(CUT_OFF)
        self._held += part


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


# --- load -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of some seconds of load. Latencies in ms; `cpu_us` is the proxy's own, 0 without one."""

    requests: int
    seconds: float
    errors: int
    p50: float
    p99: float
    cpu_us: float = 0
    proxy_busy: float = 0
    load_busy: float = 0

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def foreign(self) -> float:
        """Percent of the proxy's core that somebody else took."""
        return max(0.0, self.proxy_busy - self.cpu_us * self.requests / self.seconds / 1e4)


_SCRIPT = """
wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer %s"
%s
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests":%%d,"us":%%d,"errors":%%d,"p50":%%d,"p99":%%d}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


# A header that is another one in each request, as an id for tracing is.
_VARIED = """
local count = 0
request = function()
  count = count + 1
  wrk.headers["X-Request-Id"] = string.format("%016x", count)
  return wrk.format()
end
"""


def wrk(
    address: Address, *, connections: int, seconds: float, on: Cores, proxy: Process | None, varied: bool = False
) -> Load:
    """Ask over so many connections, each as soon as it has its answer; `varied`: no head is like the one before."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua", prefix="bench-") as script:  # mode 0600: the key is in it
        script.write(_SCRIPT % (QUESTION.decode(), address.token, _VARIED if varied else ""))
        script.flush()
        argv = ["taskset", "-c", str(on.load), tool("wrk"), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        before, load_busy, proxy_busy = proxy.cpu_seconds() if proxy else 0, Busy(on.load), Busy(on.proxy)
        ran = subprocess.run(
            [*argv, "--timeout", "30s", "-s", script.name, address.url("/v1/chat/completions")],
            capture_output=True,
            text=True,
            check=False,
        )
        busy = load_busy.percent(), proxy_busy.percent()
        taken = proxy.cpu_seconds() - before if proxy else 0
    if proxy:
        proxy.rest()
    if ran.returncode:
        raise SystemExit(f"wrk: {ran.stderr[-500:]}")
    figures = json.loads(ran.stdout.strip().rpartition("\n")[2])
    return Load(
        requests=figures["requests"],
        seconds=figures["us"] / 1e6,
        errors=figures["errors"],
        p50=figures["p50"] / 1e3,
        p99=figures["p99"] / 1e3,
        cpu_us=taken * 1e6 / max(1, figures["requests"]),
        load_busy=busy[0],
        proxy_busy=busy[1],
    )


def percentile(values: list[float], percent: float) -> float:
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=1000, method="inclusive")[min(998, round(percent * 10) - 1)]


def paced(address: Address, *, seconds: float, per_second: float) -> list[float]:
    """Ask over one connection at a low rate and give the latencies in ms: what a single user notices."""
    connection = Connection(address)
    taken = []
    due = end = time.perf_counter()
    end += seconds
    while due < end:
        time.sleep(max(0, due - time.perf_counter()))
        began = time.perf_counter()
        answer = connection.ask()
        taken.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"status {answer.status} at a low rate: {answer.body[:200]!r}")
        due += 1 / per_second
    connection.close()
    return taken


@dataclass(kw_only=True)
class _Asked:
    """A connection of the closed loop, and how much of the answer is missing."""

    socket: socket.socket
    number: int = 0
    sent: float = 0
    got: bytes = b""


# number of the request, when it was sent, when its answer was there (CLOCK_MONOTONIC), status or 0
Note = tuple[int, float, float, int]


def closed_loop(address: Address, *, connections: int, seconds: float, numbered: bool = False) -> list[Note]:
    """Ask over so many connections, each as soon as it has its answer; give a note of every request.

    Plain epoll: on uvloop this client would take longer than the proxies. `numbered` sends the number along.
    A connection that breaks counts as status 0 and is made anew.
    """
    fixed = address.head("POST", "/v1/chat/completions", size=len(QUESTION)) + QUESTION
    notes: list[Note] = []
    poll = select.epoll()
    asked: dict[int, _Asked] = {}
    following = iter(range(1 << 62))

    def ask(one: _Asked) -> None:
        one.number, one.got = next(following), b""
        request = fixed
        if numbered:
            extra = {"X-Bench-Number": str(one.number)}
            request = address.head("POST", "/v1/chat/completions", size=len(QUESTION), extra=extra) + QUESTION
        one.sent = time.monotonic()
        one.socket.sendall(request)

    def renew(one: _Asked) -> None:
        one.socket.close()
        one.socket = address.connect(timeout=10)
        asked[one.socket.fileno()] = one
        poll.register(one.socket.fileno(), select.EPOLLIN)

    for _ in range(connections):
        one = _Asked(socket=address.connect(timeout=10))
        asked[one.socket.fileno()] = one
        poll.register(one.socket.fileno(), select.EPOLLIN)
        ask(one)
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        for number, _ in poll.poll(min(0.1, end - now)):
            one = asked[number]
            try:
                # OpenSSL reads no further than one record, so what is behind it still shows in epoll.
                part = one.socket.recv(65536)
            except OSError:
                part = b""
            if not part:
                notes.append((one.number, one.sent, time.monotonic(), 0))
                del asked[number]
                with contextlib.suppress(OSError):
                    renew(one)
                    ask(one)
                continue
            one.got = one.got + part if one.got else part
            if _whole(one.got):
                notes.append((one.number, one.sent, time.monotonic(), int(one.got[9:12])))
                with contextlib.suppress(OSError):  # a closed one shows as readable
                    ask(one)
    for one in asked.values():
        one.socket.close()
    poll.close()
    return notes


def _whole(data: bytes) -> bool:
    """Tell whether an answer with a Content-Length is there to its end."""
    end = data.find(b"\r\n\r\n")
    return end >= 0 and len(data) >= end + 4 + _length(data[:end])


# --- a process for the clients ----------------------------------------------------------------


class Crew:
    """Runs client functions in a process of its own on the load's core."""

    def __init__(self, on: Cores) -> None:
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=os.sched_setaffinity,
            initargs=(0, {on.load}),
        )

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def begin(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._pool.submit(function, *args, **kwargs)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.begin(function, *args, **kwargs).result()
