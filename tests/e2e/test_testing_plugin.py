"""The fixtures of the kit, as another project's tests have them, and what the plugin costs those that use none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from valetkey import serving
from valetkey.testing import FakeClock, FakeProvider, GatewayProcess, RunningProvider


def test_a_request_goes_through_the_gateway_and_the_key_shows_nowhere(
    valetkey_gateway: GatewayProcess,
    fake_provider: RunningProvider,
    valetkey_home: Path,
    canary: str,
    assert_no_canary: Callable[..., None],
) -> None:
    valetkey_gateway.login(fake_provider)
    holder = valetkey_gateway.create_key("fake")
    with httpx2.Client(trust_env=False, timeout=60) as client:
        answer = client.get(f"{holder.url}/fake/models", headers={"authorization": f"Bearer {holder.key}"})
    assert answer.json()["data"][0]["id"] == "fake-model"
    assert fake_provider.api_requests[-1].headers["authorization"] == f"Bearer {canary}"
    assert_no_canary(valetkey_home, holder.log, answer.text)
    with pytest.raises(AssertionError, match="a text"):
        assert_no_canary(f"it is {canary}")


def test_a_token_that_the_provider_forgot_is_renewed_by_the_gateway(valetkey_gateway: GatewayProcess) -> None:
    with FakeProvider().with_device_login() as provider, httpx2.Client(trust_env=False, timeout=60) as client:
        valetkey_gateway.login(provider)
        holder = valetkey_gateway.create_key("fake")
        headers = {"authorization": f"Bearer {holder.key}"}
        assert client.get(f"{holder.url}/fake/me", headers=headers).status_code == 200
        provider.expire()
        assert client.get(f"{holder.url}/fake/me", headers=headers).status_code == 200
        assert (provider.refreshes, provider.refused) == (1, 1)
        assert [secret for secret in provider.secrets if holder.shows(secret)] == []


def test_the_home_is_empty_and_nothing_of_the_shell_is_left(valetkey_home: Path) -> None:
    assert list(valetkey_home.iterdir()) == []
    assert os.environ["VALETKEY_HOME"] == str(valetkey_home)
    assert valetkey_home.stat().st_mode & 0o777 == 0o700
    assert not list(Path(os.environ["HOME"]).iterdir())


def test_the_clock_stands_still(valetkey_clock: FakeClock) -> None:
    before = valetkey_clock.now()
    valetkey_clock.advance(5)
    assert (valetkey_clock.now() - before).total_seconds() == 5


OTHERS = """
import os

def test_it(valetkey_home, canary, valetkey_gateway):
    assert "OPENAI_API_KEY" not in os.environ
    print("HOME", valetkey_home)
"""


def test_another_project_has_the_fixtures_and_nothing_of_them_is_left(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(OTHERS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "OPENAI_API_KEY": "sk-of-the-shell"},
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    home = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("HOME"))
    assert not Path(home).parent.exists()
    assert not serving.is_alive(home)


def test_the_plugin_brings_nothing_that_nobody_asked_for() -> None:
    program = (
        "import sys, pytest\nbefore = {*sys.modules}\nimport valetkey.testing.plugin\nprint(*{*sys.modules} - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    brought = set(done.stdout.split())
    assert {name for name in brought if name.startswith("valetkey")} == {
        "valetkey",
        "valetkey.testing",
        "valetkey.testing.plugin",
    }
    assert not {"asyncio", "click", "httpx2", "cryptography"} & brought
