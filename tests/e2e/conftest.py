"""Providers' servers behind doors with the gateway in front of them, once for a worker; and a line of one's own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import ORDINARY, CommandLine
from tests.support.gateway_process import end
from tests.support.runs import clear
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from tests.support.upstreams import Upstreams, declare
from tests.support.upstreams import upstreams as running_upstreams
from tests.support.ways import Access, Reach, Way, access
from tests.support.workplace import Workplace
from valetkey.testing.gateway import GatewayProcess, serving
from valetkey.testing.local_server import Answer, LocalServer, Received


@pytest.fixture(scope="session")
def _upstreams(
    certificate_authority: CertificateAuthority, aimock: ApiMock, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upstreams]:
    with running_upstreams(certificate_authority, aimock, tmp_path_factory.mktemp("git")) as running:
        yield running


@pytest.fixture
def upstreams(_upstreams: Upstreams) -> Iterator[Upstreams]:
    """Give the providers' servers, with nothing received so far."""
    _upstreams.forget()
    yield _upstreams
    _upstreams.steps.forget()


@pytest.fixture(scope="session")
def gateway(
    _upstreams: Upstreams, certificate_authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """Give a gateway that is logged in everywhere, with a valet key for all of it."""
    home = tmp_path_factory.mktemp("gateway") / "home"
    home.mkdir(mode=0o700)
    (home.parent / "user").mkdir(mode=0o700)
    (home / "config.toml").write_text(f"[network]\nca_file = {json.dumps(str(certificate_authority.ca_file))}\n")
    (home / "config.toml").chmod(0o600)
    valetkey = CommandLine(home=home)
    for service in _upstreams.services.values():
        if not service.host:
            declare(valetkey, service)
        login = ["login", service.provider, "--method", "token" if service.provider == "github" else "api-key"]
        done = valetkey(*login, "--key", "-", "--no-verify", "--yes", stdin=service.door.key)
        assert done.status == 0, done.err
    outside = {"HTTPS_PROXY": f"http://127.0.0.1:{_upstreams.outside.port}", "NO_PROXY": "127.0.0.1"}
    with serving(valetkey, environ=outside) as running:
        yield running.create_key(*_upstreams.services)
    clear(home)


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    """Give a client's own home, empty."""
    return Workplace(tmp_path / "client")


@pytest.fixture(params=["direct", "base-url", "proxy"])
def way(request: pytest.FixtureRequest) -> Way:
    """Give each way to a provider, one after the other."""
    chosen: Way = request.param
    return chosen


@pytest.fixture
def reach(
    request: pytest.FixtureRequest, way: Way, upstreams: Upstreams, certificate_authority: CertificateAuthority
) -> Iterator[Reach]:
    """Give what a client is told, so that it reaches a provider by `way`. The gateway is then searched for secrets."""
    gateway = None if way == "direct" else request.getfixturevalue("gateway")

    def reach(provider: str, gateway: GatewayProcess | None = gateway) -> Access:
        ca_file, outside = certificate_authority.ca_file, f"http://127.0.0.1:{upstreams.outside.port}"
        return access(way, upstreams[provider], ca_file=ca_file, outside=outside, gateway=gateway)

    yield reach
    if gateway is not None:
        for secret in [gateway.key, *(service.door.key for service in upstreams.services.values())]:
            assert gateway.shows(secret) == []


@pytest.fixture
def line() -> Iterator[CommandLine]:
    """Give the command line of an ordinary user; a gateway that it leaves is ended."""
    # Its path is short, so that sockets are in it.
    with tempfile.TemporaryDirectory(prefix="vk") as folder:
        (home := Path(folder, "home")).mkdir(mode=0o700)
        line = CommandLine(home=home, through=ORDINARY)
        yield line
        end(line)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """Give a provider's server that takes whatever credential and serves whatever is asked."""

    def respond(request: Received) -> Answer:
        return Answer(headers={"content-type": "text/plain"}, body=b"served")

    with LocalServer(respond) as running:
        yield running
