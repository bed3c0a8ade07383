"""Providers that the tests run themselves, each behind a door of its own over TLS."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.command_line import CommandLine
from tests.support.connect_proxy import ConnectProxy
from tests.support.front import Door, Target, guarded
from tests.support.git_server import GitServer
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from tests.support.ways import Service
from valetkey.testing.local_server import Answer, LocalServer, Received, Reply, Stream

__all__ = ["Steps", "Upstreams", "declare", "upstreams"]

_PATIENCE_SECONDS = 60
_DECLARATION = """
[api]
base_url = "{url}"
dialect = "{dialect}"
hosts = ["{host}"]
[[auth]]
id = "api-key"
kind = "api-key"
inject = [{inject}]
"""


class Steps:
    """A stream of events whose next one is sent when the test says so."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[bytes] = queue.Queue()

    def send(self, piece: bytes) -> None:
        """Send this; the empty one ends the answer."""
        self._pieces.put(piece)

    def forget(self) -> None:
        """End the answer that goes on, if one does, and drop what is still to be sent."""
        self.send(b"")
        self._pieces = queue.Queue()

    def __call__(self, _: Received) -> Reply:
        """Begin the answer."""
        pieces = iter(functools.partial(self._pieces.get, timeout=_PATIENCE_SECONDS), b"")
        return Stream(headers={"content-type": "text/event-stream"}, pieces=pieces)


@dataclass(frozen=True, kw_only=True)
class Upstreams:
    """What there is to reach, by the provider's id. Those with a `host` are built in, and found by `outside`."""

    services: dict[str, Service]
    outside: ConnectProxy
    git_folder: Path
    llama: Target
    steps: Steps

    def __getitem__(self, provider: str) -> Service:
        """Give the service of this provider."""
        return self.services[provider]

    def forget(self) -> None:
        """Begin a test with nothing received."""
        for service in self.services.values():
            service.server.requests.clear()
        self.steps.forget()
        self.outside.heads.clear()

    @property
    def asked_outside(self) -> set[str]:
        """Give all that was to be reached by `outside`, whether it knows them or not."""
        return {head.split(b" ")[1].decode() for head in self.outside.heads}


def _digest(request: Received) -> Answer:
    digest = hashlib.sha256(request.body).hexdigest()
    return Answer(headers={"content-type": "text/plain"}, body=f"{len(request.body)} {digest}".encode())


def _mirror(request: Received) -> Answer:
    body = request.head.encode()
    return Answer(headers={"content-type": "text/plain", "x-mirror": request.headers["authorization"]}, body=body)


@contextlib.contextmanager
def upstreams(ca: CertificateAuthority, aimock: ApiMock, folder: Path) -> Iterator[Upstreams]:
    """Start them all."""
    llama, steps = Target(), Steps()
    bearer = Target(aimock.url, {"authorization": f"Bearer {aimock.api_key}"})
    x_api_key = Target(aimock.url, {"x-api-key": aimock.api_key})
    with contextlib.ExitStack() as stack:
        ports: dict[str, int] = {}
        outside = stack.enter_context(ConnectProxy(ports))
        services: dict[str, Service] = {}

        def serve(
            provider: str, door: Door, respond: Callable[[Received], Reply], path: str = "", host: str = ""
        ) -> None:
            tls = ca.context(host) if host else ca.context()
            server = stack.enter_context(LocalServer(guarded(door, respond), tls=tls))
            services[provider] = Service(provider=provider, server=server, door=door, path=path, host=host)
            if host:
                ports[f"{host}:443"] = server.port

        serve("mock-openai", Door(), bearer, "/v1")
        serve("mock-claude", Door(header="x-api-key", form="{key}"), x_api_key)
        serve("mock-bearer", Door(), x_api_key)
        serve("llama", Door(), llama, "/v1")
        forge = Door(user="x-access-token")
        serve("forge", forge, GitServer(folder, user=forge.user, password=forge.key).respond)
        serve("vault", Door(), _digest)
        serve("mirror", Door(), _mirror)
        serve("pulse", Door(), steps)
        serve("openai", Door(), bearer, "/v1", "api.openai.com")
        serve("anthropic", Door(header="x-api-key", form="{key}"), x_api_key, "", "api.anthropic.com")
        github = Door(user="x-access-token")
        serve("github", github, GitServer(folder, user=github.user, password=github.key).respond, "", "github.com")
        yield Upstreams(services=services, outside=outside, git_folder=folder, llama=llama, steps=steps)


def declare(valetkey: CommandLine, service: Service) -> None:
    """Write the declaration of a service that is not built in."""
    door = service.door
    if door.user:
        inject = f'{{ basic = "{door.user}:{{key}}" }}'
    else:
        inject = f'{{ set = {{ {door.header} = "{door.form}" }}, remove = ["authorization", "x-api-key"] }}'
    host = service.url.removeprefix("https://").partition("/")[0]
    dialect = (
        {"/v1": "openai-responses", "": "anthropic-messages"}[service.path] if "mock" in service.provider else "none"
    )
    text = _DECLARATION.format(url=service.url, host=host, dialect=dialect, inject=inject)
    valetkey.declare(service.provider, text)
