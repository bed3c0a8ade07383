"""A login is bound to the hosts of its day: a declaration that names others gets nothing until the user says yes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine, api_server
from valetkey.testing.local_server import LocalServer

KEY = "sk-" + "h" * 40


@pytest.fixture
def line(home: Path) -> CommandLine:
    return CommandLine(home=home)


@pytest.fixture
def before() -> Iterator[LocalServer]:
    """The server of the day of the login."""
    with api_server([KEY]) as running:
        yield running


@pytest.fixture
def after() -> Iterator[LocalServer]:
    """The server that the declaration names by now."""
    with api_server([KEY]) as running:
        yield running


def _declare(line: CommandLine, server: LocalServer) -> None:
    line.declare(
        "acme",
        f'[api]\nbase_url = "{server.url}"\nhosts = ["127.0.0.1:{server.port}"]\nallow_http = true\n'
        'dialect = "openai-chat"\nprobe = { get = "/models" }\n[[auth]]\nid = "api-key"\nkind = "api-key"\n'
        'inject = [{ set = { authorization = "Bearer {key}" } }]\n',
    )


def test_new_hosts_get_the_credential_once_they_are_accepted(
    line: CommandLine, before: LocalServer, after: LocalServer
) -> None:
    _declare(line, before)
    assert line("login", "acme", "--key", "-", stdin=KEY).status == 0
    nothing = line("providers", "accept", "acme", "--yes", "--json")
    assert nothing.json == {"provider": "acme", "accepted": []}
    _declare(line, after)
    assert line("status", "acme").status == 0
    assert after.requests == []
    unsaid = line("providers", "accept", "acme")
    assert (unsaid.status, "valetkey: hint: " in unsaid.err) == (2, True)
    line("status", "acme")
    assert after.requests == []
    said = line("providers", "accept", "acme", "--yes", "--json").json["accepted"]
    assert said == [
        {"account": "default", "added": [f"127.0.0.1:{after.port}"], "removed": [f"127.0.0.1:{before.port}"]}
    ]
    (entry,) = line("audit", "show", "--kind", "accept", "--json").json["entries"]
    assert (entry["account"], entry["detail"]["added"]) == ("acme@default", [f"127.0.0.1:{after.port}"])
    asked = len(before.requests)
    assert line("status", "acme").status == 0
    assert (len(after.requests), len(before.requests)) == (1, asked)
