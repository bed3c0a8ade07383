"""Codex, Copilot CLI and Gemini CLI, each told to search its own sandbox for the credential that it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.agent_runs import Place, placed
from tests.support.gateway_process import until
from tests.support.inside import SEARCH, found, let_search
from tests.support.servers import ApiMock, api_mock
from tests.support.tls import CertificateAuthority
from valetkey.testing.local_server import Received, Reply

# What each calls its shell.
CALLS: dict[str, dict[str, object]] = {
    "exec_command": {"cmd": SEARCH, "yield_time_ms": 30_000},
    "bash": {"command": SEARCH, "description": "search", "initial_wait": 60},
    "run_shell_command": {"command": SEARCH},
}


@pytest.fixture(scope="module")
def aimock() -> Iterator[ApiMock]:
    with api_mock(calls=CALLS) as server:
        yield server


@pytest.fixture
def place(certificate_authority: CertificateAuthority, aimock: ApiMock, tmp_path: Path) -> Iterator[Place]:
    with placed(certificate_authority, aimock, tmp_path) as made:
        yield made


def wait_for_the_search(place: Place) -> None:
    """Hold back what ends the run: an agent tells the model what a command has said so far, and that may be nothing."""
    for server in place.servers.values():
        respond = server._respond

        def respond_later(request: Received, respond: Callable[[Received], Reply] = respond) -> Reply:
            if SEARCH.encode() in request.body:
                until((place.workspace / "found").exists)
            return respond(request)

        server._respond = respond_later


@pytest.mark.parametrize(
    ("agent", "provider", "words"),
    [
        ("codex", "openai", ("exec", "-m", "gpt-5.4-mini", "Please use exec_command.")),
        ("copilot", "openai", ("-s", "--allow-all-tools", "-p", "Please use bash.")),
        ("gemini", "google", ("--yolo", "-m", "gemini-2.5-pro", "-p", "Please use run_shell_command.")),
    ],
)
def test_an_agent_that_searches_its_sandbox_finds_no_credential(
    place: Place, aimock: ApiMock, agent: str, provider: str, words: tuple[str, ...]
) -> None:
    place.login(provider)
    let_search(place.workspace)
    wait_for_the_search(place)
    done = place("run", agent, "--workspace", str(place.workspace), "--", *words)
    assert (done.status, done.out.strip()) == (0, aimock.reply), done.err
    seen = found(place.workspace)
    assert (seen.canaries, seen.unread) == ([], [])
    # The search does find: the placeholder is where the credential would be.
    assert "environ" in seen.kinds
    assert place.shows(done.out, done.err) == []
    (kept,) = place.runs()
    assert (kept["agent"], kept["account"], kept["method"]) == (agent, f"{provider}@default", "api-key")
