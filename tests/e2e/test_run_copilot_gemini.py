"""Copilot CLI and Gemini CLI, the real programs, each in a run: they answer, and go on with their own session."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent_runs import Place, asked, placed
from tests.support.front import Door, guarded
from tests.support.gateway_process import until
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from valetkey.testing.local_server import Answer, LocalServer, Received, Reply


@pytest.fixture
def place(certificate_authority: CertificateAuthority, aimock: ApiMock, tmp_path: Path) -> Iterator[Place]:
    with placed(certificate_authority, aimock, tmp_path) as made:
        yield made


# Without a model it asks a small one which one fits, and wants an answer in JSON that the mock does not give.
GEMINI = ("-m", "gemini-2.5-pro", "-p")
COPILOT = ("-s", "-p")


@pytest.mark.parametrize(
    ("agent", "provider", "method", "words"),
    [
        ("gemini", "google", "api-key", GEMINI),
        ("copilot", "openai", "api-key", COPILOT),
        ("copilot", "anthropic", "api-key", COPILOT),
    ],
)
def test_of_two_runs_in_one_workspace_each_goes_on_with_its_own_session(
    place: Place, aimock: ApiMock, agent: str, provider: str, method: str, words: tuple[str, ...]
) -> None:
    place.login(provider, method)
    at = ("--workspace", str(place.workspace))
    for word in ("plover", "dunlin"):
        done = place("run", *at, agent, "--", *words, f"My word is {word}.")
        assert (done.status, done.out.strip()) == (0, aimock.reply), done.err
    second, first = place.runs()
    assert (first["agent"], first["account"], first["method"]) == (agent, f"{provider}@default", method)
    sessions = {one["run"]: one["id"] for one in place(agent, "sessions", "--json").json["sessions"]}
    assert set(sessions) == {first["id"], second["id"]}
    ways = (
        ((agent, "resume", sessions[first["id"]], *words), "plover"),
        (("runs", "resume", second["id"], "--", *words), "dunlin"),
        (("run", agent, "--resume", first["id"], "--", *words), "plover"),
    )
    for number, (way, word) in enumerate(ways):
        done = place(*way, f"Question {number}?")
        assert (done.status, done.out.strip()) == (0, aimock.reply), done.err
        (server,) = [one for one in place.servers.values() if asked(one, f"Question {number}?")]
        heard = json.dumps(asked(server, f"Question {number}?"))
        assert [one for one in ("plover", "dunlin") if one in heard] == [word]
    assert len(place(agent, "sessions", "--json").json["sessions"]) == 2
    assert place.shows() == []
    assert {head.split(b" ")[1] for head in place.outside.heads} == {
        f"{host}:443".encode() for host, one in place.servers.items() if one is server
    }


@pytest.mark.parametrize(
    ("agent", "provider", "words", "ready"),
    [
        ("gemini", "google", ("-m", "gemini-2.5-pro"), "Type your message"),
        ("copilot", "openai", ("-i", "plover"), None),
    ],
)
def test_on_a_terminal_it_asks_nothing_before_the_first_word(
    place: Place, agent: str, provider: str, words: tuple[str, ...], ready: str | None
) -> None:
    place.login(provider)
    with place.line.terminal("run", "--workspace", str(place.workspace), agent, "--", *words) as terminal:
        # On a terminal without a size nothing is drawn.
        terminal.resize(40, 100)
        if ready is not None:
            terminal.expect(ready)
            terminal.send("plover")
            terminal.expect("plover")
            terminal.send("\r")
        until(lambda: any(asked(server, "plover") for server in place.servers.values()))
        terminal.signal(signal.SIGTERM)
        terminal.end()
    assert place.shows(terminal.shown) == []


# What it reads of these answers; nobody has asked GitHub for its own.
USER = {
    "login": "someone",
    "chat_enabled": True,
    "copilot_plan": "individual",
    "endpoints": {"api": "https://api.githubcopilot.com"},
}


def test_copilot_by_its_own_login_shows_github_the_real_one(
    place: Place, certificate_authority: CertificateAuthority
) -> None:
    """It gets as far as the list of models: which of them GitHub would let it use, and how, is not known here."""
    door = Door(key="github_pat_" + "canary" + os.urandom(20).hex())
    place.keys["github-copilot"] = door.key
    known = {"/copilot_internal/user": USER, "/models": {"object": "list", "data": []}}

    def respond(request: Received) -> Reply:
        status = 200 if request.path in known else 404
        body = json.dumps(known.get(request.path, {"message": "Not Found"})).encode()
        return Answer(status=status, headers={"content-type": "application/json"}, body=body)

    with contextlib.ExitStack() as stack:
        apis = {
            host: stack.enter_context(LocalServer(guarded(door, respond), tls=certificate_authority.context(host)))
            for host in ("api.github.com", "api.githubcopilot.com")
        }
        place.ports |= {f"{host}:443": server.port for host, server in apis.items()}
        place.login("github-copilot", "token")
        done = place("run", "copilot", "--workspace", str(place.workspace), "--", *COPILOT, "Say hello.")
        assert apis["api.github.com"].calls("/copilot_internal/user"), done.err
        assert apis["api.githubcopilot.com"].calls("/models"), done.err
        assert all(door.opens(request) for server in apis.values() for request in server.requests)
    (kept,) = place.runs()
    assert (kept["account"], kept["method"]) == ("github-copilot@default", "token")
    assert place.shows(done.out, done.err) == []


def test_a_login_for_copilot_serves_no_other_agent(place: Place) -> None:
    place.keys["github-copilot"] = "github_pat_" + "canary" + os.urandom(20).hex()
    place.login("github-copilot", "token")
    place.login("google")
    done = place("run", "--grant", "github-copilot", "gemini", "--workspace", str(place.workspace), "--", "-p", "hi")
    assert (done.status, place.runs()) == (4, []), done.err
