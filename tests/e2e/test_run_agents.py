"""Claude Code and Codex, the real programs, each in a run: they answer, go on with a session, and see no credential."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.agent_runs import Place, asked, placed
from tests.support.front import Door, Target, guarded
from tests.support.inside import SEARCH, found, let_search
from tests.support.servers import ApiMock
from tests.support.tls import CertificateAuthority
from valetkey.clock import SystemClock
from valetkey.config import Paths
from valetkey.credential import CredentialRef, Identity, OAuthToken, Secret
from valetkey.store import Record
from valetkey.stores import open_store
from valetkey.testing.command_line import Done
from valetkey.testing.local_server import LocalServer


@pytest.fixture
def place(certificate_authority: CertificateAuthority, aimock: ApiMock, tmp_path: Path) -> Iterator[Place]:
    with placed(certificate_authority, aimock, tmp_path) as made:
        yield made


HOOK = {"type": "command", "command": SEARCH}


def searching(workspace: Path) -> None:
    """Let Claude Code search its surroundings when a session begins."""
    (workspace / ".claude").mkdir()
    (workspace / ".claude" / "settings.json").write_text(json.dumps({"hooks": {"SessionStart": [{"hooks": [HOOK]}]}}))
    let_search(workspace)


@pytest.mark.parametrize("method", ["api-key", "subscription"])
def test_claude_code_answers_and_sees_no_credential(place: Place, aimock: ApiMock, method: str) -> None:
    place.login("anthropic", method)
    searching(place.workspace)
    done = place("run", "claude", "--workspace", str(place.workspace), "--", "-p", "Say hello.")
    assert (done.status, done.out, done.err) == (0, aimock.reply + "\n", "")
    seen = found(place.workspace)
    assert (seen.canaries, seen.unread) == ([], [])
    # The search does find: the placeholder is where the credential would be.
    assert {"environ", "memory"} <= seen.kinds
    assert place.shows(done.out, done.err) == []
    (kept,) = place.runs()
    assert (kept["agent"], kept["account"], kept["method"]) == ("claude", "anthropic@default", method)
    assert kept["grants"] == ["anthropic@default"]
    assert place("runs", "list").out.splitlines()[1].endswith("  claude -p 'Say hello.'")
    assert place.outside.heads, "it went out by the tests' own way"
    assert {head.split(b" ")[1] for head in place.outside.heads} == {b"api.anthropic.com:443"}


def test_claude_code_goes_on_with_a_session_by_its_id_its_run_and_its_workspace(place: Place, aimock: ApiMock) -> None:
    place.login("anthropic", "subscription")
    at = str(place.workspace)
    policy = place.line.home.parent / "policy.toml"
    policy.write_text('default = "allow"\nother_hosts = "deny"\n')
    held = ("--workspace", at, "--read-only", "--policy", str(policy), "--allow", "files.example")
    assert place("run", "claude", *held, "--", "-p", "My word is plover.").status == 0
    policy.unlink()
    (first,) = place.runs()
    (session,) = place("claude", "sessions", "--json").json["sessions"]
    assert (session["run"], session["workspace"], session["grants"]) == (first["id"], at, ["anthropic@default"])
    ways = (
        ("claude", "resume", session["id"], "-p"),
        ("run", "claude", "--resume", first["id"], "--", "-p"),
        ("run", "claude", "--continue", "--workspace", at, "--", "-p"),
        ("runs", "resume", first["id"], "--", "-p"),
    )
    for number, words in enumerate(ways):
        done = place(*words, f"Question {number}?")
        assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
        assert asked(place.anthropic, f"Question {number}?")
        assert all("plover" in json.dumps(question) for question in asked(place.anthropic, f"Question {number}?"))
    runs = place.runs()
    assert [run["home_of"] for run in runs] == [first["id"]] * 4 + [None]
    for run in runs:
        assert (run["read_only"], run["allow"], run["policy"]) == (True, ["files.example"], first["policy"])
    assert len(place("claude", "sessions", "--json").json["sessions"]) == 1
    assert place.shows() == []


def test_what_a_run_was_given_is_kept_when_it_is_gone_on_with(place: Place, aimock: ApiMock, tmp_path: Path) -> None:
    place.login("openai")
    given = ("--pids", "300", "--memory", "4g", "--env", "MINE", "--env", "TYPED=a-word")
    at = ("run", "--workspace", str(place.workspace))

    def run(*words: str, **environ: str) -> Done:
        return place.line(*at, *words, environ=environ, patience_seconds=120)

    assert run(*given, "codex", "--", "exec", "One.", MINE="of-the-shell").status == 0
    (first,) = place.runs()
    assert first["variables"] == ["MINE", "TYPED="]
    assert (first["limits"]["processes"], first["limits"]["memory_bytes"]) == (300, 4 << 30)
    shown = place("runs", "show", first["id"]).out
    assert ("MINE TYPED=" in shown, "processes=300" in shown) == (True, True)
    record = place.line.home / "runs" / first["id"] / "run.json"
    text = record.read_text()
    assert not [word for word in ("a-word", "of-the-shell") if word in text]
    # Nothing can be mounted at its own path where that is in /tmp, as it is here.
    (shared := tmp_path / "shared").mkdir()
    mounts = [{"source": str(shared), "target": "/mnt/shared", "read_only": False}]
    record.write_text(json.dumps({**json.loads(text), "mounts": mounts}))
    again = ("--resume", first["id"])
    asking = ("codex", "--", "exec", "Again.")
    missing = run(*again, *asking)
    assert (missing.status, "--env MINE=VALUE --env TYPED=VALUE" in missing.err) == (2, True)
    assert "--env TYPED=VALUE`" in run(*again, *asking, MINE="x").err
    assert len(place.runs()) == 1
    done = run(*again, "--env", "TYPED=other", "--pids", "400", *asking, MINE="x")
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    second = place.runs()[0]
    assert (second["mounts"], sorted(second["variables"])) == (mounts, ["MINE", "TYPED="])
    assert second["limits"] == {**first["limits"], "processes": 400}
    shared.rename(tmp_path / "was")
    shared.symlink_to(tmp_path / "was")
    refused = run(*again, "--env", "TYPED=other", *asking, MINE="x")
    assert (refused.status, "is not what it was" in refused.err) == (4, True), refused.err


def test_of_two_logins_the_subscription_counts_and_that_is_told(place: Place, aimock: ApiMock) -> None:
    place.login("anthropic", "api-key")
    place.login("anthropic@plan", "subscription")
    grants = ("--grant", "anthropic", "--grant", "anthropic@plan")
    done = place("run", *grants, "--workspace", str(place.workspace), "claude", "-p", "Say hello.")
    assert (done.status, done.out) == (2, ""), "options behind its name are ours"
    done = place("run", *grants, "--workspace", str(place.workspace), "claude", "--", "-p", "Say hello.")
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    assert done.err == "valetkey: claude uses anthropic@plan, by its login subscription\n"
    (kept,) = place.runs()
    assert (kept["account"], kept["method"]) == ("anthropic@plan", "subscription")
    questions = [request for request in place.anthropic.requests if b"Say hello." in request.body]
    assert questions
    assert {request.headers.get("authorization") for request in questions} == {f"Bearer {place.keys['subscription']}"}


@pytest.mark.parametrize(
    ("agent", "dialect", "path", "words"),
    [
        ("claude", "anthropic-messages", "", ("-p", "Say hello.")),
        ("codex", "openai-responses", "/v1", ("exec", "Say hello.")),
    ],
)
def test_an_agent_uses_a_server_of_ones_own(
    place: Place, aimock: ApiMock, agent: str, dialect: str, path: str, words: tuple[str, ...]
) -> None:
    door = Door()
    place.keys["mine"] = door.key
    with LocalServer(guarded(door, Target(aimock.url, {"authorization": f"Bearer {aimock.api_key}"}))) as server:
        add = ("--base-url", server.url + path, "--dialect", dialect, "--allow-http", "--no-verify")
        done = place.line(
            "providers", "add", "mine", *add, "--key-header", "authorization", "--key", "-", stdin=door.key
        )
        assert done.status == 0, done.err
        done = place("run", "--grant", "mine", "--workspace", str(place.workspace), agent, "--", *words)
        assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
        assert any(b"Say hello." in request.body for request in server.requests)
    assert place.runs()[0]["account"] == "mine@default"
    assert place.shows(done.out, done.err) == []


def test_codex_answers_and_goes_on_with_its_session(place: Place, aimock: ApiMock) -> None:
    place.login("openai", "api-key")
    done = place("run", "--workspace", str(place.workspace), "codex", "exec", "My word is plover.")
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    (session,) = place("codex", "sessions", "--json").json["sessions"]
    again = place("codex", "resume", session["id"], "exec", "And again?")
    assert (again.status, again.out) == (0, aimock.reply + "\n"), again.err
    assert asked(place.openai, "And again?")
    assert all("plover" in json.dumps(question) for question in asked(place.openai, "And again?"))
    assert [run["home_of"] for run in place.runs()] == [session["run"], None]
    assert place.shows(done.out, done.err, again.out, again.err) == []
    assert {head.split(b" ")[1] for head in place.outside.heads} == {b"api.openai.com:443"}


def test_an_agent_that_is_granted_nothing_it_can_use_gets_its_own_account_too(place: Place, aimock: ApiMock) -> None:
    place.login("anthropic", "api-key")
    words = ("run", "--workspace", str(place.workspace), "codex", "--grant", "anthropic", "--", "exec", "Say hello.")
    done = place(*words)
    assert (done.status, place.runs()) == (3, [])
    place.login("openai", "api-key")
    done = place(*words)
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    (kept,) = place.runs()
    assert (kept["account"], kept["grants"]) == ("openai@default", ["openai@default", "anthropic@default"])


def test_codex_goes_by_a_chatgpt_login_where_there_is_one(place: Place, aimock: ApiMock) -> None:
    """The login is stored here, as one in the browser would leave it: that is OpenAI's own page."""
    place.login("openai", "api-key")
    now = datetime.now(UTC)
    token = OAuthToken(
        method="login",
        access_token=Secret(place.keys["chatgpt"]),
        issued_at=now,
        expires_at=now + timedelta(days=8),
        parameters={},
    )
    with contextlib.closing(open_store(Paths(home=place.line.home), clock=SystemClock())) as store:
        store.save(
            Record(
                ref=CredentialRef(provider="chatgpt", account="default"),
                credential=token,
                identity=Identity(account_id="account-1"),
                hosts=("chatgpt.com",),
                base_url="https://chatgpt.com/backend-api/codex",
                restricted=True,
            )
        )
    done = place("run", "--workspace", str(place.workspace), "codex", "exec", "Say hello.")
    assert (done.status, done.out) == (0, aimock.reply + "\n"), done.err
    (question,) = [request for request in place.chatgpt.requests if b"Say hello." in request.body]
    assert question.path == "/backend-api/codex/responses"
    assert question.headers["chatgpt-account-id"] == "account-1"
    (kept,) = place.runs()
    assert (kept["account"], kept["method"], kept["grants"]) == ("chatgpt@default", "login", ["chatgpt@default"])
    assert place.shows(done.out, done.err) == []


