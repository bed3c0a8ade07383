"""The proxy that the environment wants between us and the internet: which one, for which hosts, and how to get through.

HTTPS_PROXY, ALL_PROXY and NO_PROXY mean what they mean to Python's urllib.request. Only https goes through: of plain
http the proxy would read the credential. A proxy that is the gateway itself counts as not set: a user may start the
gateway in a shell that is set up to use it.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast
from urllib.parse import unquote_to_bytes, urlsplit

from valetkey.credential import Secret
from valetkey.errors import ConfigError, Unreachable
from valetkey.proxies import proxies_named, variables_of_gateway, without_gateway

__all__ = ["Proxy", "ProxyFailed", "Tunnels", "proxy_of"]

P = TypeVar("P", bound=asyncio.BaseProtocol)

log = logging.getLogger(__name__)

# Whether a name is our own is worth this much of the start.
_RESOLVE_SECONDS = 2.0
# No proxy says more before the tunnel begins; what it says is thrown away.
_MAX_HEAD = 16 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([2-5][0-9][0-9])(?: [^\r\n]*)?\r\n")


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Where it is, and what it wants to be told. `variable` is the one that names it."""

    variable: str
    scheme: str
    host: str
    port: int
    authorization: Secret | None

    def __str__(self) -> str:
        return _authority(self.host, self.port)


def proxy_of(environ: Mapping[str, str]) -> Proxy | None:
    """Give the proxy for https. Raises: ConfigError, without a word of what may be a password."""
    variables = proxies_named(environ)
    found = variables.get("https") or variables.get("all")
    if found is None:
        return None
    variable, text = found
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise _unusable(variable, "is not an address") from None
    if parts.scheme not in ("http", "https"):
        # socks5 and the like. Going past it would be what the user did not want.
        raise _unusable(variable, "is neither an http nor an https one")
    if not parts.hostname or not parts.hostname.isascii() or port == 0:
        raise _unusable(variable, "is not an address")
    authorization = None
    if parts.username is not None:
        pair = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
        authorization = Secret("Basic " + base64.b64encode(pair).decode())
    return Proxy(
        variable=variable,
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or {"http": 80, "https": 443}[parts.scheme],
        authorization=authorization,
    )


def _unusable(variable: str, what: str) -> ConfigError:
    return ConfigError(
        f"the proxy that {variable} names {what}", hint=f"set {variable} to http://HOST:PORT, or take it away"
    )


class Tunnels:
    """Ways through the proxy of `environ`, where there is one. `context` verifies the proxy and the hosts behind it."""

    def __init__(self, environ: Mapping[str, str], context: ssl.SSLContext) -> None:
        if ours := variables_of_gateway(environ):
            log.warning("%s holds a valet key, so it names a gateway: it is ignored", " and ".join(sorted(ours)))
        self._environ = without_gateway(environ)
        self._proxy = proxy_of(self._environ)
        self._context = context
        _, excepted = proxies_named(self._environ).get("no", ("", ""))
        self._everything = excepted == "*"
        self._excepted = [name.strip().lstrip(".").lower() for name in excepted.split(",") if name.strip()]

    async def leave_out(
        self, addresses: Sequence[tuple[str, int]], resolve: Callable[[str], Awaitable[Sequence[str]]]
    ) -> None:
        """Do without a proxy at one of these addresses, which are our own. Raises: ConfigError, of the next one."""
        while (proxy := self._proxy) is not None:
            ours = {_number(host) for host, port in addresses if port == proxy.port}
            # A name is looked up only where the port is ours already.
            if not ours or not any(_is_among(number, ours) for number in await _numbers(proxy.host, resolve)):
                return
            log.warning("%s names this gateway's own address: it is ignored", proxy.variable)
            del self._environ[proxy.variable]
            self._proxy = proxy_of(self._environ)

    def proxy_for(self, host: str, port: int) -> Proxy | None:
        """Give the proxy for this host; None where it is reached without one."""
        if self._proxy is None or self._everything:
            return None
        # An IPv6 address is written both ways in NO_PROXY.
        forms = (host, f"{host}:{port}", _authority(host, port), f"[{host}]")
        for name in self._excepted:
            if name in forms or any(form.endswith(f".{name}") for form in forms):
                return None
        return self._proxy

    async def open(
        self, proxy: Proxy, protocol_factory: Callable[[], P], *, host: str, port: int, tls: bool = True
    ) -> tuple[asyncio.Transport, P]:
        """Connect to the host through the proxy, with TLS to the host inside.

        Raises: Unreachable, ProxyFailed, OSError and ssl.SSLError (of the host).
        """
        loop = asyncio.get_running_loop()
        transport: asyncio.Transport
        try:
            transport, asking = await loop.create_connection(
                lambda: _Asking(proxy, _authority(host, port)),
                proxy.host,
                proxy.port,
                ssl=self._context if proxy.scheme == "https" else None,
                server_hostname=proxy.host if proxy.scheme == "https" else None,
            )
        except (OSError, UnicodeError) as error:
            raise ProxyFailed(proxy, error) from error
        try:
            await asking.answered
            if tls:
                inner = await loop.start_tls(transport, asking, self._context, server_hostname=host)
                if inner is None:
                    raise ConnectionResetError("the connection was closed in the handshake")
                transport = inner
            asking.must_be_quiet(host)
            protocol = protocol_factory()
            transport.set_protocol(protocol)
            # start_tls gives the transport to nobody.
            protocol.connection_made(transport)
        except BaseException:
            transport.abort()
            raise
        return transport, protocol


