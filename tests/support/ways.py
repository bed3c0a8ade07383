"""The ways from a client to a provider: straight to it, and both ways through the gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, assert_never

from tests.support.front import Door
from valetkey.testing.gateway import GatewayProcess
from valetkey.testing.local_server import LocalServer

__all__ = ["Access", "Reach", "Service", "Way", "access", "trusting"]

# In every variable that a client may read it from.
_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "CODEX_CA_CERTIFICATE",
)


class Reach(Protocol):
    """Gives what a client is told, so that it reaches this provider; with another key where `gateway` has one."""

    def __call__(self, provider: str, gateway: GatewayProcess | None = ...) -> Access: ...


Way = Literal["direct", "base-url", "proxy"]


@dataclass(frozen=True, kw_only=True)
class Service:
    """A provider's server, run by the tests, behind a door."""

    provider: str
    server: LocalServer
    door: Door
    path: str = ""  # what the base URL ends in
    host: str = ""  # its real name, for those that are found by it

    @property
    def url(self) -> str:
        """Give the address at which it is found without a gateway."""
        return (f"https://{self.host}" if self.host else self.server.url) + self.path


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a client is told: an address, a key, and variables of its environment."""

    base_url: str
    key: str = field(repr=False)
    environ: dict[str, str] = field(repr=False)


def trusting(ca_file: Path) -> dict[str, str]:
    """Name a CA in all variables that clients look at."""
    return dict.fromkeys(_CA_VARIABLES, str(ca_file))


def access(way: Way, service: Service, *, ca_file: Path, outside: str, gateway: GatewayProcess | None) -> Access:
    """Tell a client how to get there. `outside` is the proxy that leads out, for all but loopback."""
    # What a client wants elsewhere gets as far as `outside`, which remembers it.
    around = {"HTTPS_PROXY": outside, "HTTP_PROXY": outside, "NO_PROXY": "127.0.0.1"}
    if way == "direct":
        return Access(base_url=service.url, key=service.door.key, environ={**around, **trusting(ca_file)})
    assert gateway is not None
    match way:
        case "base-url":
            return Access(base_url=f"{gateway.url}/{service.provider}", key=gateway.key, environ=around)
        case "proxy":
            environ = {"HTTPS_PROXY": gateway.proxy_url, **trusting(gateway.ca_file)}
            return Access(base_url=service.url, key="sk-ant-api03-placeholder", environ=environ)
        case _:
            assert_never(way)
