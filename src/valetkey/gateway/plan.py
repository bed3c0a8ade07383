"""What is done with a request, decided once for each key, method and address and kept: decisions are pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from valetkey.address import is_near
from valetkey.errors import ProviderError
from valetkey.gateway import mcp
from valetkey.gateway.decide import Decision, Forward, Hold, Refuse, RequestHead, decide
from valetkey.gateway.message import DISGUISES
from valetkey.gateway.route import read_target, route
from valetkey.gateway.runs import Run
from valetkey.gateway.usage import UsageReader, usage_reader_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from valetkey.credential import CredentialRef
    from valetkey.gateway.ring import LiveKey
    from valetkey.mcp import Relayed
    from valetkey.provider import Provider, Rewrite
    from valetkey.providers import Catalogue

__all__ = ["Plan", "Planner", "Tunnel", "disguises"]

# A key that asks for ever new addresses must not fill the memory.
_MAX_KEPT = 4096
_LONGEST_KEPT = 512
# One path answers in one or two types; who makes up more gets no place for them.
_MOST_TYPES = 8


@dataclass(frozen=True, kw_only=True)
class Tunnel:
    """What a CONNECT was for: requests inside are for this host alone, with this key. `token` is what showed it."""

    host: str
    port: int
    live: LiveKey
    token: bytes = field(repr=False)

    @property
    def authority(self) -> str:
        """Give host and port as an https URL has them."""
        return self.host if self.port == 443 else f"{self.host}:{self.port}"


class Plan:
    """A decision, and what follows from it: where to connect, which lines to send, which words for the trace."""

    __slots__ = (
        "_readers",
        "account",
        "counted",
        "decision",
        "dialect",
        "endpoint",
        "forward",
        "host",
        "host_name",
        "method",
        "near_allowed",
        "once",
        "origin",
        "path",
        "pool_key",
        "port",
        "provider",
        "ref",
        "rest",
        "rewrites",
        "scheme",
        "server",
        "target",
        "told",
        "way",
    )

    def __init__(
        self, decision: Decision, method: str, way: str, provider: Provider | None, server: Relayed | None = None
    ) -> None:
        self.decision = decision
        self.way = way
        forward = decision if isinstance(decision, Forward) else decision.then if isinstance(decision, Hold) else None
        self.forward: Forward | None = forward
        target = decision.target if isinstance(decision, Refuse) else forward.target if forward is not None else None
        self.method = method
        # What opens a tunnel to look into is no request of its own.
        self.counted = forward is not None and forward.how != "intercept"
        self.ref: CredentialRef | None = forward.grant if forward is not None else None
        # The route of the account's endpoint that is asked for, "" for none of any; None where it has no endpoint.
        self.endpoint: str | None = None
        granted = decision.grant if isinstance(decision, Refuse) else self.ref
        self.account = "" if granted is None else str(granted)
        self.provider = provider
        # The MCP server that is relayed: what goes there, and comes from there, is looked into.
        self.server = server
        self.host = "" if target is None else target.authority
        self.path = "" if target is None else target.path
        self.host_name = "" if target is None else target.host.strip("[]")
        self.port = 0 if target is None else target.port
        self.scheme = "https" if target is None else target.scheme
        self.origin = f"{self.scheme}://{self.host}"
        # Who declares a provider says where its server is; a built-in one is on the internet, or says that it is near.
        # Whether a proxy is asked is the dialler's to see from the host.
        self.near_allowed = self.ref is not None and (
            is_near(self.host_name) or (provider is not None and provider.origin != "built-in")
        )
        # A text: it is hashed once.
        self.pool_key = f"{self.origin} {self.account}"
        # What a person has let a run do once: the id of its request for access.
        self.once = ""
        self.rewrites: tuple[Rewrite, ...] = () if provider is None else provider.api.rewrite
        # For the trace.
        self.told = (self.account, method, self.host, self.path, way)
        self.dialect = "none" if provider is None else provider.api.dialect
        self._readers: dict[bytes, Callable[[], UsageReader] | None] = {}
        self.target = b"" if target is None else target.path_and_query.encode("ascii")
        # The host in the form that was decided on. Never a compressed answer: it is looked into.
        self.rest = f" HTTP/1.1\r\nhost: {self.host}\r\naccept-encoding: identity\r\n".encode("ascii")

    def reader(self, content_type: bytes) -> UsageReader | None:
        """Give what reads model and counts out of an answer of this type; None where it has none."""
        try:
            make = self._readers[content_type]
        except KeyError:
            make = usage_reader_for(dialect=self.dialect, path=self.path, content_type=content_type.decode("latin-1"))
            if len(self._readers) < _MOST_TYPES:
                self._readers[content_type] = make
        return None if make is None else make()


_Asked = tuple["LiveKey", bytes, bytes, "bytes | None", "Tunnel | None", "CredentialRef | None"]


class Planner:
    """Decides, and keeps what it decided until the keys change."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._kept: dict[_Asked, Plan] = {}

    def forget(self) -> None:
        """Decide anew: keys, accounts or declarations have changed."""
        self._kept.clear()

    def plan(
        self,
        live: LiveKey,
        method: bytes,
        url: bytes,
        *,
        host: bytes | None,
        tunnel: Tunnel | None,
        header_names: frozenset[str] = frozenset(),
        grant: CredentialRef | None = None,
    ) -> Plan:
        """Give the plan for a request line. `header_names` are given only where they disguise a request.

        `grant` is the account that a placeholder named.
        """
        key = (live, method, url, host, tunnel, grant)
        if not header_names:
            found = self._kept.get(key)
            if found is not None:
                return found
        made = self._made(live, method, url, host, tunnel, header_names, grant)
        if not header_names and len(url) <= _LONGEST_KEPT:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[key] = made
        return made

    def _made(
        self,
        live: LiveKey,
        method: bytes,
        url: bytes,
        host: bytes | None,
        tunnel: Tunnel | None,
        header_names: frozenset[str],
        grant: CredentialRef | None,
    ) -> Plan:
        server: Relayed | None = None
        if tunnel is None and mcp.is_relayed(live, url.decode("latin-1")):
            found, way = mcp.server_at(live, method.decode("ascii"), url.decode("latin-1")), "base-url"
            request, server = (found, None) if isinstance(found, Refuse) else found
        else:
            request, way = _read(live, method.decode("ascii"), url.decode("latin-1"), host, tunnel, grant)
        if isinstance(request, Refuse):
            return Plan(request, method.decode("ascii"), way, None)
        if header_names:
            request = dataclasses.replace(request, header_names=header_names)
        if grant is not None:
            request = dataclasses.replace(request, grant=grant)
        decision = decide(request, live.client, live.policy)
        if server is None:
            decision = mcp.aside(live, decision) or decision
        ref = decision.then.grant if isinstance(decision, Hold) else decision.grant
        provider = None
        if ref is not None:
            try:
                provider = self._catalogue.get(ref.provider)
            except ProviderError:
                provider = None  # its declaration went away: the credential is not to be had either
        plan = Plan(decision, method.decode("ascii"), way, provider, server)
        granted = next((granted for granted in live.client.grants if granted.ref == plan.ref), None)
        if granted is not None and granted.signs:
            below = urlsplit(granted.base_url).path.rstrip("/")
            plan.endpoint = plan.path.removeprefix(below) if way == "base-url" else ""
        if isinstance(decision, Forward) and isinstance(live.key, Run) and live.key.access:
            plan.once = live.key.once_by(decision.rule.place)
        return plan


