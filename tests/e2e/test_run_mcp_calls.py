"""Copilot CLI and Gemini CLI, the real programs, whose model calls tools of relayed MCP servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent_runs import Place, asked, placed
from tests.support.mcp_server import Notes, notes_server
from tests.support.servers import ApiMock, api_mock
from tests.support.tls import CertificateAuthority
from valetkey.testing.canary import holding

# A call that no client of MCP makes, for the tool is in no list.
PAST_THE_LIST = """curl -sS http://127.0.0.1:3128/mcp/notes -H 'accept: application/json, text/event-stream' \
 --json '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"delete_note","arguments":{"text":"x"}}}'"""
LOCAL = Path(__file__).parents[1] / "support" / "programs" / "mcp_local.py"
CALLS: dict[str, dict[str, object]] = {
    "notes-read_note": {"text": "plover"},
    "notes-delete_note": {"text": "plover"},
    "mcp_notes_read_note": {"text": "plover"},
    "run_shell_command": {"command": PAST_THE_LIST},
}
COPILOT = ("-s", "--allow-all-tools", "-p")
GEMINI = ("--yolo", "-m", "gemini-2.5-pro", "-p")


@pytest.fixture(scope="module")
def aimock() -> Iterator[ApiMock]:
    with api_mock(calls=CALLS) as server:
        yield server


@pytest.fixture
def notes(certificate_authority: CertificateAuthority) -> Iterator[Notes]:
    with notes_server(certificate_authority.context()) as running:
        yield running


@pytest.fixture
def place(
    certificate_authority: CertificateAuthority, aimock: ApiMock, notes: Notes, tmp_path: Path
) -> Iterator[Place]:
    with placed(certificate_authority, aimock, tmp_path) as made:
        notes.declare(made.line)
        notes.add(made.line, "notes", "--tool", "read_*")
        yield made


def questions(place: Place, text: str) -> list[str]:
    """Give what the model was sent, as text."""
    return [json.dumps(body) for server in place.servers.values() for body in asked(server, text)]


@pytest.mark.parametrize(
    ("agent", "provider", "words", "form"),
    [("copilot", "openai", COPILOT, "{}-{}"), ("gemini", "google", GEMINI, "mcp_{}_{}")],
)
def test_the_model_is_offered_the_tools_of_each_transport_and_calls_one(
    place: Place, notes: Notes, aimock: ApiMock, agent: str, provider: str, words: tuple[str, ...], form: str
) -> None:
    place.login(provider)
    notes.add(place.line, "older", "--tool", "read_*", "--transport", "sse", path="/sse")
    (place.workspace / "local.py").write_bytes(LOCAL.read_bytes())
    assert place.line("mcp", "add", "local", "--", "python3", "/workspace/local.py", "a b").status == 0
    at = ("--mcp", "notes", "--mcp", "older", "--mcp", "local", "--workspace", str(place.workspace))
    done = place("run", agent, *at, "--", *words, f"Please use {form.format('notes', 'read_note')}.")
    assert (done.status, done.out.strip()) == (0, aimock.reply), done.err
    first, *_, last = questions(place, "Please use")
    for tool in ("read_note", "read_all"):
        assert [form.format(server, tool) in first for server in ("notes", "older")] == [True, True]
    assert form.format("local", "where") in first
    assert "delete_note" not in first
    # The call came, and its result went to the model.
    assert notes.called == ["read_note"]
    assert "read_note of plover" in last
    assert "read_note of plover" not in first
    assert notes.refused == 0
    assert place.shows(done.out, done.err) == []
    assert holding(notes.key, [*(place.line.home / "runs").rglob("*")]) == []


@pytest.mark.parametrize(
    ("agent", "provider", "words", "tool", "told"),
    [
        ("copilot", "openai", COPILOT, "notes-delete_note", "does not exist"),
        ("gemini", "google", GEMINI, "run_shell_command", "mcp.servers.notes.tools allows read_*"),
    ],
)
def test_a_tool_that_is_not_allowed_is_not_called_whatever_the_model_says(
    place: Place, notes: Notes, agent: str, provider: str, words: tuple[str, ...], tool: str, told: str
) -> None:
    place.login(provider)
    done = place(
        "run", agent, "--mcp", "notes", "--workspace", str(place.workspace), "--", *words, f"Please use {tool}."
    )
    assert done.status == 0, done.err
    first, *_, last = questions(place, "Please use")
    assert (told in first, told in last) == (False, True)
    assert notes.called == []
    assert "delete_note" not in repr(notes.asked)
