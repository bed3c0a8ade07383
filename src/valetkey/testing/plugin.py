"""The pytest plugin: a home, a clock, a provider, a gateway and a canary. What a fixture needs is imported by it alone.

It is loaded wherever Valetkey is installed beside pytest, so it has to cost nothing there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from valetkey.testing.clock import FakeClock
    from valetkey.testing.gateway import GatewayProcess
    from valetkey.testing.provider import RunningProvider

# So that an assertion of a suite that fails shows its values.
pytest.register_assert_rewrite("valetkey.testing.suites")


@pytest.fixture
def valetkey_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give an empty VALETKEY_HOME of mode 0700, named in the environment, with a key file for its store.

    Credentials, proxies and settings of the developer's shell are taken out, and HOME is an empty folder. The path is
    short, so that sockets are in it.
    """
    from valetkey.testing.environment import foreign

    root = Path(tempfile.mkdtemp(prefix="vk"))
    try:
        for folder in ("user", "home"):
            (root / folder).mkdir(mode=0o700)
        for name in foreign(os.environ):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(root / "user"))
        monkeypatch.setenv("VALETKEY_HOME", str(root / "home"))
        monkeypatch.setenv("VALETKEY_STORE_KEY_SOURCE", "key-file")
        yield root / "home"
    finally:
        shutil.rmtree(root)


@pytest.fixture
def valetkey_clock() -> FakeClock:
    """Give a clock that stands still until the test moves it."""
    from valetkey.testing.clock import FakeClock

    return FakeClock()


@pytest.fixture
def canary() -> str:
    """Give a secret that nobody else has: use it as a credential, and look for it afterwards."""
    from valetkey.testing.canary import made

    return made()


@pytest.fixture
def assert_no_canary(canary: str) -> Callable[..., None]:
    """Give a function that fails where the canary is in one of these paths (folders with all below) or texts."""
    from valetkey.testing.canary import assert_no_canary

    return lambda *places: assert_no_canary(canary, *places)


@pytest.fixture
def fake_provider(canary: str) -> Iterator[RunningProvider]:
    """Give a provider that runs, whose API key is the canary. For any other write `with FakeProvider()…:`."""
    from valetkey.testing.provider import FakeProvider

    with FakeProvider().with_api_key(canary) as running:
        yield running


@pytest.fixture
def valetkey_gateway(valetkey_home: Path) -> Iterator[GatewayProcess]:
    """Give a `valetkey serve` of this test's own, in its home, on a free port."""
    from valetkey.testing.command_line import CommandLine
    from valetkey.testing.gateway import serving

    with serving(CommandLine(home=valetkey_home)) as running:
        yield running
