"""A gateway between raw clients and two upstreams, one over TLS and one plain, and the three ways into it."""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support.gateway import KEY, Raw, RunningGateway, acme, running_gateway
from tests.support.tls import CertificateAuthority
from tests.support.upstream import Conversation, Upstream, Whole

__all__ = ["WAYS", "Faults", "Rig", "Way", "check_clean", "faults", "rig"]

Way = Literal["base-url", "proxy", "intercepted"]
WAYS: tuple[Way, ...] = ("base-url", "proxy", "intercepted")

_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "proxy-authorization"}
_IDENTITY = {"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "client-ip"}


class Faults(logging.Handler):
    """Keeps what the engine logs as an error: nothing that comes from outside may cause one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # uvloop says this where a dial is given up within its handshake; nothing follows from it.
        if record.getMessage().startswith("Fatal error on SSL protocol"):
            return
        self.seen.append(logging.Formatter().format(record))


@contextlib.contextmanager
def faults() -> Iterator[Faults]:
    """Listen to the log of the gateway and of asyncio; at the end of the block nothing may have been said."""
    handler = Faults()
    names = ("valetkey", "asyncio")
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        yield handler
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(handler)
    assert handler.seen == []


@dataclass
class Rig:
    """What a test of the engine works with."""

    running: RunningGateway
    secure: Upstream
    plain: Upstream
    authority: CertificateAuthority
    token: str

    @functools.cached_property
    def trust(self) -> ssl.SSLContext:
        """Give a client's context that believes the gateway's authority, and none beside it."""
        authority = self.running.gateway.authority
        assert authority is not None
        authority.open()
        return ssl.create_default_context(cadata=authority.certificate().decode())

    def upstream(self, way: Way) -> Upstream:
        """Give the upstream that this way leads to."""
        return self.plain if way == "proxy" else self.secure

    def host(self, way: Way) -> str:
        """Give host and port as Host has them."""
        return f"127.0.0.1:{self.upstream(way).port}"

    def fill(self, raw: bytes, way: Way) -> bytes:
        """Put the target's beginning, the host and the valet key where `<T>`, `<H>`, `<A>` and `<K>` stand."""
        basic = base64.b64encode(f"x:{self.token}".encode()).decode()
        target, proof = {
            "base-url": ("/acme", f"Authorization: Bearer {self.token}\r\n"),
            "proxy": (f"http://{self.host(way)}", f"Proxy-Authorization: Basic {basic}\r\n"),
            "intercepted": ("", ""),
        }[way]
        for mark, text in (("<T>", target), ("<H>", self.host(way)), ("<A>", proof), ("<K>", self.token)):
            raw = raw.replace(mark.encode(), text.encode())
        return raw

    def connect(self, way: Way) -> Raw:
        """Connect, and open the tunnel where the way has one."""
        client = self.running.raw()
        if way == "intercepted":
            client.send(self.connect_request())
            status, _ = client.head()
            assert status == 200
            client.tls(self.trust, "127.0.0.1")
        return client

    def connect_request(self) -> str:
        """Give the CONNECT for the upstream over TLS."""
        host = self.host("intercepted")
        basic = base64.b64encode(f"x:{self.token}".encode()).decode()
        return f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic {basic}\r\n\r\n"

    def get(self, path: str, way: Way = "base-url", *, method: str = "GET", more: str = "") -> bytes:
        """Give an ordinary request."""
        return self.fill(f"{method} <T>{path} HTTP/1.1\r\nHost: <H>\r\n<A>{more}\r\n".encode(), way)

    def barrier(self, way: Way, path: str = "/barrier") -> None:
        """Send an ordinary request by a connection of its own: what was sent on before it has come by then."""
        with self.connect(way) as client:
            status, _, _ = client.send(self.get(path, way)).answer()
            assert status == 200

    def quiet(self) -> bool:
        """Say whether nothing is under way."""
        return bool(self.running.do(lambda: self.running.gateway.active == 0))


@contextlib.contextmanager
def rig(
    home: Path,
    *,
    secure: Callable[[Conversation], None] | None = None,
    plain: Callable[[Conversation], None] | None = None,
    tls: ssl.SSLContext | None = None,
    authority: CertificateAuthority | None = None,
    **more: Any,
) -> Iterator[Rig]:
    """Start all of it. `secure` and `plain` are the scripts of the two upstreams."""
    authority = authority or CertificateAuthority(home)
    with (
        Upstream(secure, tls=tls or authority.context()) as over_tls,
        Upstream(plain) as without,
        running_gateway(
            acme(over_tls.url),
            acme(without.url, id="plain"),
            home=home,
            ca_file=authority.ca_file,
            **more,
        ) as running,
    ):
        yield Rig(running=running, secure=over_tls, plain=without, authority=authority, token=running.key())


def check_clean(request: Whole, host: str) -> None:
    """Hold one request that reached a provider to what every one of them must be."""
    names = [name for name, _ in request.headers]
    assert request.version == "1.1"
    assert request.header("host") == host
    assert request.target.startswith("/")
    assert not {n for n in names if n in _HOP_BY_HOP or n in _IDENTITY or n.startswith("x-forwarded")}
    assert names.count("content-length") + names.count("transfer-encoding") <= 1
    assert request.header("transfer-encoding") in (None, "chunked")
    assert request.header("authorization") == f"Bearer {KEY}"
    assert request.header("accept-encoding") == "identity"
    assert not {"cookie", "x-api-key", "x-goog-api-key", "api-key"} & set(names)
    everything = repr((request.target, request.headers, request.trailers))
    assert "vk_" not in everything
    assert not {n for n, _ in request.trailers} & {"authorization", "host", "content-length", "cookie", "x-api-key"}