def test_an_agent_without_a_login_or_a_program_says_what_to_do(place: Place) -> None:
    done = place("codex", "exec", "hi")
    assert (done.status, "`valetkey login openai`" in done.err) == (3, True)
    place.login("openai", "api-key")
    done = place.line("codex", "exec", "hi", environ={"PATH": "/usr/bin:/bin"})
    assert (done.status, "npm install -g @openai/codex" in done.err) == (1, True)
    assert place.runs() == []


def test_on_a_terminal_an_agent_without_a_login_offers_its_own_providers(place: Place, aimock: ApiMock) -> None:
    at = ("run", "--workspace", str(place.workspace))
    with place.line.terminal(*at, "claude", "--", "-p", "Say hello.") as terminal:
        terminal.expect("Log in to anthropic now?")
        terminal.interrupt()
        assert terminal.end() == 130
    with place.line.terminal(*at, "codex", "--", "exec", "Say hello.") as terminal:
        terminal.expect("Log in to (arrow keys, number or name; Enter)")
        terminal.send("2\r")
        terminal.expect("API key: ")
        terminal.send(place.keys["openai"] + "\n")
        terminal.expect(aimock.reply)
        assert terminal.end() == 0
    assert place.runs()[0]["account"] == "openai@default"
    assert place.shows(terminal.shown) == []