def _read(
    live: LiveKey, method: str, url: str, host: bytes | None, tunnel: Tunnel | None, grant: CredentialRef | None
) -> tuple[RequestHead | Refuse, str]:
    named = None if host is None else host.decode("latin-1")
    if tunnel is not None:
        # RFC 9112 section 3.2: inside, the origin form; its host is the CONNECT's, and Host has to say the same.
        whole = f"https://{tunnel.authority}{url}" if url.startswith("/") else url
        request = read_target(method, whole, host=named)
        if isinstance(request, RequestHead) and not url.startswith("/"):
            opened = read_target(method, f"https://{tunnel.authority}/")
            same = isinstance(opened, RequestHead) and (request.scheme, request.host, request.port) == (
                opened.scheme,
                opened.host,
                opened.port,
            )
            if not same:
                request = Refuse(code="malformed", status=400, reason="the request is for another host than its tunnel")
        return request, "intercepted"
    if method == "CONNECT":
        return read_target(method, url, host=None if named is None else _with_port(named, url)), "tunnel"
    if url.startswith("/"):
        head = RequestHead(method=method, scheme="http", host="localhost", port=None, path=url, grant=grant)
        return route(head, live.client), "base-url"
    return read_target(method, url, host=named), "proxy"


def _with_port(host: str, authority: str) -> str:
    # Clients send Host with or without the port of a CONNECT; both mean the same.
    port = authority.rpartition(":")[2]
    bare = host.rpartition("]")[2] if host.startswith("[") else host
    return host if ":" in bare else f"{host}:{port}"


def disguises(header_names: frozenset[str]) -> frozenset[str]:
    """Give those that make another request of this one."""
    return header_names & frozenset(name.decode() for name in DISGUISES)
