"""What `doctor` says to a person, and to whom it speaks; test_cli_tools.py breaks each layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.command_line import CommandLine, api_server
from tests.support.local_server import LocalServer

KEY = "sk-" + "d" * 40


@pytest.fixture
def line(home: Path) -> CommandLine:
    return CommandLine(home=home)


@pytest.fixture
def server() -> Iterator[LocalServer]:
    """An API that takes the key."""
    with api_server([KEY]) as running:
        yield running


def _logged_in(line: CommandLine, url: str, *, key: str = KEY) -> None:
    """Declare `acme` at this address and store a login, unverified."""
    near = "allow_http = true\n" if url.startswith("http:") else ""
    line.declare(
        "acme",
        f'[api]\nbase_url = "{url}"\nhosts = ["{urlsplit(url).netloc}"]\ndialect = "openai-chat"\n{near}'
        'probe = { get = "/models" }\n[[auth]]\nid = "api-key"\nkind = "api-key"\n'
        'inject = [{ set = { authorization = "Bearer {key}" } }]\n',
    )
    done = line("login", "acme", "--key", "-", "--no-verify", stdin=key)
    assert done.status == 0, done.err


def test_settings_that_cannot_be_read_do_not_keep_it_from_speaking(line: CommandLine, home: Path) -> None:
    (home / "config.toml").write_text("[network]\ntimeout_seconds = 'soon'\n")
    (home / "config.toml").chmod(0o600)
    done = line("doctor")
    assert (done.status, done.err) == (11, "")
    assert "config.toml:2" in done.out
    assert "The first layer that fails: settings" in done.out


def test_behind_a_broken_declaration_the_rest_is_looked_at(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url)
    line.declare("broken", "[api]\nbase_ulr = 'https://x.example'\n[[auth]]\nid = 'key'\nkind = 'api-key'\n")
    done = line("doctor")
    assert (done.status, "base_ulr" in done.out) == (12, True)
    assert "ok    account" in done.out
    assert KEY not in done.out + done.err


def test_offline_nobody_is_asked(line: CommandLine, server: LocalServer) -> None:
    _logged_in(line, server.url, key="sk-" + "w" * 40)
    assert line("doctor", "--offline").status == 0
    assert server.requests == []