def test_only_an_agent_goes_on(place: Place) -> None:
    done = place("run", "--workspace", str(place.workspace), "--continue", "--", "true")
    assert (done.status, "only an agent" in done.err) == (2, True)
    done = place("run", "--workspace", str(place.workspace), "--", "true")
    assert done.status == 0
    done = place("runs", "resume", place.runs()[0]["id"])
    assert (done.status, "had no agent" in done.err) == (2, True)


@pytest.mark.parametrize("method", ["api-key", "subscription"])
def test_on_a_terminal_claude_code_asks_nothing_before_the_first_word(place: Place, method: str) -> None:
    place.login("anthropic", method)
    with place.line.terminal("run", "--workspace", str(place.workspace), "claude") as terminal:
        terminal.expect("/workspace")
        terminal.send("plover")
        terminal.expect("plover")
        terminal.send("\r")
        # It puts each word at its place: there are no spaces between them.
        terminal.expect("mock.")
        assert asked(place.anthropic, "plover")
        terminal.signal(signal.SIGTERM)
        terminal.end()
    assert place.shows(terminal.shown) == []


def test_on_a_terminal_codex_asks_nothing_before_the_first_word(place: Place) -> None:
    place.login("openai")
    with place.line.terminal("run", "--workspace", str(place.workspace), "codex") as terminal:
        # On a terminal without a size nothing is drawn.
        terminal.resize(40, 100)
        terminal.expect("/workspace")
        terminal.send("plover")
        terminal.expect("plover")
        terminal.send("\r")
        terminal.expect("mock.")
        assert asked(place.openai, "plover")
        terminal.signal(signal.SIGTERM)
        terminal.end()
    assert place.shows(terminal.shown) == []
