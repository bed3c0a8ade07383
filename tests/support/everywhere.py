"""A gateway that knows every built-in provider, and one server that stands behind all of their names."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import ssl
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.support.decisions import PROVIDERS
from tests.support.gateway import Raw, RunningGateway, running_gateway
from tests.support.tls import CertificateAuthority
from tests.support.upstream import Upstream, Whole
from valetkey.clock import SystemClock
from valetkey.credential import DEFAULT_ACCOUNT, ApiKey, Credential, CredentialRef, OAuthToken, Secret
from valetkey.gateway import grants
from valetkey.gateway.decide import Grant
from valetkey.gateway.dial import Dialler
from valetkey.provider import AuthMethod, Provider
from valetkey.testing.canary import holds

__all__ = ["Answered", "Everywhere", "answered", "everywhere", "place_of"]

P = TypeVar("P", bound=asyncio.BaseProtocol)

# What some logins have to say before anybody knows their address.
_PARAMETERS = {
    "resource_name": "example",
    "deployment_name": "small",
    "region": "us-east-1",
    "project_id": "project-one",
    "location": "us-central1",
}


class _OneServer(Dialler):
    """Takes every name for that of the one server; its certificate still has to be for the name."""

    def __init__(self, *, secure: int, plain: int, ca_file: str) -> None:
        super().__init__(ca_file=ca_file, environ={})
        self._secure, self._plain = secure, plain
        self._tls = ssl.create_default_context(cafile=ca_file)

    async def dial(
        self, protocol_factory: Callable[[], P], *, scheme: str, host: str, port: int, near_allowed: bool
    ) -> tuple[asyncio.Transport, P]:
        tls = scheme == "https"
        # What gets no credential is dialled as a tunnel, plain http too.
        plain = scheme == "http" or (scheme == "tunnel" and port == 80)
        return await asyncio.get_running_loop().create_connection(
            protocol_factory,
            "127.0.0.1",
            self._plain if plain else self._secure,
            ssl=self._tls if tls else None,
            server_hostname=host if tls else None,
        )


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def error(self) -> dict[str, Any]:
        """Give what is told in the provider's place."""
        told = json.loads(self.body)
        assert told["type"] == "error"
        found: dict[str, Any] = told["error"]
        return found


@dataclass
class Everywhere:
    """What a test works with. `secrets` has the credential of each account."""

    running: RunningGateway
    secure: Upstream
    plain: Upstream
    trusts_provider: ssl.SSLContext
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    _keys: dict[tuple[tuple[str, ...], str], str] = field(default_factory=dict, repr=False)

    @functools.cached_property
    def trusts_gateway(self) -> ssl.SSLContext:
        """Give a client's context that believes the gateway's authority alone."""
        authority = self.running.gateway.authority
        assert authority is not None
        authority.open()
        return ssl.create_default_context(cadata=authority.certificate().decode())

    @property
    def seen(self) -> list[Whole]:
        """Give all that reached a provider."""
        return [*self.secure.requests, *self.plain.requests]

    def sent(self, request: Whole) -> str:
        """Give the address that a request came to."""
        scheme = "https" if request in self.secure.requests else "http"
        return f"{scheme}://{request.header('host')}{request.target}"

    def log_in(self, name: str) -> None:
        """Log in, with a credential of the account's own, where the provider wants one."""
        ref = self.running.broker.resolve(name)
        provider = PROVIDERS.get(ref.provider)
        if str(ref) in self.secrets or all(method.optional for method in provider.auth):
            return
        method = next(m for m in provider.auth if m.standing != "restricted")
        secret = "sk-" + "acct" + os.urandom(16).hex()
        self.running.log_in(name, credential=_credential(method, secret), method=method.id)
        self.secrets[str(ref)] = secret

    def key(self, names: tuple[str, ...], policy: str) -> str:
        """Give a valet key for these accounts and this policy, the same one each time."""
        # Without its account a name would mean whichever account an earlier test had logged in first.
        names = tuple(name if "@" in name else f"{name}@{DEFAULT_ACCOUNT}" for name in names)
        if (names, policy) not in self._keys:
            for name in names:
                self.log_in(name)
            self._keys[names, policy] = self.running.key(*names, policy=policy)
        return self._keys[names, policy]

    def base_url(self, key: str, method: str, path: str, more: str = "") -> Raw:
        """Ask at the gateway's own address."""
        return self._client(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{more}\r\n")

    def absolute(self, key: str, method: str, url: str, more: str = "") -> Raw:
        """Ask it as a proxy, in the absolute form."""
        host = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        return self._client(f"{method} {url} HTTP/1.1\r\nHost: {host}\r\n{_proof(key)}{more}\r\n")

    def connect(self, key: str, authority: str) -> Raw:
        """Ask it for a tunnel."""
        return self._client(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{_proof(key)}\r\n")

    def inside(self, key: str, method: str, url: str, more: str = "") -> Raw | None:
        """Ask inside of a tunnel that the gateway looks into; None where it would not open one or not look into it."""
        authority, _, path = url.partition("://")[2].partition("/")
        client = self.connect(key, authority if ":" in authority else f"{authority}:443")
        if client.head()[0] != 200:
            client.close()
            return None
        client.tls(self.trusts_gateway, authority.partition(":")[0].rstrip(".").lower())
        return client.send(f"{method} /{path} HTTP/1.1\r\nHost: {authority}\r\n{more}\r\n")

    def _client(self, request: str) -> Raw:
        return self.running.raw().send(request)

    def carries(self, request: Whole, account: str) -> bool:
        """Say whether the request has the credential of this account, and of no other."""
        data = repr((request.target, request.headers, request.body)).encode()
        return [name for name, secret in self.secrets.items() if holds(secret, data)] == [account]


def answered(client: Raw, *, head_only: bool = False) -> Answered:
    """Read the one answer, and go away."""
    with client:
        status, headers, body = client.answer(head_only=head_only)
    return Answered(status=status, headers=headers, body=body)


def _proof(key: str) -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(f'x:{key}'.encode()).decode()}\r\n"


def _credential(method: AuthMethod, secret: str) -> Credential:
    parameters = {p.key: _PARAMETERS.get(p.key, p.default) or "" for p in method.parameters}
    if method.kind in ("api-key", "cloud"):
        return ApiKey(method=method.id, key=Secret(secret), parameters=parameters)
    now = SystemClock().now()
    return OAuthToken(method=method.id, access_token=Secret(secret), issued_at=now, parameters=parameters)


def place_of(provider: Provider) -> Grant:
    """Give where a provider is, and what it keeps off limits there."""
    found = grants.declared(CredentialRef(provider=provider.id), provider, parameters=_PARAMETERS)
    assert found is not None
    return found


@contextlib.contextmanager
def everywhere(home: Path, *, more_hosts: Iterable[str] = ()) -> Iterator[Everywhere]:
    """Run it until the block ends. Nobody is logged in anywhere."""
    authority = CertificateAuthority(home)
    providers = PROVIDERS.all()
    names = {h.partition(":")[0] for p in providers for h in place_of(p).hosts} | set(more_hosts)
    with (
        Upstream(tls=authority.context(*sorted(n for n in names if not n.startswith("[")))) as secure,
        Upstream() as plain,
        running_gateway(
            *providers,
            home=home,
            dialler=_OneServer(secure=secure.port, plain=plain.port, ca_file=str(authority.ca_file)),
            logged_in=False,
        ) as running,
    ):
        trusts = ssl.create_default_context(cafile=str(authority.ca_file))
        yield Everywhere(running=running, secure=secure, plain=plain, trusts_provider=trusts)
