"""What every test has: an environment without anybody's keys, a home of its own, and the servers to talk to."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containers import Podman, podman_storage
from tests.support.echo import Echo
from tests.support.gateway_process import kill_what_is_left
from tests.support.oidc_provider import OidcProvider, oidc_provider
from tests.support.runs import clear
from tests.support.servers import ApiMock, ModelServer, api_mock, model_server
from tests.support.tls import CertificateAuthority
from valetkey.http import HttpClient
from valetkey.testing.authorization_server import AuthorizationServer
from valetkey.testing.clock import FakeClock
from valetkey.testing.environment import foreign


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGTERM end what `make tests` runs in the background as Ctrl-C would, which the shell keeps from it.

    So its fixtures end what they have started.
    """
    if config.getoption("markexpr") == "beside":
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep all that needs the language model in one worker, so that it is loaded once and has the cores it wants."""
    for item in items:
        if "model" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("model"))


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, which is all that Valetkey uses."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the developer's shell has, and the real home folder."""
    for name in foreign(os.environ):
        monkeypatch.delenv(name)
    user = tmp_path / "user"
    user.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(user))


@pytest.fixture(scope="session")
def _podman() -> Iterator[Podman]:
    with podman_storage() as podman:
        yield podman


@pytest.fixture
def podman(_podman: Podman, monkeypatch: pytest.MonkeyPatch) -> Podman:
    """Give a podman with the images of the tests, and let every podman of this test be that one."""
    for name, value in _podman.environ.items():
        monkeypatch.setenv(name, value)
    return _podman


@pytest.fixture(autouse=True)
def _own_keychain() -> Iterator[None]:
    """Let keyring look around anew in each test: it keeps what it once found for the whole process."""
    yield
    if "keyring.core" in sys.modules:
        vars(sys.modules["keyring.core"])["_keyring_backend"] = None
        vars(sys.modules["keyring.backend"].get_all_keyring).pop("saved_result", None)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give an empty VALETKEY_HOME of mode 0700, named in the environment too; a gateway left in it is killed."""
    folder = tmp_path / "valetkey-home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("VALETKEY_HOME", str(folder))
    yield folder
    kill_what_is_left(folder)
    clear(folder)


@pytest.fixture
def clock(valetkey_clock: FakeClock) -> FakeClock:
    """Give a clock that stands still until the test moves it."""
    return valetkey_clock


@pytest.fixture
def http() -> Iterator[HttpClient]:
    """Give the client of logins and renewals."""
    client = HttpClient(timeout_seconds=60)
    yield client
    client.close()


@pytest.fixture
def authorization_server() -> Iterator[AuthorizationServer]:
    """Give an authorization server that answers as the test scripts it, over plain HTTP."""
    with AuthorizationServer() as server:
        yield server


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Give a server that tells what reached it, over plain HTTP."""
    with Echo() as server:
        yield server


@pytest.fixture(scope="session")
def certificate_authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Give a CA whose `ca_file` a client may trust."""
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def echo_tls(certificate_authority: CertificateAuthority) -> Iterator[Echo]:
    """Give the echo over TLS, with a certificate of `certificate_authority`."""
    with Echo(tls=certificate_authority.context()) as server:
        yield server


@pytest.fixture(scope="session")
def _oidc() -> Iterator[OidcProvider]:
    with oidc_provider() as provider:
        yield provider


@pytest.fixture
def oidc(_oidc: OidcProvider) -> OidcProvider:
    """Give npm oidc-provider, its counters at zero. For other lifetimes or formats start `oidc_provider(…)`."""
    _oidc.reset_counts()
    return _oidc


@pytest.fixture(scope="session")
def model() -> Iterator[ModelServer]:
    """Give a real language model behind a real llama.cpp server."""
    with model_server() as server:
        yield server


@pytest.fixture(scope="session")
def aimock() -> Iterator[ApiMock]:
    """Give npm aimock, which speaks the dialects of many providers."""
    with api_mock() as server:
        yield server