class _Asking(asyncio.Protocol):
    """Asks for the tunnel, and then keeps the place of the protocol that it is for."""

    def __init__(self, proxy: Proxy, authority: str) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Nobody waits for it any more once the time is up.
        self.answered.add_done_callback(lambda answered: answered.cancelled() or answered.exception())
        self._proxy = proxy
        self._authority = authority
        self._head = b""
        self._unasked = self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        lines = [f"CONNECT {self._authority} HTTP/1.1", f"Host: {self._authority}"]
        if self._proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {self._proxy.authorization.reveal()}")
        cast("asyncio.Transport", transport).write("\r\n".join([*lines, "", ""]).encode("ascii"))

    def data_received(self, data: bytes) -> None:
        if self.answered.done():
            self._unasked = True
            return
        self._head += data
        try:
            if self._is_open():
                self.answered.set_result(None)
        except Unreachable as error:
            self.answered.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if not self.answered.done():
            self.answered.set_exception(self._refused("closes the connection"))

    def must_be_quiet(self, host: str) -> None:
        """Say that the tunnel stands and nobody has spoken in it. Raises: Unreachable."""
        if self._lost or self._unasked:
            raise Unreachable(f"{host} ended the connection or spoke unasked", hint="try again", sent=False)

    def _is_open(self) -> bool:
        status = _STATUS.match(self._head)
        if status is None:
            if b"\n" in self._head or len(self._head) > _MAX_HEAD:
                raise self._refused("does not answer as an HTTP proxy does")
            return False
        code = int(status[1])
        if code == 407:
            raise self._refused("wants another user or password (407)")
        if code >= 300:
            raise self._refused(f"refuses it ({code})")
        head, end, more = self._head.partition(b"\r\n\r\n")
        if more or len(head) > _MAX_HEAD:
            # TLS begins with the client: whoever speaks now is not the host.
            raise self._refused("sends what nobody asked for")
        return bool(end)

    def _refused(self, what: str) -> Unreachable:
        return Unreachable(
            f"the proxy {self._proxy}, asked for {self._authority}, {what}",
            hint=f"check {self._proxy.variable} in the gateway's environment",
            sent=False,
        )


class ProxyFailed(Exception):
    """The proxy itself was not reached; the cause says why."""

    def __init__(self, proxy: Proxy, cause: OSError | UnicodeError) -> None:
        super().__init__(str(proxy))
        self.proxy = proxy
        self.cause = cause


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- our own address -------------------------------------------------------------------------


def _number(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Give an address in the one form that is compared; None for a name."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


async def _numbers(
    host: str, resolve: Callable[[str], Awaitable[Sequence[str]]]
) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if (number := _number(host)) is not None:
        return [number]
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await resolve(host)
    except (OSError, UnicodeError):  # a TimeoutError is an OSError
        return []
    return [number for text in found if (number := _number(text)) is not None]


def _is_among(
    number: ipaddress.IPv4Address | ipaddress.IPv6Address,
    ours: set[ipaddress.IPv4Address | ipaddress.IPv6Address | None],
) -> bool:
    if number.is_unspecified:
        # Whoever connects to it gets to this machine's loopback address.
        number = ipaddress.ip_address("127.0.0.1" if number.version == 4 else "::1")
    if number in ours:
        return True
    everywhere = any(our is not None and our.is_unspecified and our.version == number.version for our in ours)
    return everywhere and _is_of_this_machine(number)


def _is_of_this_machine(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    family = socket.AF_INET if number.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trying:
            trying.bind((str(number), 0))
    except OSError:
        return False
    return True
