"""What every test has: an environment without anybody's keys, a home of its own, and the servers to talk to."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.clock import FakeClock

# What a developer's shell may hold: credentials, proxies, our own settings, and what tells us where we run.
_FOREIGN = re.compile(
    r".*_(API_KEY|API_TOKEN|AUTH_TOKEN|ACCESS_TOKEN|TOKEN|BASE_URL|API_BASE|PROXY)|(HTTP|HTTPS|ALL|NO|FTP)_PROXY"
    r"|(AWS|AZURE|GOOGLE|GCLOUD|CLOUDSDK|VERTEX|ANTHROPIC|OPENAI|CLAUDE|CODEX|GEMINI|GH|GITHUB|VALETKEY|XDG|SSH)_.*"
    r"|DISPLAY|WAYLAND_DISPLAY|BROWSER|CI|DBUS_SESSION_BUS_ADDRESS|NO_COLOR|FORCE_COLOR|CLICOLOR.*",
    re.IGNORECASE,
)


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio, which is all that Valetkey uses."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what the developer's shell has, and the real home folder."""
    for name in list(os.environ):
        if _FOREIGN.fullmatch(name):
            monkeypatch.delenv(name)
    user = tmp_path / "user"
    user.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(user))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty VALETKEY_HOME of mode 0700, named in the environment too."""
    folder = tmp_path / "valetkey-home"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("VALETKEY_HOME", str(folder))
    return folder


@pytest.fixture
def clock() -> FakeClock:
    """Give a clock that stands still until the test moves it."""
    return FakeClock()
