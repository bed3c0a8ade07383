"""Connects to upstreams: only to addresses that were looked at, only over TLS that was verified.

A name is resolved once, every address it gives is checked, and what was checked is what is dialled, by its number: DNS
that answers otherwise a moment later changes nothing. Behind a proxy the name is the proxy's to resolve; what can be
told from the name alone is refused all the same.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from valetkey.address import is_metadata, is_near, is_odd_number, standing
from valetkey.errors import AddressRefused, ConnectTimeout, NameNotResolved, TlsFailed, Unreachable, ValetkeyError
from valetkey.gateway.trust import client_context
from valetkey.gateway.tunnel import ProxyFailed, Tunnels

__all__ = ["Dialler", "Resolve", "system_resolver"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Resolve = Callable[[str], Awaitable[Sequence[str]]]

_SECONDS = 10.0
# Whoever has more addresses than this has them for other clients.
_MOST = 8


async def system_resolver(host: str) -> Sequence[str]:
    """Give the addresses of a name, the best first. Raises: OSError, UnicodeError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Dialler:
    """Dials for one configuration. `ca_file` is believed beside the system's authorities.

    Raises: ConfigError, for a file of certificates or a proxy in `environ` that cannot be used.
    """

    def __init__(
        self,
        *,
        ca_file: str | None,
        environ: Mapping[str, str],
        resolve: Resolve = system_resolver,
        timeout_seconds: float = _SECONDS,
    ) -> None:
        self._context = client_context(ca_file=ca_file, environ=environ)
        self._tunnels = Tunnels(environ, self._context)
        self._resolve = resolve
        self._seconds = timeout_seconds

    async def listening(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Take it that we listen there: a proxy at such an address counts as not set. Raises: ConfigError."""
        await self._tunnels.leave_out(addresses, self._resolve)

    async def dial(
        self, protocol_factory: Callable[[], P], *, scheme: str, host: str, port: int, near_allowed: bool
    ) -> tuple[asyncio.Transport, P]:
        """Connect, and hand the protocol its transport; an IPv6 address may be in brackets.

        `scheme` is https, http, or tunnel: bytes that are the client's own TLS, for all that we know.

        `near_allowed`: the host may be on this machine or a private network. One that can be told to be there, by its
        name or number, is reached without a proxy; any other name is the proxy's to resolve, where there is one. Plain
        http goes to such hosts alone, and never through a proxy.
        Raises: AddressRefused, NameNotResolved, ConnectTimeout, TlsFailed, Unreachable; nothing was sent in any case.
        """
        host = host[1:-1] if host.startswith("[") else host
        _check_name(host)
        end = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(end):
                if scheme != "http" and not (near_allowed and _is_near(host)):
                    proxy = self._tunnels.proxy_for(host, port)
                    if proxy is not None:
                        _check_unresolved(host)
                        return await self._tunnels.open(
                            proxy, protocol_factory, host=host, port=port, tls=scheme == "https"
                        )
                numbers = await self._addresses(host, near_allowed=near_allowed, plain=scheme == "http")
                return await self._first(protocol_factory, numbers, scheme=scheme, host=host, port=port, end=end)
        except ProxyFailed as failed:
            raise _translated(failed.cause, f"the proxy {failed.proxy}") from failed.cause
        except (OSError, UnicodeError) as error:
            raise _translated(error, host) from error

    async def _addresses(self, host: str, *, near_allowed: bool, plain: bool) -> list[str]:
        numbers = [host] if standing(host) is not None else await self._resolve(host)
        if not numbers:
            raise NameNotResolved(f"the name {host} has no address", hint="check the name and DNS", sent=False)
        kinds = [standing(number) for number in numbers]
        allowed = {"near"} if near_allowed else set()
        if not plain:
            allowed.add("public")
        checked = [number for number, kind in zip(numbers, kinds, strict=True) if kind in allowed]
        if not checked:
            _refuse(host, near="near" in kinds, plain=plain and "public" in kinds)
        return checked[:_MOST]

    async def _first(
        self,
        protocol_factory: Callable[[], P],
        numbers: Sequence[str],
        *,
        scheme: str,
        host: str,
        port: int,
        end: float,
    ) -> tuple[asyncio.Transport, P]:
        """Try one address after the other, each for its share of the time that is left."""
        loop = asyncio.get_running_loop()
        last: OSError = ConnectionRefusedError()
        for index, number in enumerate(numbers):
            try:
                async with asyncio.timeout((end - loop.time()) / (len(numbers) - index)):
                    return await loop.create_connection(
                        protocol_factory,
                        number,
                        port,
                        ssl=self._context if scheme == "https" else None,
                        server_hostname=host if scheme == "https" else None,
                    )
            except ssl.SSLError:
                # Not what another address is for: it would hide that somebody sits at this one.
                raise
            except OSError as error:
                last = error
        raise last


# --- what is refused -------------------------------------------------------------------------


def _check_name(host: str) -> None:
    if is_metadata(host) or is_odd_number(host):
        _refuse(host)


def _check_unresolved(host: str) -> None:
    if standing(host) == "never":
        _refuse(host)
    if _is_near(host):
        _refuse(host, near=True)


def _is_near(host: str) -> bool:
    return is_near(host) or standing(host) == "near"


def _refuse(host: str, *, near: bool = False, plain: bool = False) -> NoReturn:
    # Which address it is stays unsaid: who asks may not know this network.
    if plain:
        raise AddressRefused(
            f"{host} is not on this machine or a private network, and plain http would be read on the way",
            hint=f"give the provider https://{host} as its address",
        )
    if near:
        raise AddressRefused(
            f"{host} is on this machine or a private network, and no login is for that",
            hint="add the server as a provider of your own: `valetkey providers add`",
        )
    raise AddressRefused(
        f"{host} is a link-local, metadata or other special address, which never gets a request",
        hint="use the server's own address",
    )


# --- what goes wrong -------------------------------------------------------------------------


def _translated(error: OSError | UnicodeError, host: str) -> ValetkeyError:
    """Turn the system's error into ours. None of their texts can hold a secret: nothing was sent yet."""
    match error:
        case ssl.SSLCertVerificationError():
            return TlsFailed(
                f"the certificate of {host} is not accepted: {error.verify_message.rstrip('.').lower()}",
                hint="check the address and the clock; set network.ca_file in config.toml for a private CA",
                sent=False,
            )
        case ssl.SSLError():
            reason = (error.reason or "handshake failed").replace("_", " ").lower()
            return TlsFailed(
                f"the TLS connection to {host} failed: {reason}",
                hint="check that the server speaks TLS 1.2 or newer at this port",
                sent=False,
            )
        case socket.gaierror() | UnicodeError():
            return NameNotResolved(
                f"the name {host} has no address", hint="check the name, DNS and the proxy settings", sent=False
            )
        case TimeoutError():
            return ConnectTimeout(f"{host} did not answer in time", hint="check the network and try again", sent=False)
        case _:
            return Unreachable(
                f"{host} cannot be reached", hint="check that the server is up and the address is right", sent=False
            )
