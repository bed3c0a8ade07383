"""The one outgoing HTTP client for control traffic: timeouts, proxies, extra CA, no redirects."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeVar

import httpx2

from valetkey.errors import (
    ConfigError,
    ConnectTimeout,
    NameNotResolved,
    TlsFailed,
    TransportError,
    UnclearAnswer,
    Unreachable,
)
from valetkey.proxies import proxies_named, variables_of_gateway, without_gateway

__all__ = ["HttpClient", "Response", "in_thread", "translate"]

# A token answer is a few kB; the longest model list seen is under 1 MB.
MAX_BODY_BYTES = 2 * 1024 * 1024
# Design section 6: the limit of a renewal; a login's calls share it.
TIMEOUT_SECONDS = 20.0

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer, read whole. `headers` has lower-case names. The body may hold secrets: it is never shown."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Response(status={self.status}, {len(self.body)} bytes)"

    def json(self) -> object:
        """Decode the body. Raises: UnclearAnswer, without a word of the body."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise UnclearAnswer(
                f"the answer (HTTP {self.status}) is not JSON", hint="check the address; a proxy page may be in the way"
            ) from None


class HttpClient:
    """Sends one request at a time over a blocking client, so that no event loop can throw an answer away.

    `ca_file` is trusted beside the system's certificates. Proxies come from the environment, and get `https` alone: of
    plain http they would read the key, and it goes no farther than the private network. A gateway is none of them:
    what it needs for an answer cannot come through it. No cookie is kept: it would
    tell a server that two accounts are one person's, or let one answer for the other.
    """

    def __init__(self, *, timeout_seconds: float = TIMEOUT_SECONDS, ca_file: str | None = None) -> None:
        self._timeout_seconds = timeout_seconds
        self._ca_file = ca_file
        self._clients: dict[bool, httpx2.Client] = {}
        self._lock = threading.Lock()

    def _open(self, url: str) -> httpx2.Client:
        # Reading the system's certificates takes longer than a whole question to a server on this machine.
        plain = url.startswith("http://")
        with self._lock:
            client = self._clients.get(plain)
            if client is None:
                trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else self._trust()
                client = self._clients[plain] = httpx2.Client(
                    verify=trust,
                    follow_redirects=False,
                    trust_env=not plain,
                    mounts=None if plain else _past_the_gateway(trust),
                    cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                    headers={"user-agent": "valetkey", "accept": "application/json"},
                )
            return client

    def _trust(self) -> ssl.SSLContext | bool:
        if self._ca_file is None:
            return True
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(cafile=self._ca_file)
        except OSError as error:  # ssl's own are too
            raise ConfigError(
                f"network.ca_file cannot be read as certificates: {self._ca_file}",
                hint="name a file of PEM certificates: `valetkey config show`",
            ) from error
        return context

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_seconds: float | None = None,
    ) -> Response:
        """Send it and read the whole answer, whatever its status.

        Raises: ConnectTimeout, NameNotResolved, TlsFailed, Unreachable, UnclearAnswer (too large); ConfigError, where
        `ca_file` is none.
        """
        limit = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            with self._open(url).stream(
                method, url, headers=dict(headers or {}), content=body, timeout=limit
            ) as answer:
                received = bytearray()
                for chunk in answer.iter_bytes():
                    received += chunk
                    if len(received) > MAX_BODY_BYTES:
                        raise UnclearAnswer(
                            f"the answer of {answer.url.host} is longer than {MAX_BODY_BYTES} bytes",
                            hint="check the address; this is no API that Valetkey knows",
                        )
                return Response(
                    status=answer.status_code,
                    headers={k.lower(): v for k, v in answer.headers.items()},
                    body=bytes(received),
                )
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise translate(error, url) from error

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        read_timeout_seconds: float,
    ) -> Iterator[httpx2.Response]:
        """Send it and give the answer while it comes, whatever its status; leaving closes the connection.

        `read_timeout_seconds` is the longest silence. Raises: ConnectTimeout, NameNotResolved, TlsFailed, Unreachable.
        """
        limit = httpx2.Timeout(self._timeout_seconds, read=read_timeout_seconds)
        try:
            with self._open(url).stream(
                method, url, headers=dict(headers or {}), content=body, timeout=limit
            ) as answer:
                yield answer
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise translate(error, url) from error

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_seconds: float | None = None,
    ) -> Response:
        """Do what `send` does, in a thread."""
        return await in_thread(
            lambda: self.send(method, url, headers=headers, body=body, timeout_seconds=timeout_seconds)
        )

    def close(self) -> None:
        """Close kept connections."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()


def _past_the_gateway(trust: ssl.SSLContext | bool) -> dict[str, httpx2.BaseTransport | None] | None:
    """Give what takes the place of a proxy of the environment that is a gateway: the one beside it, or none.

    What NO_PROXY excepts is more special than this, and stays excepted. None: there is no gateway.
    """
    if not variables_of_gateway(os.environ):
        return None
    named = proxies_named(without_gateway(os.environ))
    _, url = named.get("https") or named.get("all") or ("", "")
    proxy = url if "://" in url or not url else f"http://{url}"
    return {"https://": httpx2.HTTPTransport(verify=trust, proxy=proxy) if proxy else None}


def translate(error: httpx2.HTTPError | httpx2.InvalidURL, url: str) -> TransportError:
    """Turn the client's error into ours; only the host of `url` is named, its query may hold secrets."""
    host = _host(url)
    causes = list(_causes(error))
    sent = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
    if isinstance(error, httpx2.TimeoutException):
        return ConnectTimeout(f"{host} did not answer in time", hint="check the network and try again", sent=sent)
    if any(isinstance(c, socket.gaierror) for c in causes):
        return NameNotResolved(
            f"the name {host} has no address", hint="check the name, DNS and the proxy settings", sent=False
        )
    if any(isinstance(c, ssl.SSLError) for c in causes):
        return TlsFailed(
            f"the TLS connection to {host} failed",
            hint="check the clock and the certificate; set ca_file in config.toml for a private CA",
            sent=sent,
        )
    if isinstance(error, httpx2.DecodingError):
        return UnclearAnswer(f"the answer of {host} cannot be decoded", hint="check the address")
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return UnclearAnswer(f"{host} is not an address that can be asked", hint="use an http:// or https:// address")
    return Unreachable(
        f"{host} cannot be reached", hint="check that the server is up and the address is right", sent=sent
    )


def _host(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return "the address"
    return parsed.host if parsed.port is None else f"{parsed.host}:{parsed.port}"


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


async def in_thread(work: Callable[[], T]) -> T:
    """Run plain code in a daemon thread of its own, so that Ctrl-C never waits for a server's time limit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is a result

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop was closed: nobody waits any more
            return

    threading.Thread(target=run, name="valetkey-http", daemon=True).start()
    return await done
